"""The debiased losses on a log of impressions: whose propensities, over which pairs.

A pair is a context, which is an impression's user, time and context features, and an item of the
catalogue. Of each context's I pairs one was shown and judged; its propensity is the chance of that
item in that context. So a batch of B impressions stands for B · I pairs.

Shapes: B impressions of a batch, N training impressions, I items, F features of an item.
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from finetune.batches import Batch
from finetune.data import CtrData
from finetune.debiasing import doubly_robust_loss, imputation_loss, ips_loss, snips_loss
from finetune.drawn_pairs import DrawnPairs
from finetune.model import CtrModel
from finetune.propensity import check_propensities, fit_logistic, naive_bayes
from finetune.task_settings import DebiasConfig
from finetune.tasks import Task, label_of

logger = logging.getLogger(__name__)

_MOST_CUT = 0.5
"""Share of impressions at the cap, above which the loss is hardly debiased."""
_LEAST_EFFECTIVE = 0.01
"""Effective rows a row, below which a loss hangs on a few."""

MAX_VALUES = 64
"""Values of an item's categorical feature, above which the propensity model leaves it out."""


class Debiasing(nn.Module):
    """A batch's errors to a loss over all pairs."""

    propensity_V: Tensor

    def __init__(self, config: DebiasConfig, *, data: CtrData, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        given = config.pairs_per_impression
        self.pairs = float(data.dataset.num_items) if given is None else given
        # By item, or by label; empty where they are logged.
        known_V = torch.zeros(0)
        if config.propensity == "items":
            known_V = item_propensities(data, l2=config.l2)
        elif config.propensity == "naive_bayes":
            assert config.marginal is not None
            known_V = label_propensities(data, task, marginal=config.marginal, pairs=self.pairs)
        else:
            check_propensities(data.train.outcomes["propensity"])
        self.register_buffer("propensity_V", known_V, persistent=False)
        of_train_N = self._propensities(
            data.train.outcomes, data.train.item_N, label_of(data.train, task.name)
        )
        cap = config.max_weight if config.loss in ("clipped_ips", "dr") else None
        self.weights = weights_of(of_train_N, max_weight=cap)
        """How the inverse propensities weigh the training impressions."""

    def propensities(self, batch: Batch, label_B: Tensor) -> Tensor:
        """The chance of each impression, [B]."""
        return self._propensities(batch.outcomes, batch.item_B, label_B)

    def _propensities(
        self, outcomes: Mapping[str, Tensor], item_B: Tensor, label_B: Tensor
    ) -> Tensor:
        if self.config.propensity == "logged":
            return outcomes["propensity"]
        by_item = self.config.propensity == "items"
        return self.propensity_V[item_B.long() if by_item else label_B.long()]

    def forward(self, error_B: Tensor, batch: Batch, label_B: Tensor) -> Tensor:
        """Inverse propensity scoring of the errors of what was shown."""
        propensity_B = self.propensities(batch, label_B)
        if self.config.loss == "snips":
            return snips_loss(error_B, propensity_B)
        cap = self.config.max_weight if self.config.loss == "clipped_ips" else None
        return ips_loss(error_B, propensity_B, num_pairs=self.pairs * len(error_B), max_weight=cap)


class DoublyRobust(Debiasing):
    """Joint learning of the model and of an imputation, which judges what was not shown.

    Wang et al. 2019 in one step: each loss holds the other's model fixed, so that the sum of the
    two has the gradients of both.
    """

    def __init__(
        self, config: DebiasConfig, *, data: CtrData, task: Task, imputation: CtrModel
    ) -> None:
        super().__init__(config, data=data, task=task)
        self.imputation = imputation
        self.drawn = DrawnPairs(data)

    def step(self, model: CtrModel, batch: Batch, *, output_B1: Tensor, label_B: Tensor) -> Tensor:
        """Both losses, of what was shown and of as many pairs drawn from all."""
        propensity_B = self.propensities(batch, label_B)
        pairs = {"num_pairs": self.pairs * len(label_B), "max_weight": self.config.max_weight}
        shown_B1 = self.imputation(batch).output_BO
        drawn = self.drawn(batch)
        drawn_B1 = self.imputation(drawn).output_BO.detach()
        loss = doubly_robust_loss(
            self.task.errors(output_B1, label_B),
            propensity_B,
            imputed_error_B=self._imputed(output_B1, shown_B1.detach()),
            imputed_error_A=self._imputed(model(drawn).output_BO, drawn_B1),
            **pairs,
        )
        # Residuals with their sign, in the unit of the label's scale.
        predicted_B = self._level(output_B1.detach())
        target_B = label_B if self.task.is_binary else self.task.standardised(label_B)
        other = imputation_loss(
            predicted_B - self._level(shown_B1), predicted_B - target_B, propensity_B, **pairs
        )
        total: Tensor = loss + other
        return total

    def _level(self, output_B1: Tensor) -> Tensor:
        """An output as the label's scale has it: a probability, or a standardised number."""
        return torch.sigmoid(output_B1[:, 0]) if self.task.is_binary else output_B1[:, 0]

    def _imputed(self, output_B1: Tensor, imputed_B1: Tensor) -> Tensor:
        """Error of the prediction against the imputed label, [B]."""
        if self.task.is_binary:
            return self.task.errors(output_B1, torch.sigmoid(imputed_B1[:, 0]))
        return (output_B1[:, 0] - imputed_B1[:, 0]).square()


def weights_of(propensity_N: Tensor, *, max_weight: float | None) -> dict[str, float]:
    """Share of the impressions whose weight was cut, and what the weights leave of the log.

    Warns where most are cut, so that the loss is nearly the naive one, and where a few rows weigh
    most. Effective rows are (Σ w)² / Σ w² (Kish 1965).
    """
    whole_N = 1 / propensity_N.double()
    weight_N = whole_N if max_weight is None else whole_N.clamp(max=max_weight)
    cut = float((whole_N > weight_N).double().mean())
    total = float(weight_N.sum())
    found = {
        "clipped_share": cut,
        "effective_rows": total**2 / float(weight_N.square().sum()),
        "largest_share": float(weight_N.max()) / total,
    }
    if cut > _MOST_CUT:
        logger.warning(
            "train.debias: %.0f %% of the training impressions have an inverse propensity above "
            "max_weight %g and weigh alike, as without debiasing; raise max_weight, or look at "
            "impressions.propensity (the median is %.3g)",
            100 * cut, max_weight, float(propensity_N.median()),
        )  # fmt: skip
    if found["effective_rows"] < _LEAST_EFFECTIVE * len(weight_N):
        logger.warning(
            "train.debias: the weights leave %.0f effective rows of %d, and %.1f %% of all weight "
            "is on one; cap them (clipped_ips, max_weight)",
            found["effective_rows"], len(weight_N), 100 * found["largest_share"],
        )  # fmt: skip
    return found


def item_propensities(data: CtrData, *, l2: float) -> Tensor:
    """P(item) in any context, [I], by a logistic regression of shown against drawn items.

    With as many drawn uniformly as shown, the odds of the regression are P(item) I, the ratio of
    the two densities. What depends on the user as well must be logged. Each item is two rows here,
    weighed by how often it was shown and how often it would be drawn.
    """
    num_items = data.dataset.num_items
    shown_I = torch.bincount(data.train.item_N, minlength=num_items).double()
    feature_IF = item_features(data, shown_I)
    share = float(shown_I.sum()) / num_items
    rows = torch.cat([feature_IF, feature_IF])
    model = fit_logistic(
        rows,
        torch.cat([torch.ones(num_items), torch.zeros(num_items)]),
        l2=l2,
        weight_N=torch.cat([shown_I / share, torch.ones(num_items).double()]),
    )
    logit_I: Tensor = model.linear(feature_IF).squeeze(1)
    return (logit_I.exp() / num_items).clamp(max=1.0).float()


def item_features(data: CtrData, shown_I: Tensor) -> Tensor:
    """Log of the training impressions, numbers with a mark where missing, small categories."""
    num_items = data.dataset.num_items
    parts = [torch.log1p(shown_I)[:, None]]
    for number_I in torch.from_numpy(data.items.numeric_RK[:num_items]).double().unbind(1):
        parts += [number_I.nan_to_num()[:, None], number_I.isnan().double()[:, None]]
    for column, one in enumerate(data.fields("item", kind="categorical")):
        if one.size <= MAX_VALUES:
            local_I = torch.from_numpy(data.items.ids_RF[:num_items, column] - one.offset).long()
            parts.append(nn.functional.one_hot(local_I, one.size).double())
    return torch.cat(parts, dim=1)


def label_propensities(data: CtrData, task: Task, *, marginal: float, pairs: float) -> Tensor:
    """P(shown | label), [2], by naive Bayes."""
    label_N = label_of(data.train, task.name).long()
    of_rows_N = naive_bayes(
        label_N,
        marginal_R=torch.tensor([1 - marginal, marginal]),
        num_pairs=max(len(label_N), int(np.ceil(pairs * len(label_N)))),
    )
    propensity_2 = torch.ones(2)
    propensity_2[label_N] = of_rows_N
    return propensity_2
