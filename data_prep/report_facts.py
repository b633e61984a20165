"""All that `report` says in numbers, collected from a dataset folder.

Shapes: I items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from data_prep.duplicates import DuplicateGroups, exact_groups, near_groups
from data_prep.events import Int64
from data_prep.folders import open_folder
from data_prep.manifest import Manifest
from data_prep.records import ITEMS_FILE, USERS_FILE
from data_prep.report_counts import (
    EventFacts,
    ImpressionFacts,
    bytes_by_kind,
    count_events,
    count_impressions,
    value_column,
)
from data_prep.report_settings import ReportConfig

GROUPS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Items that share a modality's content exactly."""

    groups: DuplicateGroups
    num_cold_of_warm: int
    """Cold items whose content a warm item has too."""


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """All that the page says in numbers."""

    manifest: Manifest
    bytes_by_kind: dict[str, int]
    train_count_I: Int64
    """Positive events before `valid_start`."""
    has: dict[str, NDArray[np.bool_]]
    """[I] presence of content, by modality."""
    events: EventFacts
    impressions: ImpressionFacts | None
    copies: dict[str, Copies]
    """By modality; empty for a dataset without content hashes."""
    near: DuplicateGroups | None
    """None for a dataset without perceptual hashes."""
    num_near_compared: int
    """Pictures in the search for near duplicates."""

    @property
    def is_cold_I(self) -> NDArray[np.bool_]:
        """Items without a positive event before `valid_start`."""
        is_cold_I: NDArray[np.bool_] = self.train_count_I == 0
        return is_cold_I


def collect_facts(dataset: Dataset, config: ReportConfig) -> ReportFacts:
    """Count what the dataset holds; the raw content of items is not read."""
    train_count_I = value_column(dataset, "train_count")
    is_cold_I = train_count_I == 0
    names = [name for name in dataset.manifest.modalities if _has(dataset, f"has_{name}")]
    near, num_compared = _near_duplicates(dataset, config)
    return ReportFacts(
        manifest=dataset.manifest,
        bytes_by_kind=bytes_by_kind(dataset),
        train_count_I=train_count_I,
        has={name: value_column(dataset, f"has_{name}").astype(bool) for name in names},
        events=count_events(dataset.events(), dataset.manifest.cutoffs, is_cold_I=is_cold_I),
        impressions=count_impressions(dataset, is_cold_I=is_cold_I),
        copies={
            name: _copies(dataset, f"hash_{name}", is_cold_I=is_cold_I)
            for name in names
            if _has(dataset, f"hash_{name}")
        },
        near=near,
        num_near_compared=num_compared,
    )


def open_columns(dataset_dir: Path) -> Dataset:
    """The dataset with the columns that are counted; ids and features stay on disk."""
    folder, manifest = open_folder(dataset_dir)
    wanted = {"train_count", "phash_image"}
    wanted |= {f"{kind}_{name}" for kind in ("has", "hash") for name in manifest.modalities}
    names = pq.read_schema(folder.path(ITEMS_FILE)).names
    columns = [name for name in names if name in wanted]
    return Dataset(
        folder=folder,
        manifest=manifest,
        items=pq.read_table(folder.path(ITEMS_FILE), columns=columns),
        users=pq.read_table(folder.path(USERS_FILE), columns=["user_row"]),
    )


def _has(dataset: Dataset, column: str) -> bool:
    return column in dataset.items.column_names


def _present(dataset: Dataset, column: str) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = pc.is_valid(dataset.items[column]).to_numpy()
    return present


def _copies(dataset: Dataset, column: str, *, is_cold_I: NDArray[np.bool_]) -> Copies:
    hash_I, present_I = value_column(dataset, column), _present(dataset, column)
    cold, warm = (hash_I[present_I & mask] for mask in (is_cold_I, ~is_cold_I))
    return Copies(
        groups=exact_groups(hash_I, present_I, shown=GROUPS_SHOWN),
        num_cold_of_warm=int(np.isin(cold, warm).sum()),
    )


def _near_duplicates(dataset: Dataset, config: ReportConfig) -> tuple[DuplicateGroups | None, int]:
    """Groups of pictures that look alike, and how many pictures were compared."""
    if not _has(dataset, "phash_image"):
        return None, 0
    compared_I = _present(dataset, "phash_image")
    rows = np.flatnonzero(compared_I)
    if len(rows) > config.max_near_pictures:
        random = np.random.default_rng(config.seed)
        rows = random.choice(rows, config.max_near_pictures, replace=False)
        compared_I = np.zeros(dataset.num_items, bool)
        compared_I[rows] = True
    exact = value_column(dataset, "hash_image") if _has(dataset, "hash_image") else None
    phash_I = value_column(dataset, "phash_image")
    return near_groups(phash_I, compared_I, same_I=exact, shown=GROUPS_SHOWN), len(rows)
