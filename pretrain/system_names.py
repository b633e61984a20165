"""What our own systems are called in the JSON of `evaluate`; any other name is a competitor's."""

from __future__ import annotations

from typing import Literal

OURS, BLENDED = "ours", "ours_blended"
"""The release alone, and the release with what a blend adds to it."""

Kind = Literal["ours", "other"]


def kind_of(system: str) -> Kind:
    """Ours, or something that ours is compared with."""
    return "ours" if system in (OURS, BLENDED) else "other"
