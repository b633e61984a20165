"""Settings of `report`."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.folders import url_of
from data_prep.records import REPORT_FILE


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which dataset to show, and where."""

    dataset_dir: Path
    """Dataset folder."""
    out: Path | None = None
    """HTML file to write; null: report.html in the dataset folder."""
    num_pictures: int = 40
    """Pictures on the sheet: half of popular items, half of cold ones."""
    max_near_pictures: int = 2_000_000
    """Pictures searched for near duplicates; of more, a random sample is."""
    seed: int = 0
    """Chooses the pictures."""

    def __post_init__(self) -> None:
        for name in ("num_pictures", "max_near_pictures", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more")
        if self.out is None and url_of(self.dataset_dir):
            raise ValueError(
                f"out: found nothing for the dataset {self.dataset_dir} behind a URL, expected a "
                "file on this machine; give one"
            )
        if self.out is not None and self.out.is_dir():
            raise ValueError(f"out: found the folder {self.out}, expected a file; add a name")

    @property
    def file(self) -> Path:
        """The file that is written."""
        return self.out or self.dataset_dir / REPORT_FILE
