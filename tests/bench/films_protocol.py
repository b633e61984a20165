"""The protocols `films-rolling` and `films-ctr` on ten years of film ratings, as pure functions.

Its definition stands in PROTOCOL.md beside the data: five blocks of test time, and in each the
positives of every user are predicted from that user's positives strictly before their second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Stage = Literal["valid", "test"]

QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Block b lies between the quantiles b and b + 1 of the times of all interactions."""

POSITIVE_FROM = 4.0
MIN_HISTORY = 3
HISTORY_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Block:
    """What may be learnt from and what is asked of one block of time."""

    number: int
    stage: Stage
    start: int
    """First second that is asked about; training is strictly before it."""
    train: pa.Table
    """Interactions (all source columns) before `start`, whatever their rating."""
    cases: pa.Table
    """`user_id`, `history` (oldest first), `history_times` (unix milliseconds), `targets` (one),
    `masked` (all items rated before), `at_time` (unix milliseconds) and `cold` (nobody rated the
    target before `start`)."""


def data_dir() -> Path:
    """Find `movielens_mm`: under $TRIPTYCH_DATA, else ../shared/data of the checkout."""
    root = os.environ.get("TRIPTYCH_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    return base / "movielens_mm"


def read_interactions(folder: Path) -> pa.Table:
    """Read the ratings, ordered by user, time and item."""
    return pq.read_table(folder / "interactions.parquet").sort_by(
        [("user_id", "ascending"), ("timestamp", "ascending"), ("item_id", "ascending")]
    )


def rolling_block(interactions: pa.Table, number: int, *, stage: Stage) -> Block:
    """Build block 0 … 4. In validation the last tenth of its training, by time, is asked instead.

    `interactions` must be ordered by user, time and item.
    """
    time = interactions["timestamp"].to_numpy()
    bounds = np.quantile(time, QUANTILES)
    last = number == len(QUANTILES) - 2
    if stage == "test":
        start, end = bounds[number], np.inf if last else bounds[number + 1]
    else:
        end = bounds[number]
        start = np.quantile(time[time < end], 0.9)
    known, asked = time < start, (time >= start) & (time < end)
    return Block(
        number=number,
        stage=stage,
        start=int(np.ceil(start)),
        train=interactions.filter(pa.array(known)),
        cases=_cases(interactions, known=known, asked=asked),
    )


@dataclass(frozen=True, kw_only=True)
class CtrBlock:
    """One block of `films-ctr`: every rating is an impression, one of 4 or more the click."""

    number: int
    valid_start: int
    """First second of validation: the last tenth of what precedes the block."""
    test_start: int
    """First second of the block."""
    interactions: pa.Table
    """Interactions (all source columns) before the block's end."""


def ctr_block(interactions: pa.Table, number: int) -> CtrBlock:
    """Build block 0 … 4."""
    time = interactions["timestamp"].to_numpy()
    bounds = np.quantile(time, QUANTILES)
    last = number == len(QUANTILES) - 2
    start, end = bounds[number], np.inf if last else bounds[number + 1]
    return CtrBlock(
        number=number,
        valid_start=int(np.ceil(np.quantile(time[time < start], 0.9))),
        test_start=int(np.ceil(start)),
        interactions=interactions.filter(pa.array(time < end)),
    )


def _cases(interactions: pa.Table, *, known: np.ndarray, asked: np.ndarray) -> pa.Table:
    user = interactions["user_id"].to_numpy()
    item = interactions["item_id"].to_numpy()
    time = interactions["timestamp"].to_numpy()
    positive = interactions["rating"].to_numpy() >= POSITIVE_FROM
    warm = np.unique(item[known])
    first = np.searchsorted(user, user)  # where the user's ratings begin
    rows: dict[str, list[object]] = {name: [] for name in CASE_SCHEMA.names}
    for event in np.flatnonzero(asked & positive):
        begin = first[event]
        end = begin + np.searchsorted(time[begin:event], time[event])
        before = slice(begin, end)
        history = np.flatnonzero(positive[before])[-HISTORY_LENGTH:] + begin
        if len(history) < MIN_HISTORY:
            continue
        values = (
            user[event], item[history], 1000 * time[history], item[event : event + 1],
            item[before], 1000 * time[event], not np.isin(item[event], warm),
        )  # fmt: skip
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return pa.table(rows, schema=CASE_SCHEMA)


CASE_SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "history": pa.list_(pa.int64()),
        "history_times": pa.list_(pa.int64()),
        "targets": pa.list_(pa.int64()),
        "masked": pa.list_(pa.int64()),
        "at_time": pa.int64(),
        "cold": pa.bool_(),
    }
)
