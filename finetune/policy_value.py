"""What a trained ranker would have earned on the log of another policy, had it chosen the items.

Shapes: N impressions, A items to choose from, B impressions of a chunk, O outputs of all tasks.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.dataset import open_dataset
from finetune import run_folder
from finetune.batches import CtrTable
from finetune.bootstrap import Interval
from finetune.command_settings import OffPolicyConfig
from finetune.data import CtrData, Impressions
from finetune.drawn_pairs import DrawnPairs
from finetune.finished_run import FinishedRun, open_run
from finetune.metrics import Floats
from finetune.model import CtrModel
from finetune.off_policy import (
    ESTIMATORS,
    PolicyLog,
    estimate_reward,
    normal_ratio,
    policy_of_scores,
)
from finetune.tasks import label_of

OFF_POLICY_FILE = "off_policy.json"
_CHUNK_PAIRS = 65_536
_SMALLEST = 1e-7  # of a probability, so that its log odds are finite


@dataclass(frozen=True)
class Ranked:
    """A run's predictions of every item in every context of a log."""

    items_A: NDArray[np.int64]
    value_NA: Floats
    """Predicted reward of each item to choose from."""
    shown_N: Floats
    """Predicted reward of the item that was shown."""


def policy_value(config: OffPolicyConfig) -> dict[str, Any]:
    """Estimate the mean reward of the run's ranker on the test split; write and return it."""
    run = _open_run(config)
    data, model = run.data, run.model
    log = data.open_test()
    task = model.tasks[0].name if config.task is None else config.task
    ranked = rank(model, data, log, task=task)
    reward_N = label_of(log, task).double().numpy()
    unit_N = log.user_N.numpy()
    found: dict[str, Any] = {
        "task": task,
        "split": "test",
        "impressions": len(reward_N),
        "items": len(ranked.items_A),
        "logged": asdict(_logged(reward_N, unit_N)),
        "policies": {},
    }
    is_binary = next(one for one in model.tasks if one.name == task).is_binary
    score_NA = _log_odds(ranked.value_NA) if is_binary else ranked.value_NA
    for temperature in config.temperatures:
        policy_NA = policy_of_scores(score_NA, temperature=temperature)
        policy_log = log_of(policy_NA, ranked, log=log, reward_N=reward_N)
        found["policies"][f"{temperature:g}"] = {
            name: asdict(
                estimate_reward(policy_log, name, max_weight=config.max_weight, unit_N=unit_N)
            )
            for name in ESTIMATORS
        }
    out = config.run_dir / OFF_POLICY_FILE if config.out is None else config.out
    run_folder.write_json(found, out)
    return found


def _open_run(config: OffPolicyConfig) -> FinishedRun:
    dataset = None if config.dataset_dir is None else open_dataset(config.dataset_dir)
    run = open_run(config.run_dir, dataset=dataset)
    names = [task.name for task in run.tasks]
    refused = [
        ("rung", run.config.rung, "none", run.config.rung != "none"),
        ("head.name", run.config.head.name, "any but two_arms", run.model.has_arms),
        ("task", config.task, f"null or one of {names}",
         config.task is not None and config.task not in names),
        ("propensity of the impressions", "none", f"one in {run.data.dataset.dir}; map "
         "impressions.propensity and re-run python -m data_prep shard",
         "propensity" not in run.data.dataset.manifest.features.exposure),
    ]  # fmt: skip
    for key, value, expected, is_refused in refused:
        if is_refused:
            raise ValueError(f"{config.run_dir}: found {key} {value}, expected {expected}")
    return run


@torch.inference_mode()
def rank(model: CtrModel, data: CtrData, log: Impressions, *, task: str) -> Ranked:
    """Predict every item that training was shown, in every context of the log."""
    items_A = np.unique(data.train.item_N.numpy())
    table = CtrTable(log, data.users, data.items, None)
    drawn = DrawnPairs(data)
    item_A = torch.from_numpy(items_A)
    rows = max(1, _CHUNK_PAIRS // len(items_A))
    parts = []
    for rows_B in torch.split(torch.arange(len(log)), rows):
        batch = table.batch(rows_B.repeat_interleave(len(items_A)))
        scored = model(drawn.with_items(batch, item_A.repeat(len(rows_B))))
        predicted: Tensor = model.read(scored.output_BO.float())[task]
        parts.append(predicted.view(len(rows_B), -1))
    value_NA = torch.cat(parts).double().numpy()
    return Ranked(items_A, value_NA, model.predictions(table)[task].double().numpy())


def log_of(policy_NA: Floats, ranked: Ranked, *, log: Impressions, reward_N: Floats) -> PolicyLog:
    """The log as the ranker's policy sees it; it never chooses an item that training was not shown.

    The run itself is the reward model: it was trained on other rows, those before validation.
    """
    item_N = log.item_N.numpy()
    place_N = np.searchsorted(ranked.items_A, item_N).clip(max=len(ranked.items_A) - 1)
    chosen_N = policy_NA[np.arange(len(item_N)), place_N]
    return PolicyLog(
        reward_N=reward_N,
        logged_N=log.outcomes["propensity"].double().numpy(),
        target_N=np.where(ranked.items_A[place_N] == item_N, chosen_N, 0.0),
        predicted_N=ranked.shown_N,
        expected_N=(policy_NA * ranked.value_NA).sum(1),
    )


def _logged(reward_N: Floats, unit_N: NDArray[np.integer]) -> Interval:
    """What the logging policy earned, with an interval over users."""
    _, index_N = np.unique(unit_N, return_inverse=True)
    rewards_U = np.bincount(index_N, weights=reward_N).astype(np.float64)
    return normal_ratio(rewards_U, np.bincount(index_N).astype(np.float64))


def _log_odds(value_NA: Floats) -> Floats:
    inside_NA = value_NA.clip(_SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(inside_NA) - np.log1p(-inside_NA), dtype=np.float64)
