"""Protocol leave-last-out on `movielens_mm`, as SASRec's paper has it (Kang & McAuley 2018, IV-C).

Every rating is an event, whatever its value. Of each user the last one is the test and the one
before it validation; once choices are made the validation event is input again. Events are in order
of time, those of one second in order of item id. The whole catalogue is ranked without what the
user rated before (shared/data/README.md has reference values of it), or, as in the paper, the
target among 100 items drawn from those the user never rated.

Users are cut apart and time is not: training knows what others rated after a user's last event, so
these figures are no forecast. They compare systems under the rules that papers use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Stage = Literal["valid", "test"]

HELD_OUT: dict[Stage, int] = {"test": 1, "valid": 2}
"""How many of a user's last events training lacks; the first of them is asked about."""


@dataclass(frozen=True, kw_only=True)
class LeaveLastOut:
    """What may be learnt from and what is asked."""

    stage: Stage
    train: pa.Table
    """user_id, item_id and `time_ms`, in the order of each user's events."""
    cases: pa.Table
    """`user_id`, `history` (oldest first), `history_times` and `at_time` (unix milliseconds) and
    `targets` (one), one row a user."""


def data_dir() -> Path:
    """Find `movielens_mm`: under $TRIPTYCH_DATA, else ../shared/data of the checkout."""
    root = os.environ.get("TRIPTYCH_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    return base / "movielens_mm"


def read_events(folder: Path) -> pa.Table:
    """Read user_id, item_id and `time_ms`, in the order of each user's events.

    A millisecond for each event of the same second makes the order one of time: then systems that
    read order and systems that read time are told the same.
    """
    table = pq.read_table(
        folder / "interactions.parquet", columns=["user_id", "item_id", "timestamp"]
    ).sort_by([("user_id", "ascending"), ("timestamp", "ascending"), ("item_id", "ascending")])
    user, second = table["user_id"].to_numpy(), table["timestamp"].to_numpy()
    is_first = np.r_[True, (user[1:] != user[:-1]) | (second[1:] != second[:-1])]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(table)), 0))
    time_ms = 1000 * second + np.arange(len(table)) - first
    return table.select(["user_id", "item_id"]).append_column("time_ms", pa.array(time_ms))


def leave_last_out(events: pa.Table, *, stage: Stage) -> LeaveLastOut:
    """Cut each user's events; `events` as `read_events` gives them, three or more a user."""
    user, item = events["user_id"].to_numpy(), events["item_id"].to_numpy()
    time_ms = events["time_ms"].to_numpy()
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    asked = np.r_[starts[1:], len(user)] - HELD_OUT[stage]
    rows: dict[str, list[object]] = {name: [] for name in CASE_SCHEMA.names}
    known = np.zeros(len(user), bool)
    for start, place in zip(starts, asked, strict=True):
        known[start:place] = True
        values = (
            user[start], item[start:place], time_ms[start:place], item[place : place + 1],
            time_ms[place],
        )  # fmt: skip
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return LeaveLastOut(
        stage=stage,
        train=events.filter(pa.array(known)),
        cases=pa.table(rows, schema=CASE_SCHEMA),
    )


def negatives(
    events: pa.Table, *, item_ids: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Draw places in `item_ids` of items that each user never rated; [B, count]."""
    user = events["user_id"].to_numpy()
    place = np.searchsorted(item_ids, events["item_id"].to_numpy())
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            rng.choice(np.setdiff1d(np.arange(len(item_ids)), rated), count, replace=False)
            for rated in np.split(place, starts[1:])
        ]
    )


CASE_SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "history": pa.list_(pa.int64()),
        "history_times": pa.list_(pa.int64()),
        "targets": pa.list_(pa.int64()),
        "at_time": pa.int64(),
    }
)
