"""What watches over a run, on a small module in one process."""

import faulthandler
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data_prep.exit_codes import HUNG
from pretrain import heartbeat
from pretrain.hang_watch import HangWatch
from pretrain.loss_spikes import spread_above
from pretrain.nonfinite import NotFiniteError
from pretrain.report_run import troubles
from pretrain.run_log import RunLog, read_events
from pretrain.throughput import Throughput
from pretrain.watch import WatchConfig

NAN, INF = math.nan, math.inf


class Small(pl.LightningModule):
    """A batch is (input [4, 3], what is added to the loss); norms have running means."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.step_values: dict[str, Tensor] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        from pretrain.nonfinite import with_its_gradient

        inputs, added = batch
        loss = self.net(inputs).square().mean() + added
        self.step_values = {"loss": loss.detach()}
        return with_its_gradient(loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def batch(seed: int, *, added: float = 0.0, content: float = 1.0) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    return inputs * content, torch.tensor(added)


def fit(
    folder: Path, batches: list[Any], *, accumulate: int = 1, **settings: object
) -> tuple[Small, pl.Trainer]:
    module = Small()
    watch = WatchConfig(hang_minutes=0, **settings)
    callbacks = [one for one in watch.callbacks(folder) if not isinstance(one, Throughput)]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=callbacks, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, trainer


def state(module: Small, trainer: pl.Trainer) -> list[Tensor]:
    kept = [entry for one in trainer.optimizers[0].state.values() for entry in one.values()]
    return [*module.state_dict().values(), *kept]


BAD = [batch(9, added=NAN), batch(9, added=INF), batch(9, content=NAN)]


@pytest.mark.parametrize(
    "bad", BAD, ids=["loss nan", "loss infinite, gradient finite", "content nan"]
)
def test_a_skipped_step_leaves_weights_moments_decay_and_running_means(
    tmp_path: Path, bad: tuple[Tensor, Tensor]
) -> None:
    good = [batch(number) for number in range(4)]
    with_bad = fit(tmp_path / "a", [*good[:2], bad, bad, *good[2:]], nonfinite="skip")
    without = fit(tmp_path / "b", good)
    for found, expected in zip(state(*with_bad), state(*without), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    events = [one for one in read_events(tmp_path / "a") if one["event"] == "nonfinite"]
    assert [(one["action"], one["epoch"], one["batch"], one["total"]) for one in events] == [
        ("skip", 0, 2, 1),
        ("skip", 0, 3, 2),
    ]


def test_of_accumulated_batches_one_bad_spoils_its_step_and_no_other(tmp_path: Path) -> None:
    good = [batch(number) for number in range(4)]
    spoilt = [batch(7), BAD[0]]
    with_bad = fit(tmp_path, [*good[:2], *spoilt, *good[2:]], accumulate=2, nonfinite="skip")
    without = fit(tmp_path / "b", good, accumulate=2)
    for found, expected in zip(state(*with_bad), state(*without), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_stop_says_which_batch_and_what_was_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"batch 2 of epoch 0: not finite: loss on ranks \[0"):
        fit(tmp_path, [batch(0), batch(1), BAD[1], batch(2)])
    events = read_events(tmp_path)
    assert [one["event"] for one in events] == ["start", "nonfinite", "end"]
    assert events[1]["losses"] == ["inf"]  # JSON has no number for it
    assert (events[1]["action"], events[1]["not_finite_on_ranks"]) == ("stop", [0])
    assert (events[2]["status"], events[2]["exit_code"]) == ("failed", 77)


def test_too_many_in_a_row_end_the_run_and_some_apart_do_not(tmp_path: Path) -> None:
    bad, good = BAD[0], batch(1)
    fit(tmp_path, [bad, bad, good, bad, bad, good], nonfinite="skip", most_nonfinite_in_a_row=2)
    with pytest.raises(NotFiniteError, match="3 in a row"):
        fit(tmp_path, [bad, bad, bad, good], nonfinite="skip", most_nonfinite_in_a_row=2)
    with pytest.raises(NotFiniteError, match="3 such steps"):
        fit(tmp_path, [bad, good, bad, good, bad], nonfinite="skip", most_nonfinite=2)


def test_a_spike_is_an_event_and_a_jump_within_the_spread_is_not(tmp_path: Path) -> None:
    wave = [batch(number, added=10.0 + number % 3) for number in range(40)]
    fit(tmp_path, [*wave, batch(0, added=13.0), batch(0, added=90.0), *wave[:3]])
    spikes = [one for one in read_events(tmp_path) if one["event"] == "spike"]
    assert [one["batch"] for one in spikes] == [41]
    assert spikes[0]["loss"] > 85 > 20 > spikes[0]["median"]


def test_spread_is_counted_in_median_deviations() -> None:
    assert spread_above(9.0, [1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(6.0)  # median 3, MAD 1
    assert spread_above(2.002, [2.0] * 5) == pytest.approx(1.0)  # of a flat curve, its last digits


class Keep(pl.loggers.Logger):
    """What is logged at once."""

    name, version = "keep", 0

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, float]] = []

    def log_hyperparams(self, *args: object, **settings: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any("/" in name for name in metrics):
            self.found.append(metrics)


class SlowToRead(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            time.sleep(0.02)
            yield one


def test_speed_says_what_the_loader_costs_and_counts_operations(tmp_path: Path) -> None:
    logger = Keep()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=4,
        callbacks=[throughput := Throughput(global_batch_size=4, peak=1e-6)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Small(), SlowToRead(map(batch, range(12))))
    last = logger.found[-1]
    assert last["speed/step_s"] > 0.02
    assert 0.3 < last["speed/data_wait_share"] <= 1
    assert last["speed/samples_per_s"] == pytest.approx(4 / last["speed/step_s"])
    assert 0.05 < last["memory/rss_gb"] < 50
    # 4 rows through 3 x 5 and 5 x 1: forward, and gradients of weights and of inputs but the first.
    operations = 2 * 4 * (3 * 5 * 2 + 5 * 1 * 3)
    assert throughput._flops == operations
    assert last["speed/mfu"] == pytest.approx(operations / last["speed/step_s"] / 1e6)


def test_a_device_of_unknown_peak_has_no_mfu() -> None:
    throughput = Throughput(global_batch_size=4)
    throughput._steps, throughput._busy_s = 1, 1.0
    assert "speed/mfu" not in throughput._measure(torch.device("cpu"))


def test_events_are_lines_of_json_without_credentials(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    log.write("save", step=3, file="s3://key:secret@bucket/x", figures={"a": NAN})
    log.write("end", step=4)
    lines = log.path.read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["event"], first["step"], first["rank"]) == ("save", 3, 0)
    assert (first["file"], first["figures"]) == ("s3://***@bucket/x", {"a": "nan"})
    assert first["time"].endswith("+00:00")
    assert len(lines) == 2


def test_a_report_tells_what_a_run_met(tmp_path: Path) -> None:
    assert troubles(tmp_path) == []
    log = RunLog(tmp_path)
    for event in ("start", "spike", "spike", "nonfinite", "end"):
        log.write(event)
    (sentence,) = troubles(tmp_path)
    assert sentence.startswith("1 steps were not finite, 2 steps had a loss far above")


def test_patience_is_for_the_next_beat_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heartbeat.beat(3.0)
    now = 125.0
    assert not heartbeat.is_overdue(10)
    now = 131.0
    assert heartbeat.is_overdue(10)
    heartbeat.beat()
    now = 142.0
    assert heartbeat.is_overdue(10)


@pytest.mark.parametrize(
    "wrong", [{"hang_minutes": -1}, {"most_nonfinite": -1}, {"peak_teraflops": -2.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"run.watch.{next(iter(wrong))}"):
        WatchConfig(**wrong)


HANGS = """
import sys, time
from pathlib import Path
import pytorch_lightning as pl
from torch.utils.data import DataLoader
from pretrain.watch import WatchConfig
from tests.pretrain.test_watch import Small, batch

class Slow(list):
    def __getitem__(self, place):
        if place == 3:
            wait_for_a_disk_that_is_gone()
        return super().__getitem__(place)

def wait_for_a_disk_that_is_gone():
    time.sleep(600)

watch = WatchConfig(hang_minutes=0.02).callbacks(Path(sys.argv[1]))
trainer = pl.Trainer(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, callbacks=watch[1:],  # without Throughput
)
trainer.fit(Small(), DataLoader(Slow(map(batch, range(6))), batch_size=None))
"""


def test_a_run_that_hangs_says_where_and_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], cwd=root, text=True, capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == HUNG, done.stderr[-3000:]
    stacks = (tmp_path / "stacks-rank-0.txt").read_text()
    for text in stacks, done.stderr:
        assert "wait_for_a_disk_that_is_gone" in text
    assert (tmp_path / "HANG").read_text() == "step 3\n"
    event = read_events(tmp_path)[-1]
    assert (event["event"], event["step"]) == ("hang", 3)


def test_a_life_that_another_has_followed_does_not_ask_to_be_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node was given up, and it hangs when the next life has long begun."""
    monkeypatch.setattr(os, "_exit", lambda _: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    watch = HangWatch(RunLog(tmp_path), minutes=10)
    (tmp_path / "life.json").write_text("mine")
    watch.on_train_start(SimpleNamespace(global_step=3), Small())  # type: ignore[arg-type]
    (tmp_path / "life.json").write_text("another's")
    try:
        watch._abort()
        assert not (tmp_path / "HANG").exists()
        (tmp_path / "life.json").write_text("mine")
        watch._abort()
        assert (tmp_path / "HANG").exists()
    finally:
        faulthandler.cancel_dump_traceback_later()
