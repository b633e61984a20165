"""The hidden work folder between the steps of `shard`, and what the relational step reports."""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.credentials import hide_credentials
from data_prep.manifest import Cutoffs, Features, FilterCount
from data_prep.privacy import privacy_state
from data_prep.privacy_settings import PrivacyConfig
from data_prep.raw_files import find_files
from data_prep.records import (
    ITEMS_FILE,
    MANIFEST_FILE,
    QUARANTINE_DIR,
    REPORT_FILE,
    USERS_FILE,
    WORK_DIR,
    replace_file,
)
from data_prep.settings import ShardConfig, expand_path

NOT_IN_RESULT = ("engine", "memory_limit", "duckdb_threads", "spark_conf", "dataset_dir")
"""Settings that change how, how fast or where a dataset is made, and not what is in it."""


class WorkFiles:
    """Names inside the work folder."""

    def __init__(self, dataset_dir: Path) -> None:
        self.dataset_dir = dataset_dir
        self.dir = dataset_dir / WORK_DIR
        self.report = self.dir / "tables.json"
        self.items = self.dir / "items.parquet"
        self.users = self.dir / "users.parquet"
        self.events = self.dir / "events.arrow"
        self.seen_users = self.dir / "seen_users.parquet"
        self.content = self.dir / "content.parquet"
        self.ids = self.dir / "ids"

    def item_receipt(self, shard: int) -> Path:
        """What is known of a finished item tar."""
        return self.dir / f"receipts/items-{shard:06d}.json"

    def item_presence(self, shard: int) -> Path:
        """Which of a finished tar's items have what."""
        return self.dir / f"receipts/items-{shard:06d}.parquet"

    def user_receipt(self, shard: int) -> Path:
        """What is known of a finished user tar."""
        return self.dir / f"receipts/users-{shard:06d}.json"

    def clear_dataset(self) -> None:
        """Leave an empty work folder and nothing that earlier settings or raw tables gave.

        The work folder is there from the first moment to the last: a run that is killed in between
        leaves a folder that the next one knows for its own.
        """
        ours = self.dir.is_dir() or (self.dataset_dir / MANIFEST_FILE).is_file()
        if not ours and self.dataset_dir.is_dir() and any(self.dataset_dir.iterdir()):
            raise ValueError(
                f"{self.dataset_dir}: found files that are no dataset, expected an empty or new "
                "folder; choose another dataset_dir"
            )
        self.dir.mkdir(parents=True, exist_ok=True)
        # The manifest first, as it vouches for the others.
        for name in (MANIFEST_FILE, ITEMS_FILE, USERS_FILE, REPORT_FILE):
            (self.dataset_dir / name).unlink(missing_ok=True)
        folders = [self.dataset_dir / name for name in (QUARANTINE_DIR, "items", "users", "ctr")]
        for path in [*folders, *self.dir.iterdir()]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class TablesReport:
    """What the relational step found; written when it is done."""

    fingerprint: str
    cutoffs: Cutoffs
    newest_event: int
    newest_train_event: int
    counts: dict[str, int]
    features: Features
    text_fields: list[str]
    vector_widths: dict[str, int]
    quarantine: dict[str, int]
    filters: list[FilterCount]
    privacy: dict[str, Any] = field(default_factory=dict)

    def save(self, work: WorkFiles) -> None:
        """Write tables.json."""
        replace_file(work.report, json.dumps(dataclasses.asdict(self), indent=2).encode())

    def check_made_from(self, config: ShardConfig) -> None:
        """Refuse to mix tars of these settings with tables of others."""
        if self.fingerprint != source_fingerprint(config):
            raise ValueError(
                f"{config.dataset_dir}: found tables made from other settings or raw files, "
                "expected the present ones; run python -m data_prep shard --stage tables again"
            )

    @staticmethod
    def load(work: WorkFiles) -> "TablesReport":
        """Read tables.json."""
        if not work.report.is_file():
            raise FileNotFoundError(
                f"{work.dataset_dir}: found no tables ({WORK_DIR}/tables.json), expected those of "
                "--stage tables; run python -m data_prep shard --stage tables first"
            )
        raw = json.loads(work.report.read_bytes())
        raw["cutoffs"] = Cutoffs(**raw["cutoffs"])
        raw["features"] = Features(**raw["features"])
        raw["filters"] = [FilterCount(**entry) for entry in raw["filters"]]
        return TablesReport(**raw)


def settings_in_result(config: ShardConfig) -> dict[str, Any]:
    """The settings that decide a dataset, as its manifest keeps them."""
    settings = dataclasses.asdict(config).items()
    found: dict[str, Any] = hide_credentials(
        {name: value for name, value in settings if name not in NOT_IN_RESULT}
    )
    return found


def source_fingerprint(config: ShardConfig) -> str:
    """Digest of what decides the result: settings, and the raw files' names, sizes and times.

    The times are of the last change, in nanoseconds; names are relative to the folder the setting
    names, so that a partition's name counts and the place of the folder does not.
    """
    states: list[list[object]] = []
    for setting in ("interactions", "items", "users", "impressions"):
        if (columns := getattr(config, setting)) is None:
            continue
        raw = find_files(columns.path, setting=setting)
        for file in raw.files:
            name = file.relative_to(raw.folder).as_posix() if raw.folder else file.name
            state = file.stat()
            states.append([setting, name, state.st_size, state.st_mtime_ns])
    if config.extra is not None:
        state = expand_path(config.extra, setting="extra").stat()
        states.append(["extra", state.st_size, state.st_mtime_ns])
    settings = dataclasses.asdict(config)
    settings = {name: value for name, value in settings.items() if name not in NOT_IN_RESULT}
    for setting in {str(state[0]) for state in states} - {"extra"}:
        del settings[setting]["path"]
    if config.filter.impression_duplicates == "keep_all":
        del settings["filter"]["impression_duplicates"]  # as datasets of before, without it
    del settings["privacy"]
    if config.privacy != PrivacyConfig():
        states.append(["privacy", *privacy_state(config.privacy)])
    settings = hide_credentials(settings)  # new ones make no other dataset
    text = json.dumps([settings, states], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
