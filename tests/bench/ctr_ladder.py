"""Show `ctr_ladder`: the content ladder on all five blocks of films-ctr.

    python tests/bench/ctr_ladder.py --out_dir runs/ctr_ladder

In each block: data_prep shard → pretrain features (once) → fit → export → embed on what precedes
the block's validation tenth, then `finetune ladder` with every seed. The head and its settings were
chosen on the validation tenths (`--stage valid` prints those figures and opens no test). What is
there already is kept, so that a run that was stopped goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import films_protocol
from fashion import module

log = logging.getLogger("ctr_ladder")

SHARD, PRETRAIN = Path("configs/films/shard.yaml"), Path("configs/films/pretrain.yaml")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where one block keeps its files."""

    run_dir: Path
    dataset_dir: Path
    features_dir: Path

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


def main() -> None:
    """Run the blocks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/ctr_ladder"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/ctr_ladder"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = films_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds movielens_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    interactions = films_protocol.read_interactions(source)
    for number in args.blocks:
        where = Folders(
            run_dir=args.out_dir / f"block-{number}",
            dataset_dir=args.data_dir / f"films_ctr_{number}",
            features_dir=args.data_dir / "features",
        )
        shard(films_protocol.ctr_block(interactions, number), where)
        pretrain(where)


if __name__ == "__main__":
    main()
