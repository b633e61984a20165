"""Bench `user_tower`: the user tower on ids alone against SASRec, under leave-last-out.

    python tests/bench/user_tower.py --out_dir runs/user_tower

Ours goes through the commands, data_prep shard → pretrain fit → export → embed → evaluate, by
configs/user_tower, with either attention. SASRec is `pretrain/sasrec.py` with its paper's loss and
with a softmax over all items; popularity and item-kNN are those of shared/data/README.md. All see
the same events in the same order (tests/bench/leave_last_out.py) and rank the same items. What is
there already is kept, so that a run that was stopped goes on. `--stage valid` asks the events
before the last ones, by which epochs and settings are to be chosen, and follows SASRec's epochs.
The last line is one JSON object.

No published figure of SASRec on these ratings (ml-latest-small, 610 users) was found that says how
it was measured; the paper's own data sets are not here. Under its protocol of 100 drawn negatives
our SASRec can be seen beside what it reports of MovieLens-1M.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import leave_last_out
from fashion import module
from interleaved import Outcome

from pretrain.baselines import Baseline, ItemKNN, Popularity
from pretrain.cases import Cases, read_cases, read_catalogue, read_choices
from pretrain.intervals import bootstrap_interval
from pretrain.metrics import PADDING, ndcg_at_k, ranks_of_targets, recall_at_k
from pretrain.sasrec import SASRec, SASRecConfig
from pretrain.scorers import Scorer, baseline_scorer, open_release, released_scorer

log = logging.getLogger("user_tower")

CONFIGS = Path("configs/user_tower")
Attention = Literal["sasrec", "hstu"]
CHOSEN: Attention = "sasrec"
"""What `ours` is; hstu is reported beside it. SASRec's epochs below are not searched."""

SASREC = {
    "sasrec_paper": SASRecConfig(loss="bce", epochs=200),
    "sasrec_softmax": SASRecConfig(loss="softmax", epochs=60),
}
CURVE_EPOCHS = 10
KNN_SHRINK = 10.0  # shared/data/README.md's
NUM_NEGATIVES = 100
METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "hr@10": lambda ranks_BT: recall_at_k(ranks_BT, k=10),
    "ndcg@10": lambda ranks_BT: ndcg_at_k(ranks_BT, k=10),
    "recall@20": lambda ranks_BT: recall_at_k(ranks_BT, k=20),
    "ndcg@20": lambda ranks_BT: ndcg_at_k(ranks_BT, k=20),
}
HEADLINE = "ndcg@10"
PUBLISHED = {
    "ml-latest-small": "none found that is trustworthy: the one public figure that names these "
    "ratings (github.com/jasenio/MovieLens, README, Hit@10 0.8185 on validation) is of a script "
    "that reads ml-1m",
    "not_comparable": {
        "SASRec, ML-1M, 100 negatives": {
            "hr@10": 0.8245,
            "ndcg@10": 0.5905,
            "source": "arXiv 1808.09781, table III",
        },
        "SASRec, ML-1M, whole catalogue": {
            "hr@10": 0.2853,
            "ndcg@10": 0.1603,
            "source": "github.com/meta-recsys/generative-recommenders, README",
        },
    },
}

Ranks = dict[str, Tensor]
"""`catalogue` and `sampled`: the rank of each user's target [B, 1], 0 = best."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every system is given at one stage."""

    run_dir: Path
    dataset_dir: Path
    train: Path
    cases: Path
    catalogue: pa.Array
    asked: Cases
    negatives_BC: Tensor
    """Catalogue rows that each user never rated."""


def main() -> None:
    """Rank with every system and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/user_tower"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/user_tower"))
    parser.add_argument("--config", type=Path, default=CONFIGS / "pretrain.yaml")
    parser.add_argument("--stage", choices=get_args(leave_last_out.Stage), default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = leave_last_out.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds movielens_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    out_dir = args.out_dir / "quick" if args.quick else args.out_dir
    epochs = 2 if args.quick else None
    seeds = args.seeds[:1] if args.quick else args.seeds
    sasrec = {
        name: one if epochs is None else dataclasses.replace(one, epochs=epochs)
        for name, one in SASREC.items()
    }
    keep_settings(out_dir, args.config.read_text() + repr(sasrec))
    given = prepare(source, stage=args.stage, run_dir=out_dir / args.stage, data_dir=args.data_dir)
    ranks: dict[str, list[Ranks]] = {}
    for name, model in (("popularity", Popularity()), ("item_knn", ItemKNN(shrink=KNN_SHRINK))):
        ranks[name] = [baseline_ranks(model, given)]
    for attention in get_args(Attention):
        ranks[f"ours_{attention}"] = [
            ours_ranks(given, config=args.config, attention=attention, seed=seed, epochs=epochs)
            for seed in seeds
        ]
    curves: dict[str, dict[int, float]] = {}
    for name, config in sasrec.items():
        curves[name] = {}
        ranks[name] = [
            sasrec_ranks(
                name,
                dataclasses.replace(config, seed=seed),
                given,
                curve=curves[name] if args.stage == "valid" and seed == seeds[0] else None,
            )
            for seed in seeds
        ]
    more = {
        "stage": args.stage,
        "attention": CHOSEN,
        "epochs": {name: one.epochs for name, one in sasrec.items()},
        "curves": curves,
        "published": PUBLISHED,
    }
    print(outcome(ranks, more=more).line())


def keep_settings(run_dir: Path, settings: str) -> None:
    """Refuse to go on with a run of other settings: its figures would not be theirs."""
    kept = run_dir / "settings.txt"
    if kept.is_file() and kept.read_text() != settings:
        sys.exit(f"{run_dir}: found a run of other settings; remove it, or give another --out_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    kept.write_text(settings)


def prepare(source: Path, *, stage: leave_last_out.Stage, run_dir: Path, data_dir: Path) -> Inputs:
    """Tables, dataset and questions of a stage."""
    events = leave_last_out.read_events(source)
    cut = leave_last_out.leave_last_out(events, stage=stage)
    (run_dir / "ranks").mkdir(parents=True, exist_ok=True)
    train, cases = run_dir / "train.parquet", run_dir / "cases.parquet"
    pq.write_table(cut.train, train)
    pq.write_table(cut.cases, cases)
    dataset_dir = data_dir / stage
    if not (dataset_dir / "manifest.json").is_file():
        module(
            "data_prep", "shard", "--config", CONFIGS / "shard.yaml",
            "--dataset_dir", dataset_dir, "--interactions.path", train,
        )  # fmt: skip
    catalogue, _ = read_catalogue([], columns=[], tables=[source / "items.parquet"])
    drawn_BC = leave_last_out.negatives(
        events, item_ids=catalogue.to_numpy(), count=NUM_NEGATIVES, seed=0
    )
    return Inputs(
        run_dir=run_dir,
        dataset_dir=dataset_dir,
        train=train,
        cases=cases,
        catalogue=catalogue,
        asked=read_cases(cases, catalogue=catalogue),
        negatives_BC=torch.from_numpy(drawn_BC),
    )


def target_ranks(scores_of: Scorer, given: Inputs, *, chunk: int = 128) -> Ranks:
    """Rank each target in the whole catalogue, and among the items drawn for its user."""
    found: dict[str, list[Tensor]] = {"catalogue": [], "sampled": []}
    asked = given.asked
    for start in range(0, len(asked.users_B), chunk):
        rows = slice(start, start + chunk)
        scores_BN, target_B1 = scores_of(rows), asked.targets_BT[rows]
        ranks_B1 = ranks_of_targets(scores_BN, target_B1, asked.masked_BM[rows])
        found["catalogue"].append(ranks_B1)
        drawn_BK = torch.cat([target_B1, given.negatives_BC[rows]], dim=1)
        first_B1 = torch.zeros_like(target_B1)
        sampled_B1 = ranks_of_targets(
            scores_BN.gather(1, drawn_BK), first_B1, torch.full_like(first_B1, PADDING)
        )
        found["sampled"].append(sampled_B1)
    return {name: torch.cat(parts) for name, parts in found.items()}


def baseline_ranks(model: Baseline, given: Inputs) -> Ranks:
    """Ranks by a baseline that knows no seed."""
    train_UN = read_choices(given.train, catalogue=given.catalogue)
    return target_ranks(baseline_scorer(model.fit(train_UN), given.asked), given)


def ours_ranks(
    given: Inputs, *, config: Path, attention: Attention, seed: int, epochs: int | None
) -> Ranks:
    """Train, release, embed and rank; what `evaluate` says must be what is counted here."""
    folder = given.run_dir / f"{attention}-{seed}"
    released, embeddings, said = folder / "released", folder / "embeddings", folder / "metrics.json"
    if not (released / "config.json").is_file():
        few = [] if epochs is None else ["--trainer.max_epochs", epochs]
        module(
            "pretrain", "fit", "--config", config, "--run.dir", folder / "pretrain",
            "--seed_everything", seed, "--data.config.seed", seed,
            "--data.config.dataset_dir", given.dataset_dir,
            "--model.encoders.user.attention", attention, *few,
        )  # fmt: skip
        module(
            "pretrain", "export", "--run_dir", folder / "pretrain", "--checkpoint", "last",
            "--out_dir", released, "--dataset_dir", given.dataset_dir,
        )  # fmt: skip
    vectors = [embeddings / "items.parquet"]
    if not said.is_file():
        module(
            "pretrain", "embed", "--released", released, "--dataset_dir", given.dataset_dir,
            "--out_dir", embeddings,
        )  # fmt: skip
        module(
            "pretrain", "evaluate", "--protocol", "leave-last-out", "--cases", given.cases,
            "--vectors", json.dumps([str(path) for path in vectors]), "--released", released,
            "--out", said, "--allow_look_ahead", "true",  # others went on after it
        )  # fmt: skip
    _, vector_NDs = read_catalogue(vectors, columns=["aligned", "event"], tables=[])
    opened = open_release(released, vectors=vectors)
    ranks = target_ranks(released_scorer(opened, given.asked, vector_NDs=vector_NDs), given)
    recall = float(METRICS["recall@20"](ranks["catalogue"]).mean())
    command = json.loads(said.read_text())["leave-last-out"]["ours"]["recall@20"]
    assert abs(recall - command) < 1e-6, f"{said}: {command}, counted here {recall}"
    return ranks


def sasrec_ranks(
    name: str, config: SASRecConfig, given: Inputs, *, curve: dict[int, float] | None
) -> Ranks:
    """Train SASRec on every user's events in their order; `curve` takes in the headline metric."""
    kept = given.run_dir / "ranks" / f"{name}-{config.seed}.npz"
    if kept.is_file() and curve is None:
        with np.load(kept) as arrays:
            return {part: torch.from_numpy(array) for part, array in arrays.items()}
    log.info("%s: seed %d, %d epochs", name, config.seed, config.epochs)
    model = SASRec(len(given.catalogue), config)

    def ranks_now() -> Ranks:
        return target_ranks(lambda rows: model.scores(given.asked.history_BL[rows]), given)

    def follow(epoch: int) -> None:
        if curve is not None and epoch % CURVE_EPOCHS == 0:
            curve[epoch] = float(METRICS[HEADLINE](ranks_now()["catalogue"]).mean())
            log.info("%s: epoch %d, %s %.4f", name, epoch, HEADLINE, curve[epoch])

    model.fit(sequences(given), after_epoch=follow)
    ranks = ranks_now()
    np.savez(kept, **{part: ranks_B1.numpy() for part, ranks_B1 in ranks.items()})
    return ranks


def sequences(given: Inputs) -> list[NDArray[np.int64]]:
    """Catalogue rows of each user's training events, oldest first."""
    train = pq.read_table(given.train)
    rows = pc.index_in(train["item_id"].combine_chunks(), value_set=given.catalogue)
    users = train["user_id"].to_numpy()
    starts = np.flatnonzero(users[1:] != users[:-1]) + 1
    return np.split(rows.to_numpy().astype(np.int64), starts)


def outcome(ranks: dict[str, list[Ranks]], *, more: dict[str, Any]) -> Outcome:
    """Means over users and seeds of every metric, and ours against each SASRec user by user."""
    values = {
        system: {
            part: {
                metric: torch.stack([value(run[part]) for run in runs])
                for metric, value in METRICS.items()
            }
            for part in ("catalogue", "sampled")
        }
        for system, runs in ranks.items()
    }
    ours = f"ours_{CHOSEN}"
    headline = {
        system: float(parts["catalogue"][HEADLINE].mean()) for system, parts in values.items()
    }
    peers = {name: value for name, value in headline.items() if not name.startswith("ours_")}
    figures = {
        system: {
            "whole_catalogue": {m: figure(value_SB) for m, value_SB in parts["catalogue"].items()},
            f"{NUM_NEGATIVES}_negatives": {
                metric: figure(parts["sampled"][metric]) for metric in ("hr@10", "ndcg@10")
            },
        }
        for system, parts in values.items()
    }
    apart = {
        name: {
            metric: figure(
                (values[ours]["catalogue"][metric] - values[name]["catalogue"][metric]).mean(
                    0, keepdim=True
                )
            )
            for metric in METRICS
        }
        for name in SASREC
    }
    return Outcome(
        name="user_tower",
        unit=HEADLINE,
        ours=headline[ours],
        peers=peers,
        ratio={name: headline[ours] / value for name, value in peers.items()},
        more={"figures": figures, "ours_minus": apart} | more,
    )


def figure(value_SB: Tensor) -> dict[str, Any]:
    """Mean, bootstrap interval over users (of the mean over seeds), and each seed's mean."""
    low, high = bootstrap_interval(value_SB.mean(0))
    return {
        "mean": float(value_SB.mean()), "low": low, "high": high,
        "seeds": [float(value_B.mean()) for value_B in value_SB],
    }  # fmt: skip


if __name__ == "__main__":
    main()
