"""Day by day: each day is tested before it is learnt, and the vocabulary grows."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.dataset import Dataset
from finetune import daily as module
from finetune.cli import main
from finetune.daily import by_day, daily, train_new, train_on
from finetune.daily_settings import DailyConfig
from finetune.settings import FitConfig, HeadConfig, TrainConfig, TrainerConfig
from finetune.task_settings import TaskConfig


@pytest.fixture
def config(toy_dataset: Path, tmp_path: Path) -> DailyConfig:
    return DailyConfig(
        dataset_dir=toy_dataset,
        out_dir=tmp_path / "daily",
        first_days=40,
        history_length=8,
        head=HeadConfig(name="deepfm", embedding_width=4, hidden=(8,)),
        train=TrainConfig(batch_size=256, max_epochs=2, lr=0.01, id_lr=0.01),
        trainer=TrainerConfig(accelerator="cpu", progress="none"),
    )


def test_days_begin_where_they_are_told_to_and_hold_every_impression(dataset: Dataset) -> None:
    for start in (0.0, 16.5):
        days = by_day(dataset, day_starts_at=start)
        counts = dataset.manifest.counts
        assert sum(day.num_rows for day in days.values()) == sum(
            counts[f"impressions_{split}"] for split in ("train", "valid", "test")
        )
        for name, day in days.items():
            begin = np.datetime64(name, "ms").astype(np.int64) + int(start * 3_600_000)
            time = day["time"].to_numpy()
            assert time.min() >= begin
            assert time.max() < begin + 86_400_000


def test_a_model_is_tested_on_a_day_before_it_learns_it(
    config: DailyConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[tuple[int, int]] = []
    of_training, of_test = module._train, module.test

    def train(config, data, model, *, epochs):  # noqa: ANN001, ANN202
        newest = int(data.train.time_N.max())
        model.newest = max(newest, getattr(model, "newest", 0))
        return of_training(config, data, model, epochs=epochs)

    def test(trained, day):  # noqa: ANN001, ANN202
        tested.append((trained.model.newest, int(day["time"].to_numpy().min())))
        return of_test(trained, day)

    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setattr(module, "test", test)
    found = daily(dataclasses.replace(config, modes=("incremental", "retrained", "stale")))
    assert len(tested) == len(found["days"])
    assert all(newest < first for newest, first in tested)
    days = list(by_day(dataset, day_starts_at=0.0))
    assert [row["day"] for row in found["days"][::3]] == days[40:]
    written = json.loads((config.out_dir / "metrics.json").read_text())
    assert set(written["mean"]) == {"incremental", "retrained", "stale"}
    aucs = [row["auc"] for row in found["days"] if row["mode"] == "stale"]
    assert found["mean"]["stale"]["auc"] == pytest.approx(np.nanmean(aucs))
    page = (config.out_dir / "report.html").read_text()
    assert "day by day" in page
    assert "<script" not in page


def test_a_day_adds_its_new_values_and_keeps_the_others(
    config: DailyConfig, dataset: Dataset
) -> None:
    days = list(by_day(dataset, day_starts_at=0.0).values())
    first = train_new(config, dataset, pa.concat_tables(days[:10]))
    known = pa.concat_tables(days[:11])
    second = train_on(config, dataset, days[10], known=known, older=first)
    assert second.new_values > 0
    assert len(second.data.train) == days[10].num_rows
    every = train_new(config, dataset, known).data.vocabulary
    assert [set(one.values) for one in second.data.vocabulary.categorical] == [
        set(one.values) for one in every.categorical
    ]
    for before, after in zip(
        first.data.vocabulary.categorical, second.data.vocabulary.categorical, strict=True
    ):
        assert after.values[: len(before.values)] == before.values
    assert second.model.fields.table.num_embeddings == second.data.vocabulary.num_rows


def test_days_of_several_labels_have_the_figures_of_each(
    config: DailyConfig, rich_config: FitConfig
) -> None:
    found = daily(
        dataclasses.replace(
            config,
            dataset_dir=rich_config.dataset_dir,
            head=rich_config.head,
            tasks={"label": TaskConfig(), "seconds": TaskConfig()},
            modes=("incremental",),
            first_days=50,
        )
    )
    row = found["days"][0]
    assert set(row["tasks"]) == {"label", "seconds"}
    assert row["auc"] == row["tasks"]["label"]["auc"]


def test_the_command_runs_and_refuses_too_few_days(
    config: DailyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "daily", "--dataset_dir", str(config.dataset_dir), "--out_dir", str(config.out_dir),
        "--modes", "[stale]", "--head.name", "lr", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main([*words, "--first_days", "50"]) == 0
    assert "stale: {'auc':" in capsys.readouterr().out
    assert main([*words, "--first_days", "500"]) == 2
    assert "days of impressions, expected more than first_days" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes", [{"modes": ()}, {"first_days": 0}, {"day_epochs": 0}, {"day_starts_at": 24.0}]
)
def test_settings_check_their_ranges(changes: dict, config: DailyConfig) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(config, **changes)
