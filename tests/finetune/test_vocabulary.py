from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finetune.vocabulary import MISSING, UNKNOWN, CategoricalField, Vocabulary, build_vocabulary

TRAIN = {"item": np.array([0, 0, 1, 2, 2])}
COLUMNS = {
    "item_id": pa.chunked_array([[10, 11, 12, 13]]),
    "colour": pa.chunked_array([["red", "blue", None, "green"]]),
    "genres": pa.chunked_array([[["a", "b"], ["b", "c"], [], None]]),
    "price": pa.chunked_array([[1.0, 4.0, float("nan"), 100.0]]),
}
FEATURES = {"item": {"colour": "categorical", "genres": "multi", "price": "numeric"}}


def learn(min_count: int = 1) -> Vocabulary:
    return build_vocabulary(
        FEATURES, lambda owner, name: COLUMNS[name], train_rows=TRAIN, min_count=min_count
    )


def test_values_come_from_training_impressions_only() -> None:
    vocabulary = learn()
    assert vocabulary.named("item_id").values == [10, 11, 12]
    assert vocabulary.named("colour").values == ["blue", "red"]
    assert vocabulary.named("genres").values == ["a", "b", "c"]


def test_rare_values_share_the_unknown_row() -> None:
    vocabulary = learn(min_count=2)
    field = vocabulary.named("item_id")
    assert field.values == [10, 12]
    assert field.encode(pa.array([11, 10, 12])).tolist() == [
        field.offset + UNKNOWN,
        field.offset + 2,
        field.offset + 3,
    ]


def test_missing_and_unknown_are_told_apart_and_fields_do_not_overlap() -> None:
    vocabulary = learn()
    colour = vocabulary.named("colour")
    local = colour.encode(COLUMNS["colour"]) - colour.offset
    assert local.tolist() == [3, 2, MISSING, UNKNOWN]
    starts = [field.offset for field in vocabulary.categorical]
    sizes = [field.size for field in vocabulary.categorical]
    assert starts == list(np.cumsum([0, *sizes[:-1]]))
    assert vocabulary.num_rows == sum(sizes)


def test_lists_are_cut_padded_and_an_empty_one_is_missing() -> None:
    field = learn().named("genres")
    rows = field.encode_lists(COLUMNS["genres"], length=1)
    assert (rows - field.offset).tolist() == [[2], [3], [MISSING], [MISSING]]
    rows = field.encode_lists(COLUMNS["genres"], length=3)
    assert rows[1].tolist() == [field.offset + 3, field.offset + 4, -1]


def test_numbers_are_standardised_over_training_impressions() -> None:
    price = learn().numeric[0]
    assert (price.mean, price.std) == (pytest.approx(2.0), pytest.approx(np.sqrt(2)))
    encoded = price.encode(COLUMNS["price"])
    assert encoded[1] == pytest.approx(np.sqrt(2))
    assert np.isnan(encoded[2])


def test_a_column_that_is_all_missing_has_no_values_and_no_spread() -> None:
    columns = COLUMNS | {
        "colour": pa.chunked_array([pa.array([None] * 4, pa.string())]),
        "price": pa.chunked_array([pa.array([None] * 4, pa.float64())]),
    }
    vocabulary = build_vocabulary(
        FEATURES, lambda owner, name: columns[name], train_rows=TRAIN, min_count=1
    )
    assert vocabulary.named("colour").values == []
    assert (vocabulary.numeric[0].mean, vocabulary.numeric[0].std) == (0.0, 1.0)


def test_a_saved_vocabulary_encodes_alike(tmp_path: Path) -> None:
    learn().save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == learn()


def test_another_version_of_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text('{"version": 99}')
    with pytest.raises(ValueError, match="found version 99"):
        Vocabulary.load(path)


def test_integers_of_a_new_table_match_strings_of_the_vocabulary() -> None:
    field = CategoricalField(name="x", owner="context", kind="categorical", offset=0, values=["7"])
    assert field.encode(pa.array([7, 8])).tolist() == [2, UNKNOWN]
