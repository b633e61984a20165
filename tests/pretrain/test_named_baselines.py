"""Baselines that are trained are run when they are named, on what they need, and only then."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.cli import main
from pretrain.evaluate import evaluate
from pretrain.named_baselines import read_sequences
from pretrain.sasrec import SASRecConfig

ITEMS = np.arange(100, 110)
"""Everybody takes five in a row of this ring."""


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Rows in no order: only `timestamp` says what came first."""
    users = np.repeat(np.arange(10), 5)
    items = ITEMS[(users + np.tile(np.arange(5), 10)) % 10]
    order = np.random.default_rng(0).permutation(50)
    return write(
        tmp_path / "train.parquet",
        user_id=[f"u{user}" for user in users[order]],
        item_id=items[order],
        timestamp=np.tile(np.arange(5), 10)[order],
    )


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write(
        tmp_path / "cases.parquet",
        user_id=["x", "y"],
        history=[[102, 103, 104], [106, 107, 108]],
        targets=[[105], [109]],
    )


def test_sasrec_ranks_by_the_order_of_the_log(tmp_path: Path, train: Path, cases: Path) -> None:
    config = SASRecConfig(
        width=16, layers=1, length=6, dropout=0.0, epochs=40, lr=0.01, loss="softmax"
    )
    inputs: dict[str, Any] = {"train": train, "baselines": ["sasrec", "item_knn"], "k": 1}
    found = evaluate(cases, tmp_path / "m.json", sasrec=config, **inputs)["catalogue"]
    assert found["sasrec"]["recall@1"] == 1
    assert found["item_knn"]["recall@1"] == 0  # what is before goes together with it just as well


def test_sequences_are_of_one_user_each_and_oldest_first(train: Path) -> None:
    found = read_sequences(train, catalogue=pa.array(ITEMS))
    assert [sequence.tolist() for sequence in found] == [
        [(user + step) % 10 for step in range(5)] for user in range(10)
    ]


def test_light_gcn_ranks_where_it_is_named(tmp_path: Path, train: Path, cases: Path) -> None:
    found = evaluate(cases, tmp_path / "m.json", train=train, baselines=["light_gcn"], k=4)
    assert found["catalogue"]["light_gcn"]["recall@4"] == 1


def test_what_trains_for_long_must_be_named(tmp_path: Path, train: Path, cases: Path) -> None:
    found = evaluate(cases, tmp_path / "m.json", train=train, k=1)["catalogue"]
    assert list(found) == ["popularity", "item_knn", "item_knn_shrunk", "ease"]


def test_sasrec_without_times_and_any_without_a_log_are_refused(
    tmp_path: Path, train: Path, cases: Path
) -> None:
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(train).drop_columns("timestamp"), bare)
    inputs: dict[str, Any] = {"baselines": ["ease", "sasrec"]}
    with pytest.raises(ValueError, match=r"bare\.parquet.*expected `timestamp` for the baseline"):
        evaluate(cases, tmp_path / "m.json", train=bare, **inputs)
    with pytest.raises(ValueError, match=r"baselines: found \['ease', 'sasrec'\] and no train"):
        evaluate(cases, tmp_path / "m.json", **inputs)


def test_its_settings_are_flags(
    tmp_path: Path, train: Path, cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--cases", cases, "--out", tmp_path / "m.json", "--train", train,
             "--baselines", "[sasrec]", "--sasrec.epochs", 1, "--sasrec.seed", 3]  # fmt: skip
    main([*map(str, words), "--sasrec.loss", "softmax"])
    assert "sasrec" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*map(str, words), "--sasrec.loss", "hinge"])
    assert "hinge" in capsys.readouterr().err
