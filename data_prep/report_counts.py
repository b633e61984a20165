"""Events and impressions by split, cold items, history lengths, bytes: what `report` counts.

Shapes: I items, U users, T time bins.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.content import read_index
from data_prep.dataset import Dataset
from data_prep.events import EventLog, Int64
from data_prep.manifest import Cutoffs
from data_prep.records import (
    IMAGE_MEMBER,
    JSON_MEMBER,
    SPLITS,
    VECTOR_SUFFIX,
    Split,
    impressions_file,
)

TIME_BINS = 120


@dataclass(frozen=True, kw_only=True)
class SplitEvents:
    """Events between two cut-offs."""

    num_events: int
    num_positives: int
    num_users: int
    num_items: int
    num_cold: int
    """Events of items without a positive event before `valid_start`."""
    num_without_history: int
    """Events of users without any event before `valid_start`."""
    events_I: Int64
    timeline_T: Int64


@dataclass(frozen=True, kw_only=True)
class SplitImpressions:
    """Impressions of one split."""

    num_shown: int
    num_clicks: int
    num_users: int
    num_items: int
    num_cold: int
    num_cold_clicks: int
    shown_T: Int64
    clicks_T: Int64


@dataclass(frozen=True, kw_only=True)
class EventFacts:
    """The event log, counted."""

    oldest: int
    """Unix milliseconds."""
    time_edges: NDArray[np.float64]
    """[T + 1] unix milliseconds."""
    splits: dict[Split, SplitEvents]
    history_lengths_U: Int64
    """Events of each user before `valid_start`, whatever their label."""


def count_events(log: EventLog, cutoffs: Cutoffs, *, is_cold_I: NDArray[np.bool_]) -> EventFacts:
    """Count the events of each split."""
    if len(log) == 0:
        raise ValueError("users/: found no events, expected some; run python -m data_prep verify")
    oldest, newest = int(log.times.min()), int(log.times.max())
    edges = np.linspace(oldest, newest + 1, TIME_BINS + 1)
    all_users = np.arange(log.num_users)
    ends = [
        log.offsets[:-1],
        *(
            log.history_ends(all_users, np.full(log.num_users, time, np.int64))
            for time in (cutoffs.valid_start, cutoffs.test_start)
        ),
        log.offsets[1:],
    ]
    lengths_U = ends[1] - ends[0]
    bounds = (-(2**62), cutoffs.valid_start, cutoffs.test_start, 2**62)
    splits: dict[Split, SplitEvents] = {}
    for place, split in enumerate(SPLITS):
        inside = (log.times >= bounds[place]) & (log.times < bounds[place + 1])
        events_I = np.bincount(log.item_rows[inside], minlength=len(is_cold_I))
        events_U = ends[place + 1] - ends[place]
        splits[split] = SplitEvents(
            num_events=int(events_I.sum()),
            num_positives=int((log.labels[inside] == 1).sum()),
            num_users=int((events_U > 0).sum()),
            num_items=int((events_I > 0).sum()),
            num_cold=int(events_I[is_cold_I].sum()),
            num_without_history=int(events_U[lengths_U == 0].sum()),
            events_I=events_I,
            timeline_T=np.histogram(log.times[inside], edges)[0],
        )
    return EventFacts(oldest=oldest, time_edges=edges, splits=splits, history_lengths_U=lengths_U)


@dataclass(frozen=True, kw_only=True)
class ImpressionFacts:
    """The CTR task, counted."""

    time_edges: NDArray[np.float64]
    """[T + 1] unix milliseconds."""
    splits: dict[Split, SplitImpressions]


def count_impressions(dataset: Dataset, *, is_cold_I: NDArray[np.bool_]) -> ImpressionFacts | None:
    """Count each split's impressions, a row group at a time; None without impressions."""
    names = {split: impressions_file(split) for split in SPLITS}
    if not {file.path for file in dataset.manifest.files}.issuperset(names.values()):
        return None
    files = {split: pq.ParquetFile(dataset.folder.path(name)) for split, name in names.items()}
    ranges = [time for file in files.values() for time in _first_and_last_time(file)]
    if not ranges:
        return None
    edges = np.linspace(min(ranges), max(ranges) + 1, TIME_BINS + 1)
    return ImpressionFacts(
        time_edges=edges,
        splits={
            split: _count_shown(file, dataset, is_cold_I=is_cold_I, edges=edges)
            for split, file in files.items()
        },
    )


def _first_and_last_time(file: pq.ParquetFile) -> Iterator[int]:
    """Impressions are in time order, so the first and the last row group hold both."""
    groups = [
        file.read_row_group(group, columns=["time"])["time"]
        for group in sorted({0, file.num_row_groups - 1})
        if file.metadata.num_rows
    ]
    for times in groups:
        yield from (times[0].as_py(), times[-1].as_py())


def _count_shown(
    file: pq.ParquetFile,
    dataset: Dataset,
    *,
    is_cold_I: NDArray[np.bool_],
    edges: NDArray[np.float64],
) -> SplitImpressions:
    users = np.zeros(dataset.num_users, bool)
    items = np.zeros(dataset.num_items, bool)
    totals: Counter[str] = Counter()
    shown_T = np.zeros(len(edges) - 1, np.int64)
    clicks_T = np.zeros(len(edges) - 1, np.int64)
    for batch in file.iter_batches(columns=["user_row", "item_row", "time", "label"]):
        user, item, time, label = (
            batch[name].to_numpy() for name in ("user_row", "item_row", "time", "label")
        )
        clicked, cold = label == 1, is_cold_I[item]
        users[user] = items[item] = True
        totals["shown"] += len(item)
        totals["clicks"] += int(clicked.sum())
        totals["cold"] += int(cold.sum())
        totals["cold_clicks"] += int((cold & clicked).sum())
        shown_T += np.histogram(time, edges)[0]
        clicks_T += np.histogram(time[clicked], edges)[0]
    return SplitImpressions(
        num_shown=totals["shown"],
        num_clicks=totals["clicks"],
        num_users=int(users.sum()),
        num_items=int(items.sum()),
        num_cold=totals["cold"],
        num_cold_clicks=totals["cold_clicks"],
        shown_T=shown_T,
        clicks_T=clicks_T,
    )


def share_of_top(count_I: Int64, share: float) -> float:
    """Share of all events that the most popular `share` of the items have."""
    top = max(round(share * len(count_I)), 1)
    most = np.partition(count_I, len(count_I) - top)[len(count_I) - top :]
    return float(most.sum() / max(count_I.sum(), 1))


def bytes_by_kind(dataset: Dataset) -> dict[str, int]:
    """Bytes of the files in the manifest, those of the item tars by what they hold."""
    kinds: Counter[str] = Counter()
    for entry in dataset.manifest.files:
        if entry.path.endswith(".arrow"):
            kinds["indexes" if entry.path.endswith(".index.arrow") else "token ids"] += entry.bytes
        elif entry.path.startswith("items/"):
            held = _member_bytes(dataset, entry.path.removesuffix(".tar") + ".index.arrow")
            kinds.update(held)
            kinds["tar headers and padding of items"] += entry.bytes - sum(held.values())
        elif entry.path.startswith("users/"):
            kinds["events"] += entry.bytes
        elif entry.path.startswith("ctr/"):
            kinds["impressions"] += entry.bytes
        else:
            kinds["tables of items and users"] += entry.bytes
    return dict(kinds.most_common())


def _member_bytes(dataset: Dataset, index_path: str) -> Counter[str]:
    index = read_index(dataset.folder.path(index_path))
    held: Counter[str] = Counter()
    for row in index.group_by("member").aggregate([("size", "sum")]).to_pylist():
        held[_kind_of(row["member"])] += row["size_sum"]
    return held


def _kind_of(member: str) -> str:
    """What a member of an item tar is called in the report."""
    if member == JSON_MEMBER:
        return "texts"
    if member.endswith(VECTOR_SUFFIX):
        return "vectors"
    return "pictures" if member.endswith(IMAGE_MEMBER) else member.partition(".")[0]


def value_column(dataset: Dataset, name: str) -> NDArray[Any]:
    """A column of items.parquet [I], with 0 or False for null."""
    column = dataset.items[name]
    zero = pa.scalar(0).cast(column.type)
    values: NDArray[Any] = pc.fill_null(column, zero).to_numpy()
    return values
