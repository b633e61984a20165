"""How many cells of each media column gave no file, and whether a run accepts so many."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.credentials import without_credentials
from data_prep.media import Cause, Cell, Found
from data_prep.records import replace_file
from data_prep.settings import RunConfig
from data_prep.work import WorkFiles

Loss = Literal["missing", "not_fetched"]
LOSSES: dict[Cause, Loss] = {
    **dict.fromkeys(("file_missing", "outside_folder"), "missing"),
    **dict.fromkeys(("not_fetched", "not_readable"), "not_fetched"),
}
"""missing: as long as the settings and the files stay. not_fetched: another attempt may find it."""


@dataclass
class MediaCount:
    """The cells of a column, in one tar or in all."""

    cells: int = 0
    lost: dict[Loss, int] = field(default_factory=dict)
    first: dict[Loss, str] = field(default_factory=dict)
    """The first cell that was lost so."""
    refused: dict[Loss, float] = field(default_factory=dict)
    """Share of all tars' cells for which a run was refused; the next one tries this tar anew."""

    def add(self, cell: Cell, found: Found) -> None:
        """Count a cell and what was read of it; an empty one does not count."""
        if cell is None:
            return
        self.cells += 1
        if isinstance(found, str) and (loss := LOSSES.get(found)) is not None:
            self.lost[loss] = self.lost.get(loss, 0) + 1
            self.first.setdefault(loss, without_credentials(str(cell)))

    def join(self, other: "MediaCount") -> None:
        """Count the cells of a later tar too."""
        self.cells += other.cells
        for loss, count in other.lost.items():
            self.lost[loss] = self.lost.get(loss, 0) + count
            self.first.setdefault(loss, other.first[loss])


def is_refused(receipt: Path, run: RunConfig) -> bool:
    """Whether a tar is to be made anew, because of losses that this run does not accept either."""
    accepted = _accepted(run)
    return any(
        share > accepted[loss]
        for count in _read_counts(receipt).values()
        for loss, share in count.refused.items()
    )


def refuse_lost_media(work: WorkFiles, run: RunConfig) -> None:
    """Raise where a column lost more than the run accepts, and mark the tars to make anew.

    All tars together are judged, so that the number of parts makes no difference.
    """
    counts = {path: _read_counts(path) for path in sorted(work.dir.glob("receipts/items-*.json"))}
    totals: dict[str, MediaCount] = {}
    for of_tar in counts.values():
        for column, count in of_tar.items():
            totals.setdefault(column, MediaCount()).join(count)
    accepted = _accepted(run)
    refusals = []
    for column, total in totals.items():
        for loss, lost in total.lost.items():
            if (share := lost / total.cells) > accepted[loss]:
                _mark(counts, column, loss, share=share)
                refusals.append(_refusal(column, loss, total, accepted=accepted[loss]))
    if refusals:
        raise ValueError(refusals[0])


def _accepted(run: RunConfig) -> dict[Loss, float]:
    return {"missing": run.max_missing_share, "not_fetched": run.max_not_fetched_share}


def _read_counts(receipt: Path) -> dict[str, MediaCount]:
    counts = json.loads(receipt.read_bytes())["media"]
    return {column: MediaCount(**count) for column, count in counts.items()}


def _mark(
    counts: dict[Path, dict[str, MediaCount]], column: str, loss: Loss, *, share: float
) -> None:
    for path, of_tar in counts.items():
        if loss in of_tar[column].lost:
            receipt = json.loads(path.read_bytes())
            receipt["media"][column]["refused"][loss] = share
            replace_file(path, json.dumps(receipt).encode())


def _refusal(column: str, loss: Loss, total: MediaCount, *, accepted: float) -> str:
    lost = f"{total.lost[loss]:,} of {total.cells:,} cells (the first: {total.first[loss]})"
    again = "give the same command again (of the stages, content and manifest)"
    if loss == "missing":
        return (
            f"items.{column}: found no file for {lost}, expected at most a share of {accepted:g}; "
            f"correct items.{column} or items.{column}_dir, or put the files there and {again}, or "
            "accept them with a larger --max_missing_share"
        )
    return (
        f"items.{column}: could not read {lost}, which may be there at another time, expected at "
        f"most a share of {accepted:g}; {again}, which tries their tars anew, or accept them with "
        "a larger --max_not_fetched_share"
    )
