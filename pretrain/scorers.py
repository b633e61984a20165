"""Scores of cases as functions: what ranks, apart from how ranks are counted.

Shapes: B cases, N catalogue items, L history, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pretrain.baselines import Baseline, Floats
from pretrain.case_users import read_users
from pretrain.cases import Cases, Rows, columns_of

if TYPE_CHECKING:
    from pretrain.release import Release

Scorer = Callable[[slice], Tensor]
"""Cases → their scores of every catalogue item [B, N]."""


def baseline_scorer(model: Baseline, asked: Cases) -> Scorer:
    """Scores of a fitted baseline for the histories of the cases."""
    return lambda cases: torch.from_numpy(model.scores(asked.history_BN[cases]))


def open_release(released: Path, *, vectors: list[Path]) -> Release:
    """Load a release, for tables of vectors whose column `aligned` it made.

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
    return release


def released_scorer(
    release: Release,
    asked: Cases,
    *,
    vector_NDs: dict[str, Floats],
    users: tuple[Path, Path] | None = None,
    case_rows: Rows | None = None,
) -> Scorer:
    """Score with a release: its user encoder on `event` vectors against `aligned` vectors.

    See `released_users` for `users` and `case_rows`.
    """
    users_of = released_users(
        release, asked, event_ND=vector_NDs["event"], users=users, case_rows=case_rows
    )
    item_ND = torch.from_numpy(vector_NDs["aligned"])
    return lambda cases: users_of(cases) @ item_ND.T


def released_users(
    release: Release,
    asked: Cases,
    *,
    event_ND: Floats,
    users: tuple[Path, Path] | None = None,
    case_rows: Rows | None = None,
) -> Callable[[slice], Tensor]:
    """Cases → the vectors of their users [B, D], by a release's user encoder.

    `users` names the tables of users and of cases; `case_rows` says which of these cases are asked
    (None: all).
    """
    events = torch.from_numpy(event_ND)
    names = [column.name for column in release.config.user_columns]
    known = read_users(users[0], cases=users[1], columns=names) if users and names else None
    if known is not None and case_rows is not None:
        known = known.take(case_rows)

    def users_of(cases: slice) -> Tensor:
        history_BL = asked.history_BL[cases]
        return release.encode_histories(
            events,
            history_BL,
            asked.times_BL[cases],
            asked.at_times_B[cases],
            users=None if known is None else known.slice(cases.start, len(history_BL)),
        )

    return users_of
