"""What a blend weighs: standardised scores of several systems, and what a log says of its items.

Shapes: B cases, N catalogue items, F features of content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.baselines import Baseline, ContentKNN, Floats
from pretrain.blend_tastes import birth_affinity, log_odds_of_new, popularity_gap
from pretrain.cases import Cases, columns_of, read, read_choices, rows_of
from pretrain.content_ease import ContentEASE
from pretrain.scorers import Scorer, baseline_scorer

SECONDS_A_YEAR = 31_556_952
EPOCH_YEAR = 1970
POPULARITY_L2 = 5.0  # of the ridge regression of log counts on content


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """Which signals there are; kept inside the blend, so that ranking builds the same."""

    content: tuple[str, ...] = ("raw",)
    """Columns of the item vectors; each is standardised, is a content kNN of its own, and together
    they are the content of EASE and of the popularity that is expected of new items."""

    ease_l2: float = 200.0
    """λ of EASE on the log and the content together."""

    content_weight: float = 10.0
    """How much a row of content weighs against a user's row in EASE; 0: EASE on behaviour alone."""

    recent_share: float = 0.1
    """The latest share of the log whose choices are counted apart; needs a column `timestamp`."""

    latest: int = 0
    """So many latest events of a history, which must be in order of time, are asked apart: EASE and
    content kNN rank by them too, and what they say of the user's taste for new, popular and young
    items are signals (`blend_tastes.py`); 0: none of it."""

    born: str = ""
    """Column of the items that says when each came into the world; empty: items have no age."""

    born_unit: Literal["year", "s", "ms"] = "year"
    """Of `born`: a calendar year, or unix seconds or milliseconds."""

    age_edges: tuple[float, ...] = (0, 1, 2, 3, 5, 8, 13, 21, 41)
    """Years that part the ages; an item younger than the first is not out yet."""

    def __post_init__(self) -> None:
        if not self.content:
            raise ValueError("content: found no column, expected at least one")
        if self.latest < 0:
            raise ValueError(f"latest: found {self.latest}, expected 0 (none) or more events")
        if not 0 < self.recent_share < 1:
            raise ValueError(f"recent_share: found {self.recent_share}, expected between 0 and 1")
        if list(self.age_edges) != sorted(set(self.age_edges)) or not self.age_edges:
            raise ValueError(f"age_edges: found {self.age_edges}, expected rising years")


@dataclass(frozen=True, kw_only=True)
class Log:
    """What was chosen before the question."""

    train_UN: sp.csr_matrix
    """Who chose what."""

    recent_N: Floats | None
    """Choices of each item in the latest share of the log; None where it has no times."""


class Signals:
    """Signals of the cases of one log, by name; `each` gives them one after the other.

    Scores of a system have mean 0 and spread 1 over the catalogue in each case; EASE's, which are
    shares of choices and reach far up, are then taken as asinh, a logarithm that knows zero and
    negative numbers. Every signal that can be is there twice, the second time for new items alone,
    which nobody chose in the log: the evidence for them is of another kind.
    """

    def __init__(
        self,
        asked: Cases,
        log: Log,
        *,
        config: SignalConfig,
        vector_NDs: Mapping[str, Floats],
        born_N: NDArray[np.float64] | None,
        release: Scorer | None,
    ) -> None:
        content = {name: standardised(vector_NDs[name]) for name in config.content}
        together_NF = np.concatenate(list(content.values()), axis=1)
        count_N = np.bincount(log.train_UN.indices, minlength=log.train_UN.shape[1])
        new_N = count_N == 0
        ease = ContentEASE(together_NF, l2=config.ease_l2, content_weight=config.content_weight)
        models: dict[str, Baseline] = {
            "ease": ease.fit(log.train_UN),
            **{f"knn_{name}": ContentKNN(unit_NF) for name, unit_NF in content.items()},
        }
        self.systems = {name: baseline_scorer(model, asked) for name, model in models.items()}
        self.asked = asked
        self.lately = asked.latest(config.latest) if config.latest else None
        if self.lately is not None:
            for name, model in models.items():
                self.systems[f"{name}_lately"] = baseline_scorer(model, self.lately)
        if release is not None:
            self.systems["release"] = release
        expected_N = expected_log_count(together_NF, count_N)
        facts = {
            "new": new_N,
            "log_count": np.log1p(count_N),
            "expected_log_count_of_new": np.where(new_N, expected_N, 0),
            "expected_log_count_of_known": np.where(new_N, 0, expected_N),
        }
        if log.recent_N is not None:
            facts["log_recent_count"] = np.log1p(log.recent_N)
        self.facts = {
            name: torch.from_numpy(fact_N.astype(np.float32)) for name, fact_N in facts.items()
        }
        self.new_N = self.facts["new"]
        self.born_N = None if born_N is None else torch.from_numpy(born_N)
        self.now_B = EPOCH_YEAR + asked.at_times_B.double() / 1000 / SECONDS_A_YEAR
        self.config = config

    def each(self, cases: slice) -> Iterator[tuple[str, Tensor]]:
        """Name and values [B, N] (or [1, N], the same for all cases) of each signal."""
        for name, scores_of in self.systems.items():
            scores_BN = _standardised_rows(scores_of(cases).float())
            if name.startswith("ease"):
                scores_BN = scores_BN.asinh()
            yield name, scores_BN
            yield f"{name}_of_new", scores_BN * self.new_N
        for name, fact_N in self.facts.items():
            yield name, fact_N[None]
        yield from self._tastes(cases)
        if self.born_N is not None:
            now_B1 = self.now_B[cases, None]
            if self.config.born_unit == "year":
                now_B1 = now_B1.floor()
            age_BN = (now_B1 - self.born_N).float()
            edges = torch.tensor(self.config.age_edges)
            group_BN = torch.bucketize(age_BN, edges, right=True)
            group_BN[age_BN.isnan()] = len(edges) + 1
            for group, name in enumerate(age_groups(self.config.age_edges)):
                inside_BN = (group_BN == group).float()
                yield name, inside_BN
                yield f"{name}_of_new", inside_BN * self.new_N

    def _tastes(self, cases: slice) -> Iterator[tuple[str, Tensor]]:
        if self.lately is None:
            return
        history_BL = self.lately.history_BL[cases]
        yield "new_lately", log_odds_of_new(history_BL, new_N=self.new_N)[:, None] * self.new_N
        gap_BN = popularity_gap(history_BL, log_count_N=self.facts["log_count"])
        yield "popularity_gap_of_known", gap_BN * (1 - self.new_N)
        if self.born_N is not None:
            affinity_BN = birth_affinity(history_BL, born_N=self.born_N)
            yield "birth_affinity", affinity_BN
            yield "birth_affinity_of_new", affinity_BN * self.new_N


def open_signals(
    asked: Cases,
    train: Path,
    *,
    config: SignalConfig,
    catalogue: pa.Array,
    vector_NDs: Mapping[str, Floats],
    items: Path | None,
    release: Scorer | None,
) -> Signals:
    """Read what the signals of these cases need beside the vectors."""
    if config.born and items is None:
        raise ValueError(
            f"items: found none, expected a Parquet with {config.born!r} (signals.born)"
        )
    born_N = None
    if config.born and items is not None:
        table = read(items, "item_id", config.born)
        born_N = np.full(len(catalogue), np.nan)
        rows = rows_of(table, catalogue=catalogue, where=items)
        born_N[rows] = born_years(table[config.born], unit=config.born_unit)
        if not asked.has_times:
            raise ValueError("cases: found no at_time, expected one: an age is that at a time")
    return Signals(
        asked,
        read_log(train, catalogue=catalogue, recent_share=config.recent_share),
        config=config,
        vector_NDs=vector_NDs,
        born_N=born_N,
        release=release,
    )


def read_log(train: Path, *, catalogue: pa.Array, recent_share: float) -> Log:
    """Read who chose what, and what was chosen lately where there are times."""
    recent_N = None
    if "timestamp" in columns_of(train):
        table = read(train, "item_id", "timestamp")
        time = np.asarray(table["timestamp"].cast(pa.int64()).to_numpy())
        late = pa.array(time > np.quantile(time, 1 - recent_share))
        rows = rows_of(table.filter(late), catalogue=catalogue, where=train)
        recent_N = np.bincount(rows, minlength=len(catalogue)).astype(np.float32)
    return Log(train_UN=read_choices(train, catalogue=catalogue), recent_N=recent_N)


def age_groups(edges: tuple[float, ...]) -> list[str]:
    """Names of the ages, youngest first, the unknown one last."""
    younger = [f"age_below_{edges[0]:g}", *(f"age_from_{edge:g}" for edge in edges)]
    return [*younger, "age_unknown"]


def expected_log_count(content_NF: Floats, count_N: np.ndarray) -> Floats:
    """Log of 1 + choices that an item's content lets expect, by ridge regression on known items."""
    known_N = count_N > 0
    padded_NF = np.concatenate([content_NF, np.ones((len(content_NF), 1), np.float32)], axis=1)
    known = padded_NF[known_N].astype(np.float64)
    gram_FF = known.T @ known + POPULARITY_L2 * np.eye(known.shape[1])
    weight_F = np.linalg.solve(gram_FF, known.T @ np.log1p(count_N[known_N]))
    return np.asarray(padded_NF @ weight_F, np.float32)


def standardised(vectors_NF: Floats) -> Floats:
    """Mean 0 and spread 1 a feature, then unit length; rows of zeros (absent) stay so.

    A feature that hardly varies is not blown up: a spread counts as a tenth of the mean spread at
    least.
    """
    present_N = np.any(vectors_NF != 0, axis=1)
    if not present_N.any():
        return np.zeros_like(vectors_NF, dtype=np.float32)
    mean_F, std_F = vectors_NF[present_N].mean(0), vectors_NF[present_N].std(0)
    std_F = np.maximum(std_F, max(0.1 * float(std_F.mean()), 1e-12))
    standard_NF = np.where(present_N[:, None], (vectors_NF - mean_F) / std_F, 0)
    norm_N1 = np.linalg.norm(standard_NF, axis=1, keepdims=True)
    return np.asarray(standard_NF / np.maximum(norm_N1, 1e-9), np.float32)


def born_years(column: pa.ChunkedArray, *, unit: Literal["year", "s", "ms"]) -> NDArray[np.float64]:
    """Calendar years [N], as numbers with a fraction; NaN where it is not known."""
    born_N = np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    if unit == "year":
        return born_N
    seconds_N = born_N / (1000 if unit == "ms" else 1)
    return np.asarray(EPOCH_YEAR + seconds_N / SECONDS_A_YEAR, np.float64)


def _standardised_rows(scores_BN: Tensor) -> Tensor:
    mean_B1, std_B1 = scores_BN.mean(1, keepdim=True), scores_BN.std(1, keepdim=True)
    return (scores_BN - mean_B1) / (std_B1 + 1e-9)
