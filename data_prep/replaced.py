"""What a run is about to replace, and why: said in one line before anything is removed."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from data_prep.manifest import Manifest
from data_prep.records import MANIFEST_FILE
from data_prep.settings import FilterConfig, ShardConfig
from data_prep.work import TablesReport, WorkFiles, settings_in_result, source_fingerprint

logger = logging.getLogger(__name__)

SHOWN = 6
"""Settings that the line names; it counts the others."""
SHOWN_CHARACTERS = 60


def say_replaced(work: WorkFiles, config: ShardConfig) -> None:
    """Say which dataset, or which unfinished one, makes way for one of these settings."""
    try:
        manifest = Manifest.load(work.dataset_dir)
    except FileNotFoundError:
        _say_unfinished(work)
        return
    except ValueError as error:
        logger.warning("%s: replaces a dataset that cannot be read: %s", work.dataset_dir, error)
        return
    if manifest.source_fingerprint == source_fingerprint(config):
        return  # it lost a file, which was said
    made = datetime.fromtimestamp((work.dataset_dir / MANIFEST_FILE).stat().st_mtime, UTC)
    logger.warning(
        "%s: replaces the dataset %r (made %s UTC, fingerprint %s), as %s",
        *(work.dataset_dir, manifest.name, made.strftime("%Y-%m-%d %H:%M")),
        *(manifest.source_fingerprint[:12], _why(manifest, config)),
    )


def _say_unfinished(work: WorkFiles) -> None:
    if work.report.is_file():
        was = TablesReport.load(work).fingerprint[:12]
        logger.warning(
            "%s: replaces unfinished tables (fingerprint %s), as settings or raw files differ",
            *(work.dataset_dir, was),
        )


def _why(manifest: Manifest, config: ShardConfig) -> str:
    """The settings that differ, or the files."""
    before = dict(manifest.config)
    if isinstance(before.get("filter"), dict):  # a key may be younger than the dataset
        before["filter"] = dataclasses.asdict(FilterConfig()) | before["filter"]
    now = json.loads(json.dumps(settings_in_result(config)))
    found = [f"{name} {_shown(old)} → {_shown(new)}" for name, old, new in changes(before, now)]
    if not found:
        return "raw files have changed since (size, time or name)"
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"settings differ: {', '.join(found[:SHOWN])}{more}"


def changes(before: object, now: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted names of the settings that differ, with their old and their new values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**now, **before}:
            yield from changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
