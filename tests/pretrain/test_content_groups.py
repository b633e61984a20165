"""Items of the same content are one group, by the hashes of the catalogue."""

import pyarrow as pa

from pretrain.content_groups import content_groups


def test_a_group_has_equal_hashes_of_every_modality() -> None:
    big = 2**64 - 1
    items = pa.table(
        {
            "hash_image": pa.array([big, big, big, None, None, None, None, 0], pa.uint64()),
            "hash_text": pa.array([1, 1, 2, 1, 1, None, None, None], pa.uint64()),
            "phash_image": pa.array([0] * 8, pa.uint64()),
        }
    )
    # Rows 5 and 6 have no content at all; the picture of row 7 happens to have the hash 0.
    assert content_groups(items).tolist() == [0, 0, 2, 3, 3, 5, 6, 7]


def test_without_hashes_every_item_is_its_own() -> None:
    assert content_groups(pa.table({"item_id": ["a", "b"]})).tolist() == [0, 1]
