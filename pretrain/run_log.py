"""events.jsonl in the run folder: what happened to a run, one line of JSON an event.

Every line has `time` (UTC), `rank` and `event`: start, resume, save, save_failed, validation,
spike, nonfinite, signal, hang or end. Rank 0 writes what all ranks know; another rank what only it
can know.
"""

from __future__ import annotations

import json
import logging
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.credentials import hide_credentials
from pretrain.collectives import rank

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


class RunLog:
    """Appends to the file; a line is one write, so that the lines of several ranks stay whole."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / EVENTS_FILE

    def write(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
        """Append an event; numbers that are not finite become text, as JSON has none.

        A disk that is full costs the line, not the run.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "rank": rank(), "event": event} | facts
        line = json.dumps(_plain(hide_credentials(entry)), default=str) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError as error:
            log.error("%s: not written: %s: %s", self.path, error, line.rstrip())


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Every event of a run, in the order they were written; none where there is no file."""
    path = run_dir / EVENTS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
