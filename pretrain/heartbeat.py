"""When this process last got on with its work. Imports nothing slow: any long loop may call it."""

import time

SLOW = 3.0
"""How much longer than a step what comes next may take: the first step, and saving."""

_last, _patience = time.monotonic(), SLOW


def beat(patience: float = 1.0) -> None:
    """Say that something was finished; what comes next may take `patience` times the limit."""
    global _last, _patience
    _last, _patience = time.monotonic(), patience


def seconds_since() -> float:
    """Since the last beat."""
    return time.monotonic() - _last


def is_overdue(limit_s: float) -> bool:
    """Whether the next beat should have come."""
    return seconds_since() > limit_s * _patience
