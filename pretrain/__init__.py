"""Pre-training of one space for what users do and what items are.

    items/*.tar ──► item encoder (picture, text, vectors → one unit vector) ──┐
    users/*.tar ──► user encoder (history of item vectors → one unit vector) ─┴─► InfoNCE

`load_released` is all that a user of a released checkpoint needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.release import Release, load_released

__all__ = ["Release", "load_released"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    """Import the public names on first use, so that `python -m pretrain --help` stays quick."""
    if name in __all__:
        from pretrain import release

        return getattr(release, name)
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
