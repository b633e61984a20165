"""A loss that is not finite on one of two ranks, and a hang; run by `test_watch_ranks.py`.

    torchrun --nproc_per_node 2 tests/pretrain/two_rank_watch.py DATASET_DIR OUT_DIR

`OUT_DIR/<strategy>-rank-K.json` says which steps changed the weights or the optimizer's state, and
what `stop` raised. The last run hangs.
"""

import json
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist

import pretrain.module
from pretrain.cli import parse_run
from pretrain.nonfinite import NotFiniteError

SMALL = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
--data.config.global_batch_size 64 --data.config.targets_per_sample 4 --run.monitor null
--data.config.valid_queries 0 --trainer.max_steps 5 --trainer.log_every_n_steps 2
--trainer.accelerator cpu --model.loss.queue_size 50 --run.watch.peak_teraflops 0.1
""".split()
BAD_STEP = 2
objective = pretrain.module.objective


def spoilt_on_rank_1(*args: object, step: int, **settings: object) -> object:
    result = objective(*args, step=step, **settings)
    if step == BAD_STEP and dist.get_rank() == 1:
        result = type(result)(result.loss * float("nan"), result.report)
    return result


class Changes(pl.Callback):
    """Which steps changed what is trained, or the queue of past items."""

    def __init__(self) -> None:
        self.changed: list[bool] = []

    def state(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[bytes]:
        optimizer = trainer.optimizers[0]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # within DeepSpeed's
        found = list(pl_module.buffers())
        for parameter, kept in optimizer.state.items():
            found += [parameter, *kept.values()]
        # As bytes: what pads ZeRO-3's partitions is never set, and may be NaN, which no NaN equals.
        return [torch.as_tensor(one).detach().numpy().tobytes() for one in found]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        self.before = self.state(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        self.changed.append(self.state(trainer, pl_module) != self.before)


class HangAt(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            time.sleep(600)


def fit(run_dir: Path, *words: str, dataset_dir: str, last: pl.Callback) -> None:
    args = [*SMALL, "--run.dir", str(run_dir), "--data.config.dataset_dir", dataset_dir, *words]
    cli = parse_run(args, command="fit")
    cli.trainer.callbacks.append(last)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


if __name__ == "__main__":
    dataset_dir, out = sys.argv[1], Path(sys.argv[2])
    pretrain.module.objective = spoilt_on_rank_1
    for name in ("ddp", "zero1", "zero2", "zero3"):
        words = ("--config", f"configs/{name}.yaml")
        skips = Changes()
        fit(
            out / name, *words, "--run.watch.nonfinite", "skip", dataset_dir=dataset_dir, last=skips
        )
        stops, message = Changes(), ""
        try:
            fit(out / f"{name}-stop", *words, dataset_dir=dataset_dir, last=stops)
        except NotFiniteError as error:
            message = str(error)
        entry = {"skip": skips.changed, "stop": stops.changed, "message": message}
        (out / f"{name}-rank-{dist.get_rank()}.json").write_text(json.dumps(entry))
    words = ("--config", "configs/ddp.yaml", "--run.watch.hang_minutes", "0.1")
    fit(out / "hang", *words, dataset_dir=dataset_dir, last=HangAt())
