"""Ablation of pre-training: what each loss term, mask and setting is worth on fashion purchases.

    python tests/bench/ablation.py --out_dir runs/ablation

`full` is what configs/quality_fashion/pretrain.yaml ships, with everything on: user→item, item-item
and content-content losses, logQ, the masks, modality dropout, ids in histories and items. Each
other variant takes one of these away (`variants`), `user_item_alone` all but the first loss. A
release of each variant and seed ranks, alone and without a blend, what the *validation* of
fashion-cold and fashion-all asks; the test stage is never opened. Differences to `full` are paired
by user and seed. What is there already is kept, so that a run that was stopped goes on. The table
is also ablation.md in out_dir, the last line is one JSON object. Time is known by day only: neither
protocol is free of look-ahead.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import fashion_protocol
from fashion import check_same_settings, module
from quality_fashion import CONFIGS, PROTOCOLS, Folders, open_stage, run_settings
from quality_summary import over_users, ratio

from pretrain.baselines import ContentKNN
from pretrain.cases import read, read_cases, read_catalogue, rows_of
from pretrain.cli import fit
from pretrain.embed import embed
from pretrain.export import BACKBONES_FILE, export
from pretrain.metrics import rank_scored, recall_at_k, user_means
from pretrain.release import Release
from pretrain.scorers import Scorer, baseline_scorer, open_release, released_scorer

log = logging.getLogger("ablation")

CONFIG = CONFIGS / "quality_fashion" / "pretrain.yaml"
K = 20
UNIT = f"recall@{K}"
REFERENCE = "full"
Settings = dict[str, object]
"""Setting of `pretrain fit` → value."""
Users = Literal["encoder", "mean"]
Recalls = dict[fashion_protocol.ProtocolName, list[Tensor]]
"""Protocol → of each seed the recall of every user, [U]."""
Figures = dict[fashion_protocol.ProtocolName, dict[str, Any]]
"""Protocol → mean, interval, seeds and the same of the difference to `full`."""

QUIET: Settings = {
    "run.wandb": "off",
    "run.progress_bar": False,
    "run.health.every_steps": 0,
    "trainer.enable_model_summary": False,
}
"""Of every variant: nothing that is only looked at."""

NO_ITEM_ITEM: Settings = {"data.config.item_pairs": 0, "model.loss.behaviour_weight": 0.0}
NO_CONTENT_CONTENT: Settings = {"model.loss.pair_weight": 0.0}
NO_MODALITY_DROPOUT: Settings = {"model.encoders.modality_dropout": 0.0}
MEAN_USERS = ("no_user_item", "users_as_mean")
"""The user encoder learns from user→item alone: without that loss there is only the mean to read,
and `full` read so is what to compare it with."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    settings: Settings
    """What differs from `full`."""

    users: Users = "encoder"
    """How a history becomes a user: by the release's encoder, or as the mean of its items."""


def variants(config: Path) -> dict[str, Variant]:
    """Name → variant.

    Masking the same item has no switch: candidates are distinct items, of which the positive is one
    and the trigger of a pair is the query itself. As a negative either would be a wrong loss, not
    a weaker one. LogQ and the mask of equal content are those of both directed losses.
    """
    towers = yaml.safe_load(config.read_text())["model"]["encoders"]["towers"]

    def only(*modalities: str) -> Settings:
        return {"model.encoders.towers": {name: towers[name] for name in modalities}}

    differences: dict[str, Settings] = {
        REFERENCE: {},
        "users_as_mean": {},
        "user_item_alone": NO_ITEM_ITEM | NO_CONTENT_CONTENT | NO_MODALITY_DROPOUT,
        "no_user_item": {"model.loss.user_item_weight": 0.0},
        "no_item_item": NO_ITEM_ITEM,
        "no_content_content": NO_CONTENT_CONTENT,
        "no_logq": {"model.loss.logq": 0.0},
        "whole_logq": {"model.loss.logq": 1.0},
        "no_own_history_mask": {"model.loss.own_history": "negative"},
        "no_same_content_mask": {"model.loss.same_content": "negative"},
        "no_modality_dropout": NO_MODALITY_DROPOUT,
        "no_ids": {"model.encoders.ids": "none"},
        "ids_in_history": {"model.encoders.ids": "history"},
        "no_picture": only("text", "words"),
        "no_text_and_words": only("image"),
    }
    return {
        name: Variant(settings=settings, users="mean" if name in MEAN_USERS else "encoder")
        for name, settings in differences.items()
    }


def words(settings: Settings) -> list[str]:
    """Settings as words of a command line; a mapping replaces the one of the config."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def main() -> None:
    """Train and ask every variant, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/quality"))
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(variants(CONFIG)))
    args = parser.parse_args()
    del sys.argv[1:]  # LightningCLI, which is given its own words, would warn of ours
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    known = variants(args.config)
    if unknown := set(args.variants) - set(known):
        sys.exit(f"--variants: found {sorted(unknown)}, expected some of {list(known)}")
    where = open_stage(
        "valid",
        run_dir=args.out_dir,
        dataset_dir=args.data_dir / "fashion_ablation",
        config=args.config,
    )
    if not (where.features_dir / "features.json").is_file():
        module("pretrain", "features", *run_settings(where, run_dir=args.out_dir, seed=0))
    recalls: dict[str, Recalls] = {
        name: {protocol: [] for protocol in PROTOCOLS}
        for name in known
        if name in {REFERENCE, *args.variants}
    }
    for seed in args.seeds:
        for name, of_protocol in recalls.items():
            fitted = next(other for other in known if known[other].settings == known[name].settings)
            out = args.out_dir / fitted / f"seed-{seed}"
            answer(where, known[name].settings, seed=seed, out=out)
            for protocol, of_seeds in of_protocol.items():
                answers = pq.read_table(out / f"{protocol}.parquet")
                of_seeds.append(torch.tensor(answers[known[name].users].to_numpy()))
    figures = compared(recalls)
    header, rows = table(figures)
    title = f"{UNIT} on validation, seeds {' '.join(map(str, args.seeds))}"
    shown = Table(*header, title=title, caption=fashion_protocol.CAVEAT)
    for row in rows:
        shown.add_row(*row)
    Console(width=200).print(shown)
    page = f"{title}\n\n{markdown(header, rows)}\n{fashion_protocol.CAVEAT}\n"
    (args.out_dir / "ablation.md").write_text(page)
    print(json.dumps(outcome(figures, seeds=args.seeds)))


def answer(where: Folders, settings: Settings, *, seed: int, out: Path) -> None:
    """Train a release, unless it was, and write what each user finds with it, by protocol.

    Weights and vectors, a quarter of a gigabyte, are let go then; curves and settings stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    given = words(QUIET | settings)
    check_same_settings(where.config, run_dir=out, more=given)
    if all((out / f"{protocol}.parquet").is_file() for protocol in PROTOCOLS):
        return
    started = time.process_time()
    run_dir, released, embeddings = (out / name for name in ("pretrain", "released", "embeddings"))
    if not (run_dir / "DONE").is_file():
        fit([*map(str, run_settings(where, run_dir=run_dir, seed=seed)), *given])
    if not (run_dir / "DONE").is_file():
        sys.exit(f"{run_dir}: was asked to stop; give the same command again to go on")
    trained = time.process_time()
    # In this process, as in quality_films: to import torch anew costs as much as each of these.
    export(run_dir, released, dataset_dir=where.dataset_dir, checkpoint="last")
    embed(released, where.dataset_dir, embeddings, features_dir=where.features_dir)
    vectors = embeddings / "items.parquet"
    release = open_release(released, vectors=[vectors])
    for protocol in PROTOCOLS:
        found = ranked(release, vectors, where.run_dir / "tables" / protocol)
        pq.write_table(found, out / f"{protocol}.parquet.tmp")
        (out / f"{protocol}.parquet.tmp").replace(out / f"{protocol}.parquet")
    for folder in (run_dir / "checkpoints", released, embeddings):
        shutil.rmtree(folder)
    (run_dir / BACKBONES_FILE).unlink()
    ended = time.process_time()
    log.info("%s: trained in %.0f CPU s, ranked in %.0f", out, trained - started, ended - trained)


def ranked(release: Release, vectors: Path, tables: Path) -> pa.Table:
    """Recall of every user by either way to read them; columns `encoder` and `mean`."""
    catalogue, vector_NDs = read_catalogue([vectors], columns=["aligned", "event"], tables=[])
    asked = read_cases(tables / "cases.parquet", catalogue=catalogue)
    candidates = tables / "candidates.parquet"
    rows_C = torch.from_numpy(
        rows_of(read(candidates, "item_id"), catalogue=catalogue, where=candidates)
    )

    def recall_U(scores_of: Scorer) -> Tensor:
        ranks_BT = rank_scored(
            lambda cases: scores_of(cases)[:, rows_C],
            num_items=len(catalogue),
            target_rows=asked.targets_BT,
            masked_rows=asked.masked_BM,
            candidates=rows_C,
        )
        return user_means(recall_at_k(ranks_BT, k=K), users_B=asked.users_B)

    scorers: dict[Users, Scorer] = {
        "encoder": released_scorer(release, asked, vector_NDs=vector_NDs),
        "mean": baseline_scorer(ContentKNN(vector_NDs["aligned"]), asked),
    }
    return pa.table({name: recall_U(scorer).numpy() for name, scorer in scorers.items()})


def compared(recalls: Mapping[str, Recalls]) -> dict[str, Figures]:
    """Variant → protocol → recall, and its difference to `full` by the same users and seeds."""
    full = recalls[REFERENCE]
    return {
        name: {
            protocol: {
                **over_users(runs),
                "difference": over_users(
                    [ours_U - full_U for ours_U, full_U in zip(runs, full[protocol], strict=True)]
                ),
            }
            for protocol, runs in of_protocol.items()
        }
        for name, of_protocol in recalls.items()
    }


def table(figures: Mapping[str, Figures]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: recall, difference to `full` with its interval, and that of each seed."""
    header = ["variant"]
    for protocol in PROTOCOLS:
        header += [protocol, "difference [95 %]", "of each seed"]
    rows = []
    for name, of_protocol in figures.items():
        row = [name]
        for found in of_protocol.values():
            apart = found["difference"]
            row.append(f"{found['mean']:.4f}")
            if name == REFERENCE:
                row += ["", ""]
                continue
            row.append(f"{apart['mean']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]")
            row.append(" ".join(f"{value:+.4f}" for value in apart["seeds"]))
        rows.append(row)
    return header, rows


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def outcome(figures: Mapping[str, Figures], *, seeds: list[int]) -> dict[str, Any]:
    """The last line: `full` as ours, the other variants as peers."""
    ours = figures[REFERENCE]
    peers = {name: found for name, found in figures.items() if name != REFERENCE}
    return {
        "name": "ablation",
        "stage": "valid",
        "unit": UNIT,
        "reading": "the release alone; a peer's difference is its recall minus that of ours",
        "seeds": seeds,
        "ours": {
            protocol: {key: value for key, value in found.items() if key != "difference"}
            for protocol, found in ours.items()
        },
        "peers": peers,
        "ratio": {
            name: {protocol: ratio(ours[protocol], found[protocol]["mean"]) for protocol in found}
            for name, found in peers.items()
        },
    }


if __name__ == "__main__":
    main()
