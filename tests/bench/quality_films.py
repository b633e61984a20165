"""Show `quality_films`: five blocks of films-rolling against ids alone and content alone.

    python tests/bench/quality_films.py --out_dir runs/quality/films

In each block: data_prep shard → pretrain features (once) → fit → export → embed on what precedes
the last tenth of its training; a blend is learnt on that tenth and on those of the blocks before
(`pretrain blend`). Then the same again on the whole training, and that blend ranks the block, with
every seed. `--stage valid` asks the last tenths instead, each with the blend of the block before
it, by which settings are chosen.
What is there already is kept, so that a run that was stopped goes on. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import films_protocol
from fashion import check_same_settings, module
from films_systems import PLACES, SIGNALS, Folders, rank_block
from quality_content import raw_modalities, vector_column, write_vectors

from pretrain.blend import blend
from pretrain.blend_samples import Question
from pretrain.intervals import bootstrap_interval
from pretrain.word_vectors import word_vectors, words_of

log = logging.getLogger("quality_films")

CONFIGS = Path("configs/quality_films")
WORD_WIDTH = 128
CASES_A_QUESTION = 1000
MAX_CANDIDATES = 1024
PROSE = frozenset({"title", "description", "plot", "cast"})
ANSWERS = ("all", "warm", "cold", "cold_among_cold")
"""Parts of the targets; the last ranks cold items among cold items only, as fashion-cold does."""

Recalls = dict[str, dict[str, Tensor]]
"""System → answer → Recall@20 of each user of a block."""


def main() -> None:
    """Run the blocks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/quality/films"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/quality"))
    parser.add_argument("--config", type=Path, default=CONFIGS / "pretrain.yaml")
    parser.add_argument("--stage", choices=("test", "valid"), default="test")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = films_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds movielens_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    check_same_settings(args.config, run_dir=args.out_dir)
    items = write_items(source, args.out_dir / "items.parquet")
    interactions = films_protocol.read_interactions(source)

    def folders(number: int, stage: films_protocol.Stage) -> Folders:
        name = f"{stage}-{number}"
        return Folders(
            run_dir=args.out_dir / name,
            dataset_dir=args.data_dir / f"films_{name}",
            features_dir=args.data_dir / "films_features",
            items=items,
            config=args.config,
        )

    def question(number: int, *, with_release: bool) -> Question:
        where = folders(number, "valid")
        prepare(films_protocol.rolling_block(interactions, number, stage="valid"), where)
        vectors = train_release(where, seed=0)
        return Question(
            cases=where.cases,
            train=where.train,
            released=where.run_dir / "seed-0" / "released" if with_release else None,
            vectors=tuple(vectors),
        )

    def blend_of(number: int, *, with_release: bool) -> Path:
        name = "blend.json" if with_release else "blend_control.json"
        out = folders(number, "valid").run_dir / name
        if not out.is_file():
            asked = [question(one, with_release=with_release) for one in range(number + 1)]
            blend(
                asked,
                out,
                items=items,
                signals=SIGNALS,
                places=PLACES,
                max_cases=CASES_A_QUESTION * len(asked),
                max_candidates=MAX_CANDIDATES,
                timestamp_unit="s",
            )
        return out

    recalls: list[list[Recalls]] = []  # block, seed
    for number in args.blocks:
        if args.stage == "valid" and number == 0:
            continue  # no block before it whose blend could be taken
        block = films_protocol.rolling_block(interactions, number, stage=args.stage)
        learnt_on = number if args.stage == "test" else number - 1
        weights, control = (blend_of(learnt_on, with_release=release) for release in (True, False))
        where = folders(number, args.stage)
        prepare(block, where)
        recalls.append(
            [
                rank_block(
                    block,
                    where,
                    seed=seed,
                    vectors=train_release(where, seed=seed),
                    blend_file=weights,
                    control=control,
                )
                for seed in args.seeds
            ]
        )
    print(json.dumps(summary(recalls, stage=args.stage)))


def write_items(source: Path, path: Path) -> Path:
    """The catalogue with word vectors."""
    if path.is_file():
        return path
    items = pq.read_table(source / "items.parquet").sort_by("item_id")
    texts: dict[str, list[str | None]] = {
        name: items[name].to_pylist() for name in ("title", "description", "plot", "director")
    }
    for name in ("genres", "cast"):
        texts[name] = [" ".join(values or []) for values in items[name].to_pylist()]
    documents = [
        words_of(dict(zip(texts, values, strict=True)), prose=PROSE)
        for values in zip(*texts.values(), strict=True)
    ]
    vectors = word_vectors(documents, width=WORD_WIDTH)
    items = items.append_column("words", vector_column(vectors))
    pq.write_table(items, path, row_group_size=512)
    return path


def prepare(block: films_protocol.Block, where: Folders) -> None:
    """Tables and dataset of a block."""
    if (where.dataset_dir / "manifest.json").is_file() and where.cases.is_file():
        return
    where.run_dir.mkdir(parents=True, exist_ok=True)
    liked = pc.greater_equal(block.train["rating"], films_protocol.POSITIVE_FROM)
    pq.write_table(block.train.filter(liked), where.train)
    pq.write_table(block.cases, where.cases)
    valid_start, test_start = (
        datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        for second in (block.start, block.start + 1)
    )
    module(
        "data_prep", "shard", "--config", CONFIGS / "shard.yaml",
        "--name", where.dataset_dir.name, "--dataset_dir", where.dataset_dir,
        "--interactions.path", where.train, "--items.path", where.items,
        "--split.valid_start", valid_start, "--split.test_start", test_start,
    )  # fmt: skip


def train_release(where: Folders, *, seed: int) -> list[Path]:
    """Train, release and embed; the tables of the release's vectors and of the plain content."""
    seed_dir = where.run_dir / f"seed-{seed}"
    released, embeddings = seed_dir / "released", seed_dir / "embeddings"
    settings = [
        "--config", where.config, "--seed_everything", seed, "--data.config.seed", seed,
        "--run.dir", seed_dir / "pretrain", "--data.config.dataset_dir", where.dataset_dir,
        "--data.config.features_dir", where.features_dir,
    ]  # fmt: skip
    if not (where.features_dir / "features.json").is_file():
        module("pretrain", "features", *settings)
    if not (released / "config.json").is_file():
        module("pretrain", "fit", *settings)
        module(
            "pretrain", "export", "--run_dir", seed_dir / "pretrain", "--checkpoint", "last",
            "--out_dir", released, "--dataset_dir", where.dataset_dir,
        )  # fmt: skip
    if not (embeddings / "content.parquet").is_file():
        module(
            "pretrain", "embed", "--released", released, "--dataset_dir", where.dataset_dir,
            "--features_dir", where.features_dir, "--out_dir", embeddings,
        )  # fmt: skip
        item_id, raw = raw_modalities(released, embeddings)
        write_vectors(embeddings / "content.parquet", item_id, raw)
    return [embeddings / "items.parquet", embeddings / "content.parquet"]


def summary(recalls: list[list[Recalls]], *, stage: str) -> dict[str, Any]:
    """Mean over blocks and seeds of the mean over a block's users, with an interval over users."""
    figures = {
        system: {
            answer: figure(
                [[run[system][answer] for run in runs if system in run] for runs in recalls]
            )
            for answer in ANSWERS
        }
        for system in recalls[0][0]
    }
    ours = figures["ours"]
    id_systems = ("popularity", "item_knn", "ease", "sasrec")
    best_id = max(id_systems, key=lambda name: figures[name]["all"]["mean"])
    content = {
        "content_knn": [name for name in figures if name.startswith("content_knn")],
        "off_the_shelf_knn": [f"content_knn_{name}" for name in ("text", "image", "text_image")],
    }
    ratios = {
        f"{kind}_{answer}": ours[answer]["mean"]
        / max(figures[name][answer]["mean"] for name in names)
        for kind, names in content.items()
        for answer in ("cold", "cold_among_cold")
    }
    return {
        "name": "quality_films",
        "stage": stage,
        "unit": "recall@20",
        "reading": "ours: the release, EASE with content, counts, ages and tastes, blended, with "
        "places kept for films that nobody had liked; cold: films that nobody had rated, among the "
        "whole catalogue and among cold films only; content_knn: the best of pictures, texts and "
        "word vectors of our own, off_the_shelf_knn: of pictures and texts",
        "ours": ours,
        "peers": {"best_id_is": best_id, **figures},
        "ratio": {
            "best_id": round(ours["all"]["mean"] / figures[best_id]["all"]["mean"], 3),
            **{name: round(ratio, 3) for name, ratio in ratios.items()},
        },
    }


def figure(blocks: list[list[Tensor]]) -> dict[str, Any]:
    """`blocks` holds for each block and seed the values of its users.

    Blocks weigh the same. The interval is a bootstrap over users (of the mean over seeds), moved to
    the mean over blocks.
    """
    of_users = [torch.stack(seeds).mean(0) for seeds in blocks]
    mean = float(torch.stack([values_U.mean() for values_U in of_users]).mean())
    low, high = bootstrap_interval(torch.cat(of_users))
    shift = mean - float(torch.cat(of_users).mean())
    by_seed = [
        float(torch.stack([seeds[n].mean() for seeds in blocks]).mean())
        for n in range(min(map(len, blocks)))
    ]
    return {
        "mean": round(mean, 4),
        "low": round(low + shift, 4),
        "high": round(high + shift, 4),
        "seeds": [round(value, 4) for value in by_seed],
    }


if __name__ == "__main__":
    main()
