"""Whether what a run folder holds is of this very run, or of one with other settings or data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.utilities import rank_zero_only

from data_prep.dataset import Dataset
from data_prep.records import MANIFEST_FILE
from pretrain.changed_settings import all_settings, as_text
from pretrain.export import RUN_FILE
from pretrain.lightning_cli import CONFIG_FILE
from pretrain.release import file_sha256
from pretrain.release_config import ReleaseConfig
from pretrain.reuse import Reused

log = logging.getLogger(__name__)

LEARNT = (
    "seed_everything",
    "model.*",
    "data.*",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.fast_dev_run",
    "trainer.sync_batchnorm",
)
"""Settings that decide what is learnt: a run goes on with those that it began with. The number of
processes is none of them, since a step is cut by `global_batch_size`."""

NOT_LEARNT = (
    "data.config.dataset_dir",  # by what is in it, see `check_same_data`
    "data.config.features_dir",
    "data.config.valid_queries",
    "data.config.encode",
    "data.config.decode_threads",
    "data.config.cache_mb",
    "model.encoders.towers.*.checkpointing",
    "model.loss.floor",
    "model.loss.tile",
    "model.loss.encode_chunk",
    "model.reuse.warm_start",  # these too by what is in them
    "model.reuse.teacher",
    "model.reuse.old_space",
    "model.reuse.collaborative",
    "model.reuse.collaborative.path",
    "model.reuse.collaborative.newest_event",
    "model.reuse.allow_look_ahead",
)
"""Among those, what says where things are, how fast they go and what is reported."""

LENGTH = ("trainer.max_epochs", "trainer.max_steps")
ADVICE = (
    "set it back, or choose another run.dir, where model.reuse.warm_start can begin with what a "
    "release of this run has learnt"
)


@dataclass(frozen=True)
class Change:
    """A setting that is not as it was."""

    name: str
    before: Any
    now: Any

    @property
    def is_learnt(self) -> bool:
        """Whether it decides what is learnt."""
        if self.name == "data.config.features_dir":  # towers that are run or not
            return (self.before is None) != (self.now is None)
        return _is_one_of(self.name, LEARNT) and not _is_one_of(self.name, NOT_LEARNT)

    def __str__(self) -> str:
        return f"{self.name} {as_text(self.before)} -> {as_text(self.now)}"


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Settings in which two config.yaml differ, by the first's names.

    What an older version did not have is taken as its default, what it had and is gone is left out.
    """
    old, new = all_settings(before), all_settings(now)
    towers = [sorted(one["model"]["encoders"]["towers"]) for one in (before, now)]
    found = [] if towers[0] == towers[1] else [Change("model.encoders.towers", *towers)]
    for name, one in new.items():
        was = old[name].value if name in old else one.default
        _, _, tower = name.partition("model.encoders.towers.")
        if was != one.value and (not tower or tower.split(".")[0] in towers[0]):
            found.append(Change(name, was, one.value))
    return found


def check_same_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with settings that change what is learnt; say which others are not the same.

    Raises:
        ValueError: the run in this folder began with others.
    """
    config_file = run_dir / CONFIG_FILE
    if not config_file.is_file():
        log.warning("%s: found no %s; settings are not compared", run_dir, CONFIG_FILE)
        return
    found = changes(yaml.safe_load(config_file.read_text()), settings)
    if learnt := [str(one) for one in found if one.is_learnt]:
        raise ValueError(
            f"{run_dir}: holds checkpoints of a run with other settings: {'; '.join(learnt)}; "
            f"{ADVICE}"
        )
    if found and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        longer = any(one.name in LENGTH for one in found)
        log.info(
            "%s: other settings than before: %s%s",
            run_dir,
            "; ".join(map(str, found)),
            "; the learning rate falls over the new length" if longer else "",
        )


def check_same_data(run_dir: Path, dataset: Dataset, reused: Reused) -> None:
    """Refuse to go on with other data, or built on other releases.

    Raises:
        ValueError: the run in this folder has read others.
    """
    run_file = run_dir / RUN_FILE
    if not run_file.is_file():
        return
    found = ReleaseConfig.from_json(run_file.read_text(), source=run_file)
    manifest = file_sha256(dataset.dir / MANIFEST_FILE)
    if found.dataset_fingerprint != manifest:
        raise ValueError(
            f"{run_dir}: holds checkpoints of a run on another dataset ({found.dataset}, manifest "
            f"{found.dataset_fingerprint[:16]}; {dataset.dir} has {manifest[:16]}); {ADVICE}"
        )
    now = reused.provenance()
    for name in sorted({*found.reused, *now}):
        was, given = found.reused.get(name), now.get(name)
        if was != given:
            raise ValueError(
                f"{run_dir}: holds checkpoints of a run with another model.reuse.{name}: "
                f"{as_text(was)} -> {as_text(given)}; {ADVICE}"
            )
