"""`python -m data_prep shard`: raw tables to a dataset folder, whole or in stages and parts.

On one machine `--stage all` does everything. On a cluster: `--stage tables` once, then
`--stage content --part i --num_parts n` in an array of tasks, then `--stage manifest`.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

from data_prep.bad_values import refuse_bad_values
from data_prep.manifest import Manifest
from data_prep.media import check_folders
from data_prep.media_losses import refuse_lost_media
from data_prep.records import MANIFEST_FILE, remove_left_overs
from data_prep.relational import build_tables
from data_prep.settings import RunConfig, ShardConfig, expand_path
from data_prep.work import TablesReport, WorkFiles, source_fingerprint

logger = logging.getLogger(__name__)


def shard_dataset(config: ShardConfig, run: RunConfig | None = None) -> Manifest | None:
    """Do the stage; returns the manifest when the dataset is complete."""
    run = run or RunConfig()
    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    if (done := _finished(config)) is not None:
        logger.info("%s: complete already, nothing to do", dataset_dir)
        # A run that was killed at its very end left these.
        remove_left_overs(dataset_dir / MANIFEST_FILE)
        if not run.keep_work:
            shutil.rmtree(WorkFiles(dataset_dir).dir, ignore_errors=True)
        return done
    if run.stage != "manifest":
        check_folders(config.items)
    work = WorkFiles(dataset_dir)
    if run.stage in ("all", "tables"):
        refuse_bad_values(work, build_tables(config), config, run)
    if run.stage in ("all", "content"):
        write_content(config, run)
    if run.stage in ("all", "manifest"):
        from data_prep.finish import write_manifest

        refuse_bad_values(work, TablesReport.load(work), config, run)
        refuse_lost_media(work, run)
        return write_manifest(config, keep_work=run.keep_work)
    return None


def write_content(config: ShardConfig, run: RunConfig) -> None:
    """Write this part's tars; those that are finished stay."""
    # Imported here, as the relational step needs no decoders.
    from data_prep.item_shards import plan_item_shards, write_item_shard
    from data_prep.user_shards import plan_user_shards, write_user_shard

    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    report = TablesReport.load(WorkFiles(dataset_dir))
    report.check_made_from(config)
    tasks: list[Callable[[], None]] = [
        *(partial(write_item_shard, shard, run) for shard in plan_item_shards(config, report)),
        *(partial(write_user_shard, shard) for shard in plan_user_shards(dataset_dir, report)),
    ]
    mine = tasks[run.part :: run.num_parts]
    logger.info("content: part %d writes %d of %d tars", run.part, len(mine), len(tasks))
    _run_tasks(mine, num_workers=run.num_workers)


def _run_tasks(tasks: Sequence[Callable[[], None]], *, num_workers: int) -> None:
    from rich.console import Console
    from rich.progress import track

    bar: dict[str, Any] = {"total": len(tasks), "console": Console(stderr=True)}
    if num_workers == 1:
        for task in track(tasks, "tars", **bar):
            task()
        return
    # Not forked: DuckDB's threads may hold locks that a forked child would wait for for ever.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            for _ in track(pool.map(_call, tasks), "tars", **bar):
                pass
    except BrokenProcessPool as error:
        raise OSError(
            f"a worker process of {num_workers} was killed, most often for want of memory; "
            "finished tars are kept: give the same command again, with fewer num_workers"
        ) from error


def _call(task: Callable[[], None]) -> None:
    task()


def _finished(config: ShardConfig) -> Manifest | None:
    """The manifest, where it is of these settings and raw files, and its files are there."""
    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    try:
        manifest = Manifest.load(dataset_dir)
    except (FileNotFoundError, ValueError):
        return None  # not there, or of another version: to be made
    if manifest.source_fingerprint != source_fingerprint(config):
        return None
    for entry in manifest.files:
        path = dataset_dir / entry.path
        if not path.is_file() or path.stat().st_size != entry.bytes:
            logger.warning("%s: missing or cut, the dataset is made again", path)
            return None
    return manifest
