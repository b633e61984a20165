"""`python -m pretrain evaluate`: rank whole catalogues with a release and with baselines.

Shapes: B cases, C candidates, N catalogue items, L history, T targets, D width, U training users.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data_prep.records import replace_file
from pretrain.baselines import EASE, Baseline, ContentKNN, ItemKNN, Popularity
from pretrain.blend import load_blend, open_signals
from pretrain.cases import (
    columns_of,
    read,
    read_cases,
    read_catalogue,
    read_choices,
    rows_of,
)
from pretrain.intervals import bootstrap_interval
from pretrain.light_gcn import LightGCN
from pretrain.metrics import (
    mean_over_users,
    ndcg_at_k,
    rank_scored,
    recall_at_k,
    reciprocal_rank,
    user_means,
)
from pretrain.scorers import Scorer, baseline_scorer, released_scorer
from pretrain.slices import missing_slices, popularity_slices, ranks_within

log = logging.getLogger(__name__)

BaselineName = Literal["popularity", "item_knn", "item_knn_shrunk", "ease", "light_gcn"]
TRAINED_HERE: tuple[BaselineName, ...] = ("light_gcn",)
"""Baselines that take minutes to hours, and so are run only when they are named."""


def evaluate(
    cases: Path,
    out: Path,
    *,
    protocol: str = "catalogue",
    train: Path | None = None,
    candidates: Path | None = None,
    vectors: list[Path] | None = None,
    content: list[str] | None = None,
    released: Path | None = None,
    users: Path | None = None,
    baselines: list[BaselineName] | None = None,
    ease_l2: float = 200.0,
    knn_shrink: float = 10.0,
    k: int = 20,
    chunk: int = 256,
    note: str = "",
    items: Path | None = None,
    blend: Path | None = None,
    new_item_boost: float = 0.0,
) -> dict[str, Any]:
    """Rank every candidate for every case, with each system that the inputs allow.

    The history (or what the cases name as `masked`) is never proposed, ties are broken against the
    system, values are averaged within users and then over users. The catalogue is the items of
    `vectors`; without vectors, those of `train` and `candidates`.

    Args:
        cases: Parquet with user_id, history and targets (lists of item ids); one row a question.
        out: JSON to write: {protocol: {system: {"recall@k", "ndcg@k", "mrr", "se", "low", "high",
            "n_users"}}, "slices": the same for parts of the targets, "about"}. se, low and high
            (a 95 % bootstrap interval over users) are those of recall.
        protocol: name of the protocol that the cases follow.
        train: Parquet with user_id and item_id: what the baselines learn from.
        candidates: Parquet with item_id: what is ranked; null: the whole catalogue.
        vectors: Parquet files with item_id and columns of vectors (items.parquet of `embed`).
        content: columns of `vectors` for content kNN; null: `raw`, where it is there.
        released: released checkpoint; `vectors` must then hold its columns `aligned` and `event`.
        users: Parquet with user_id and the user features that `released` reads (users.parquet of a
            dataset); users whom it lacks count as unknown.
        baselines: which ones; null: all but `light_gcn`, which trains for long, where `train` is
            given. `item_knn` is the plain cosine, `item_knn_shrunk` weakens cosines that rest on
            few users.
        ease_l2: λ of EASE, to be chosen on validation.
        knn_shrink: added to the norms of `item_knn_shrunk`, to be chosen on validation.
        k: places that count.
        chunk: cases that are scored at a time.
        note: what a reader must know of the figures; kept beside them.
        items: Parquet with item_id and columns has_<modality> (items.parquet of a dataset), for the
            slices of items that lack one, and with the column that a blend's `born` names. Warm,
            cold and tail items are slices where `train` is.
        blend: what python -m pretrain blend wrote; `ours_blended` then ranks with it and `train`.
        new_item_boost: added to the blended score of items that nobody chose in `train`: more of
            them are found, at the price of others. To be chosen on validation.
    """
    everyone: list[BaselineName] = [
        name for name in get_args(BaselineName) if name not in TRAINED_HERE
    ]
    chosen = (everyone if baselines is None else baselines) if train else []
    columns = content
    if columns is None:  # vectors of ids alone have no raw content
        columns = ["raw"] if any("raw" in columns_of(path) for path in vectors or []) else []
    learnt = None if blend is None else load_blend(blend)
    if not chosen and not columns and released is None and learnt is None:
        raise ValueError("found nothing to rank with: give train, vectors or released")
    if learnt is not None and train is None:
        raise ValueError("blend: found no train, expected the log whose counts and EASE it weighs")
    ours_needs = ["aligned", "event"] if released else []
    ours_needs += learnt.signals.content if learnt else ()
    catalogue, vector_NDs = read_catalogue(
        vectors or [],
        columns=list(dict.fromkeys([*columns, *ours_needs])),
        tables=[path for path in (train, candidates) if path],
    )
    rows_C = np.arange(len(catalogue), dtype=np.int64)
    if candidates is not None:
        rows_C = rows_of(read(candidates, "item_id"), catalogue=catalogue, where=candidates)
    ranked_C = torch.from_numpy(rows_C) if candidates is not None else slice(None)
    asked = read_cases(cases, catalogue=catalogue)
    train_UN = read_choices(train, catalogue=catalogue) if train else None
    slices = _slices(items, train_UN=train_UN, catalogue=catalogue)
    systems: dict[str, dict[str, float]] = {}
    parts: dict[str, dict[str, dict[str, float]]] = {}

    def ranked(name: str, scores_of: Scorer) -> None:
        log.info("%s: ranking with %s", protocol, name)
        ranks_BT = rank_scored(
            lambda rows: scores_of(rows)[:, ranked_C],
            num_items=len(catalogue),
            target_rows=asked.targets_BT,
            masked_rows=asked.masked_BM,
            candidates=torch.from_numpy(rows_C),
            chunk=chunk,
        )
        systems[name] = _metrics(ranks_BT, users_B=asked.users_B, k=k)
        for part, slice_N in slices.items():
            inside_BT = ranks_within(ranks_BT, targets_BT=asked.targets_BT, slice_N=slice_N)
            if bool((inside_BT >= 0).any()):
                parts.setdefault(part, {})[name] = _metrics(inside_BT, users_B=asked.users_B, k=k)

    if chosen and train_UN is not None:
        for baseline in chosen:
            # One after the other: EASE alone holds a matrix of all items by all items.
            model = _baseline(baseline, ease_l2=ease_l2, knn_shrink=knn_shrink).fit(train_UN)
            ranked(baseline, baseline_scorer(model, asked))
    for column in columns:
        name = f"content_knn_{column}"
        knn = ContentKNN(vector_NDs[column])
        ranked(name, baseline_scorer(knn, asked))
    release: Scorer | None = None
    if released is not None:
        release = released_scorer(
            released,
            asked,
            vector_NDs=vector_NDs,
            vectors=vectors or [],
            users=None if users is None else (users, cases),
        )
        ranked("ours", release)
    if learnt is not None and train is not None:
        signals = open_signals(
            asked,
            train,
            config=learnt.signals,
            catalogue=catalogue,
            vector_NDs=vector_NDs,
            items=items,
            release=release,
        )
        boost_N = new_item_boost * signals.new_N
        ranked("ours_blended", lambda rows: learnt.scores(signals, rows) + boost_N)
    about = {"n_cases": len(asked.users_B), "n_candidates": len(rows_C), "note": note}
    result = {protocol: systems, "slices": {protocol: parts}, "about": {protocol: about}}
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(result, indent=2).encode())
    Console().print(results_table(protocol, systems, about=about))
    return result


def results_table(
    protocol: str, systems: dict[str, dict[str, float]], *, about: dict[str, Any]
) -> Table:
    """Lay the systems out side by side for a terminal."""
    title = f"{protocol}: {about['n_cases']:,} cases, {about['n_candidates']:,} candidates"
    table = Table(title=title, caption=about["note"] or None)
    table.add_column("system", min_width=max(map(len, systems)))
    for column in next(iter(systems.values())):
        table.add_column(column, justify="right")
    for name, values in systems.items():
        shown = (f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in values.values())
        table.add_row(name, *shown)
    return table


def _slices(
    items: Path | None, *, train_UN: sp.csr_matrix | None, catalogue: pa.Array
) -> dict[str, Tensor]:
    """Name → bool [N]: which items' targets a slice counts."""
    found: dict[str, NDArray[np.bool_]] = {}
    if train_UN is not None:
        count_N = np.bincount(train_UN.indices, minlength=len(catalogue))
        found |= popularity_slices(count_N)
    if items is not None:
        names = [name for name in columns_of(items) if name.startswith("has_")]
        table = read(items, "item_id", *names)
        kept = table.filter(pc.is_in(table["item_id"].cast(catalogue.type), value_set=catalogue))
        rows = rows_of(kept, catalogue=catalogue, where=items)
        presence = {name.removeprefix("has_"): np.ones(len(catalogue), bool) for name in names}
        for name, present_N in presence.items():
            present_N[rows] = kept[f"has_{name}"].to_numpy()
        found |= missing_slices(presence)
    return {name: torch.from_numpy(slice_N) for name, slice_N in found.items()}


def _metrics(ranks_BT: Tensor, *, users_B: Tensor, k: int) -> dict[str, float]:
    recall_B = recall_at_k(ranks_BT, k=k)
    recall = mean_over_users(recall_B, users_B=users_B)
    low, high = bootstrap_interval(user_means(recall_B, users_B=users_B))
    return {
        f"recall@{k}": recall.mean,
        f"ndcg@{k}": mean_over_users(ndcg_at_k(ranks_BT, k=k), users_B=users_B).mean,
        "mrr": mean_over_users(reciprocal_rank(ranks_BT), users_B=users_B).mean,
        "se": recall.se,
        "low": low,
        "high": high,
        "n_users": recall.num_users,
    }


def _baseline(name: BaselineName, *, ease_l2: float, knn_shrink: float) -> Baseline:
    match name:
        case "popularity":
            return Popularity()
        case "ease":
            return EASE(l2=ease_l2)
        case "item_knn":
            return ItemKNN()
        case "item_knn_shrunk":
            return ItemKNN(shrink=knn_shrink)
        case "light_gcn":
            return LightGCN()
