"""What our own systems are called in the JSON of `evaluate`; any other name is a competitor's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

OURS, BLENDED = "ours", "ours_blended"
"""The release alone, and the release with what a blend adds to it."""

_WITHOUT = "_without_"

Kind = Literal["ours", "knock_out", "other"]


def kind_of(system: str) -> Kind:
    """Ours, ours where items lack a modality, or something that ours is compared with."""
    if whole(system) not in (OURS, BLENDED):
        return "other"
    return "ours" if whole(system) == system else "knock_out"


def knocked_out(system: str, without: Sequence[str]) -> str:
    """Name of a system whose vectors lack these modalities; its own where they lack none."""
    return f"{system}{_WITHOUT}{'_and_'.join(without)}" if without else system


def whole(system: str) -> str:
    """Name of the system that a knock-out is one of; any other name stays."""
    return system.partition(_WITHOUT)[0]
