"""What a blend is learnt on: some cases of a log, and the signals of some of their candidates.

Shapes: B cases, N catalogue items, C candidates, K sampled ones, S signals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from pretrain.blend_signals import SignalConfig, Signals, open_signals
from pretrain.case_masks import mask_choices
from pretrain.case_times import CaseTimes, TimestampUnit
from pretrain.cases import Cases, Rows, read, read_cases, read_catalogue, rows_of
from pretrain.metrics import PADDING
from pretrain.scorers import open_release, released_scorer

CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Question:
    """Cases and the log that they are asked of; all paths are Parquet."""

    cases: Path
    """user_id, history, targets, and what else `evaluate` reads of cases."""

    train: Path
    """user_id and item_id of what was chosen before; `timestamp`, where there is one, says what is
    recent."""

    candidates: Path | None = None
    """item_id of what is ranked; null: the whole catalogue."""

    released: Path | None = None
    """The release of that day, older than the cases; null: the blend's."""

    vectors: tuple[Path, ...] = ()
    """Vectors of that day, those of `released`; empty: the blend's."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Beside the questions, what their signals are made of; see `blend.blend`."""

    vectors: list[Path]
    released: Path | None
    items: Path | None
    users: Path | None
    config: SignalConfig
    timestamp_unit: TimestampUnit
    allow_look_ahead: bool


@dataclass(frozen=True)
class OpenQuestion:
    """Some cases of a question, and their signals."""

    asked: Cases
    signals: Signals
    ranked_C: Rows
    """Catalogue rows of what is ranked."""

    num_items: int
    """Of the catalogue."""

    times: CaseTimes


@dataclass(frozen=True)
class Sample:
    """Drawn cases and candidates of one question."""

    names: list[str]
    """Of the signals."""

    values_BKS: Tensor
    times: CaseTimes


def open_question(
    question: Question, rng: np.random.Generator, sources: Sources, *, num_cases: int
) -> OpenQuestion:
    """Draw cases, and open their signals."""
    config = sources.config
    released = question.released or sources.released
    vectors = list(question.vectors) or sources.vectors
    columns = [*config.content, *(["aligned", "event"] if released else [])]
    catalogue, vector_NDs = read_catalogue(vectors, columns=list(dict.fromkeys(columns)), tables=[])
    everything = mask_choices(
        read_cases(question.cases, catalogue=catalogue),
        cases=question.cases,
        train=question.train,
        catalogue=catalogue,
    )
    drawn_B = draw_cases(everything.users_B, rng, num_cases=num_cases)
    asked = everything.take(drawn_B)
    opened = None if released is None else open_release(released, vectors=vectors)
    times = CaseTimes.of(
        everything,
        cases=question.cases,
        newest={} if opened is None else {"released": opened.newest_event},
        train=question.train,
        timestamp_unit=sources.timestamp_unit,
        allowed=sources.allow_look_ahead,
    )
    release = None
    if opened is not None:
        users = sources.users
        release = released_scorer(
            opened,
            asked,
            vector_NDs=vector_NDs,
            users=None if users is None else (users, question.cases),
            case_rows=drawn_B,
        )
    signals = open_signals(
        asked,
        question.train,
        config=config,
        catalogue=catalogue,
        vector_NDs=vector_NDs,
        items=sources.items,
        release=release,
    )
    ranked_C = np.arange(len(catalogue))
    if question.candidates is not None:
        table = read(question.candidates, "item_id")
        ranked_C = rows_of(table, catalogue=catalogue, where=question.candidates)
    return OpenQuestion(asked, signals, ranked_C, len(catalogue), times)


def draw_sample(
    question: Question,
    rng: np.random.Generator,
    sources: Sources,
    *,
    num_cases: int,
    max_candidates: int,
) -> Sample:
    """Draw cases and candidates, and compute their signals."""
    opened = open_question(question, rng, sources, num_cases=num_cases)
    columns_BK = _draw_candidates(opened.asked, opened.ranked_C, rng, size=max_candidates)
    names: list[str] = []
    parts = []
    for cases in chunks_of(opened.asked, description=f"signals of {question.cases.name}"):
        chosen_BK = columns_BK[cases]
        values = {
            name: values_BN.expand(len(chosen_BK), -1).gather(1, chosen_BK.clamp(min=0))
            for name, values_BN in opened.signals.each(cases)
        }
        names = list(values)
        values_BKS = torch.stack(list(values.values()), dim=2)
        values_BKS[..., 0].masked_fill_(chosen_BK == PADDING, math.nan)
        parts.append(values_BKS)
    return Sample(names, torch.cat(parts), opened.times)


def chunks_of(asked: Cases, *, description: str) -> Iterator[slice]:
    """Slices of the cases, with a progress bar."""
    count = len(asked.users_B)
    for start in track(range(0, count, CHUNK), description=description):
        yield slice(start, min(start + CHUNK, count))


def draw_cases(users_B: Tensor, rng: np.random.Generator, *, num_cases: int) -> np.ndarray:
    """Rows of at most `num_cases` distinct cases, every user as likely as any other."""
    _, user_B, count_U = np.unique(users_B.numpy(), return_inverse=True, return_counts=True)
    weight_B = 1 / count_U[user_B]
    size = min(num_cases, len(weight_B))
    return np.sort(rng.choice(len(weight_B), size, replace=False, p=weight_B / weight_B.sum()))


def _draw_candidates(
    asked: Cases, ranked_C: np.ndarray, rng: np.random.Generator, *, size: int
) -> Tensor:
    """Catalogue rows [B, K]: one target of each case, then others; padding where it is masked."""
    rows = []
    for targets_T, masked_M in zip(asked.targets_BT, asked.masked_BM, strict=True):
        present = targets_T[targets_T != PADDING].numpy()
        others = ranked_C if len(ranked_C) <= size else rng.choice(ranked_C, size, replace=False)
        closed = np.isin(others, np.concatenate([present, masked_M.numpy()]))
        rows.append(np.r_[rng.choice(present), np.where(closed, PADDING, others)])
    return torch.from_numpy(np.stack(rows))
