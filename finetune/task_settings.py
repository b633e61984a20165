"""What is learnt beside the click, and what the log's bias is met with.

Settings only, as `--help` must not wait for torch.
"""

from dataclasses import dataclass
from typing import Literal

from finetune.content_settings import check_setting as check

CLICK = "label"
"""Name of the click among the labels."""

TaskLoss = Literal["auto", "bce", "mse", "log1p_mse", "ziln"]
TaskWeights = Literal["fixed", "uncertainty"]
DebiasedLoss = Literal["naive", "ips", "snips", "clipped_ips", "dr"]
PropensitySource = Literal["logged", "items", "naive_bayes"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """How one label is learnt."""

    loss: TaskLoss = "auto"
    """bce: log loss, of a binary label. mse: squared error of a number, standardised on train.
    log1p_mse: the same of log(1 + number), for long tails; its prediction is a median rather than a
    mean. ziln: lifetime value, mostly zero (Wang et al. 2019). auto: bce or mse, by the label."""

    weight: float = 1.0
    """Weight of its loss among the others; of no effect where train.task_weights learns them."""

    def __post_init__(self) -> None:
        check(self.weight > 0, "tasks.weight", self.weight, "a positive number")


@dataclass(frozen=True, kw_only=True)
class DebiasConfig:
    """A loss over all pairs of a context and an item, from those that were shown."""

    loss: DebiasedLoss = "naive"
    """naive: mean over what was shown. ips, snips, clipped_ips: weighted by inverse propensities.
    dr: doubly robust, with a second model of the same kind for what was not shown."""

    propensity: PropensitySource = "logged"
    """logged: the impressions' column `propensity`, the chance of the item in its context. items:
    by popularity and item features, a logistic regression of items shown against items drawn.
    naive_bayes: by the label alone (Schnabel et al. 2016), with `marginal`."""

    marginal: float | None = None
    """naive_bayes: share of positives over all pairs, from a small random sample."""

    l2: float = 1.0e-4
    """items: penalty of the regression's weights."""

    max_weight: float = 100.0
    """clipped_ips and dr: largest inverse propensity."""

    pairs_per_impression: float | None = None
    """Pairs that an impression stands for; null: the items of the catalogue, one of which was
    drawn. 1 where propensities are those of being seen in a place."""

    def __post_init__(self) -> None:
        check(self.l2 >= 0, "train.debias.l2", self.l2, "0 or more")
        check(self.max_weight >= 1, "train.debias.max_weight", self.max_weight, "at least 1")
        pairs = self.pairs_per_impression
        key = "train.debias.pairs_per_impression"
        check(pairs is None or pairs > 0, key, pairs, "null or a positive number")
        marginal, is_bayes = self.marginal, self.propensity == "naive_bayes"
        given = marginal is not None and 0 < marginal < 1
        expected = "a share in (0, 1) with propensity naive_bayes, null with any other"
        ok = given if is_bayes else marginal is None
        check(ok, "train.debias.marginal", marginal, expected)


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """The place as a bias of its own, beside the model while training and gone when it serves."""

    mode: Literal["none", "add", "seen"] = "none"
    """add: log odds a place (Zhao et al. 2019). seen: P(seen | place) P(click | seen) (PAL, Guo et
    al. 2019). Both need the impressions' column `position`."""

    dropout: float = 0.1
    """add: share of impressions whose place is hidden in training."""

    first_is_seen: bool = False
    """seen: place 0 is seen with certainty."""

    lr: float = 1e-2
    """Learning rate of the places, which are few and read by every batch: at that of the model
    they are still near their start when a short training ends, and the model keeps their part."""

    def __post_init__(self) -> None:
        check(self.lr > 0, "train.position.lr", self.lr, "a positive rate")
        check(0 <= self.dropout < 1, "train.position.dropout", self.dropout, "a share in [0, 1)")
