"""The parts of the bench that give FuxiCTR what our heads get."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dataset import Dataset, open_dataset
from finetune.data import CtrData
from finetune.settings import FitConfig


@pytest.fixture
def table() -> ModuleType:
    return importlib.import_module("fuxictr_table")


@pytest.fixture
def parity() -> ModuleType:
    return importlib.import_module("ctr_parity")


def test_a_code_stands_for_the_value_that_our_row_stands_for(
    table: ModuleType, dataset: Dataset, fit_config: FitConfig, tmp_path: Path
) -> None:
    data = CtrData.learn(dataset, fit_config)
    table.write_tables(data, tmp_path, labels={"is_click": "label"})
    specs = {k: v for one in json.loads((tmp_path / "feature_map.json").read_text())["features"]
             for k, v in one.items()}  # fmt: skip
    valid = np.load(tmp_path / "valid.npz")
    shown = dataset.impressions("valid")
    assert valid["is_click"].tolist() == shown["label"].to_pylist()

    def decoded(name: str, codes: np.ndarray) -> list[object]:
        values = data.vocabulary.named(name).values
        assert codes.max() < specs[name]["vocab_size"] == len(values) + 3
        reserved = {1: "missing", 2: "unknown"}
        return [reserved.get(code) or values[code - 3] for code in codes.tolist()]

    known = set(data.vocabulary.named("device").values)
    expected = [one if one in known else "unknown" for one in shown["device"].to_pylist()]
    assert decoded("device", valid["device"]) == expected
    items = dataset.items["item_id"].to_numpy()[shown["item_row"].to_numpy()]
    known = set(data.vocabulary.named("item_id").values)
    expected = [int(one) if one in known else "unknown" for one in items]
    assert decoded("item_id", valid["item_id"]) == expected
    price = dataset.items["price"].to_numpy(zero_copy_only=False)[shown["item_row"].to_numpy()]
    assert np.corrcoef(price, valid["price"])[0, 1] == pytest.approx(1)
    assert not np.isnan(valid["price"]).any()


def test_the_history_is_ours_and_reads_the_table_of_the_items(
    table: ModuleType, dataset: Dataset, fit_config: FitConfig, tmp_path: Path
) -> None:
    data = CtrData.learn(dataset, fit_config)
    table.write_tables(data, tmp_path, labels={"is_click": "label"})
    specs = {k: v for one in json.loads((tmp_path / "feature_map.json").read_text())["features"]
             for k, v in one.items()}  # fmt: skip
    history = np.load(tmp_path / "train.npz")[table.HISTORY]
    ours = data.train.history_NL.numpy()
    assert ((history == table.PADDING) == (ours < 0)).all()
    rows = data.item_id_rows.numpy()[ours[ours >= 0]]
    offset = data.vocabulary.named("item_id").offset
    assert (history[history != table.PADDING] == rows - offset + 1).all()
    assert specs[table.HISTORY]["share_embedding"] == "item_id"
    assert specs[table.HISTORY]["max_len"] == fit_config.history_length
    # It shares the table of a field that was described before it.
    assert list(specs).index("item_id") < list(specs).index(table.HISTORY)


def test_another_outcome_is_learnt_as_if_it_were_the_click(
    parity: ModuleType, rich_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a head and a seed on the same impressions, once as a task and once as the very label."""
    monkeypatch.setattr(parity, "LABELS", {"click": "label", "like": "like"})
    relabelled = Path(shutil.copytree(rich_dir, tmp_path / "relabelled"))
    for path in relabelled.glob("ctr/*/*.parquet"):
        table = pq.read_table(path)
        like = table["like"].cast(table.schema.field("label").type)
        pq.write_table(table.set_column(table.column_names.index("label"), "label", like), path)
    settings = parity.Settings(embedding_width=4, hidden=(8,), max_epochs=2)

    def found(label: str, dataset_dir: Path) -> dict[str, Any]:
        dataset = open_dataset(dataset_dir)
        bench = parity.Bench(tmp_path / dataset_dir.name, dataset, tmp_path, splits=("valid",))
        run = parity.Run(side="ours", label=label, head="din", seed=0, settings=settings)
        column = parity.LABELS[label]
        expected = pq.read_table(next(dataset_dir.glob("ctr/valid/*.parquet")))[column]
        assert bench.label_of(run, "valid").tolist() == expected.to_pylist()
        result: dict[str, Any] = bench.result(run)
        return {key: value for key, value in result.items() if key != "cpu_s"}

    like = found("like", rich_dir)
    assert like == found("click", relabelled)
    assert like["valid_auc"] != found("click", rich_dir)["valid_auc"]


def test_the_outcome_has_a_difference_for_every_head_and_label(parity: ModuleType) -> None:
    def runs(*aucs: float) -> list[dict[str, object]]:
        common = {"epochs": 3, "cpu_s": 2.0, "settings": {"embedding_l2": 0.0}}
        return [{"test_auc": value, **common} for value in aucs]

    found = parity.outcome(
        {
            ("din", "is_click", "ours"): runs(0.74, 0.75),
            ("din", "is_click", "fuxictr"): runs(0.73, 0.75),
            ("pnn", "is_click", "ours"): runs(0.7, 0.7),
            ("pnn", "is_click", "fuxictr"): runs(0.7, 0.703),
        },
        split="test",
    )
    assert found["ratio"] == {"din_is_click": 0.005, "pnn_is_click": -0.0015}
    assert found["by_seed"]["din_is_click"] == [0.01, 0.0]
    assert found["met"] == {"din_is_click": True, "pnn_is_click": False}
    assert found["seeds"] == 2
    json.dumps(found)


def test_a_finished_run_is_kept_and_one_of_other_settings_is_refused(
    parity: ModuleType, tmp_path: Path
) -> None:
    bench = parity.Bench(tmp_path, dataset=None, tables=tmp_path, splits=("valid",))
    run = parity.Run(side="ours", label="is_click", head="din", seed=0, settings=parity.Settings())
    path = tmp_path / "ctr_parity" / "valid" / f"{run.name}.json"
    path.parent.mkdir(parents=True)
    settings = json.loads(json.dumps(parity.asdict(run.settings)))
    path.write_text(json.dumps({"valid_auc": 0.5, "settings": settings}))
    assert bench.result(run)["valid_auc"] == 0.5
    path.write_text(json.dumps({"valid_auc": 0.5, "settings": settings | {"lr": 1.0}}))
    with pytest.raises(SystemExit, match="found a run of other settings"):
        bench.result(run)
