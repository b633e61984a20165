"""The protocol `bandit-ope`: a policy's click rate from another's log, beside its own log's.

Its definition stands in PROTOCOL.md beside the data. Two policies, uniform at random and Bernoulli
Thompson sampling (bts), drew banners of two campaigns for the same week's visitors.

Shapes: N rows, P positions, I items of a campaign.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from finetune.bootstrap import Interval
from finetune.metrics import Floats
from finetune.off_policy import ESTIMATORS, Estimate, Estimator, PolicyLog, estimate_reward

CAMPAIGNS = ("men", "women")
POLICIES = ("random", "bts")
NUM_POSITIONS = 3
PRIOR_ROWS = 200.0
"""Rows of the average click rate that every item's own rows are mixed with: about one click's."""
NUM_FOLDS = 5
MAX_WEIGHT = 10.0
BALANCED: tuple[Estimator, ...] = ("ips", "snips", "dr")
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Log:
    """What one policy showed in one campaign."""

    position_N: NDArray[np.int64]
    """From 0."""
    item_N: NDArray[np.int64]
    click_N: Floats
    propensity_N: Floats
    """Probability of the item at the position when it was drawn, as the policy logged it."""


def data_dir() -> Path:
    """Find `obd_bandit`: under $TRIPTYCH_DATA, else ../shared/data of the checkout."""
    root = os.environ.get("TRIPTYCH_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    return base / "obd_bandit"


def read_logs(folder: Path) -> tuple[dict[tuple[str, str], Log], dict[str, int]]:
    """Logs by campaign and policy, and how many items a campaign has.

    An item id is the same banner in both logs of a campaign. Its hashed features are not, so no
    feature is read here.
    """
    table = pq.read_table(folder / "impressions.parquet")
    items = pq.read_table(folder / "items.parquet")
    logs, num_items = {}, {}
    for campaign, policy in product(CAMPAIGNS, POLICIES):
        mine = [
            one.filter(
                pc.and_(pc.equal(one["campaign"], campaign), pc.equal(one["policy"], policy))
            )
            for one in (table, items)
        ]
        ids = np.sort(mine[1]["item_id"].to_numpy())
        assert ids.tolist() == list(range(len(ids))), "items of a campaign are counted from 0"
        num_items[campaign] = len(ids)
        logs[campaign, policy] = Log(
            position_N=mine[0]["position"].to_numpy().astype(np.int64) - 1,
            item_N=mine[0]["item_id"].to_numpy().astype(np.int64),
            click_N=mine[0]["click"].to_numpy().astype(np.float64),
            propensity_N=mine[0]["propensity"].to_numpy().astype(np.float64),
        )
    return logs, num_items


def policy_of_log(policy: str, log: Log, *, num_items: int) -> Floats:
    """Probability of each item at each position, [P, I].

    The random policy draws evenly. bts has logged the probability of what it drew only, and that
    changes by the hour (by a factor of 70 for the same item and position), so its mean over the
    week is taken as how often its log shows an item at a position: unbiased, from about 3,300 rows
    a position, and without a look at the clicks.
    """
    if policy == "random":
        return np.full((NUM_POSITIONS, num_items), 1 / num_items)
    cell_N = log.position_N * num_items + log.item_N
    count_PI = np.bincount(cell_N, minlength=NUM_POSITIONS * num_items)
    count_PI = count_PI.reshape(NUM_POSITIONS, num_items).astype(np.float64)
    return np.asarray(count_PI / count_PI.sum(1, keepdims=True))


def click_model(log: Log, *, num_items: int) -> Floats:
    """Click rate of every item for each row, [N, I], from the rows of the other folds.

    An item's clicks are mixed with `PRIOR_ROWS` rows of the average. Folds are every fifth row, so
    that no row's own click is in what is predicted for it.
    """
    fold_N = np.arange(len(log.item_N)) % NUM_FOLDS
    rate_KI = []
    for fold in range(NUM_FOLDS):
        other_N = fold_N != fold
        items, clicks = log.item_N[other_N], log.click_N[other_N]
        shown_I = np.bincount(items, minlength=num_items)
        clicked_I = np.bincount(items, weights=clicks, minlength=num_items)
        rate_KI.append((clicked_I + PRIOR_ROWS * clicks.mean()) / (shown_I + PRIOR_ROWS))
    return np.stack(rate_KI)[fold_N]


def wilson_interval(clicks: float, rows: int) -> Interval:
    """A click rate and its 95 % interval (Wilson 1927), which holds for few clicks too."""
    rate, z2 = clicks / rows, _NORMAL_95**2
    middle = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _NORMAL_95 / (1 + z2 / rows) * np.sqrt(rate * (1 - rate) / rows + z2 / (4 * rows**2))
    return Interval(rate, float(middle - half), float(middle + half))


def bandit_part(folder: Path) -> dict[str, Any]:
    """Every logged policy from the other's log, by every estimator, beside its own log.

    `balanced_…` weighs with the logging policy's mean probability over the week in place of that
    of the hour (Agarwal et al. 2017, Effective evaluation using logged bandit feedback from
    multiple loggers). It is as unbiased if an item's click rate does not move with the hours'
    policies, and no row weighs thousands because its hour had all but ruled the item out.
    """
    logs, num_items = read_logs(folder)
    found: dict[str, Any] = {}
    for campaign, policy in product(CAMPAIGNS, POLICIES):
        other_policy = next(one for one in POLICIES if one != policy)
        own, other = logs[campaign, policy], logs[campaign, other_policy]
        policy_PI, mean_PI = (
            policy_of_log(name, log, num_items=num_items[campaign])
            for name, log in ((policy, own), (other_policy, other))
        )
        hourly = PolicyLog.of_policy(
            other.click_N,
            other.item_N,
            logged_N=other.propensity_N,
            policy_NA=policy_PI[other.position_N],
            value_NA=click_model(other, num_items=num_items[campaign]),
        )
        balanced = replace(hourly, logged_N=mean_PI[other.position_N, other.item_N])
        estimates = {
            name: estimate_reward(hourly, name, max_weight=MAX_WEIGHT) for name in ESTIMATORS
        } | {f"balanced_{name}": estimate_reward(balanced, name) for name in BALANCED}
        on_policy = wilson_interval(own.click_N.sum(), len(own.click_N))
        found[f"{campaign}/{policy}"] = {
            "on_policy": asdict(on_policy),
            "clicks": int(own.click_N.sum()),
            "clicks_of_the_other_log": int(other.click_N.sum()),
            "estimates": {name: beside(one, on_policy) for name, one in estimates.items()},
        }
    names = next(iter(found.values()))["estimates"]
    within = {
        name: sum(one["estimates"][name]["within"] for one in found.values()) for name in names
    }
    return {"within_of_four": within, "policies": found}


def beside(estimate: Estimate, on_policy: Interval) -> dict[str, Any]:
    """An estimate, whether it lies within the other interval, and how far apart they are.

    `z` is the difference over both standard errors: an estimate may well be right and lie outside,
    as it has an error of its own.
    """
    reward = estimate.reward
    errors = [(one.high - one.low) / (2 * _NORMAL_95) for one in (reward, on_policy)]
    return asdict(reward) | {
        "within": on_policy.low <= reward.value <= on_policy.high,
        "z": (reward.value - on_policy.value) / float(np.hypot(*errors)),
        "effective_rows": estimate.effective_rows,
        "largest_share": estimate.largest_share,
        "mean_weight": estimate.mean_weight,
    }
