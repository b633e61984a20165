"""Settings of the made-up world."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Size and seed of the made-up world."""

    out_dir: Path
    """Folder for interactions, items, users and impressions as Parquet, and the truth."""
    num_users: int = 1_500
    """Users."""
    num_items: int = 1_200
    """Items; about a third of them arrive during the 60 days."""
    num_events: int = 60_000
    """Positive interactions, each user and item at most once; fewer if users run out of items."""
    num_impressions: int = 60_000
    """Items shown, clicked or not."""
    missing_image_share: float = 0.08
    """Share of items without a picture."""
    missing_text_share: float = 0.08
    """Share of items without title and description."""
    seed: int = 0
    """Everything follows from it."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_events", "num_impressions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("missing_image_share", "missing_text_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 <= share < 1")
        if self.seed < 0:
            raise ValueError(f"seed: found {self.seed}, expected 0 or more")
