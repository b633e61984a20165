"""Show `ctr_ladder`: the content ladder on all five blocks of films-ctr.

    python tests/bench/ctr_ladder.py --out_dir runs/ctr_ladder

In each block: data_prep shard, pretrain features (once), and for every seed pretrain fit → export →
embed on what precedes the block's validation tenth → `finetune ladder` of that seed. So a seed is
one of the whole pipeline: a block's figure rests on three releases, as one that is drawn anew moves
AUC on cold and tail items by .005. `--stage valid` prints the figures of the validation tenths and
opens no test; settings are chosen there. What is there already is kept, so that a run that was
stopped goes on; `-- --rungs '[none,raw,aligned]'` climbs these only. A seed of a block takes a
minute or two of one core then, and six or seven with the whole ladder. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import films_protocol
from ctr_blocks import SLICES, BlockScores, counts, protocol_masks, side_by_side
from fashion import check_same_settings, module

from finetune.run_folder import CONFIG_FILE, PREDICTIONS_FILE

log = logging.getLogger("ctr_ladder")

SHARD, PRETRAIN = Path("configs/films/shard.yaml"), Path("configs/films/pretrain.yaml")
LADDER = Path("configs/ctr_ladder/ladder.yaml")
OURS = "aligned"
WITHOUT = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where one seed of a block keeps its files."""

    run_dir: Path
    seed: int
    dataset_dir: Path
    features_dir: Path
    runs: str
    """Name of the ladder among those of this seed."""

    @property
    def ladder(self) -> Path:
        """The runs and their report."""
        return self.run_dir / self.runs

    @property
    def released(self) -> Path:
        """The release, which has seen nothing of the validation tenth."""
        return self.run_dir / "released"

    @property
    def embeddings(self) -> Path:
        """Its vectors of the block's items."""
        return self.run_dir / "embeddings"


def shard(block: films_protocol.CtrBlock, where: Folders) -> None:
    """The block's dataset."""
    if (where.dataset_dir / "manifest.json").is_file():
        return
    where.run_dir.mkdir(parents=True, exist_ok=True)
    table = where.run_dir / "interactions.parquet"
    pq.write_table(block.interactions, table)
    valid_start, test_start = (
        datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        for second in (block.valid_start, block.test_start)
    )
    module(
        "data_prep", "shard", "--config", SHARD, "--name", where.dataset_dir.name,
        "--dataset_dir", where.dataset_dir,
        "--interactions.path", table, "--impressions.path", table,
        "--split.valid_quantile", "null", "--split.test_quantile", "null",
        "--split.valid_start", valid_start, "--split.test_start", test_start,
    )  # fmt: skip


def pretrain(where: Folders) -> None:
    """Features once for all blocks, then the block's release and vectors."""
    settings = [
        "--config", PRETRAIN, "--run.dir", where.run_dir / "pretrain",
        "--data.config.dataset_dir", where.dataset_dir,
        "--data.config.features_dir", where.features_dir,
        "--seed_everything", where.seed, "--data.config.seed", where.seed,
    ]  # fmt: skip
    if not (where.features_dir / "features.json").is_file():
        module("pretrain", "features", *settings)
    if not (where.released / "config.json").is_file():
        module("pretrain", "fit", *settings)
        module(
            "pretrain", "export", "--run_dir", where.run_dir / "pretrain",
            "--out_dir", where.released, "--dataset_dir", where.dataset_dir,
        )  # fmt: skip
    if not (where.embeddings / "embeddings.json").is_file():
        module(
            "pretrain", "embed", "--released", where.released, "--dataset_dir", where.dataset_dir,
            "--features_dir", where.features_dir, "--out_dir", where.embeddings,
        )  # fmt: skip


def climb(where: Folders, *, stage: str, config: Path, more: Sequence[object]) -> None:
    """The seed's ladder; runs that are there already are kept."""
    knock_outs = [str(where.run_dir / f"without-{name}") for name in WITHOUT]
    for name, folder in zip(WITHOUT, knock_outs, strict=True):
        if stage == "test" and not (Path(folder) / "embeddings.json").is_file():
            module(
                "pretrain", "embed", "--released", where.released, "--without", f"[{name}]",
                "--dataset_dir", where.dataset_dir, "--features_dir", where.features_dir,
                "--out_dir", folder,
            )  # fmt: skip
    module(
        "finetune", "ladder", "--config", config, "--judged_on", stage,
        "--dataset_dir", where.dataset_dir, "--embeddings_dir", where.embeddings,
        "--released", where.released, "--out_dir", where.ladder, "--seeds", f"[{where.seed}]",
        "--content.features_dir", where.features_dir,
        "--knock_outs", json.dumps(knock_outs if stage == "test" else []),
        "--pretrain_metrics", where.run_dir / "pretrain" / "metrics.csv", *more,
    )  # fmt: skip


def read_block(
    block: films_protocol.CtrBlock, seeds: Sequence[Folders], *, stage: str
) -> BlockScores:
    """What the finished runs of a block said, those of every seed."""
    scores: dict[str, list[NDArray[np.float32]]] = {}
    for where in seeds:
        settings = yaml.safe_load((where.ladder / CONFIG_FILE).read_text())
        folder = where.ladder / "ladder" / settings["head"]["name"]
        for rung in settings["rungs"]:
            table = pq.read_table(folder / rung / f"seed-{where.seed}" / PREDICTIONS_FILE)
            scores.setdefault(rung, []).append(table["score"].to_numpy())
    user_N, item_N = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    before = block.test_start if stage == "test" else block.valid_start
    return BlockScores(
        user_N=user_N,
        label_N=table["label"].to_numpy(),
        masks=protocol_masks(block.interactions, before=before, user_N=user_N, item_N=item_N),
        scores=scores,
    )


def without_modality(blocks: Sequence[Path]) -> dict[str, dict[str, float]]:
    """What the rungs lose without a modality, mean over blocks and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in blocks:
        for name, metrics in json.loads((folder / "metrics.json").read_text())[
            "knock_outs"
        ].items():
            for metric in ("auc", "auc_tail"):
                lost = metrics[metric]["mean"]
                found.setdefault(name, {}).setdefault(metric, []).append(lost)
    return {
        name: {metric: round(float(np.mean(values)), 4) for metric, values in metrics.items()}
        for name, metrics in found.items()
    }


def main() -> None:
    """Run the blocks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/ctr_ladder"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/ctr_ladder"))
    parser.add_argument("--config", type=Path, default=LADDER)
    parser.add_argument("--stage", choices=("test", "valid", "prepare"), default="test")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", help="folder of a seed's runs; the stage by default")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("more", nargs="*", help="words for finetune ladder, behind --")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = films_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds movielens_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    check_same_settings(PRETRAIN, run_dir=args.out_dir)
    interactions = films_protocol.read_interactions(source)
    scores, folders = [], []
    for number in args.blocks:
        seeds = [
            Folders(
                run_dir=args.out_dir / f"block-{number}" / f"seed-{seed}",
                seed=seed,
                dataset_dir=args.data_dir / f"films_ctr_{number}",
                features_dir=args.data_dir / "features",
                runs=args.name or args.stage,
            )
            for seed in args.seeds
        ]
        block = films_protocol.ctr_block(interactions, number)
        for where in seeds:
            shard(block, where)
            pretrain(where)
            if args.stage != "prepare":
                climb(where, stage=args.stage, config=args.config, more=args.more)
        if args.stage != "prepare":
            scores.append(read_block(block, seeds, stage=args.stage))
            folders += [where.ladder for where in seeds]
    if scores:
        print(json.dumps(summary(scores, folders, args=args)))


def summary(
    scores: Sequence[BlockScores], folders: Sequence[Path], *, args: argparse.Namespace
) -> dict[str, Any]:
    """The last line."""
    figures, differences = side_by_side(scores, num_resamples=args.resamples)
    peers = {rung: figures[rung] for rung in figures if rung != OURS}
    ratio = {
        f"{OURS}_minus_{base}_cold_low": differences[f"{OURS}_minus_{base}"]["cold_tail"]["low"]
        for base in ("raw", "none")
        if f"{OURS}_minus_{base}" in differences
    }
    return {
        "name": "ctr_ladder",
        "stage": args.stage,
        "unit": "AUC in a block, mean over blocks and seeds; intervals over users of all blocks",
        "reading": "cold in the ratio is the slice cold_tail; bar: both lower ends above zero, and "
        "aligned_minus_none not below zero on all",
        "slices": {name: {"is": text, **counts(scores)[name]} for name, text in SLICES.items()},
        "ours": figures.get(OURS),
        "peers": peers,
        "differences": differences,
        "without_modality": without_modality(folders),
        "ratio": ratio,
    }


if __name__ == "__main__":
    main()
