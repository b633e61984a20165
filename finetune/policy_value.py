"""What a trained ranker would have earned on the log of another policy, had it chosen the items.

Shapes: N impressions, A items to choose from, B impressions of a chunk, O outputs of all tasks.
"""

from collections.abc import Sequence
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
class Policy:
    """What a ranker would have chosen in the contexts of a log, and what it expected of that."""

    target_N: Floats
    """Chance of the item that was shown; 0 of one that training was not shown."""
    expected_N: Floats
    """Mean predicted reward of what it chooses."""


def policy_value(config: OffPolicyConfig) -> dict[str, Any]:
    """Estimate the mean reward of the run's ranker on the test split; write and return it."""
    run = _open_run(config)
    data, model = run.data, run.model
    log = data.open_test()
    task = model.tasks[0].name if config.task is None else config.task
    items_A = np.unique(data.train.item_N.numpy())
    policies = rank(model, data, log, items_A=items_A, task=task, temperatures=config.temperatures)
    shown_N = model.predictions(CtrTable(log, data.users, data.items, None))[task]
    reward_N = label_of(log, task).double().numpy()
    unit_N = log.user_N.numpy()
    found: dict[str, Any] = {
        "task": task,
        "split": "test",
        "impressions": len(reward_N),
        "items": len(items_A),
        "logged": asdict(_logged(reward_N, unit_N)),
        "policies": {},
    }
    for temperature, policy in zip(config.temperatures, policies, strict=True):
        # The run itself is the reward model: it was trained on other rows, before validation.
        policy_log = PolicyLog(
            reward_N=reward_N,
            logged_N=log.outcomes["propensity"].double().numpy(),
            target_N=policy.target_N,
            predicted_N=shown_N.double().numpy(),
            expected_N=policy.expected_N,
        )
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
        ("rung", run.config.rung, "none, as every item is scored in every context, where user "
         "vectors and similarities of content have not been made; give a run of ids alone",
         run.config.rung != "none"),
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
def rank(
    model: CtrModel,
    data: CtrData,
    log: Impressions,
    *,
    items_A: NDArray[np.int64],
    task: str,
    temperatures: Sequence[float],
) -> list[Policy]:
    """Predict every item in every context of the log; a policy for each temperature.

    A chunk of contexts after the other, so that memory knows nothing of N × A.

    Args:
        model: the ranker.
        data: its dataset.
        log: the contexts.
        items_A: rows of the items to choose from, ascending.
        task: whose prediction ranks.
        temperatures: of the softmax over the items.
    """
    is_binary = next(one for one in model.tasks if one.name == task).is_binary
    table = CtrTable(log, data.users, data.items, None)
    drawn, item_A = DrawnPairs(data), torch.from_numpy(items_A)
    shown_N = log.item_N.numpy()
    place_N = np.searchsorted(items_A, shown_N).clip(max=len(items_A) - 1)
    known_N = items_A[place_N] == shown_N
    parts: list[list[tuple[Floats, Floats]]] = [[] for _ in temperatures]
    rows = max(1, _CHUNK_PAIRS // len(items_A))
    for rows_B in torch.split(torch.arange(len(log)), rows):
        batch = table.batch(rows_B.repeat_interleave(len(items_A)))
        scored = model(drawn.with_items(batch, item_A.repeat(len(rows_B))))
        predicted: Tensor = model.read(scored.output_BO.float())[task]
        value_BA = predicted.view(len(rows_B), -1).double().numpy()
        score_BA = _log_odds(value_BA) if is_binary else value_BA
        for temperature, part in zip(temperatures, parts, strict=True):
            policy_BA = policy_of_scores(score_BA, temperature=temperature)
            chosen_B = policy_BA[np.arange(len(rows_B)), place_N[rows_B.numpy()]]
            part.append((chosen_B, (policy_BA * value_BA).sum(1)))
    policies = []
    for part in parts:
        chosen, expected = zip(*part, strict=True)
        target_N = np.where(known_N, np.concatenate(chosen), 0.0)
        policies.append(Policy(target_N, np.concatenate(expected)))
    return policies


def _logged(reward_N: Floats, unit_N: NDArray[np.integer]) -> Interval:
    """What the logging policy earned, with an interval over users."""
    _, index_N = np.unique(unit_N, return_inverse=True)
    rewards_U = np.bincount(index_N, weights=reward_N).astype(np.float64)
    return normal_ratio(rewards_U, np.bincount(index_N).astype(np.float64))


def _log_odds(value_BA: Floats) -> Floats:
    inside_BA = value_BA.clip(_SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(inside_BA) - np.log1p(-inside_BA), dtype=np.float64)
