import numpy as np
import pyarrow as pa
import pytest

from data_prep.dataset import Dataset
from finetune.counting import Moments, ValueCounts
from finetune.data import CtrData
from finetune.hashing import hash_rows
from finetune.settings import FitConfig
from finetune.vocabulary import NUM_RESERVED, Vocabulary, start_counts, vocabulary_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("is_list", [False, True])
def test_values_counted_in_pieces_are_those_counted_at_once(
    is_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.counting._WAITING_ROWS", 20)
    values = [None if v == 9 else int(v) for v in RNG.integers(10, size=900)]
    rows = [values[i : i + 3] for i in range(0, 900, 3)] if is_list else values
    weights = RNG.integers(1, 5, size=len(rows))
    whole, pieces = ValueCounts(is_list=is_list), ValueCounts(is_list=is_list)
    whole.add(pa.array(rows), weights)
    for start in range(0, len(rows), 70):
        stop = min(start + 70, len(rows))
        pieces.add(pa.array(rows[start:stop]), weights[start:stop])
    assert pieces.totals() == whole.totals()
    flat_weights = np.repeat(weights, 3) if is_list else weights
    for value, weight in whole.totals().to_pydict().items() and zip(
        *whole.totals().to_pydict().values(), strict=True
    ):
        assert weight == flat_weights[[v == value for v in values]].sum()


def test_moments_in_pieces_are_those_of_the_whole_column() -> None:
    x = np.append(RNG.normal(1e6, 3, 500), [np.nan, np.inf])
    weights = RNG.integers(0, 4, size=len(x))
    moments = Moments()
    for start in range(0, len(x), 60):
        moments.add(pa.array(x[start : start + 60]), weights[start : start + 60])
    repeated = np.repeat(x[:500], weights[:500])
    assert moments.mean == pytest.approx(repeated.mean(), rel=1e-12)
    assert moments.std == pytest.approx(repeated.std(), rel=1e-9)


def test_hashing_knows_no_order_no_type_and_no_machine() -> None:
    rows = hash_rows(pa.array([10, 7, None, 10]), buckets=1_000)
    assert rows[0] == rows[3] != rows[1]
    assert rows[2] == -1
    assert rows.tolist() == hash_rows(pa.array(["10", "7", None, "10"]), buckets=1_000).tolist()
    assert rows.tolist() == [122, 674, -1, 122]  # of xxh3, for ever


def test_hashed_values_collide_as_often_as_reckoned() -> None:
    values, buckets = pa.array(range(20_000)), 50_000
    rows = hash_rows(values, buckets=buckets)
    counts = np.bincount(rows, minlength=buckets)
    alone = (counts[rows] == 1).mean()
    assert alone == pytest.approx((1 - 1 / buckets) ** (20_000 - 1), abs=0.02)


def learn(**changes: object) -> Vocabulary:
    counts = start_counts(
        {"item": {}, "context": {"word": "categorical", "seen": "multi", "size": "numeric"}},
        log_features=["size"],
    )
    once = np.ones(4, np.int64)
    counts["item", "item_id"].add(pa.array([5, 6, 7, 7]), once)
    counts["context", "word"].add(pa.array(["a", "b", "c", "d"]), once)
    counts["context", "seen"].add(pa.array([[5], [6, 7], [], None]), once)
    counts["context", "size"].add(pa.array([0.0, 9.0, 99.0, None]), once)
    settings = {"hash_buckets": {}, "hash_above": None, "item_sequences": ()} | changes
    return vocabulary_of(counts, min_count=1, **settings)


def test_a_named_field_is_hashed_into_its_buckets() -> None:
    vocabulary = learn(hash_buckets={"word": 11})
    word = vocabulary.named("word")
    assert (word.size, word.values) == (NUM_RESERVED + 11, [])
    rows = word.encode(pa.array(["a", "never seen", None])) - word.offset
    assert (rows[:2] >= NUM_RESERVED).all()
    assert rows[2] == 0
    assert vocabulary.num_rows == 5 + word.size + 5


def test_a_vocabulary_above_the_limit_is_hashed() -> None:
    vocabulary = learn(hash_above=3)
    assert vocabulary.named("word").hash_buckets == 3
    assert vocabulary.named("item_id").hash_buckets is None


def test_a_sequence_of_items_reads_the_items_rows() -> None:
    plain, shared = learn(), learn(item_sequences=("seen",))
    item, seen = shared.named("item_id"), shared.named("seen")
    assert shared.num_rows == plain.num_rows - plain.named("seen").size
    rows = seen.encode_lists(pa.array([[7, 5], None]), length=3)
    assert rows.tolist() == [[*item.encode(pa.array([7, 5])), -1], [item.offset, -1, -1]]


def test_logarithms_are_standardised() -> None:
    (size,) = learn().numeric
    expected = np.log1p([0, 9, 99])
    assert (size.mean, size.std) == (pytest.approx(expected.mean()), pytest.approx(expected.std()))
    encoded = size.encode(pa.array([-9.0, 0.0]))
    assert encoded[0] == pytest.approx((-np.log(10) - size.mean) / size.std)


def test_a_strange_name_in_the_settings_is_refused(dataset: Dataset, fit_config: FitConfig) -> None:
    import dataclasses

    config = dataclasses.replace(fit_config, hash_buckets={"colour": 10})
    with pytest.raises(ValueError, match=r"hash_buckets: found \['colour'\], expected features"):
        CtrData.learn(dataset, config)
