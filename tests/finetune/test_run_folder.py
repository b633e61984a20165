"""Files of a run are whole or those of before."""

import dataclasses
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from finetune import run_folder
from finetune.fit import fit
from finetune.reuse_settings import ReuseConfig
from finetune.run_folder import fingerprint
from finetune.settings import FitConfig, LadderConfig, TrainConfig
from finetune.vocabulary import CategoricalField, Vocabulary

LIMIT = 1 << 14
TRAINED_ONCE = TrainConfig(batch_size=256, max_epochs=1)
Write = Callable[[Path, int], None]


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses to write beyond the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_config(path: Path, size: int) -> None:
    config = FitConfig(dataset_dir=Path("d" * size), out_dir=Path("o"))
    run_folder.write_config(config, path.parent)


def write_history(path: Path, size: int) -> None:
    run_folder.write_history([{"epoch": float(row)} for row in range(size)], path.parent)


def write_predictions(path: Path, size: int) -> None:
    score = np.random.default_rng(0).random(size)
    run_folder.write_predictions(pa.table({"score": score}), path)


def write_tensors(path: Path, size: int) -> None:
    run_folder.write_tensors({"weight": torch.zeros(size)}, path)


def write_vocabulary(path: Path, size: int) -> None:
    values = [f"value {one}" for one in range(size)]
    field = CategoricalField(name="x", owner="user", kind="categorical", offset=0, values=values)
    Vocabulary(categorical=[field], numeric=[]).save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        (run_folder.CONFIG_FILE, write_config),
        (run_folder.HISTORY_FILE, write_history),
        (run_folder.PREDICTIONS_FILE, write_predictions),
        (run_folder.WEIGHTS_FILE, write_tensors),
        (run_folder.VOCABULARY_FILE, write_vocabulary),
    ],
)
def test_a_write_that_fails_keeps_the_file_of_before(
    name: str, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path, 10)
    before = path.read_bytes()
    with full_disk(), pytest.raises(Exception, match=r"cannot be written|File too large"):
        write(path, 20_000)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    write(path, 20_000)
    assert path.stat().st_size > LIMIT


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"precision": "bf16-mixed"}, False),
        ({"devices": 2}, False),
        ({"strategy": "ddp"}, False),
        ({"extra": {"accumulate_grad_batches": 8}}, False),
        ({"extra": {"precision": "bf16-mixed"}}, False),
        ({"progress": "rich", "log_every_n_steps": 7}, True),
        ({"extra": {"enable_progress_bar": False, "logger": True, "profiler": "simple"}}, True),
    ],
)
def test_a_run_of_another_trainer_is_another_run_unless_only_its_output_differs(
    changes: dict[str, object], is_same: bool, fit_config: FitConfig
) -> None:
    trainer = dataclasses.replace(fit_config.trainer, **changes)
    changed = dataclasses.replace(fit_config, trainer=trainer)
    assert (fingerprint(changed) == fingerprint(fit_config)) is is_same


def test_a_config_read_again_has_the_fingerprint_of_the_run(fit_config: FitConfig) -> None:
    for rung in ("none", "aligned", "aligned+simtier"):
        config = dataclasses.replace(
            fit_config, rung=rung, hash_buckets={"device": 10}, log_features=("position",)
        )
        run_folder.write_config(config, config.out_dir)
        assert fingerprint(run_folder.read_config(config.out_dir)) == fingerprint(config)


def test_a_ladder_read_again_is_the_same(fit_config: FitConfig) -> None:
    shared = {
        field.name: getattr(fit_config, field.name)
        for field in dataclasses.fields(LadderConfig)
        if hasattr(fit_config, field.name)
    }
    for changes in ({}, {"rungs": ("none", "raw"), "pretrain_metrics": Path("m.csv")}):
        config = LadderConfig(**shared, seeds=(3, 4), num_resamples=10, **changes)
        run_folder.write_config(config, config.out_dir)
        assert run_folder.read_ladder_config(config.out_dir) == config
    run_folder.write_config(fit_config, fit_config.out_dir)
    assert run_folder.read_ladder_config(fit_config.out_dir) is None
    assert run_folder.read_ladder_config(fit_config.out_dir / "none") is None


def test_a_run_that_makes_way_for_another_is_named_and_leaves_nothing(
    fit_config: FitConfig, caplog: pytest.LogCaptureFixture
) -> None:
    older = dataclasses.replace(fit_config, rung="raw", train=TRAINED_ONCE)
    fit(older)
    assert (older.out_dir / run_folder.CONTENT_FILE).is_file()
    fit(older)
    assert "replaces" not in caplog.text
    fit(dataclasses.replace(older, rung="none", seed=1))
    assert f"{older.out_dir}: replaces a run with " in caplog.text
    assert "rung raw → none, seed 0 → 1" in caplog.text
    assert not (older.out_dir / run_folder.CONTENT_FILE).exists()


def test_a_run_does_not_replace_the_one_it_starts_from(fit_config: FitConfig) -> None:
    older = dataclasses.replace(fit_config, train=TRAINED_ONCE)
    fit(older)
    before = (older.out_dir / run_folder.METRICS_FILE).read_bytes()
    again = dataclasses.replace(older, reuse=ReuseConfig(teacher=older.out_dir))
    with pytest.raises(ValueError, match=r"which is reuse\.teacher too, expected another folder"):
        fit(again)
    assert (older.out_dir / run_folder.METRICS_FILE).read_bytes() == before
