"""films-rolling on ratings written here, and on the real ones where their files are."""

from pathlib import Path

import films_protocol as films
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch

from pretrain.baselines import Baseline, ItemKNN, Popularity
from pretrain.cases import read_cases, read_choices
from pretrain.content_ease import ContentEASE
from pretrain.metrics import mean_over_users, rank_scored, recall_at_k

needs_data = pytest.mark.skipif(
    not films.data_dir().is_dir(), reason="movielens_mm is not here; set TRIPTYCH_DATA"
)


@pytest.fixture
def ratings() -> pa.Table:
    """One rating a second; user 1's are of items 0 … 19, the seventh one is bad."""
    times = np.arange(40)
    users = np.where(times % 2 == 0, 1, 2)
    return pa.table(
        {
            "user_id": users,
            "item_id": np.where(users == 1, times // 2, 100 + times // 2),
            "rating": np.where(times == 12, 3.0, 5.0),
            "timestamp": times,
        }
    ).sort_by([("user_id", "ascending"), ("timestamp", "ascending")])


def test_a_case_knows_what_came_strictly_before_and_masks_bad_ratings_too(
    ratings: pa.Table,
) -> None:
    block = films.rolling_block(ratings, 0, stage="test")  # seconds 19.5 to 23.4
    cases = block.cases.filter(pa.compute.equal(block.cases["user_id"], 1)).to_pylist()
    assert [case["targets"] for case in cases] == [[10], [11]]
    assert cases[0]["history"] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert cases[0]["masked"] == list(range(10))
    assert cases[1]["history"] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]  # inside the block too
    assert cases[0]["at_time"] == 20_000
    assert cases[0]["cold"]
    assert max(block.train["timestamp"].to_pylist()) < block.start == 20


def test_the_same_second_is_not_before(ratings: pa.Table) -> None:
    time = ratings["timestamp"].to_numpy().copy()
    time[ratings["item_id"].to_numpy() == 10] = 22  # with item 11
    place = ratings.column_names.index("timestamp")
    block = films.rolling_block(
        ratings.set_column(place, "timestamp", pa.array(time)), 0, stage="test"
    )
    last = block.cases.filter(pa.compute.equal(block.cases["user_id"], 1)).to_pylist()[-1]
    assert 10 not in last["history"]
    assert 11 not in last["history"]


def test_validation_is_the_last_tenth_of_what_the_block_may_learn_from(ratings: pa.Table) -> None:
    test, valid = (films.rolling_block(ratings, 4, stage=stage) for stage in ("test", "valid"))
    known = test.train["timestamp"].to_numpy()
    assert set(valid.cases["at_time"].to_pylist()) <= set((1000 * known).tolist())
    assert abs(len(valid.train) - 0.9 * len(known)) <= 1


USERS_AND_POSITIVES = [(68, 4243), (94, 5036), (84, 4682), (62, 5059), (72, 3987)]
COLD_SHARE = [0.151, 0.172, 0.166, 0.075, 0.163]
REFERENCES = {
    "popularity": [0.103, 0.090, 0.111, 0.082, 0.099],
    "item-kNN": [0.105, 0.132, 0.205, 0.138, 0.164],
    "EASE": [0.138, 0.153, 0.211, 0.167, 0.186],
}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_the_real_blocks_give_the_reference_values(tmp_path: Path, number: int) -> None:
    source = films.data_dir()
    block = films.rolling_block(films.read_interactions(source), number, stage="test")
    users = len(set(block.cases["user_id"].to_pylist()))
    assert (users, len(block.cases)) == USERS_AND_POSITIVES[number]
    assert np.mean(block.cases["cold"].to_pylist()) == pytest.approx(COLD_SHARE[number], abs=6e-4)
    catalogue = pq.read_table(source / "items.parquet")["item_id"].combine_chunks().sort()
    pq.write_table(block.cases, tmp_path / "cases.parquet")
    liked = block.train.filter(pa.compute.greater_equal(block.train["rating"], 4.0))
    pq.write_table(liked, tmp_path / "train.parquet")
    asked = read_cases(tmp_path / "cases.parquet", catalogue=catalogue)
    train = read_choices(tmp_path / "train.parquet", catalogue=catalogue)
    nothing = np.zeros((len(catalogue), 1), np.float32)
    models: dict[str, Baseline] = {
        "popularity": Popularity(),
        "item-kNN": ItemKNN(),
        "EASE": ContentEASE(nothing, l2=200.0, content_weight=0.0),  # the dual form is quicker
    }
    for name, model in models.items():
        fitted = model.fit(train)
        ranks = rank_scored(
            lambda cases, fitted=fitted: torch.from_numpy(fitted.scores(asked.history_BN[cases])),
            num_items=len(catalogue),
            target_rows=asked.targets_BT,
            masked_rows=asked.masked_BM,
        )
        found = mean_over_users(recall_at_k(ranks, k=20), users_B=asked.users_B).mean
        # Given to three digits, and by another way with equal scores (popularity has many).
        assert found == pytest.approx(REFERENCES[name][number], abs=1.5e-3), name
