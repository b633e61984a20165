"""Was this process asked to stop? Imports nothing slow, so that it can listen from the start."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
received: list[int] = []
"""Signals noted so far."""


def note(number: int, frame: FrameType | None) -> None:
    """The handler: anything more would hang or save from the wrong place."""
    received.append(number)


def listen() -> None:
    """Note both signals from now on."""
    for number in STOP_SIGNALS:
        signal.signal(number, note)


def ignore() -> None:
    """A late signal must not fail a run that has finished."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
