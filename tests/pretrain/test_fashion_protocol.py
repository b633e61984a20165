"""The fashion protocols on a made-up week, and on the real one where its files are."""

import zlib
from pathlib import Path

import fashion_protocol as fashion
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pretrain.baselines import EASE, Baseline, ItemKNN, Popularity
from pretrain.cases import read_cases, read_choices
from pretrain.metrics import mean_over_users, rank_scored, recall_at_k

needs_data = pytest.mark.skipif(
    not fashion.data_dir().is_dir(), reason="hm_fashion_mm is not here; set TRIPTYCH_DATA"
)


def crc(text: str) -> int:
    return zlib.crc32(text.encode())


@pytest.fixture
def week() -> tuple[pa.Table, pa.Table]:
    """60 users, 80 items of 40 products, 1 to 8 distinct purchases a user, unordered."""
    rng = np.random.default_rng(0)
    baskets = [rng.choice(80, rng.integers(1, 9), replace=False) for _ in range(60)]
    user = np.repeat(np.arange(60), [len(basket) for basket in baskets])
    item = 1000 + np.concatenate(baskets)
    rows = rng.permutation(len(user))
    interactions = pa.table({"user_id": user[rows], "item_id": item[rows], "day": rows})
    items = pa.table({"item_id": 1000 + np.arange(80), "product_code": np.arange(80) // 2 * 7})
    ordered = interactions.sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    return ordered, items


def pairs(table: pa.Table) -> set[tuple[int, int]]:
    return set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def listed(cases: pa.Table, name: str) -> set[tuple[int, int]]:
    rows = zip(cases["user_id"].to_pylist(), cases[name].to_pylist(), strict=True)
    return {(user, item) for user, items in rows for item in items}


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_cold_holds_out_products_by_their_checksum(
    week: tuple[pa.Table, pa.Table], stage: str
) -> None:
    interactions, items = week
    result = fashion.fashion_cold(interactions, items, stage=stage)
    bucket = {row["item_id"]: crc(str(row["product_code"])) % 100 for row in items.to_pylist()}
    cold = {i for i, b in bucket.items() if (b < 15 if stage == "test" else 15 <= b < 25)}
    gone = set() if stage == "test" else {i for i, b in bucket.items() if b < 15}
    assert set(result.candidates["item_id"].to_pylist()) == cold
    assert cold
    bought = pairs(interactions)
    warm = {(u, i) for u, i in bought if i not in cold | gone}
    asked = {u for u, _ in warm} & {u for u, i in bought if i in cold}
    assert pairs(result.train) == warm
    assert set(result.cases["user_id"].to_pylist()) == asked
    assert listed(result.cases, "history") == {(u, i) for u, i in warm if u in asked}
    assert listed(result.cases, "targets") == {
        (u, i) for u, i in bought if i in cold and u in asked
    }


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_all_holds_out_the_purchase_with_the_smallest_checksum(
    week: tuple[pa.Table, pa.Table], stage: str
) -> None:
    interactions, items = week
    result = fashion.fashion_all(interactions, items, stage=stage)
    train, targets = set(), set()
    for user in range(60):
        mine = [i for u, i in pairs(interactions) if u == user]
        mine.sort(key=lambda item: crc(f"{user}:{item}"))
        drop = 0 if stage == "test" else 1
        if len(mine) >= 2 + drop:
            targets.add((user, mine[drop]))
        held_out = (
            mine[: 1 + drop] if len(mine) >= 2 + drop else mine[:drop] if len(mine) > 1 else []
        )
        train |= {(user, item) for item in mine if item not in held_out}
    assert listed(result.cases, "targets") == targets
    assert pairs(result.train) == train
    assert listed(result.cases, "history") <= train
    assert result.candidates["item_id"].to_pylist() == items["item_id"].to_pylist()


@pytest.mark.parametrize("name", ["fashion-cold", "fashion-all"])
def test_validation_never_sees_what_test_asks(week: tuple[pa.Table, pa.Table], name: str) -> None:
    valid, test = (fashion.protocol(name, *week, stage=stage) for stage in ("valid", "test"))
    asked = listed(test.cases, "targets")
    assert not asked & (pairs(valid.train) | listed(valid.cases, "history"))
    assert not asked & listed(valid.cases, "targets")
    assert pairs(valid.train) < pairs(test.train) | listed(valid.cases, "targets")


def test_texts_join_the_fields_that_are_there() -> None:
    row = {field: [field.upper()] for field in fashion.TEXT_FIELDS} | {"colour": [None]}
    assert fashion.item_texts(pa.table(row)) == [
        "TITLE. PRODUCT_TYPE. GRAPHICAL_APPEARANCE. DEPARTMENT. SECTION. DESCRIPTION"
    ]


@pytest.fixture(scope="module")
def real() -> tuple[pa.Table, pa.Table]:
    folder = fashion.data_dir()
    return (
        fashion.read_interactions(folder),
        fashion.read_items(folder, columns=["item_id", "product_code"]),
    )


@needs_data
def test_the_real_protocols_have_the_sizes_of_their_definition(
    real: tuple[pa.Table, pa.Table],
) -> None:
    cold = fashion.protocol("fashion-cold", *real, stage="test")
    every = fashion.protocol("fashion-all", *real, stage="test")
    assert (len(cold.cases), len(cold.candidates)) == (9_973, 1_557)
    assert (len(every.cases), len(every.candidates)) == (16_638, 11_117)
    assert pc.all(pc.equal(pc.list_value_length(every.cases["targets"]), 1)).as_py()


def recall_at_20(protocol: pa.Table, model: Baseline, *, folder: Path) -> float:
    catalogue = protocol.candidates["item_id"].combine_chunks()
    for name in ("train", "cases"):
        pq.write_table(getattr(protocol, name), folder / f"{name}.parquet")
    train_UN = read_choices(folder / "train.parquet", catalogue=catalogue)
    asked = read_cases(folder / "cases.parquet", catalogue=catalogue)
    model.fit(train_UN)
    ranks = rank_scored(
        lambda cases: torch.from_numpy(model.scores(asked.history_BN[cases])),
        num_items=len(catalogue),
        target_rows=asked.targets_BT,
        masked_rows=asked.history_BL,
    )
    return mean_over_users(recall_at_k(ranks, k=20)).mean


@needs_data
@pytest.mark.parametrize(
    ("model", "reference", "tolerance"),
    [
        (Popularity(), 0.0451, 0.00005),
        # The reference breaks ties by chance (0.1452 here too, then); we break them against.
        (ItemKNN(), 0.1452, 0.0006),
        pytest.param(EASE(l2=50), 0.2147, 0.00005, marks=pytest.mark.slow),
        pytest.param(EASE(l2=200), 0.2136, 0.00005, marks=pytest.mark.slow),
        pytest.param(EASE(l2=500), 0.2120, 0.00005, marks=pytest.mark.slow),
    ],
)
def test_baselines_reach_their_reference_values(
    real: tuple[pa.Table, pa.Table],
    tmp_path: Path,
    model: Baseline,
    reference: float,
    tolerance: float,
) -> None:
    every = fashion.protocol("fashion-all", *real, stage="test")
    found = recall_at_20(every, model, folder=tmp_path)
    assert found == pytest.approx(reference, abs=tolerance)
