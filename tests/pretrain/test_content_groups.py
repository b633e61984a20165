"""Items of the same content are one group, by the hashes of the catalogue."""

import pyarrow as pa

from pretrain.content_groups import content_groups, modality_groups

BIG = 2**64 - 1
ITEMS = pa.table(
    {
        "hash_image": pa.array([BIG, BIG, BIG, None, None, None, None, 0], pa.uint64()),
        "hash_text": pa.array([1, 1, 2, 1, 1, None, None, None], pa.uint64()),
        "phash_image": pa.array([0] * 8, pa.uint64()),
    }
)
"""Rows 5 and 6 have no content at all; the picture of row 7 happens to have the hash 0."""


def test_a_group_has_equal_hashes_of_every_modality() -> None:
    assert content_groups(ITEMS).tolist() == [0, 0, 2, 3, 3, 5, 6, 7]


def test_each_modality_has_groups_of_its_own() -> None:
    """One picture with two texts is one picture."""
    found = {name: groups.tolist() for name, groups in modality_groups(ITEMS).items()}
    assert found == {"image": [0, 0, 0, 3, 4, 5, 6, 7], "text": [0, 0, 2, 0, 0, 5, 6, 7]}


def test_without_hashes_every_item_is_its_own() -> None:
    items = pa.table({"item_id": ["a", "b"]})
    assert content_groups(items).tolist() == [0, 1]
    assert modality_groups(items) == {}
