"""Scores of cases as functions: what ranks, apart from how ranks are counted.

Shapes: B cases, N catalogue items, L history, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pretrain.baselines import Baseline, Floats
from pretrain.case_users import read_users
from pretrain.cases import Cases, Rows, columns_of

Scorer = Callable[[slice], Tensor]
"""Cases → their scores of every catalogue item [B, N]."""


def baseline_scorer(model: Baseline, asked: Cases) -> Scorer:
    """Scores of a fitted baseline for the histories of the cases."""
    return lambda cases: torch.from_numpy(model.scores(asked.history_BN[cases]))


def released_scorer(
    released: Path,
    asked: Cases,
    *,
    vector_NDs: dict[str, Floats],
    vectors: list[Path],
    users: tuple[Path, Path] | None = None,
    case_rows: Rows | None = None,
) -> Scorer:
    """Score with a release: its user encoder on `event` vectors against `aligned` vectors.

    `users` names the tables of users and of cases; `case_rows` says which of these cases are asked
    (None: all).

    Raises:
        ValueError: vectors that another release made.
    """
    from pretrain.release import load_released  # only here: baselines need no model

    release = load_released(released)
    for path in vectors:
        about = path.parent / "embeddings.json"
        if "aligned" in columns_of(path) and about.is_file():
            maker = json.loads(about.read_text())["release_fingerprint"]
            if maker != release.fingerprint:
                raise ValueError(
                    f"{path}: found vectors of the release {maker[:12]}, expected those of "
                    f"{released} ({release.fingerprint[:12]}); run python -m pretrain embed again"
                )
    event_ND = torch.from_numpy(vector_NDs["event"])
    item_ND = torch.from_numpy(vector_NDs["aligned"])
    names = [column.name for column in release.config.user_columns]
    known = read_users(users[0], cases=users[1], columns=names) if users and names else None
    if known is not None and case_rows is not None:
        known = known.take(case_rows)

    def scores_of(cases: slice) -> Tensor:
        history_BL = asked.history_BL[cases]
        user_BD = release.encode_histories(
            event_ND,
            history_BL,
            asked.times_BL[cases],
            asked.at_times_B[cases],
            users=None if known is None else known.slice(cases.start, len(history_BL)),
        )
        return user_BD @ item_ND.T

    return scores_of
