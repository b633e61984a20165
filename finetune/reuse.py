"""What a run takes over from runs before it: initial weights, or a teacher's predictions.

Shapes: B impressions of a batch, N training impressions.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.batches import Batch
from finetune.data import CtrData
from finetune.finished_run import open_run
from finetune.model import CtrModel
from finetune.reuse_settings import ReuseConfig
from finetune.run_folder import read_record
from finetune.settings import FitConfig
from finetune.warm_start import take_over
from pretrain.look_ahead import looks_ahead, refuse_look_ahead

TEACHER = "reuse.teacher"
"""Among a batch's outcomes: what the teacher would have the student's log odds be, [B]."""
_SMALLEST = 1e-7


def reuse(config: FitConfig, model: CtrModel, *, data: CtrData) -> dict[str, Any]:
    """Take over weights and predictions as the settings say; returns what the record keeps."""
    found: dict[str, Any] = {}
    older = config.reuse.warm_start
    if older is not None:
        record = read_record(older)
        seen_until = _seen_until(record, itself=True)
        _refuse_newer(seen_until, config, data=data, source=older)
        new_values = take_over(model, data.vocabulary, older)
        found["warm_start"] = {
            "run_dir": str(older),
            "fingerprint": record["fingerprint"],
            "seen_until": seen_until,
            "look_ahead": looks_ahead(seen_until - 1, data.dataset),
            "new_values": new_values,
        }
    if TEACHER in data.dataset.manifest.features.label:
        raise ValueError(
            f"{data.dataset.dir}: found a label {TEACHER}, which stands for a teacher's "
            "predictions here, expected another name; rename it in impressions.labels and re-run "
            "python -m data_prep shard"
        )
    data.train.outcomes.pop(TEACHER, None)  # a run before this one may share the data
    if config.reuse.teacher is not None:
        record = read_record(config.reuse.teacher)
        seen_until = _seen_until(record, itself=_is_of_other_data(record, data))
        _refuse_newer(seen_until, config, data=data, source=config.reuse.teacher)
        data.train.outcomes[TEACHER] = teacher_logits(config, model, data=data)
        found["teacher"] = {
            "run_dir": str(config.reuse.teacher),
            "fingerprint": record["fingerprint"],
            "seen_until": seen_until,
            "look_ahead": looks_ahead(seen_until - 1, data.dataset),
        }
    return found


def teacher_logits(config: FitConfig, model: CtrModel, *, data: CtrData) -> Tensor:
    """Log odds of the first task that the teacher has the student learn in training, [N].

    A teacher's are those of every impression. A student that trains on a share of the negatives
    learns the odds among those, and is shifted back when it serves: so they are shifted first.

    The teacher must not have learnt from this run's validation or test time: it is of the same
    dataset, or older than its `valid_start`; `reuse` sees to that.
    """
    assert config.reuse.teacher is not None
    teacher = open_run(config.reuse.teacher, dataset=data.dataset)
    task = model.tasks[0]
    if task.name not in {one.name for one in teacher.tasks if one.is_binary}:
        raise ValueError(
            f"reuse.teacher: found a run of {[one.name for one in teacher.tasks]}, expected one "
            f"that learnt {task.name}, which is this run's first task; give another teacher"
        )
    impressions = teacher.data.train
    chance_N = teacher.predictions(impressions)[task.name].clamp(_SMALLEST, 1 - _SMALLEST)
    return torch.logit(chance_N) - model.logit_shift


def distilled(error_B: Tensor, logit_B: Tensor, batch: Batch, *, config: ReuseConfig) -> Tensor:
    """(1 - w) error + w T² BCE(logit / T, σ(teacher / T)), [B] (Hinton et al. 2015, section 2).

    `logit_B` is what the student would serve, without the place: that is what a teacher predicts.
    """
    target_B = torch.sigmoid(batch.outcomes[TEACHER] / config.temperature)
    soft_B = F.binary_cross_entropy_with_logits(
        logit_B / config.temperature, target_B, reduction="none"
    )
    weight = config.teacher_weight
    return (1 - weight) * error_B + weight * config.temperature**2 * soft_B


def _is_of_other_data(record: Mapping[str, Any], data: CtrData) -> bool:
    manifest = (data.dataset.dir / "manifest.json").read_bytes()
    own = hashlib.sha256(manifest).hexdigest()
    return bool(record["provenance"]["dataset_fingerprint"] != own)


def _seen_until(record: Mapping[str, Any], *, itself: bool) -> int:
    """Unix milliseconds before which lies all that a run knows of, with what it was built on.

    Of its own data (`itself`) it has seen all up to `test_start`, as its epochs were chosen on its
    validation time; and its release, start and teacher may have been newer, where it was allowed.
    """
    about = record["provenance"]
    newest = about["release_newest_event"]
    seen = [0 if newest is None else newest + 1]
    seen += [record[key].get("seen_until", 0) for key in ("warm_start", "teacher") if key in record]
    return int(max(*seen, about["test_start"] if itself else 0))


def _refuse_newer(seen_until: int, config: FitConfig, *, data: CtrData, source: Path) -> None:
    """Refuse a run that knows this run's validation time."""
    refuse_look_ahead(
        seen_until - 1,
        data.dataset,
        source=source,
        allowed=config.allow_look_ahead,
        override="--allow_look_ahead true",
        advice="a run knows its own time up to its test_start, as its epochs were chosen on "
        "validation: shard with a valid_start from there on, or give an older run",
    )
