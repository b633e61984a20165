"""A dataset folder as its readers see it: numpy and Arrow, no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.content import ItemContent, reads_of
from data_prep.events import EventLog
from data_prep.folders import Folder, open_folder
from data_prep.manifest import Manifest
from data_prep.parquet_files import read_in_order
from data_prep.records import (
    ITEMS_FILE,
    SPLITS,
    USERS_FILE,
    Split,
    impressions_file,
)
from data_prep.tar_reading import read_members
from data_prep.user_blocks import EVENT_TYPES, UserBlock, decode_block


@dataclass(frozen=True)
class Dataset:
    """The catalogue in memory, and readers for the rest."""

    folder: Folder
    manifest: Manifest
    items: pa.Table
    """Row i is the item in row i."""
    users: pa.Table
    """Row u is the user in row u."""

    @property
    def dir(self) -> Path:
        """The dataset folder, or the local cache of one behind a URL."""
        return self.folder.dir

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return int(self.items.num_rows)

    @property
    def num_users(self) -> int:
        """Users with an event or an impression."""
        return int(self.users.num_rows)

    def events(self) -> EventLog:
        """Read the whole event log."""
        names = sorted(
            file.path for file in self.manifest.files if fnmatch(file.path, "users/*.tar")
        )
        blocks = [block for name in names for block in _read_blocks(self.folder.path(name))]
        if (found := sum(len(block.users) for block in blocks)) != self.num_users:
            raise ValueError(
                f"{self.dir}/users: found {found} users in {len(names)} tars, expected "
                f"{self.num_users} as in {USERS_FILE}; run python -m data_prep verify"
            )
        lengths = [np.diff(block.offsets) for block in blocks]
        weighted = all("weights" in block.events for block in blocks)
        columns = {
            name: np.concatenate([np.zeros(0, dtype), *(block.events[name] for block in blocks)])
            for name, dtype in EVENT_TYPES.items()
            if name != "weights" or (weighted and blocks)
        }
        rows = columns["item_rows"]
        if rows.max(initial=0) >= max(self.num_items, 1):
            raise ValueError(
                f"{self.dir}/users: found item rows up to {rows.max()}, expected them below "
                f"{self.num_items}; run python -m data_prep verify"
            )
        return EventLog(
            offsets=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
            item_rows=rows,
            times=columns["times"],
            labels=columns["labels"],
            weights=columns.get("weights"),
        )

    def content(self) -> ItemContent:
        """Random access to the items' pictures, texts and vectors."""
        tars = [file for file in self.manifest.files if fnmatch(file.path, "items/*.tar")]
        return ItemContent(
            self.folder,
            num_items=self.num_items,
            items_per_shard=self.manifest.counts["items_per_shard"],
            reads=reads_of(sum(file.bytes for file in tars)),
        )

    def impressions(self, split: Split, *, columns: list[str] | None = None) -> pa.Table:
        """One split's impressions, ordered by time, user row and item row."""
        return pq.read_table(self._impressions_path(split), columns=columns)

    def impression_pieces(
        self, split: Split, *, columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """The same, a row group at a time."""
        return read_in_order(self._impressions_path(split), columns)

    def _impressions_path(self, split: Split) -> Path:
        if split not in SPLITS:
            raise ValueError(f"split: found {split!r}, expected one of {SPLITS}")
        name = impressions_file(split)
        if all(file.path != name for file in self.manifest.files):
            raise FileNotFoundError(
                f"{self.dir}: found no impressions ({name}); map an "
                "`impressions` table in the settings of python -m data_prep shard"
            )
        return self.folder.path(name)


def _read_blocks(path: Path) -> Iterator[UserBlock]:
    for member, payload in read_members(path):
        try:
            yield decode_block(payload)
        except ValueError as error:
            raise ValueError(
                f"{path}: member {member.name!r} cannot be read ({error}); run python -m data_prep "
                "verify"
            ) from error


def open_dataset(dataset_dir: Path | str) -> Dataset:
    """Open a complete dataset folder: a local one, or one behind a URL through a local cache."""
    folder, manifest = open_folder(dataset_dir)
    return Dataset(
        folder=folder,
        manifest=manifest,
        items=pq.read_table(folder.path(ITEMS_FILE)),
        users=pq.read_table(folder.path(USERS_FILE)),
    )
