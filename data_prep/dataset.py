"""A dataset folder as its readers see it: numpy and Arrow, no torch."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.content import ItemContent
from data_prep.events import EventLog
from data_prep.folders import Folder, open_folder
from data_prep.manifest import Manifest
from data_prep.records import (
    ITEMS_FILE,
    SPLITS,
    USER_MEMBERS,
    USERS_FILE,
    WEIGHTS_DTYPE,
    WEIGHTS_MEMBER,
    Split,
    decode_npy,
    impressions_file,
)


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
        columns: dict[str, list[NDArray[np.generic]]] = {}
        for name in names:
            for member, array in _read_blocks(self.folder.path(name)):
                columns.setdefault(member, []).append(array)
        if missing := USER_MEMBERS.keys() - columns.keys():
            raise ValueError(
                f"{self.dir}/users: found no {sorted(missing)} in {len(names)} tars; run python -m "
                "data_prep verify"
            )
        if sum(map(len, columns["users.npy"])) != self.num_users:
            raise ValueError(
                f"{self.dir}/users: found {sum(map(len, columns['users.npy']))} users in "
                f"{len(names)} tars, expected {self.num_users} as in {USERS_FILE}; "
                "run python -m data_prep verify"
            )
        lengths = np.concatenate([np.diff(offsets) for offsets in columns["offsets.npy"]])
        joined = {
            name: np.concatenate(columns[name]).astype(dtype, copy=False)
            for name, dtype in (USER_MEMBERS | {WEIGHTS_MEMBER: WEIGHTS_DTYPE}).items()
            if name in columns
        }
        counts = {len(joined[name]) for name in joined if name not in _PER_USER} | {lengths.sum()}
        rows = joined["items.npy"]
        if len(counts) > 1 or (lengths < 0).any() or rows.max(initial=0) >= max(self.num_items, 1):
            raise ValueError(
                f"{self.dir}/users: found columns of {sorted(map(int, counts))} events and item "
                f"rows up to {rows.max(initial=0)}, expected one length and rows below "
                f"{self.num_items}; run python -m data_prep verify"
            )
        return EventLog(
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            item_rows=joined["items.npy"],
            times=joined["times.npy"],
            labels=joined["labels.npy"],
            weights=joined.get(WEIGHTS_MEMBER),
        )

    def content(self) -> ItemContent:
        """Random access to the items' pictures, texts and vectors."""
        return ItemContent(
            self.folder,
            num_items=self.num_items,
            items_per_shard=self.manifest.counts["items_per_shard"],
        )

    def impressions(self, split: Split) -> pa.Table:
        """One split's impressions, ordered by time, user row and item row."""
        if split not in SPLITS:
            raise ValueError(f"split: found {split!r}, expected one of {SPLITS}")
        name = impressions_file(split)
        if all(file.path != name for file in self.manifest.files):
            raise FileNotFoundError(
                f"{self.dir}: found no impressions ({name}); map an "
                "`impressions` table in the settings of python -m data_prep shard"
            )
        return pq.read_table(self.folder.path(name))


_PER_USER = ("users.npy", "offsets.npy")


def _read_blocks(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Members of a user tar, by name without the key."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name.partition(".")[2], decode_npy(file.read())
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); run python -m data_prep verify"
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
