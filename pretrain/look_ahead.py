"""Time is a type: what has seen the validation time is not used to be judged by it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from data_prep.dataset import Dataset

log = logging.getLogger(__name__)


def looks_ahead(newest_event: int, dataset: Dataset) -> bool:
    """Whether something that has seen `newest_event` knows of the validation time or later."""
    return newest_event >= dataset.manifest.cutoffs.valid_start


def utc(time_ms: int) -> str:
    """A time as messages show it; one that is no date, of a file from elsewhere, as a number."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError):
        return f"{time_ms} ms"


def refuse_look_ahead(
    newest_event: int,
    dataset: Dataset,
    *,
    source: object,
    allowed: bool,
    override: str,
    advice: str = "pre-train on events before valid_start",
) -> None:
    """Refuse what has seen the validation time, or warn where that is allowed.

    Args:
        newest_event: newest event that it has seen, unix milliseconds.
        dataset: where it is to be used.
        source: what it is, for the message.
        allowed: the explicit override.
        override: how the override is given and where it is recorded.
        advice: what to do instead.

    Raises:
        ValueError: it looks ahead and is not allowed to.
    """
    if not looks_ahead(newest_event, dataset):
        return
    found = (
        f"{source}: found that it has seen events up to {utc(newest_event)}, expected none from "
        f"valid_start on, {utc(dataset.manifest.cutoffs.valid_start)} in {dataset.dir}: it has "
        "seen what it is tested on"
    )
    if not allowed:
        raise ValueError(f"{found}; {advice}, or give {override}")
    log.warning("%s; allowed by allow_look_ahead", found)
