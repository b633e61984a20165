"""The baselines that `evaluate` knows by name, as scores of its cases.

Shapes: N catalogue items, U training users.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from pretrain.baselines import EASE, Baseline, ItemKNN, Popularity
from pretrain.cases import Cases, Rows, columns_of, read, rows_of
from pretrain.light_gcn import LightGCN
from pretrain.sasrec import SASRec, SASRecConfig
from pretrain.scorers import Scorer, baseline_scorer

BaselineName = Literal["popularity", "item_knn", "item_knn_shrunk", "ease", "light_gcn", "sasrec"]
TRAINED_HERE: tuple[BaselineName, ...] = ("light_gcn", "sasrec")
"""Baselines that take minutes to hours, and so are run only when they are named."""


def chosen_baselines(named: list[BaselineName] | None, *, train: Path | None) -> list[BaselineName]:
    """Those named, else all that are not trained; none without a log.

    Raises:
        ValueError: one that needs a log, or its times, and has none.
    """
    if train is None:
        if named:
            raise ValueError(f"baselines: found {named} and no train, expected the log they learn")
        return []
    if named is None:
        return [name for name in get_args(BaselineName) if name not in TRAINED_HERE]
    if "sasrec" in named and "timestamp" not in (found := columns_of(train)):
        raise ValueError(
            f"{train}: found the columns {found}, expected `timestamp` for the baseline sasrec, "
            "which learns the order of choices; add it, or leave sasrec out"
        )
    return named


def named_scorer(
    name: BaselineName,
    asked: Cases,
    *,
    train: Path,
    train_UN: sp.csr_matrix,
    catalogue: pa.Array,
    ease_l2: float,
    knn_shrink: float,
    sasrec: SASRecConfig,
) -> Scorer:
    """Learn one from the log."""
    if name == "sasrec":
        return sasrec_scorer(asked, train, catalogue=catalogue, config=sasrec)
    model = _model(name, ease_l2=ease_l2, knn_shrink=knn_shrink)
    return baseline_scorer(model.fit(train_UN), asked)


def sasrec_scorer(
    asked: Cases, train: Path, *, catalogue: pa.Array, config: SASRecConfig
) -> Scorer:
    """SASRec on ids, learnt on every user's choices in order of time."""
    model = SASRec(len(catalogue), config).fit(read_sequences(train, catalogue=catalogue))
    return lambda cases: model.scores(asked.history_BL[cases])


def read_sequences(train: Path, *, catalogue: pa.Array) -> list[Rows]:
    """Catalogue rows of each user's choices, oldest first; those of one time in their order."""
    table = read(train, "user_id", "item_id", "timestamp")
    table = table.sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    users = table["user_id"].to_numpy()
    starts = np.flatnonzero(users[1:] != users[:-1]) + 1
    return np.split(rows_of(table, catalogue=catalogue, where=train), starts)


def _model(
    name: Literal["popularity", "item_knn", "item_knn_shrunk", "ease", "light_gcn"],
    *,
    ease_l2: float,
    knn_shrink: float,
) -> Baseline:
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
