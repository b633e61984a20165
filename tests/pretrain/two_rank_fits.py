"""Several short trainings in one pair of processes; run by `test_fit.py`.

    torchrun --nproc_per_node 2 tests/pretrain/two_rank_fits.py DATASET_DIR OUT_DIR

Each run has a folder under OUT_DIR. `item_vectors.npy` in it is the catalogue as the last
validation of the training process encoded it.
"""

import signal
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch.distributed as dist

from pretrain.cli import parse_run

SMALL = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
--data.config.global_batch_size 64 --data.config.targets_per_sample 4
--data.config.valid_queries 100 --model.encoders.dropout 0.1 --model.encoders.user.dropout 0.1
--trainer.max_epochs 2 --trainer.log_every_n_steps 1 --trainer.accelerator cpu
""".split()


EVERYTHING = """
--model.loss.queue_size 200 --model.loss.matryoshka {"16":0.5}
--model.loss.behaviour_weight 0.2 --data.config.item_pairs 20 --model.loss.logq_form corrected
--model.loss.pair_loss sigmoid --model.loss.encode_chunk 30 --model.loss.tile 64
--model.loss.collaborative_weight 0.2 --model.reuse.collaborative.newest_event 0
""".split()
"""Every part of the losses that is off by default; `id_vectors.parquet` is in OUT_DIR."""


class KeepVectors(pl.Callback):
    """Leaves the catalogue as the last validation saw it."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            np.save(folder / "item_vectors.npy", pl_module._item_ND.float().numpy())


class StopAt(pl.Callback):
    """Sends ourselves the signal that Slurm would send, in one rank only."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 1:
            signal.raise_signal(signal.SIGUSR1)


def fit(run_dir: Path, *words: str, dataset_dir: str, stop_at: int | None = None) -> None:
    args = [*SMALL, "--run.dir", str(run_dir), "--data.config.dataset_dir", dataset_dir, *words]
    cli = parse_run(args, command="fit")
    cli.trainer.callbacks.append(KeepVectors())
    if stop_at is not None:
        cli.trainer.callbacks.insert(0, StopAt(stop_at))
    checkpoints = cli.run_config.resume_from()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoints)


if __name__ == "__main__":
    dataset_dir, out = sys.argv[1], Path(sys.argv[2])
    one_epoch = ("--trainer.max_epochs", "1")
    everything = (*EVERYTHING, "--model.reuse.collaborative.path", str(out / "id_vectors.parquet"))
    zero = {stage: ("--config", f"configs/zero{stage}.yaml") for stage in (1, 2, 3)}
    fit(out / "zero2", *zero[2], dataset_dir=dataset_dir)
    for name, words in ("zero2_resumed", ()), ("everything_resumed", everything):
        for life in range(2):  # the second life finds what the first left
            fit(out / name, *zero[2], *words, dataset_dir=dataset_dir, stop_at=None if life else 2)
            if dist.get_rank() == 0:
                ended = "REQUEUE" if life == 0 else "DONE"
                (out / f"{name}_{life}").write_text(str((out / name / ended).exists()))
    fit(out / "everything", *zero[2], *everything, dataset_dir=dataset_dir)
    fit(out / "everything_3", *zero[3], *everything, dataset_dir=dataset_dir)
    fit(out / "zero1", *zero[1], *one_epoch, dataset_dir=dataset_dir)
    accumulate = ("--trainer.accumulate_grad_batches", "2", "--trainer.precision", "bf16-mixed")
    fit(out / "zero3_bf16", *zero[3], *one_epoch, *accumulate, dataset_dir=dataset_dir)
    fit(out / "ddp", "--config", "configs/ddp.yaml", dataset_dir=dataset_dir)
