"""Which events stay, and when validation and test begin."""

import itertools
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from data_prep.cleaning import Ledger, count_rows
from data_prep.manifest import Cutoffs
from data_prep.settings import FilterConfig, ShardConfig, SplitConfig, parse_time

if TYPE_CHECKING:
    import ibis
    import ibis.expr.types as ir


def drop_duplicates(events: "ir.Table", settings: FilterConfig, *, ledger: Ledger) -> "ir.Table":
    """One event where the settings say that several are the same."""
    import ibis

    if settings.duplicates == "keep_all":
        return events
    same = ["user_id", "item_row"]
    same += ["time"] if settings.duplicates == "keep_exact_once" else []
    order = [events.time, ibis.desc("label")]
    order += [ibis.desc("weight")] if "weight" in events.columns else []
    rank = ibis.row_number().over(group_by=[events[name] for name in same], order_by=order)
    kept = events.mutate(rank=rank).filter(lambda row: row["rank"] == 0).drop("rank")
    ledger.passed(
        f"interactions: duplicates ({settings.duplicates})",
        rows_in=count_rows(events),
        rows_out=count_rows(kept),
    )
    return kept


def find_cutoffs(settings: SplitConfig, events: "ir.Table") -> Cutoffs:
    """The cut-offs as given, or as quantiles of the events' times (linear, as numpy's)."""
    if settings.valid_start is not None and settings.test_start is not None:
        return Cutoffs(
            valid_start=parse_time(settings.valid_start, name="split.valid_start"),
            test_start=parse_time(settings.test_start, name="split.test_start"),
        )

    def quantile(share: float | None) -> int:
        value = events.time.cast("float64").quantile(share).to_pyarrow().as_py()
        return math.ceil(value) if value is not None else 0

    return Cutoffs(
        valid_start=quantile(settings.valid_quantile), test_start=quantile(settings.test_quantile)
    )


def keep_core(
    con: "ibis.BaseBackend",
    events: "ir.Table",
    *,
    settings: FilterConfig,
    cutoffs: Cutoffs,
    ledger: Ledger,
) -> "ir.Table":
    """The k-core of the training events, and every later event.

    Users and items are dropped in turn until all that stay have enough events. Counting later
    events would choose the training data by what is to be predicted.
    """
    limits = {"user_id": settings.min_user_events, "item_row": settings.min_item_events}
    if not any(limits.values()):
        return events
    train = core = events.filter(events.time < cutoffs.valid_start)
    rows_in = rows = count_rows(core)
    kept: dict[str, ir.Table] = {}
    for turn in itertools.count():
        for key, limit in limits.items():
            counted = core.group_by(key).aggregate(events=lambda row: row.count())
            enough = counted.filter(counted.events >= limit).select(key)
            # Only the ids are stored, so that a turn costs little disk.
            kept[key] = con.create_table(f"core_{key}_{turn}", enough)
            core = train
            for kept_key, ids in kept.items():
                core = core.semi_join(ids, kept_key)
        before, rows = rows, count_rows(core)
        if rows == before:
            break
    ledger.passed(
        f"interactions: k-core of training events (users {settings.min_user_events}, "
        f"items {settings.min_item_events})",
        rows_in=rows_in,
        rows_out=rows,
    )
    return core.union(events.filter(events.time >= cutoffs.valid_start))


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
