"""Show `kuairand_multitask`: click, like and long view of video-ctr, alone and together.

    python tests/bench/kuairand_multitask.py --out_dir runs/kuairand_multitask

A single-task model of each label is a shared bottom with one task, so that towers and widths are
those of the heads of several labels, MMoE and PLE. A single-task model chooses between two settings
on the validation of its own label, the others have one; then every seed is trained and judged on
test.
Differences of AUC are paired over users and means over seeds. Runs that are there already are kept,
so that a bench that was stopped goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import video_ctr
from interleaved import Outcome

from finetune.bootstrap import Interval, WeightedAuc, user_draws
from finetune.fit import Inputs, fit
from finetune.metrics import auc
from finetune.run_folder import PREDICTIONS_FILE, is_finished, read_record
from finetune.settings import FitConfig, HeadConfig, TrainConfig, TrainerConfig
from finetune.task_settings import TaskConfig

log = logging.getLogger("kuairand_multitask")

LABELS = ("label", "is_like", "long_view")
TOGETHER = ("mmoe", "ple")
CHOICE_SEED = 100
"""Another than those of the test."""
NUM_RESAMPLES = 500
ID_L2 = (1e-3, 1e-2)
"""What a model of one label chooses between; the larger one is that of several."""
HEAD = HeadConfig(
    name="shared_bottom",
    embedding_width=16,
    hidden=(64, 32),
    tower_hidden=(16,),
)
TRAIN = TrainConfig(batch_size=2048, max_epochs=8, patience=2)

Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen on validation."""

    id_l2: float
    like_weight: float = 1.0
    """Of the rare label among several: a log loss near its base rate is small, and so are its
    gradients in what the labels share."""
    num_experts: int = 3
    task_experts: int = 1


OF_SEVERAL = {
    "mmoe": Settings(id_l2=ID_L2[-1], like_weight=16.0),
    "ple": Settings(id_l2=ID_L2[-1], like_weight=8.0, num_experts=1, task_experts=2),
}
"""Chosen by hand on validation, seeds 100 and 0: of like weights 1, 5, 8, 16 and 20, of ple with 3
and 1, 1 and 2, 1 and 1 experts shared and of each task's own, and of a few learning rates."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A head and the labels that it learns."""

    name: str
    head: str
    labels: tuple[str, ...]

    @property
    def grid(self) -> list[Settings]:
        """Settings to choose from."""
        if len(self.labels) == 1:
            return [Settings(id_l2=id_l2) for id_l2 in ID_L2]
        return [OF_SEVERAL[self.name]]


SYSTEMS = [
    *(System(name=name, head=name, labels=LABELS) for name in TOGETHER),
    *(System(name=f"single_{label}", head="shared_bottom", labels=(label,)) for label in LABELS),
]


def main() -> None:
    """Choose, train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/kuairand_multitask"))
    parser.add_argument("--dataset_dir", type=Path, default=video_ctr.DATASET_DIR)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore")
    source = video_ctr.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds kuairand_ctr")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    base = FitConfig(
        dataset_dir=video_ctr.prepare(source, dataset_dir=args.dataset_dir),
        out_dir=args.out_dir / "quick" if args.quick else args.out_dir,
        head=HEAD,
        train=dataclasses.replace(TRAIN, max_epochs=1) if args.quick else TRAIN,
        trainer=TrainerConfig(accelerator="cpu", progress="none"),
    )
    seeds = args.seeds[:1] if args.quick else args.seeds
    inputs = Inputs.open(base)
    chosen = {
        system.name: choose(system, base, inputs, grid=1 if args.quick else None)
        for system in SYSTEMS
    }
    runs = {
        system.name: [
            run_dir(system, chosen[system.name], base, inputs, seed=seed) for seed in seeds
        ]
        for system in SYSTEMS
    }
    validation = {
        name: float(np.mean([read_record(one)["valid"]["val/monitor"] for one in folders]))
        for name, folders in runs.items()
    }
    print(outcome(runs, chosen, validation).line())


def run_dir(
    system: System, settings: Settings, base: FitConfig, inputs: Inputs, *, seed: int
) -> Path:
    """Folder of one run, trained unless it is there."""
    words = [f"{value:g}" for value in asdict(settings).values()]
    folder = base.out_dir / system.name / "-".join(words) / f"seed-{seed}"
    tasks = {
        label: TaskConfig(weight=settings.like_weight if label == "is_like" else 1.0)
        for label in system.labels
    }
    config = dataclasses.replace(
        base,
        out_dir=folder,
        seed=seed,
        tasks=tasks,
        head=dataclasses.replace(
            base.head,
            name=system.head,
            num_experts=settings.num_experts,
            task_experts=settings.task_experts,
        ),
        train=dataclasses.replace(base.train, id_l2=settings.id_l2),
    )
    if not is_finished(config):
        record = fit(config, inputs)
        log.info(
            "%s, %s, seed %d: epoch %d of %d, validation %.4f", system.name, settings, seed,
            record["best_epoch"], record["epochs"], record["valid"]["val/monitor"],
        )  # fmt: skip
    return folder


def choose(system: System, base: FitConfig, inputs: Inputs, *, grid: int | None) -> Settings:
    """The settings with the best validation AUC; test figures are not looked at."""
    settings = system.grid[:grid]
    if len(settings) == 1:
        return settings[0]
    folders = [run_dir(system, one, base, inputs, seed=CHOICE_SEED) for one in settings]
    values = [read_record(folder)["valid"]["val/monitor"] for folder in folders]
    log.info("%s: validation %s of %s", system.name, values, settings)
    return settings[int(np.argmax(values))]


def read_scores(folder: Path, labels: Sequence[str]) -> dict[str, tuple[Scores, Scores]]:
    """Label and score of every test impression, by label."""
    table = pq.read_table(folder / PREDICTIONS_FILE)
    suffixes = ["", *(f"_{label}" for label in labels[1:])]
    return {
        label: (table[f"label{suffix}"].to_numpy(), table[f"score{suffix}"].to_numpy())
        for label, suffix in zip(labels, suffixes, strict=True)
    }


def outcome(
    runs: dict[str, list[Path]], chosen: dict[str, Settings], validation: dict[str, float]
) -> Outcome:
    """Test AUC of every label by every system, and the differences to the single-task models."""
    first = next(iter(runs.values()))[0]
    users, user_N = np.unique(
        pq.read_table(first / PREDICTIONS_FILE)["user_id"], return_inverse=True
    )
    weight_RU = user_draws(len(users), num_resamples=NUM_RESAMPLES, seed=0)
    seeds: dict[str, dict[str, list[float]]] = {label: {} for label in LABELS}
    draws: dict[str, dict[str, NDArray[np.float64]]] = {label: {} for label in LABELS}
    for system in SYSTEMS:
        scores = [read_scores(folder, system.labels) for folder in runs[system.name]]
        name = "single" if len(system.labels) == 1 else system.name
        for label in system.labels:
            seeds[label][name] = [auc(*one[label]) for one in scores]
            draws[label][name] = np.mean(
                [resampled_auc(*one[label], user_N=user_N, weight_RU=weight_RU) for one in scores],
                axis=0,
            )
    apart = {
        name: {
            label: Interval.of(
                float(np.mean(seeds[label][name]) - np.mean(seeds[label]["single"])),
                draws[label][name] - draws[label]["single"],
            )
            for label in LABELS
        }
        for name in TOGETHER
    }
    means = {
        name: float(np.mean([seeds[label][name] for label in LABELS]))
        for name in ("single", *TOGETHER)
    }
    ours = max(TOGETHER, key=validation.__getitem__)
    return Outcome(
        name="kuairand_multitask",
        unit="auc",
        ours=means[ours],
        peers={name: value for name, value in means.items() if name != ours},
        ratio={f"{name}_minus_single_{label}": one.value
               for name, found in apart.items() for label, one in found.items()},
        more={
            "ours_is": ours,
            "auc": {label: {k: figure(v, draws[label][k]) for k, v in seeds[label].items()}
                    for label in LABELS},
            "minus_single": {
                name: {label: asdict(one) for label, one in found.items()}
                for name, found in apart.items()
            },
            "not_below_on_any": {
                name: all(one.high >= 0 for one in found.values()) for name, found in apart.items()
            },
            "above_on": {
                name: [label for label, one in found.items() if one.low > 0]
                for name, found in apart.items()
            },
            "chosen": {name: asdict(settings) for name, settings in chosen.items()},
            "validation": validation,
            "test": {"impressions": len(user_N), "users": len(users)},
        },
    )  # fmt: skip


def resampled_auc(
    label_N: Scores, score_N: Scores, *, user_N: NDArray[np.int64], weight_RU: NDArray[np.int32]
) -> NDArray[np.float64]:
    """AUC on each draw of users, [R]."""
    weighted = WeightedAuc(label_N, score_N)
    return np.array([weighted(weight_U[user_N]) for weight_U in weight_RU])


def figure(by_seed: list[float], draws_R: NDArray[np.float64]) -> dict[str, Any]:
    """Mean of the seeds, each seed's, and an interval over users."""
    one = Interval.of(float(np.mean(by_seed)), draws_R)
    return {"mean": one.value, "low": one.low, "high": one.high, "seeds": by_seed}


if __name__ == "__main__":
    main()
