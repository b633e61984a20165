"""The dataset folder's table of contents, written last: with it the dataset is complete."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.records import (
    FORMAT,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    FeatureType,
    LabelType,
    replace_file,
)
from data_prep.settings import TokenConfig
from data_prep.typed_json import from_json

MOST = 1 << 53
"""No count or time is above it."""
MOST_WIDE = 1 << 20
"""No vector is wider."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the dataset."""

    path: str
    """Relative to the dataset folder, with forward slashes."""
    bytes: int
    xxh128: str
    """XXH3 of 128 bits; `xxhsum -H2` prints it."""
    samples: int
    """Samples in a tar, rows in a table."""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\0" in self.path or self.path in ("", "."):
            raise ValueError(
                f"{MANIFEST_FILE}: found a file {self.path!r}, expected paths inside the dataset "
                "folder; use a dataset of a source that you trust"
            )
        if not 0 <= self.bytes < MOST or not 0 <= self.samples < MOST:
            raise ValueError(
                f"{MANIFEST_FILE}: found {self.bytes:,} bytes and {self.samples:,} samples of "
                f"{self.path!r}, expected what a file can have; re-run python -m data_prep shard"
            )


@dataclass(frozen=True, kw_only=True)
class FilterCount:
    """How many rows a step of the relational stage was given and let through."""

    step: str
    rows_in: int
    rows_out: int


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """The two times that split everything: train < valid_start <= valid < test_start <= test."""

    valid_start: int
    """Unix milliseconds."""
    test_start: int
    """Unix milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Feature columns of items.parquet, users.parquet and the impressions, with their types."""

    item: dict[str, FeatureType] = field(default_factory=dict)
    user: dict[str, FeatureType] = field(default_factory=dict)
    context: dict[str, FeatureType] = field(default_factory=dict)
    label: dict[str, LabelType] = field(default_factory=dict)
    """Further outcomes of the impressions, beside the click."""
    exposure: dict[str, str] = field(default_factory=dict)
    """Which of position, propensity and treatment the impressions have, and of which column."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset folder holds, how it was made and when its newest event happened."""

    name: str
    cutoffs: Cutoffs
    newest_event: int
    """Unix milliseconds."""
    newest_train_event: int
    """Newest event before `valid_start`, unix milliseconds."""
    counts: dict[str, int]
    modalities: dict[str, dict[str, Any]]
    features: Features
    files: list[FileEntry]
    quarantine: dict[str, int]
    """Records left out, or pictures and vectors dropped from kept items, by cause."""
    filters: list[FilterCount]
    config: dict[str, Any]
    """The resolved settings of `python -m data_prep shard` that decide its result."""
    privacy: dict[str, Any] = field(default_factory=dict)
    """Which ids are keyed hashes and a fingerprint of the key; how many users were to be forgotten,
    how many of them each table had, and the SHA-256 of the list. Empty: nothing of the kind."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the raw tables came with, such as the toy world's best reachable AUC."""
    source_fingerprint: str = ""
    """Digest of the settings and of the raw files' names, sizes and times of change."""
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    def save(self, dataset_dir: Path) -> None:
        """Write manifest.json under a temporary name, then rename it."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        replace_file(dataset_dir / MANIFEST_FILE, (text + "\n").encode())

    @staticmethod
    def load(dataset_dir: Path) -> "Manifest":
        """Read manifest.json and refuse a folder without it, or another schema."""
        dataset_dir = Path(dataset_dir)
        path = dataset_dir / MANIFEST_FILE
        if not dataset_dir.is_dir():
            raise FileNotFoundError(
                f"{dataset_dir}: found no such folder, expected a dataset; "
                "make it with python -m data_prep shard"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{dataset_dir}: found no {MANIFEST_FILE}, so the dataset is incomplete; "
                "re-run python -m data_prep shard"
            )
        try:
            raw = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: found no valid JSON ({error}); re-run python -m data_prep shard"
            ) from error
        found = (raw.get("format"), raw.get("schema_version")) if isinstance(raw, dict) else None
        if found != (FORMAT, SCHEMA_VERSION):
            raise ValueError(
                f"{path}: found format and schema {found}, this code reads "
                f"{(FORMAT, SCHEMA_VERSION)}; re-run python -m data_prep shard"
            )
        raw.setdefault("privacy", {})  # datasets of before have none
        known = {one.name for one in dataclasses.fields(Manifest)}
        if missing := known - raw.keys():
            raise ValueError(
                f"{path}: found no {sorted(missing)}, expected every field of schema "
                f"{SCHEMA_VERSION}; re-run python -m data_prep shard"
            )
        try:
            manifest = from_json(Manifest, {key: raw[key] for key in known}, where=str(path))
        except ValueError as error:
            raise ValueError(f"{error}; re-run python -m data_prep shard") from error
        manifest.check_plausible(path)
        return manifest

    def check_plausible(self, path: Path) -> None:
        """Refuse what no dataset has, before anything is sized or divided by it.

        Raises:
            ValueError: it names what.
        """
        counts, cutoffs = self.counts, self.cutoffs
        names = [entry.path for entry in self.files]
        # Bounds that are wide, as the tables themselves say what there is.
        wrong = {
            "cutoffs": not 0 < cutoffs.valid_start < cutoffs.test_start < MOST,
            "newest_train_event": not self.newest_train_event < cutoffs.valid_start,
            "newest_event": not self.newest_train_event <= self.newest_event < MOST,
            "counts": not all(0 <= count < MOST for count in counts.values()),
            "counts.items_per_shard": not 1 <= counts.get("items_per_shard", 0) < MOST,
            "files": len(set(names)) < len(names),
            "filters": not all(0 <= f.rows_out <= f.rows_in < MOST for f in self.filters),
        }
        wrong |= {f"counts.{name}": name not in counts for name in ("items", "users", "events")}
        wrong |= {
            f"modalities.{name}": not _is_modality(entry) for name, entry in self.modalities.items()
        }
        if found := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{path}: found values of {', '.join(found)} that no dataset has; re-run python -m "
                "data_prep shard, or use a dataset of a source that you trust"
            )


def _is_modality(entry: dict[str, Any]) -> bool:
    width, fields, tokens = (entry.get(n) for n in ("width", "fields", "tokens"))
    return (
        (width is None or (type(width) is int and 1 <= width <= MOST_WIDE))
        and (fields is None or (type(fields) is list and all(type(f) is str for f in fields)))
        and (tokens is None or _is_tokens(tokens))
    )


def _is_tokens(entry: object) -> bool:
    try:
        from_json(TokenConfig, entry, where="tokens")
    except ValueError:
        return False
    return True
