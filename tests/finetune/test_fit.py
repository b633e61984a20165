import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_prep.dataset import Dataset
from finetune import run_folder
from finetune.fit import fit
from finetune.heads import HEADS
from finetune.metrics import auc
from finetune.predict import predict
from finetune.settings import FitConfig, PredictConfig

COLUMNS = {"user_id", "item_id", "time", "label", "score"}


@pytest.mark.parametrize("head", HEADS)
def test_a_run_writes_its_folder_and_opens_test_once(
    head: str, fit_config: FitConfig, fake_release: object, dataset: Dataset
) -> None:
    config = dataclasses.replace(
        fit_config, rung="aligned", head=dataclasses.replace(fit_config.head, name=head)
    )
    record = fit(config)
    written = json.loads((config.out_dir / "metrics.json").read_text())
    assert written["test_opened"] == 1
    assert written["test"]["auc"] == pytest.approx(record["test"]["auc"])
    predictions = pq.read_table(config.out_dir / "predictions.parquet")
    assert set(predictions.column_names) == COLUMNS
    assert predictions.num_rows == dataset.manifest.counts["impressions_test"]
    label, score = predictions["label"].to_numpy(), predictions["score"].to_numpy()
    assert auc(label, score) == pytest.approx(record["test"]["auc"])
    run = run_folder.Run.load(config.out_dir)
    assert len(run.history) == written["epochs"] <= config.train.max_epochs
    best = max(run.history, key=lambda row: row["val/auc"])
    assert best["epoch"] == written["best_epoch"]
    assert run_folder.read_config(config.out_dir) == config
    assert yaml.safe_load((config.out_dir / "config.yaml").read_text())["rung"] == "aligned"
    assert not list(config.out_dir.glob(".checkpoints*"))


def test_a_run_repeats_itself_to_the_last_bit(fit_config: FitConfig) -> None:
    other = dataclasses.replace(fit_config, out_dir=fit_config.out_dir.parent / "other")
    assert fit(fit_config)["test"] == fit(other)["test"]


def test_the_saved_weights_are_those_of_the_best_epoch(fit_config: FitConfig) -> None:
    """Too high a rate overfits at once; the first epoch's weights come back."""
    train = dataclasses.replace(fit_config.train, max_epochs=12, id_lr=0.05, lr=0.01, patience=12)
    config = dataclasses.replace(fit_config, train=train)
    record = fit(config)
    assert record["best_epoch"] < 12
    once = dataclasses.replace(
        config,
        train=dataclasses.replace(train, max_epochs=record["best_epoch"]),
        out_dir=config.out_dir.parent / "once",
    )
    assert fit(once)["test"] == record["test"]


def test_ids_stand_still_after_their_epochs(fit_config: FitConfig) -> None:
    from safetensors.torch import load_file

    def table(max_epochs: int, id_epochs: int | None) -> torch.Tensor:
        train = dataclasses.replace(
            fit_config.train, max_epochs=max_epochs, id_epochs=id_epochs, id_l2=0.0
        )
        out_dir = fit_config.out_dir.parent / f"{max_epochs}-{id_epochs}"
        record = fit(dataclasses.replace(fit_config, train=train, out_dir=out_dir))
        if record["best_epoch"] != max_epochs:
            pytest.skip("the last epoch was not the best one")
        return load_file(out_dir / "model.safetensors")["fields.table.weight"]

    assert torch.equal(table(2, 1), table(1, None))


@pytest.mark.parametrize("rung", ["none", "aligned"])
def test_predict_gives_the_scores_of_the_run(
    rung: str, fit_config: FitConfig, fake_release: object, dataset: Dataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(fit_config, rung=rung)
    fit(config)
    expected = pq.read_table(config.out_dir / "predictions.parquet")
    context = dataset.impressions("test").select(["position", "device"])
    given = expected.select(["user_id", "item_id", "time"])
    for name in context.column_names:
        given = given.append_column(name, context[name])
    pq.write_table(given, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    predict(PredictConfig(run_dir=config.out_dir, impressions=tmp_path / "new.parquet", out=out))
    scores = pq.read_table(out)
    np.testing.assert_allclose(scores["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-6)


def write_impressions(path: Path, dataset: Dataset, **changes: object) -> Path:
    columns = {
        "user_id": ["a stranger"],
        "item_id": dataset.items["item_id"][:1].to_pylist(),
        "time": [dataset.manifest.newest_event + 1],
        "position": [1],
        "device": ["phone"],
    } | changes
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": None}, "expected also .'position'."),
        ({"item_id": [-5]}, "such as -5"),
        ({"time": [1_700_000_000]}, "which are seconds"),
        ({"time": ["noon"]}, "expected unix milliseconds"),
    ],
)
def test_predict_refuses_impressions_it_cannot_score(
    changes: dict, message: str, fit_config: FitConfig, dataset: Dataset, tmp_path: Path
) -> None:
    fit(dataclasses.replace(fit_config, train=dataclasses.replace(fit_config.train, max_epochs=1)))
    new = write_impressions(tmp_path / "new.parquet", dataset, **changes)
    config = PredictConfig(
        run_dir=fit_config.out_dir, impressions=new, out=tmp_path / "scores.parquet"
    )
    with pytest.raises(ValueError, match=message):
        predict(config)


def test_an_unknown_user_is_scored_as_a_new_one(
    fit_config: FitConfig, fake_release: object, dataset: Dataset, tmp_path: Path
) -> None:
    fit(dataclasses.replace(fit_config, rung="aligned"))
    new = write_impressions(tmp_path / "new.parquet", dataset)
    out = tmp_path / "scores.parquet"
    predict(PredictConfig(run_dir=fit_config.out_dir, impressions=new, out=out))
    assert 0 < pq.read_table(out)["score"][0].as_py() < 1
