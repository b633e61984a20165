"""The last stage of `shard`: collect what the parts wrote, and vouch for it in the manifest."""

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.checksums import file_checksum
from data_prep.item_shards import is_finished, plan_item_shards
from data_prep.manifest import FileEntry, Manifest
from data_prep.parquet_files import write_parquet
from data_prep.records import (
    ITEMS_FILE,
    QUARANTINE_DIR,
    SPLITS,
    USERS_FILE,
    impressions_file,
    whole_file,
)
from data_prep.settings import ShardConfig, expand_path
from data_prep.user_shards import plan_user_shards
from data_prep.work import TablesReport, WorkFiles, settings_in_result

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


def write_manifest(config: ShardConfig, *, keep_work: bool) -> Manifest:
    """Check that every part is done, write items.parquet and users.parquet, then the manifest."""
    import pyarrow.parquet as pq

    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    work = WorkFiles(dataset_dir)
    report = TablesReport.load(work)
    report.check_made_from(config)
    receipts = _collect_receipts(config, work, report)
    presence = _read_presence(work, num_shards=len(plan_item_shards(config, report)))
    items = pq.read_table(work.items)
    facts = [name for name in presence.column_names if name not in ("item_row", "cause")]
    for place, name in enumerate(facts, start=2):
        items = items.add_column(place, name, presence[name])
    columns = [name for name in facts if name.startswith("has_")]
    write_parquet([items], dataset_dir / ITEMS_FILE, schema=items.schema)
    with whole_file(dataset_dir / USERS_FILE) as temporary:
        shutil.copyfile(work.users, temporary)
    _write_set_aside(presence, dataset_dir)

    quarantine = Counter(report.quarantine)
    for receipt in receipts:
        quarantine.update(receipt["quarantine"])
    bare = presence.num_rows - _count_any(presence, columns)
    manifest = Manifest(
        name=config.name,
        cutoffs=report.cutoffs,
        newest_event=report.newest_event,
        newest_train_event=report.newest_train_event,
        counts=report.counts
        | {f"items_with_{name.removeprefix('has_')}": _count(presence, name) for name in columns}
        | {"items_without_content": bare},
        modalities=_modalities(config, report),
        features=report.features,
        files=[
            *_table_entries(dataset_dir),
            *(FileEntry(**entry) for receipt in receipts for entry in receipt["files"]),
        ],
        quarantine=dict(sorted(quarantine.items())),
        filters=report.filters,
        config=settings_in_result(config),
        privacy=report.privacy,
        extra=_read_extra(config),
        source_fingerprint=report.fingerprint,
    )
    _flush_to_disk(dataset_dir, manifest.files)
    manifest.save(dataset_dir)
    if not keep_work:
        shutil.rmtree(work.dir)
    return manifest


def _flush_to_disk(dataset_dir: Path, entries: list[FileEntry]) -> None:
    """Make sure that a power cut takes nothing that the manifest vouches for."""
    for entry in entries:
        with (dataset_dir / entry.path).open("rb") as file:
            os.fsync(file.fileno())


def _collect_receipts(
    config: ShardConfig, work: WorkFiles, report: TablesReport
) -> list[dict[str, Any]]:
    expected = [work.item_receipt(shard.number) for shard in plan_item_shards(config, report)] + [
        work.user_receipt(shard.number) for shard in plan_user_shards(work.dataset_dir, report)
    ]
    missing = [path.stem for path in expected if not is_finished(path, work.dataset_dir)]
    if missing:
        raise FileNotFoundError(
            f"{work.dataset_dir}: found {len(expected) - len(missing)} of {len(expected)} tars "
            f"finished and of their size, missing {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}; run python -m data_prep shard --stage content "
            "for the parts that failed"
        )
    return [json.loads(path.read_bytes()) for path in expected]


def _read_presence(work: WorkFiles, *, num_shards: int) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = [pq.read_table(work.item_presence(number)) for number in range(num_shards)]
    return pa.concat_tables(shards).combine_chunks()


def _count(presence: "pa.Table", name: str) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(presence[name]).as_py() or 0)


def _count_any(presence: "pa.Table", columns: list[str]) -> int:
    import numpy as np

    return int(np.logical_or.reduce([presence[name].to_numpy() for name in columns]).sum())


def _write_set_aside(presence: "pa.Table", dataset_dir: Path) -> None:
    """List the items that lost a picture or a vector, with the cause."""
    import pyarrow.compute as pc

    lost = presence.filter(pc.is_valid(presence["cause"])).select(["item_row", "cause"])
    if lost.num_rows:
        write_parquet([lost], dataset_dir / QUARANTINE_DIR / "content.parquet", schema=lost.schema)


def _modalities(config: ShardConfig, report: TablesReport) -> dict[str, dict[str, Any]]:
    modalities: dict[str, dict[str, Any]] = {}
    short_side = {"short_side": config.pictures.short_side}
    if config.items.image is not None:
        modalities["image"] = short_side
    if config.items.frames is not None:
        modalities["frames"] = short_side | {"max_frames": config.pictures.max_frames}
    if config.items.sound is not None:
        modalities["sound"] = {"max_seconds": config.sounds.max_seconds}
    if config.items.texts:
        modalities["text"] = {"fields": config.items.texts}
        if config.tokens is not None:
            modalities["text"]["tokens"] = dataclasses.asdict(config.tokens)
    return modalities | {name: {"width": width} for name, width in report.vector_widths.items()}


def _table_entries(dataset_dir: Path) -> list[FileEntry]:
    import pyarrow.parquet as pq

    names = [ITEMS_FILE, USERS_FILE]
    names += [
        impressions_file(split)
        for split in SPLITS
        if (dataset_dir / impressions_file(split)).is_file()
    ]
    entries = []
    for name in names:
        path = dataset_dir / name
        size, rows = path.stat().st_size, pq.read_metadata(path).num_rows
        digest = file_checksum(path)
        entries.append(FileEntry(path=name, bytes=size, xxh128=digest, samples=rows))
    return entries


def _read_extra(config: ShardConfig) -> dict[str, Any]:
    if config.extra is None:
        return {}
    path = expand_path(config.extra, setting="extra")
    try:
        extra = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: found no readable JSON ({error}); correct extra") from error
    if not isinstance(extra, dict):
        raise ValueError(f"{path}: found {type(extra).__name__}, expected a JSON object")
    return extra
