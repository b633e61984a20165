"""Our side of `ctr_speed`: one measured case.

    python tests/bench/ctr_speed_cases.py ours --dataset_dir DIR

`ours` is `finetune.fit.fit` itself, one epoch, whose module counts the CPU time of its training
steps and of their batches; `ours_dense` the same with dense Adam, which is FuxiCTR's arithmetic;
`ours_bare` the same table, batches, model and optimiser in a bare loop;
`ours_loader` the batches alone; `mlp_floor` the dense part on a given embedding output that wants a
gradient, as an embedding's output does; `mlp_floor_no_input_gradient` without.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from measured_loop import MeasuredLoop, peak_bytes
from torch import nn

from finetune.allocator import keep_freed_memory
from finetune.batches import CtrTable, TrainBatches
from finetune.fit import Inputs, fit
from finetune.model import CtrModel
from finetune.module import CtrModule
from finetune.objective import Objective
from finetune.row_adam import clip_norm
from finetune.settings import FitConfig, HeadConfig, TrainConfig, TrainerConfig

BATCH, WIDTH, HIDDEN, LR, CLIP = 4_096, 16, (256, 128, 64), 1e-3, 10.0
NUM_FIELDS = 20
WARM_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class SpeedCase:
    """What a case reads."""

    dataset_dir: Path
    seed: int
    hash_buckets: int
    """Rows of each field; 0: a vocabulary."""
    memory_mb: int
    steps: int
    """Steps of the bare loop and of the floor."""


def fit_config(
    case: SpeedCase, out_dir: Path, *, id_optimizer: Literal["sparse", "dense"] = "sparse"
) -> FitConfig:
    """DeepFM with the issue's sizes, and nothing that FuxiCTR's does not do."""
    names = ["user_id", "item_id", *(f"c{place:02d}" for place in range(2, NUM_FIELDS))]
    return FitConfig(
        dataset_dir=case.dataset_dir,
        out_dir=out_dir,
        seed=case.seed,
        history_length=0,
        min_count=1,
        hash_buckets=dict.fromkeys(names, case.hash_buckets) if case.hash_buckets else {},
        memory_mb=case.memory_mb,
        cache_dir=case.dataset_dir.parent / "encoded",
        head=HeadConfig(name="deepfm", embedding_width=WIDTH, hidden=HIDDEN, dropout=0.0),
        train=TrainConfig(
            batch_size=BATCH,
            max_epochs=1,
            lr=LR,
            id_lr=LR,
            weight_decay=0.0,
            id_l2=0.0,
            id_dropout=0.0,
            id_optimizer=id_optimizer,
            grad_clip_norm=CLIP,
        ),
        trainer=TrainerConfig(accelerator="cpu", progress="none"),
    )


def measure_ours(case: SpeedCase, *, id_optimizer: Literal["sparse", "dense"]) -> None:
    """A whole run; its own clocks count the training epoch."""
    with tempfile.TemporaryDirectory() as folder:
        record = fit(fit_config(case, Path(folder), id_optimizer=id_optimizer))
    epoch = record["valid"]
    print(
        json.dumps(
            {
                "cpu_us": epoch["train/cpu_us_per_impression"],
                "wall_us": 1e6 / epoch["train/impressions_per_second"],
                "samples": record["train_impressions"],
                "peak_bytes": peak_bytes(),
                "auc": epoch["val/auc"],
                "logloss": epoch["val/logloss"],
                "parameters": record["parameters"],
                "versions": {"torch": torch.__version__},
            }
        )
    )


def measure_bare(case: SpeedCase, *, batches_only: bool) -> None:
    """The real parts without Lightning."""
    keep_freed_memory()
    config = fit_config(case, Path("unused"))
    inputs = Inputs.open(config)
    table = CtrTable(inputs.data.train, inputs.data.users, inputs.data.items, None)
    batches = TrainBatches(table, batch_size=BATCH, seed=case.seed, epoch=lambda: 0)
    if batches_only:
        for _ in zip(range(WARM_STEPS), batches, strict=False):
            pass
        with MeasuredLoop() as loop:
            for _ in batches:
                pass
        loop.report(samples=len(batches) * BATCH)
        return
    torch.manual_seed(case.seed)
    model = CtrModel(config.head, data=inputs.data, content=None)
    objective = Objective(config, data=inputs.data, tasks=model.tasks)
    module = CtrModule(
        model, config.train, objective=objective, train=table, valid=table, seed=case.seed
    )
    optimizer = module.configure_optimizers()
    steps = min(case.steps, len(batches) - WARM_STEPS)
    running = iter(batches)
    for step in range(WARM_STEPS + steps):
        if step == WARM_STEPS:
            loop = MeasuredLoop()
            loop.__enter__()
        batch = next(running)
        optimizer.zero_grad()
        objective(model, batch).loss.backward()
        clip_norm(model.parameters(), CLIP)
        optimizer.step()
    loop.__exit__()
    loop.report(samples=steps * BATCH)


def measure_floor(case: SpeedCase, *, input_gradient: bool) -> None:
    """Forward, backward and fused Adam of the dense part, the embedding output given."""
    widths = (NUM_FIELDS * WIDTH, *HIDDEN)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    x_BX = (torch.randn(BATCH, widths[0]) * 0.01).requires_grad_(input_gradient)
    label_B = (torch.rand(BATCH) < 0.3).float()

    def step() -> None:
        optimizer.zero_grad()
        x_BX.grad = None
        F.binary_cross_entropy_with_logits(net(x_BX).squeeze(1), label_B).backward()
        optimizer.step()

    for _ in range(WARM_STEPS):
        step()
    with MeasuredLoop() as loop:
        for _ in range(case.steps):
            step()
    loop.report(samples=case.steps * BATCH)


def main() -> None:
    """Run one case."""
    names = ("ours", "ours_dense", "ours_bare", "ours_loader")
    names += ("mlp_floor", "mlp_floor_no_input_gradient")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=names)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hash_buckets", type=int, default=0)
    parser.add_argument("--memory_mb", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = SpeedCase(**{key: value for key, value in vars(args).items() if key != "case"})
    if args.case in ("ours", "ours_dense"):
        measure_ours(case, id_optimizer="dense" if args.case == "ours_dense" else "sparse")
    elif args.case.startswith("mlp"):
        measure_floor(case, input_gradient=args.case == "mlp_floor")
    else:
        measure_bare(case, batches_only=args.case == "ours_loader")


if __name__ == "__main__":
    main()
