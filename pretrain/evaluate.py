"""`python -m pretrain evaluate`: rank whole catalogues with a release and with baselines.

Shapes: B cases, C candidates, N catalogue items, L history, T targets, D width, U training users.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from data_prep.records import replace_file
from pretrain.baselines import ContentKNN
from pretrain.blend import load_blend
from pretrain.blend_signals import open_signals
from pretrain.case_masks import mask_choices
from pretrain.case_times import CaseTimes, TimestampUnit
from pretrain.cases import (
    columns_of,
    marked,
    read,
    read_cases,
    read_catalogue,
    read_choices,
    rows_of,
)
from pretrain.knock_out import knocked_out_vectors, open_knock_outs, without_of_vectors
from pretrain.metrics import rank_scored
from pretrain.named_baselines import BaselineName, chosen_baselines, named_scorer
from pretrain.rank_figures import rank_figures, results_table
from pretrain.sasrec import SASRecConfig
from pretrain.scorers import Scorer, baseline_scorer, open_release, released_scorer
from pretrain.slices import catalogue_slices, ranks_within
from pretrain.system_names import BLENDED, OURS, knocked_out

log = logging.getLogger(__name__)


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
    sasrec: SASRecConfig | None = None,
    k: int = 20,
    chunk: int = 256,
    note: str = "",
    items: Path | None = None,
    blend: Path | None = None,
    knock_outs: list[Path] | None = None,
    timestamp_unit: TimestampUnit = "auto",
    allow_look_ahead: bool = False,
) -> dict[str, Any]:
    """Rank every candidate for every case, with each system that the inputs allow.

    Never proposed is the history and what its user chose in `train`, targets apart; or, instead of
    both, what the cases name as `masked`. Ties are broken against the system, values are averaged
    within users and then over users. The catalogue is the items of `vectors`; without vectors,
    those of `train` and `candidates`. Where the cases have `at_time`, what is not older than the
    first of them is refused: `train` by its `timestamp`, the release and the blend by the newest
    event that they have seen.

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
        baselines: which ones; null: all but `light_gcn` and `sasrec`, which train for long, where
            `train` is given. `item_knn` is the plain cosine, `item_knn_shrunk` weakens cosines that
            rest on few users. `sasrec` needs the column `timestamp` of `train`; histories must be
            oldest first.
        ease_l2: λ of EASE, to be chosen on validation.
        knn_shrink: added to the norms of `item_knn_shrunk`, to be chosen on validation.
        sasrec: settings of the baseline `sasrec`; its loss and epochs to be chosen on validation.
        k: places that count.
        chunk: cases that are scored at a time.
        note: what a reader must know of the figures; kept beside them.
        items: Parquet with item_id and columns has_<modality> (items.parquet of a dataset), for the
            slices of items that lack one, and with the column that a blend's `born` names. Warm,
            cold and tail items are slices where `train` is.
        blend: what python -m pretrain blend wrote; `ours_blended` then ranks with it and `train`.
        knock_outs: folders of python -m pretrain embed --without by the same release, on the same
            items as `vectors`: each is ranked too, as `ours_without_<modality>`. Where `vectors`
            themselves are such, all that uses them is named so.
        timestamp_unit: of the `timestamp` of `train` where the cases have `at_time`: s, ms or us
            for numbers; auto: timestamps or dates.
        allow_look_ahead: rank all the same with what has seen the time of the cases; `out` records
            it.

    Raises:
        ValueError: a table that does not fit the others, or something that has seen the time of
            the cases.
    """
    chosen = chosen_baselines(baselines, train=train)
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
    if knock_outs and released is None:
        raise ValueError("knock_outs: found no released, expected the release that made them")
    without = without_of_vectors(vectors or [])
    missing = open_knock_outs(knock_outs or [], catalogue=catalogue)
    ranked_C = torch.from_numpy(rows_C) if candidates is not None else slice(None)
    asked = read_cases(cases, catalogue=catalogue)
    if train is not None:
        asked = mask_choices(asked, cases=cases, train=train, catalogue=catalogue)
    made = [*(vectors or []), *missing.values()]
    opened = None if released is None else open_release(released, vectors=made)
    newest = {} if opened is None else {"released": opened.newest_event}
    times = CaseTimes.of(
        asked,
        cases=cases,
        newest=newest if learnt is None else {**newest, "blend": learnt.newest_event},
        train=train,
        timestamp_unit=timestamp_unit,
        allowed=allow_look_ahead,
    )
    train_UN = read_choices(train, catalogue=catalogue) if train else None
    slices = catalogue_slices(items, train_UN=train_UN, catalogue=catalogue)
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
        systems[name] = rank_figures(ranks_BT, users_B=asked.users_B, k=k)
        for part, slice_N in slices.items():
            inside_BT = ranks_within(ranks_BT, targets_BT=asked.targets_BT, slice_N=slice_N)
            if bool((inside_BT >= 0).any()):
                parts.setdefault(part, {})[name] = rank_figures(
                    inside_BT, users_B=asked.users_B, k=k
                )

    if train is not None:
        for baseline in chosen:
            # One after the other: EASE alone holds a matrix of all items by all items.
            scores_of = named_scorer(
                baseline,
                asked,
                train=train,
                train_UN=train_UN,
                catalogue=catalogue,
                ease_l2=ease_l2,
                knn_shrink=knn_shrink,
                sasrec=sasrec or SASRecConfig(),
            )
            ranked(baseline, scores_of)
    for column in columns:
        knn = ContentKNN(vector_NDs[column])
        lacking = without if column in ("aligned", "event") else []
        ranked(knocked_out(f"content_knn_{column}", lacking), baseline_scorer(knn, asked))
    release: Scorer | None = None
    if opened is not None:
        about_users = None if users is None else (users, cases)
        release = released_scorer(opened, asked, vector_NDs=vector_NDs, users=about_users)
        ranked(knocked_out(OURS, without), release)
        for name, path in missing.items():
            found_NDs = knocked_out_vectors(path)
            ranked(name, released_scorer(opened, asked, vector_NDs=found_NDs, users=about_users))
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
        ranked_N = marked(rows_C, num_items=len(catalogue))
        ranked(
            knocked_out(BLENDED, without),
            lambda rows: learnt.scores(signals, rows, ranked_N=ranked_N),
        )
    about = {
        "n_cases": len(asked.users_B),
        "n_candidates": len(rows_C),
        "note": note,
        "times": dataclasses.asdict(times),
    }
    result = {protocol: systems, "slices": {protocol: parts}, "about": {protocol: about}}
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(result, indent=2).encode())
    Console().print(results_table(protocol, systems, about=about))
    return result
