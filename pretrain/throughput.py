"""How fast a run is, what it waits for and how much memory it takes, among its other metrics.

Logged every `log_every_n_steps`, for the steps since the last time; validation does not count.

    speed/samples_per_s     windows of all ranks
    speed/step_s
    speed/data_wait_share   of the time, waiting for the next batch; of the rank that waits longest
    speed/mfu               model FLOPs utilisation (Chowdhery et al. 2022, appendix B), where the
                            device's peak is known
    memory/rss_gb           resident memory of a process, the largest so far on any rank
    memory/device_gb        memory of the accelerator, the same; where there is one
"""

from __future__ import annotations

import resource
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import PassThroughProfiler
from torch.utils.flop_counter import FlopCounterMode

from pretrain.collectives import max_over_ranks, rank
from pretrain.data_config import DataConfig

PEAK_TERAFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
}
"""Dense bf16 (V100: fp16) by NVIDIA's data sheets; the first name that a device's holds."""
COUNTED_STEP = 1
"""Of a life: the first one warms up."""


def peak_teraflops(device: torch.device) -> float | None:
    """Of a device of the table; None of any other."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TERAFLOPS.items() if known in name), None)


class WaitProfiler(PassThroughProfiler):
    """Times nothing but the waiting for training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0
        self._begin = 0.0

    def start(self, action_name: str) -> None:
        """Waiting begins."""
        if action_name.endswith(".train_dataloader_next"):
            self._begin = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Waiting ends."""
        if action_name.endswith(".train_dataloader_next"):
            self.waited_s += time.perf_counter() - self._begin


class Throughput(pl.Callback):
    """Logs what the head of this file lists."""

    def __init__(self, *, global_batch_size: int | None = None, peak: float | None = None) -> None:
        """How it reckons.

        Args:
            global_batch_size: windows a step; None: as the run's data says.
            peak: teraflops of one device, as MFU counts them; None: by the table; 0: no MFU.
        """
        self.global_batch_size, self.peak = global_batch_size, peak
        self._profiler: WaitProfiler | None = None
        self._counter: Any = None
        self._flops: float | None = None
        self._seen = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._steps, self._busy_s = 0, 0.0
        self._waited_before = self._profiler.waited_s if self._profiler is not None else 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen to the loader, unless the trainer was given a profiler of its own."""
        if stage == "fit" and type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
            self._profiler = trainer.profiler = WaitProfiler()  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know the device and the batch size."""
        if self.peak is None:
            self.peak = peak_teraflops(pl_module.device)
        if self.global_batch_size is None:
            config: DataConfig = pl_module.data.config  # type: ignore[union-attr, assignment]
            self.global_batch_size = config.global_batch_size
        self._begin_anew()
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The time until here was no step's."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, *args: object) -> None:
        """Count the operations of one step."""
        if self.peak and self._seen == COUNTED_STEP:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Take the time; log where it is due."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._flops, self._counter = float(self._counter.get_total_flops()), None
        now = time.perf_counter()
        self._steps, self._busy_s = self._steps + 1, self._busy_s + now - self._mark
        self._mark = now
        self._seen += 1
        if self._seen % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            metrics = self._measure(pl_module.device)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
            self._begin_anew()

    def _measure(self, device: torch.device) -> dict[str, float]:
        step_s = self._busy_s / self._steps
        on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        # In kilobytes on Linux, and in millionths, as what is gathered are whole numbers.
        resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        waited_s = 0.0 if self._profiler is None else self._profiler.waited_s - self._waited_before
        share = max_over_ranks(round(1e6 * waited_s / self._busy_s), device=device)
        assert self.global_batch_size is not None
        metrics = {
            "speed/samples_per_s": self.global_batch_size / step_s,
            "speed/step_s": step_s,
            "memory/rss_gb": max_over_ranks(resident, device=device) / 1e9,
        }
        if self._profiler is not None:
            metrics["speed/data_wait_share"] = share / 1e6
        if device.type == "cuda":
            metrics["memory/device_gb"] = max_over_ranks(on_device, device=device) / 1e9
        if self.peak and self._flops is not None and rank() == 0:
            metrics["speed/mfu"] = self._flops / step_s / (1e12 * self.peak)
        return metrics
