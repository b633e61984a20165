"""What a run leaves behind, and how it is read again.

run/
  config.yaml          resolved settings
  metrics.json         figures on the split it is judged on, counts, provenance; written last: with
                       it a run is finished
  history.csv          a row of figures an epoch
  predictions.parquet  user_id, item_id, time, label, score of that split; of further tasks
                       label_NAME and score_NAME
  model.safetensors    weights of the best epoch, without frozen item vectors
  vocabulary.json      values of every field
  tasks.json           labels that were learnt, and their scales
  objective.safetensors  place towers, variances and imputations, for a run that goes on from this
                       one (no file without them)
  content.safetensors  mean and spread of the rung's similarities, codebooks, centres and rate (no
                       file on `none`)
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from data_prep.credentials import hide_credentials
from data_prep.folders import open_folder
from data_prep.records import MANIFEST_FILE, replace_file, whole_file
from data_prep.replaced import changes
from finetune.content_settings import ContentConfig
from finetune.reuse_settings import ReuseConfig
from finetune.rungs import parse_rung
from finetune.settings import FitConfig, HeadConfig, LadderConfig, TrainConfig, TrainerConfig
from finetune.task_settings import DebiasConfig, PositionConfig, TaskConfig
from finetune.trust_settings import TrustConfig

logger = logging.getLogger(__name__)

RUN_VERSION = 3
CONFIG_FILE, METRICS_FILE, HISTORY_FILE = "config.yaml", "metrics.json", "history.csv"
PREDICTIONS_FILE, WEIGHTS_FILE = "predictions.parquet", "model.safetensors"
VOCABULARY_FILE, CONTENT_FILE = "vocabulary.json", "content.safetensors"
TASKS_FILE, OBJECTIVE_FILE = "tasks.json", "objective.safetensors"
# What speaks of the weights goes before them: without metrics.json a run is not finished.
_OF_A_RUN = (METRICS_FILE, "off_policy.json", "report.html", PREDICTIONS_FILE, HISTORY_FILE,
             CONTENT_FILE, OBJECTIVE_FILE, TASKS_FILE, VOCABULARY_FILE, WEIGHTS_FILE)  # fmt: skip

# Where a run is kept and what it shows on its way does not change what it found.
NOT_IN_FINGERPRINT = ("out_dir", "memory_mb", "cache_dir")
_NOT_OF_TRAINER = ("progress", "log_every_n_steps", "logger", "profiler", "default_root_dir",
                   "enable_progress_bar", "enable_model_summary")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run as a report reads it."""

    dir: Path
    rung: str
    seed: int
    record: dict[str, Any]
    history: list[dict[str, float]]
    label_N: NDArray[np.float32]
    score_N: NDArray[np.float32]

    @staticmethod
    def load(run_dir: Path) -> "Run":
        """Read a finished run."""
        record = read_record(run_dir)
        predictions = pq.read_table(run_dir / PREDICTIONS_FILE, columns=["label", "score"])
        with (run_dir / HISTORY_FILE).open(newline="") as file:
            history = [
                {key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        return Run(
            run_dir,
            record["rung"],
            record["seed"],
            record,
            history,
            predictions["label"].to_numpy(),
            predictions["score"].to_numpy(),
        )


def read_record(run_dir: Path) -> dict[str, Any]:
    """metrics.json of a finished run."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir}: found no {METRICS_FILE}, so this is no finished run; "
            "run python -m finetune fit or ladder"
        )
    record: dict[str, Any] = json.loads(path.read_text())
    if "rungs" in record:
        raise ValueError(
            f"{run_dir}: found a ladder's folder, expected one of its runs; give a folder such as "
            "ladder/HEAD/RUNG/seed-0 inside"
        )
    if record.get("run_version") != RUN_VERSION:
        raise ValueError(
            f"{path}: found run version {record.get('run_version')}, this code reads "
            f"{RUN_VERSION}; re-run python -m finetune fit"
        )
    return record


def plain(settings: object) -> dict[str, Any]:
    """Settings as YAML and JSON hold them."""

    def simple(value: object) -> object:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {key: simple(one) for key, one in value.items()}
        return [simple(one) for one in value] if isinstance(value, list | tuple) else value

    assert dataclasses.is_dataclass(settings)
    assert not isinstance(settings, type)
    return {key: simple(value) for key, value in dataclasses.asdict(settings).items()}


def fingerprint(config: FitConfig) -> str:
    """SHA-256 of all that decides what a run finds: its settings and what it reads."""
    rung = parse_rung(config.rung)
    parts = [json.dumps([RUN_VERSION, decisive_settings(config)], sort_keys=True).encode()]
    parts.append(open_folder(config.dataset_dir)[0].path(MANIFEST_FILE).read_bytes())
    if rung.vectors != "none" and config.embeddings_dir is not None:
        parts.append((config.embeddings_dir / "embeddings.json").read_bytes())
    for older in (config.reuse.warm_start, config.reuse.teacher):
        if older is not None:
            parts.append(read_record(older)["fingerprint"].encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def decisive_settings(config: FitConfig) -> dict[str, Any]:
    """The settings that decide what a run finds, as they are written: without credentials."""
    settings = hide_credentials(plain(config))
    settings = {k: v for k, v in settings.items() if k not in NOT_IN_FINGERPRINT}
    trainer = settings.pop("trainer")
    trainer |= trainer.pop("extra")  # as the Trainer gets them
    settings["trainer"] = {k: v for k, v in trainer.items() if k not in _NOT_OF_TRAINER}
    rung = parse_rung(config.rung)
    if rung.vectors == "none":
        settings |= {"embeddings_dir": None, "released": None, "allow_look_ahead": False}
    if not rung.parts:  # only what every rung with content reads
        settings |= {
            "content": list(config.content.similarities) if rung.vectors != "none" else None
        }
    if rung.vectors != "aligned":
        settings |= {"knock_outs": None}
    return settings


def is_finished(config: FitConfig) -> bool:
    """Whether the run folder holds this very run, to its end."""
    path = config.out_dir / METRICS_FILE
    if not path.is_file():
        return False
    return bool(json.loads(path.read_text()).get("fingerprint") == fingerprint(config))


def make_way(config: FitConfig) -> None:
    """Remove what an earlier run left in the folder, and say so if it was another one."""
    for key in ("warm_start", "teacher"):
        older = getattr(config.reuse, key)
        if older is not None and older.resolve() == config.out_dir.resolve():
            raise ValueError(
                f"out_dir: found {config.out_dir}, which is reuse.{key} too, expected another "
                "folder, as a run replaces what is in its own"
            )
    if (config.out_dir / METRICS_FILE).is_file() and not is_finished(config):
        found = "a run of another version or of data that have changed since"
        with contextlib.suppress(ValueError, TypeError, KeyError, FileNotFoundError):
            older, ours = (decisive_settings(one) for one in (read_config(config.out_dir), config))
            changed = [f"{name} {old} → {new}" for name, old, new in changes(older, ours)]
            if changed:
                found = f"a run with {', '.join(changed)}"
        logger.warning("%s: replaces %s", config.out_dir, found)
    for name in _OF_A_RUN:
        (config.out_dir / name).unlink(missing_ok=True)


def read_config(run_dir: Path) -> FitConfig:
    """The settings of a run."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir}: found no {CONFIG_FILE}, expected a run folder; run python -m finetune fit"
        )
    raw = yaml.safe_load(path.read_text())
    reuse = raw.pop("reuse", {})
    for key in ("warm_start", "teacher"):
        reuse[key] = Path(reuse[key]) if reuse.get(key) is not None else None
    return FitConfig(**_typed(raw), reuse=ReuseConfig(**reuse))


def read_ladder_config(run_dir: Path) -> LadderConfig | None:
    """The settings of the ladder in this very folder; None where it is no ladder's."""
    path = run_dir / CONFIG_FILE
    raw = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if "seeds" not in raw:
        return None
    curves, rungs = raw.pop("pretrain_metrics", None), raw.pop("rungs", None)
    return LadderConfig(
        **(_typed(raw) | {"out_dir": run_dir, "seeds": tuple(raw["seeds"])}),
        rungs=tuple(rungs) if rungs is not None else None,
        pretrain_metrics=Path(curves) if curves is not None else None,
    )


def _typed(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings that single runs and ladders share, from what YAML holds of them."""
    head, content, train, trust = (
        _tuples(raw.pop(key)) for key in ("head", "content", "train", "trust")
    )
    for keys, where in (
        (("dataset_dir", "embeddings_dir", "released", "out_dir", "cache_dir"), raw),
        (("features_dir",), content),
    ):
        for key in keys:
            where[key] = Path(where[key]) if where.get(key) is not None else None
    raw["knock_outs"] = tuple(Path(one) for one in raw["knock_outs"])
    for key in ("log_features", "item_sequences"):
        raw[key] = tuple(raw.get(key) or ())
    train["debias"] = DebiasConfig(**train.get("debias", {}))
    train["position"] = PositionConfig(**train.get("position", {}))
    raw["tasks"] = {name: TaskConfig(**task) for name, task in raw.get("tasks", {}).items()}
    typed = {
        "head": HeadConfig(**head),
        "train": TrainConfig(**train),
        "content": ContentConfig(**content),
        "trust": TrustConfig(**trust),
        "trainer": TrainerConfig(**raw.pop("trainer")),
    }
    return raw | typed


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(one) if isinstance(one, list) else one for key, one in settings.items()}


def write_config(config: object, run_dir: Path) -> None:
    """Write the resolved settings, without credentials in URLs."""
    text = yaml.safe_dump(hide_credentials(plain(config)), sort_keys=False)
    replace_file(run_dir / CONFIG_FILE, text.encode())


def write_history(history: Sequence[Mapping[str, float]], run_dir: Path) -> None:
    """Write a row an epoch."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with whole_file(run_dir / HISTORY_FILE) as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def write_predictions(table: pa.Table, path: Path) -> None:
    """Write scores under a temporary name, then rename: a failure keeps the file of before."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in the same way."""
    with whole_file(path) as temporary:
        save_file({name: one.contiguous() for name, one in tensors.items()}, temporary)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write under a temporary name, then rename; figures that do not exist become null."""
    text = json.dumps(hide_credentials(_without_nan(content)), indent=2, ensure_ascii=False)
    replace_file(path, (text + "\n").encode())


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
