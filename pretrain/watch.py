"""Settings of what watches over a run, and the callbacks that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning import Callback

from pretrain.hang_watch import HangWatch
from pretrain.loss_spikes import LossSpikes
from pretrain.nonfinite import NonFinite, Policy
from pretrain.run_events import RunEvents
from pretrain.run_log import RunLog
from pretrain.throughput import Throughput


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a run is ended, or has something to say."""

    hang_minutes: float = 20.0
    """A run that finishes no batch for so long writes every rank's stacks to stacks-rank-*.txt and
    ends with exit code 76; 0 never does. The first step and saving have three times as long. Keep
    it below the process group's own timeout, which is 30 minutes."""

    nonfinite: Policy = "stop"
    """At a loss or gradient that is NaN or infinite, on any rank, no rank's weights, moments or
    weight decay change. `stop` then ends the run with exit code 77; `skip` goes on."""

    most_nonfinite_in_a_row: int = 10
    """With `skip`: more such steps one after the other end the run all the same."""

    most_nonfinite: int = 100
    """With `skip`: so do more in one life of the run."""

    spike_deviations: float = 15.0
    """A loss so many median absolute deviations above the median of the last 200 steps is an event
    and a warning; 0: none is."""

    peak_teraflops: float | None = None
    """Of one device, which speed/mfu is a share of; null: dense bf16 of the known ones, by name;
    0: no speed/mfu."""

    def __post_init__(self) -> None:
        for name in ("hang_minutes", "spike_deviations"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"run.watch.{name} must not be negative, got {getattr(self, name)}"
                )
        if self.most_nonfinite_in_a_row < 0 or self.most_nonfinite < 0:
            raise ValueError(
                "run.watch.most_nonfinite_in_a_row and .most_nonfinite must not be negative, got "
                f"{self.most_nonfinite_in_a_row} and {self.most_nonfinite}"
            )
        if self.peak_teraflops is not None and self.peak_teraflops < 0:
            raise ValueError(
                f"run.watch.peak_teraflops must not be negative, got {self.peak_teraflops}"
            )

    def callbacks(self, run_dir: Path) -> list[Callback]:
        """In the order in which they are to be called, before whatever saves."""
        log = RunLog(run_dir)
        nonfinite = NonFinite(
            log,
            policy=self.nonfinite,
            most_in_a_row=self.most_nonfinite_in_a_row,
            most=self.most_nonfinite,
        )
        callbacks: list[Callback] = [Throughput(peak=self.peak_teraflops), nonfinite]
        if self.hang_minutes:
            callbacks.append(HangWatch(log, minutes=self.hang_minutes))
        if self.spike_deviations:
            callbacks.append(LossSpikes(log, deviations=self.spike_deviations))
        return [*callbacks, RunEvents(log)]
