"""Time is a type: what ranks must be older than what is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pretrain.cases import Cases, columns_of, read

log = logging.getLogger(__name__)

TimestampUnit = Literal["auto", "s", "ms", "us"]
"""How a log's `timestamp` is written. auto: it is a timestamp or a date; numbers need a unit."""

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class CaseTimes:
    """When cases were asked and what had been seen, in unix milliseconds; None: not known."""

    first_asked: int | None
    last_asked: int | None

    newest_event: dict[str, int | None]
    """What ranks → the newest event that it has seen."""

    look_ahead: list[str]
    """Those of them that have seen the first question's time, as `allow_look_ahead` let them."""

    @classmethod
    def of(
        cls,
        asked: Cases,
        *,
        cases: Path,
        newest: Mapping[str, int | None],
        allowed: bool,
        train: Path | None = None,
        timestamp_unit: TimestampUnit = "auto",
    ) -> CaseTimes:
        """Compare where both sides have times.

        Args:
            asked: the questions.
            cases: where they were read from, for the message.
            newest: what ranks beside the log → the newest event that it has seen.
            allowed: the explicit override.
            train: the log, if any; its newest event counts as `train`.
            timestamp_unit: of the log.

        Raises:
            ValueError: something has seen the time of a question and is not allowed to.
        """
        seen = dict(newest)
        if not asked.has_times:  # and nobody needs to say the log's unit
            return cls(first_asked=None, last_asked=None, newest_event=seen, look_ahead=[])
        if train is not None:
            seen["train"] = newest_choice(train, unit=timestamp_unit)
        first, last = int(asked.at_times_B.min()), int(asked.at_times_B.max())
        late = [name for name, event in seen.items() if event is not None and event >= first]
        if late:
            events = ", ".join(f"{name} of {seen[name]} ms" for name in late)
            found = (
                f"found the newest event in {events}, expected it before {first} ms, the first "
                f"at_time of {cases}: what is to be found has been seen"
            )
            if not allowed:
                raise ValueError(
                    f"{found}; take what is older, or give --allow_look_ahead true, which the "
                    "output records"
                )
            log.warning("%s; allowed by allow_look_ahead", found)
        return cls(first_asked=first, last_asked=last, newest_event=seen, look_ahead=late)

    def newest(self) -> int | None:
        """Of all that was seen, the questions' own targets among it."""
        known = [one for one in (self.last_asked, *self.newest_event.values()) if one is not None]
        return max(known, default=None)


def newest_choice(train: Path, *, unit: TimestampUnit) -> int | None:
    """Newest event of a log, unix milliseconds; None where it has no times.

    A date is taken as its last millisecond: the event may have come at any time of that day.

    Raises:
        ValueError: a unit that does not fit the column.
    """
    if "timestamp" not in columns_of(train):
        return None
    column = read(train, "timestamp")["timestamp"]
    kind, newest = column.type, pc.max(column)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    dates = pa.types.is_date(kind)
    if not numbers and not dates and not pa.types.is_timestamp(kind):
        raise ValueError(
            f"{train}: found timestamp of type {kind}, expected numbers, timestamps or dates; "
            "convert the column"
        )
    if numbers == (unit == "auto"):
        raise ValueError(
            f"{train}: found timestamp of type {kind} and timestamp_unit {unit!r}, expected "
            f"{'s, ms or us for numbers' if numbers else 'auto'}; set timestamp_unit"
        )
    if not newest.is_valid:
        return None
    if dates:
        return int(newest.cast(pa.date64()).cast(pa.int64()).as_py()) + DAY_MS - 1
    value = newest.as_py() if numbers else newest.cast(pa.int64()).as_py()
    return int(value * 1000 // PER_SECOND[unit if numbers else kind.unit])
