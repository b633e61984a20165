"""A run that was stopped, crashed or lost a save goes on as if nothing had been."""

import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from pretrain import checkpoint_state, checkpoints, stop_flag
from pretrain.checkpoint_choice import find_checkpoint
from pretrain.checkpoint_files import STATE_FILE, FileSum, read_manifest, save_state, step_folders
from pretrain.checkpoint_policy import read_validation
from pretrain.checkpoint_state import in_memory
from pretrain.cli import parse_run
from pretrain.export import read_weights
from pretrain.resume import seed_step

SETTINGS = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
--data.config.global_batch_size 16 --data.config.targets_per_sample 4
--data.config.valid_queries 20 --trainer.log_every_n_steps 1 --trainer.accelerator cpu
--trainer.max_epochs 2 --model.encoders.width 16 --model.encoders.ids both
--model.encoders.id_dropout 0 --model.encoders.towers {} --model.encoders.user.dropout 0.2
--model.loss.queue_size 50 --run.checkpoint_steps 4 --run.keep.last 9
""".split()


class Seen(pl.Callback):
    """Keeps what was trained on, and does something at one batch."""

    def __init__(self, at: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        self.at, self.act = at, act
        self.batches: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: object, outputs: dict[str, Tensor], *rest: int
    ) -> None:
        self.batches.append((trainer.current_epoch, rest[1]))
        self.losses.append(float(outputs["loss"]))
        if len(self.batches) == self.at:
            self.act()


class CrashInValidation(pl.Callback):
    """As if killed there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: object) -> None:
        if trainer.global_step == self.step:
            crash()


def crash() -> None:
    raise RuntimeError("as if killed")


def ask_to_stop() -> None:
    signal.raise_signal(signal.SIGUSR1)


class Runs:
    """Runs of one dataset, each in a folder of its own."""

    def __init__(self, folder: Path, dataset: Path) -> None:
        self.folder, self.dataset = folder, dataset

    def fit(
        self, name: str, *words: str, more: pl.Callback | None = None, seen: Seen | None = None
    ) -> Seen:
        """One life, which may end by a crash."""
        seen, handlers = seen or Seen(), [signal.getsignal(one) for one in stop_flag.STOP_SIGNALS]
        dirs = ["--run.dir", str(self.folder / name)]
        dirs += ["--data.config.dataset_dir", str(self.dataset)]
        cli = parse_run([*SETTINGS, *dirs, *words], command="fit")
        cli.trainer.callbacks[:0] = [seen] if more is None else [seen, more]
        try:
            cli.trainer.fit(
                cli.model, datamodule=cli.datamodule, ckpt_path=cli.run_config.resume_from()
            )
        except RuntimeError as error:
            if "as if killed" not in str(error):
                raise
        finally:
            stop_flag.received.clear()
            for number, handler in zip(stop_flag.STOP_SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
        return seen

    def checkpoints(self, name: str) -> list[str]:
        """Steps that are there, newest first."""
        return [path.name for path in step_folders(self.folder / name / "checkpoints")]

    def assert_equal(self, name: str, other: str) -> None:
        """Both ended with the same bits."""
        left, right = (
            read_weights(find_checkpoint(self.folder / one, which="last")) for one in (name, other)
        )
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("resume"), toy_dataset)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Seen:
    return runs.fit("whole")


def test_a_step_draws_the_same_numbers_whatever_came_before() -> None:
    seed_step(7)
    first = torch.rand(3)
    torch.rand(11)
    seed_step(7)
    assert torch.equal(torch.rand(3), first)
    seed_step(8)
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("at", [6, 11])
def test_a_stopped_run_takes_each_step_once(runs: Runs, whole: Seen, at: int) -> None:
    """In the middle of an epoch, and after its last batch."""
    name = f"stopped-{at}"
    first = runs.fit(name, seen=Seen(at, ask_to_stop))
    assert len(first.batches) == at
    assert (runs.folder / name / "REQUEUE").read_text() == f"step {at}\n"
    assert not list((runs.folder / name / "checkpoints").glob("*.validation.json"))
    second = runs.fit(name)
    assert first.batches + second.batches == whole.batches
    assert first.losses + second.losses == whole.losses
    assert (runs.folder / name / "DONE").exists()
    runs.assert_equal(name, "whole")


def test_a_crash_loses_the_steps_since_the_last_save(runs: Runs, whole: Seen) -> None:
    runs.fit("crashed", seen=Seen(10, crash))
    assert runs.checkpoints("crashed") == ["step-8", "step-4"]
    second = runs.fit("crashed")
    assert second.losses == whole.losses[8:]
    runs.assert_equal("crashed", "whole")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    runs: Runs, whole: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    runs.fit("damaged", seen=Seen(10, crash))
    file = runs.folder / "damaged" / "checkpoints" / "step-8" / STATE_FILE
    payload = bytearray(file.read_bytes())
    payload[len(payload) // 2] ^= 1
    file.write_bytes(payload)
    with caplog.at_level(logging.INFO):
        assert runs.fit("damaged").losses == whole.losses[4:]
    assert "step-8: DAMAGED, state.ckpt was altered" in caplog.text
    assert "checkpoints/step-4: going on from there" in caplog.text
    runs.assert_equal("damaged", "whole")


@pytest.mark.parametrize(
    ("step", "words"), [(11, ()), (22, ()), (22, ("--trainer.max_steps", "22"))]
)
def test_a_validation_that_was_cut_off_is_made_up_for(
    runs: Runs, whole: Seen, step: int, words: tuple[str, ...]
) -> None:
    """Also after the last step, where there is nothing left to train."""
    name = "-".join(["cut_off", str(step), *words])
    runs.fit(name, *words, more=CrashInValidation(step))
    folder = runs.folder / name / "checkpoints" / f"step-{step}"
    assert read_manifest(folder).epoch_done
    assert read_validation(folder) is None
    runs.fit(name, *words)
    found, expected = (
        read_validation(runs.folder / one / "checkpoints" / f"step-{step}")
        for one in (name, "whole")
    )
    assert found is not None
    assert found.metrics["val/recall@20"] == expected.metrics["val/recall@20"]
    assert (runs.folder / name / "DONE").exists()
    runs.assert_equal(name, "whole")


def test_an_epoch_without_validation_is_not_begun_again(runs: Runs) -> None:
    words = ("--trainer.limit_val_batches", "0", "--run.monitor", "null")
    whole = runs.fit("blind", *words)
    first = runs.fit("blind_stopped", *words, seen=Seen(11, ask_to_stop))
    second = runs.fit("blind_stopped", *words)
    assert first.batches + second.batches == whole.batches
    runs.assert_equal("blind", "blind_stopped")


@pytest.mark.parametrize("at", [5, 11])
def test_steps_may_be_what_limits_a_run(runs: Runs, at: int) -> None:
    words = ("--trainer.max_steps", "15", "--trainer.max_epochs", "-1")
    whole = runs.fit(f"steps-{at}", *words)
    first = runs.fit(f"steps_stopped-{at}", *words, seen=Seen(at, ask_to_stop))
    second = runs.fit(f"steps_stopped-{at}", *words)
    assert first.batches + second.batches == whole.batches
    assert first.losses + second.losses == whole.losses
    assert runs.checkpoints(f"steps-{at}")[0] == "step-15"
    runs.assert_equal(f"steps-{at}", f"steps_stopped-{at}")


def test_a_run_that_its_steps_ended_goes_on_in_the_middle_of_the_epoch(
    runs: Runs, whole: Seen
) -> None:
    """With more steps; the learning rate is another, the samples are the same."""
    first = runs.fit("longer", "--trainer.max_steps", "15")
    second = runs.fit("longer")
    assert first.batches + second.batches == whole.batches
    assert (runs.folder / "longer" / "DONE").read_text() == "step 22\n"


def test_validations_within_an_epoch_run_once_each(runs: Runs) -> None:
    words = ("--trainer.val_check_interval", "3")
    whole = runs.fit("often", *words)
    first = runs.fit("often_stopped", *words, seen=Seen(6, ask_to_stop))
    second = runs.fit("often_stopped", *words)
    assert first.losses + second.losses == whole.losses
    runs.assert_equal("often", "often_stopped")


def test_a_stop_waits_for_the_gradients_that_are_summed_up(runs: Runs) -> None:
    """And so does the save before a validation in between."""
    words = ("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3")
    whole = runs.fit("summed", *words)
    runs.fit("summed_stopped", *words, seen=Seen(5, crash))
    first = runs.fit("summed_stopped", *words, seen=Seen(1, ask_to_stop))
    assert len(first.batches) == 2
    second = runs.fit("summed_stopped", *words)
    assert first.losses + second.losses == whole.losses[4:]
    runs.assert_equal("summed", "summed_stopped")


def test_a_run_does_not_go_on_with_other_samples(runs: Runs, whole: Seen) -> None:
    runs.fit("changed", seen=Seen(5, crash))
    with pytest.raises(ValueError, match=r"data\.config\.seed: found 1, expected 0"):
        runs.fit("changed", "--data.config.seed", "1")


# ---------------------------------------------------------------------- saving
def test_what_is_kept_is_the_last_and_the_best(runs: Runs, whole: Seen) -> None:
    best = find_checkpoint(runs.folder / "whole", which="best").name
    assert best in ("step-11", "step-22")
    runs.fit("kept", "--run.keep.last", "2")
    assert runs.checkpoints("kept") == list(dict.fromkeys(["step-22", "step-20", best]))
    assert find_checkpoint(runs.folder / "kept", which="best").name == best


def full_at(step: int) -> Callable[[object, Path], FileSum]:
    def save(state: object, path: Path) -> FileSum:
        if path.parent.name.startswith(f"step-{step}."):
            path.parent.mkdir()
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return save_state(state, path)

    return save


def test_a_full_disk_costs_a_save_and_not_the_run(
    runs: Runs, whole: Seen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_state, "save_state", full_at(8))
    seen = runs.fit("full", seen=Seen(10, crash))
    assert len(seen.batches) == 10
    assert runs.checkpoints("full") == ["step-4"]
    assert not list((runs.folder / "full" / "checkpoints").glob("*.partial"))
    assert "step 8 is NOT SAVED, step-4 is the newest checkpoint: [Errno 28]" in caplog.text
    assert "MiB are free" in caplog.text
    assert runs.fit("full").losses == whole.losses[4:]
    runs.assert_equal("full", "whole")


def test_a_stop_that_cannot_be_saved_is_no_requeue(
    runs: Runs, whole: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_state, "save_state", full_at(6))
    with pytest.raises(checkpoints.SaveFailed, match="step 6 is NOT SAVED, step-4 is the newest"):
        runs.fit("full_stop", seen=Seen(6, ask_to_stop))
    for name in ("REQUEUE", "DONE"):
        assert not (runs.folder / "full_stop" / name).exists()
    monkeypatch.undo()
    assert runs.fit("full_stop").losses == whole.losses[4:]


def test_a_save_beside_training_holds_the_step_it_began_at(
    runs: Runs, whole: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is held up for two batches where training lets it, and none overtakes another."""
    written: list[str] = []
    seen = Seen()

    def slow(state: object, path: Path) -> FileSum:
        begun, end = len(seen.batches), time.monotonic() + 0.5
        while len(seen.batches) < begun + 2 and time.monotonic() < end:
            time.sleep(0.001)
        written.append(path.parent.name.split(".")[0])
        return save_state(state, path)

    monkeypatch.setattr(checkpoint_state, "save_state", slow)
    runs.fit("beside", "--run.async_checkpoints", "true", seen=seen)
    assert written == [f"step-{step}" for step in (4, 8, 11, 12, 16, 20, 22)]
    runs.assert_equal("beside", "whole")
    at_16 = [
        read_weights(runs.folder / name / "checkpoints" / "step-16") for name in ("beside", "whole")
    ]
    assert all(torch.equal(at_16[0][key], at_16[1][key]) for key in at_16[1])
    assert seen.losses == whole.losses


def test_a_copy_in_memory_shares_nothing() -> None:
    state = {"a": torch.zeros(3), "b": [torch.ones(2), {"c": 1}], "d": {"step": 4}}
    copied = in_memory(state)
    state["a"] += 1
    state["b"][1]["c"] = 2
    state["d"]["step"] = 5
    assert json.dumps(
        {"a": copied["a"].tolist(), "c": copied["b"][1]["c"], "step": copied["d"]["step"]}
    ) == json.dumps({"a": [0.0, 0.0, 0.0], "c": 1, "step": 4})
