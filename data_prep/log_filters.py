"""When validation and test begin, and which of the sorted events stay.

All of it streams over the sorted events; what is held is a few numbers a user and an item.
Letters: n events of a row group, U users, I items.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.cleaning import Ledger
from data_prep.event_file import events_schema, read_events, write_events
from data_prep.manifest import Cutoffs
from data_prep.parquet_files import write_parquet
from data_prep.settings import FilterConfig, ShardConfig, SplitConfig, parse_time
from data_prep.work import WorkFiles

if TYPE_CHECKING:
    import pyarrow as pa

HISTOGRAM_BINS = 1 << 20


def given_cutoffs(settings: SplitConfig) -> Cutoffs | None:
    """The cut-offs, where the settings name times."""
    if settings.valid_start is None or settings.test_start is None:
        return None
    return Cutoffs(
        valid_start=parse_time(settings.valid_start, name="split.valid_start"),
        test_start=parse_time(settings.test_start, name="split.test_start"),
    )


def quantile_cutoffs(settings: SplitConfig, events: Path, *, num_events: int) -> Cutoffs:
    """The cut-offs as quantiles of the events' times (linear, as numpy's)."""
    assert settings.valid_quantile is not None
    assert settings.test_quantile is not None
    if num_events == 0:
        return Cutoffs(valid_start=0, test_start=0)

    def quantile(share: float) -> int:
        place = share * (num_events - 1)
        low = time_of_rank(events, math.floor(place))
        high = time_of_rank(events, math.ceil(place))
        return math.ceil(low + (high - low) * (place - math.floor(place)))

    return Cutoffs(
        valid_start=quantile(settings.valid_quantile), test_start=quantile(settings.test_quantile)
    )


def time_of_rank(events: Path, rank: int) -> int:
    """The time of the event that is `rank`-th (from 0) by time, in memory that does not grow.

    A histogram of all times says in which bin it lies, one of that bin's times where in it, and
    so on until a bin is a millisecond.
    """
    times = (to_numpy(batch["time"]) for batch in read_events(events))
    ends = [(int(time_n.min()), int(time_n.max())) for time_n in times]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    while low < high:
        width = (high - low) // HISTOGRAM_BINS + 1
        counts = np.zeros(HISTOGRAM_BINS, np.int64)
        for batch in read_events(events):
            time_n = to_numpy(batch["time"])
            inside = time_n[(time_n >= low) & (time_n <= high)]
            counts += np.bincount((inside - low) // width, minlength=HISTOGRAM_BINS)
        before = np.cumsum(counts) - counts
        bin_ = int(np.searchsorted(before, rank, side="right")) - 1
        rank -= int(before[bin_])
        low, high = low + bin_ * width, min(high, low + (bin_ + 1) * width - 1)
    return low


def keep_core(
    work: WorkFiles,
    *,
    settings: FilterConfig,
    cutoffs: Cutoffs,
    num_users: int,
    num_items: int,
    ledger: Ledger,
) -> int:
    """Leave the k-core of the training events, and every later event; returns the users left.

    Users and items are dropped in turn until all that stay have enough events. Counting later
    events would choose the training data by what is to be predicted. Users without an event or an
    impression are numbered no more.
    """
    user_U, item_I = np.ones(num_users, bool), np.ones(num_items, bool)
    rows: list[int] = []
    while len(rows) < 2 or rows[-1] != rows[-2]:
        of_user_U, of_item_I = np.zeros(num_users, np.int64), np.zeros(num_items, np.int64)
        for user_n, item_n, time_n in _triples(work.events):
            core_n = (time_n < cutoffs.valid_start) & user_U[user_n] & item_I[item_n]
            of_user_U += np.bincount(user_n[core_n], minlength=num_users)
            of_item_I += np.bincount(item_n[core_n], minlength=num_items)
        rows.append(int(of_user_U.sum()))
        user_U &= of_user_U >= settings.min_user_events
        item_I &= of_item_I >= settings.min_item_events
    ledger.passed(
        f"interactions: k-core of training events (users {settings.min_user_events}, "
        f"items {settings.min_item_events})",
        rows_in=rows[0],
        rows_out=rows[-1],
    )
    return _rewrite(work, user_U, item_I, valid_start=cutoffs.valid_start)


def _rewrite(
    work: WorkFiles,
    user_U: NDArray[np.bool_],
    item_I: NDArray[np.bool_],
    *,
    valid_start: int,
) -> int:
    """Drop the training events of other users and items, then the users who have nothing left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    users = pq.read_table(work.seen_users)
    left_U = to_numpy(users["shown"]).copy()
    for user_n, item_n, time_n in _triples(work.events):
        left_U[user_n[(time_n >= valid_start) | (user_U[user_n] & item_I[item_n])]] = True
    new_row_U = np.cumsum(left_U, dtype=np.int32) - 1

    def kept() -> Iterator["pa.Table"]:
        for batch in read_events(work.events):
            table = pa.Table.from_batches([batch])
            user_n, item_n = to_numpy(table["user_row"]), to_numpy(table["item_row"])
            late_n = to_numpy(table["time"]) >= valid_start
            table = table.set_column(0, "user_row", to_arrow(new_row_U[user_n]))
            yield table.filter(to_arrow(late_n | (user_U[user_n] & item_I[item_n])))

    write_events(kept(), work.events, schema=events_schema(work.events))
    users = users.set_column(0, "user_row", to_arrow(new_row_U)).filter(to_arrow(left_U))
    write_parquet([users], work.seen_users, schema=users.schema)
    return int(users.num_rows)


def _triples(
    events: Path,
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]]:
    names = ["user_row", "item_row", "time"]
    for batch in read_events(events):
        user_n, item_n, time_n = (to_numpy(batch[name]) for name in names)
        yield user_n, item_n, time_n


def check_splits(
    config: ShardConfig, counts: dict[str, int], *, cutoffs: Cutoffs, newest_event: int
) -> None:
    """Refuse a dataset with nothing to learn from, to choose on or to test on."""
    wanted = ["train_positives", "valid_events", "test_events"]
    wanted += [name for name in counts if name.startswith("impressions_")]
    spared = config.split.may_be_empty
    wanted = [name for name in wanted if not any(split in name for split in spared)]
    if empty := [name for name in wanted if counts[name] == 0]:
        found = ", ".join(f"{name} {counts[name]:,}" for name in wanted)
        raise ValueError(
            f"{config.name}: found nothing for {' and '.join(empty)} ({found}; "
            f"valid_start {_iso(cutoffs.valid_start)}, test_start {_iso(cutoffs.test_start)}, "
            f"newest event {_iso(newest_event)}), expected some in every split; correct `split`, "
            "loosen `filter` or allow it in split.may_be_empty"
        )


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
