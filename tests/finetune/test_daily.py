"""Day by day: each day is tested before it is learnt, and the vocabulary grows."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from data_prep.dataset import Dataset
from finetune import daily as module
from finetune.batches import CtrTable, TrainBatches
from finetune.cli import main
from finetune.daily import by_day, daily, train_new, train_on
from finetune.daily_settings import DailyConfig
from finetune.daily_state import ProgressFolder
from finetune.data import CtrData
from finetune.settings import FitConfig, HeadConfig, TrainConfig, TrainerConfig
from finetune.task_settings import PositionConfig, TaskConfig


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

    def train(config, data, model, **more):  # noqa: ANN001, ANN003, ANN202
        newest = int(data.train.time_N.max())
        model.newest = max(newest, getattr(model, "newest", 0))
        return of_training(config, data, model, **more)

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
    assert second.model.fields.table.num_rows == second.data.vocabulary.num_rows


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


def some_days(
    monkeypatch: pytest.MonkeyPatch, changed: dict[int, Callable[[pa.Table], pa.Table]], num: int
) -> None:
    """Let `daily` see the first `num` days alone, some of them changed."""
    whole = module.by_day

    def by_day(*given: object, **more: object) -> dict[str, pa.Table]:
        days = dict(list(whole(*given, **more).items())[:num])
        for place, change in changed.items():
            name = list(days)[place]
            days[name] = change(days[name])
        return days

    monkeypatch.setattr(module, "by_day", by_day)


def without_a_click(day: pa.Table) -> pa.Table:
    return day.filter(pc.equal(day["label"], 0))


def test_a_day_without_a_click_is_learnt_and_told_of(
    config: DailyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(monkeypatch, {41: without_a_click}, 44)
    config = dataclasses.replace(config, modes=("incremental",))
    found = daily(config)
    (odd,) = found["odd_days"]
    assert odd["what"] == "learnt with one value alone of label"
    assert odd["day"] == found["days"][1]["day"]
    written = json.loads((config.out_dir / "metrics.json").read_text())
    aucs = [row["auc"] for row in written["days"]]
    assert [one is None for one in aucs] == [False, True, False, False]
    assert written["mean"]["incremental"]["auc"] == pytest.approx(np.mean(aucs[:1] + aucs[2:]))
    page = (config.out_dir / "report.html").read_text()
    assert "Odd days" in page
    assert "n/a" in page


def test_first_days_without_a_click_are_refused(
    config: DailyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(monkeypatch, {0: without_a_click}, 3)
    with pytest.raises(ValueError, match="or raise first_days, 1"):
        daily(dataclasses.replace(config, first_days=1))


def test_a_day_of_one_arm_is_passed_over(
    config: DailyConfig, rich_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    treated = {51: lambda day: day.filter(pc.equal(day["treatment"], 1))}
    some_days(monkeypatch, treated, 53)
    head = HeadConfig(name="two_arms", embedding_width=4, hidden=(8,), tower_hidden=(4,))
    found = daily(
        dataclasses.replace(
            config,
            dataset_dir=rich_config.dataset_dir,
            head=head,
            tasks={"came_back": TaskConfig()},
            modes=("incremental",),
            first_days=50,
        )
    )
    assert [one["what"][:11] for one in found["odd_days"]] == ["passed over"]
    assert [np.isnan(row["tasks"]["uplift"]["qini"]) for row in found["days"]] == [
        False,
        True,
        False,
    ]
    assert found["days"][2]["new_values"] == 0


def test_a_vocabulary_that_outgrows_hash_above_goes_on_as_it_was(
    config: DailyConfig, dataset: Dataset
) -> None:
    days = list(by_day(dataset, day_starts_at=0.0).values())
    known = pa.concat_tables(days[:41])
    sizes = [
        len(train_new(config, dataset, part).data.vocabulary.named("item_id").values)
        for part in (pa.concat_tables(days[:10]), known)
    ]
    assert sizes[0] < sizes[1]
    config = dataclasses.replace(config, hash_above=sizes[0])
    first = train_new(config, dataset, pa.concat_tables(days[:10]))
    second = train_on(config, dataset, days[40], known=known, older=first)
    assert second.data.vocabulary.named("item_id").hash_buckets is None
    assert len(second.data.vocabulary.named("item_id").values) == sizes[1]
    config = dataclasses.replace(config, hash_above=sizes[0] - 1)
    hashed = train_new(config, dataset, pa.concat_tables(days[:10]))
    assert hashed.data.vocabulary.named("item_id").hash_buckets == sizes[0] - 1
    config = dataclasses.replace(config, hash_above=None)
    second = train_on(config, dataset, days[40], known=known, older=hashed)
    assert second.data.vocabulary.named("item_id").hash_buckets == sizes[0] - 1


def test_a_place_tower_goes_on_from_day_to_day(
    config: DailyConfig, rich_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(monkeypatch, {}, 53)
    before, after, last_batches = [], [], []
    of_training = module._train

    def train(*given, objective, **more):  # noqa: ANN001, ANN002, ANN003, ANN202
        before.append(objective.state())
        last_batches.append(more.get("last_batch"))
        seconds = of_training(*given, objective=objective, **more)
        after.append(objective.state())
        return seconds

    monkeypatch.setattr(module, "_train", train)
    daily(
        dataclasses.replace(
            config,
            dataset_dir=rich_config.dataset_dir,
            train=dataclasses.replace(config.train, position=PositionConfig(mode="add")),
            modes=("incremental",),
            first_days=50,
        )
    )
    assert last_batches == [None, "shared", "shared"]
    for last, first in zip(after[:-1], before[1:], strict=True):
        assert last.keys() == {"place.add.label"}
        assert torch.equal(last["place.add.label"], first["place.add.label"])


def test_a_new_day_is_learnt_to_its_last_impression(config: DailyConfig, dataset: Dataset) -> None:
    days = list(by_day(dataset, day_starts_at=0.0).values())
    first = train_new(config, dataset, pa.concat_tables(days[:10]))
    data = first.data
    data.train = data.encode_days(pa.concat_tables(days[10:14]))
    table = CtrTable(data.train, data.users, data.items, None)
    num = len(table)
    for batch_size in (num // 3 + 2, num - 1, num // 2 * 3, 4 * num, 7):
        batches = TrainBatches(
            table, batch_size=batch_size, seed=0, epoch=lambda: 0, last_batch="shared"
        )
        sizes = [len(batch.label_B) for batch in batches]
        assert sum(sizes) == num
        assert len(sizes) == len(batches) == max(1, round(num / min(batch_size, num)))
        assert max(sizes) - min(sizes) <= 1
    of_ranks = [
        [
            len(batch.label_B)
            for batch in TrainBatches(
                table, batch_size=64, seed=0, epoch=lambda: 0, rank=rank, world=4,
                last_batch="shared",
            )
        ]
        for rank in range(4)
    ]  # fmt: skip
    assert of_ranks == [of_ranks[0]] * 4
    assert sum(map(sum, of_ranks)) == num // 4 * 4
    few = CtrTable(data.encode(days[0].slice(0, 3)), data.users, data.items, None)
    with pytest.raises(ValueError, match="found 3 impressions to train on, expected at least one"):
        TrainBatches(few, batch_size=64, seed=0, epoch=lambda: 0, world=4)


def test_settings_of_reading_reach_the_days(
    config: DailyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some_days(monkeypatch, {}, 42)
    config = dataclasses.replace(config, modes=("incremental",))
    expected = daily(config)["days"]
    tables = []

    def table(*given: object) -> CtrTable:
        tables.append(CtrTable(*given))
        return tables[-1]

    monkeypatch.setattr(module, "CtrTable", table)
    monkeypatch.setattr(CtrData, "_memory_bytes", lambda self: 1e3 * self.memory_mb)
    mapped = dataclasses.replace(
        config, memory_mb=1, cache_dir=tmp_path / "cache", shuffle_rows=1_000_000
    )
    found = daily(mapped)["days"]
    assert [row["auc"] for row in found] == [row["auc"] for row in expected]
    trained = [one for one in tables if one.shuffle_rows == 1_000_000]
    assert len(trained) == 2
    assert all(one.impressions.mapped is not None for one in trained)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_training_goes_on_to_the_same_figures(
    config: DailyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(monkeypatch, {41: without_a_click}, 44)
    whole = daily(config)
    killed = dataclasses.replace(config, out_dir=config.out_dir.parent / "killed")
    of_test, calls = module.test, []

    def test(*given: object) -> dict:
        calls.append(given)
        if len(calls) == 8:  # the second mode of the third day
            raise KeyboardInterrupt
        return of_test(*given)

    monkeypatch.setattr(module, "test", test)
    with pytest.raises(KeyboardInterrupt):
        daily(killed)
    so_far = json.loads((killed.out_dir / "metrics.json").read_text())
    assert (len(so_far["days"]), so_far["days_to_come"]) == (6, 2)
    found = daily(killed)
    assert len(calls) == 8 + 6
    assert not (killed.out_dir / "state").exists()
    for one in (found, whole):
        for row in [*one["days"], *one["mean"].values()]:
            del row["train_seconds"]
    as_written = json.dumps(found).replace("NaN", "null")
    assert as_written == json.dumps(whole).replace("NaN", "null")


def test_other_settings_start_the_days_anew(
    config: DailyConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(monkeypatch, {}, 42)
    of_test = module.test
    monkeypatch.setattr(module, "test", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        daily(config)
    assert ProgressFolder(config, dataset).restore() is not None
    monkeypatch.setattr(module, "test", of_test)
    other = dataclasses.replace(config, seed=1)
    assert ProgressFolder(other, dataset).restore() is None
    assert daily(other)["seed"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"modes": ()},
        {"first_days": 0},
        {"day_epochs": 0},
        {"day_starts_at": 24.0},
        {"released": Path("released")},
    ],
)
def test_settings_check_their_ranges(changes: dict, config: DailyConfig) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(config, **changes)
