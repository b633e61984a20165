"""What a run minimises: the tasks' losses, weighed, and what is learnt beside the model for them.

Nothing of it serves: place towers, variances and imputations are kept for a later run that goes on
from this one.

Shapes: B impressions of a batch, O outputs of all tasks, T tasks.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.batches import Batch
from finetune.data import CtrData
from finetune.debiased_training import Debiasing, DoublyRobust
from finetune.model import CtrModel, Scored
from finetune.position_bias import PositionTower
from finetune.reuse import TEACHER, distilled
from finetune.rungs import parse_rung
from finetune.settings import FitConfig, TrainConfig
from finetune.task_metrics import has_both_arms
from finetune.task_settings import CLICK
from finetune.tasks import Task, label_of
from finetune.uplift import Arms, factual_loss
from finetune.vocabulary import Vocabulary
from finetune.warm_start import take_over_weights

logger = logging.getLogger(__name__)

_IMPUTATION = "imputation."


@dataclass(frozen=True)
class Step:
    """What a training step gives."""

    loss: Tensor
    scored: Scored
    task_losses: dict[str, Tensor]
    """Mean error of each task, before any weight."""


class Objective(nn.Module):
    """A batch to a loss."""

    def __init__(self, config: FitConfig, *, data: CtrData, tasks: Sequence[Task]) -> None:
        super().__init__()
        train = config.train
        self.tasks = list(tasks)
        self.has_arms = config.head.name == "two_arms"
        check_objective(config, data=data, tasks=self.tasks)
        learns = train.task_weights == "uncertainty"
        self.log_variance_T = nn.Parameter(torch.zeros(len(self.tasks))) if learns else None
        self.towers = nn.ModuleDict()
        if train.position.mode != "none":
            for number, task in enumerate(self.tasks):
                if task.is_binary:
                    self.towers[str(number)] = _tower(train, data)
        self.debiasing: Debiasing | None = None
        if train.debias.loss == "dr":
            imputation = CtrModel(config.head, data=data, content=None, tasks=self.tasks)
            self.debiasing = DoublyRobust(
                train.debias, data=data, task=self.tasks[0], imputation=imputation
            )
        elif train.debias.loss != "naive":
            self.debiasing = Debiasing(train.debias, data=data, task=self.tasks[0])
        self.reuse = config.reuse
        self.treated_share = 0.5
        if self.has_arms:
            self.treated_share = float(data.train.outcomes["treatment"].mean())

    def state(self) -> dict[str, Tensor]:
        """What is learnt beside the model, by names that say of which task and kind it is."""
        found: dict[str, Tensor] = {}
        if self.log_variance_T is not None:
            for task, value in zip(self.tasks, self.log_variance_T.detach(), strict=True):
                found[f"log_variance.{task.name}"] = value.clone()
        for number, tower in self.towers.items():
            assert isinstance(tower, PositionTower)
            name = f"place.{tower.mode}.{self.tasks[int(number)].name}"
            found[name] = tower.place_P.detach().clone()
        if isinstance(self.debiasing, DoublyRobust):
            weights = self.debiasing.imputation.state_dict()
            found |= {f"{_IMPUTATION}{name}": value.clone() for name, value in weights.items()}
        return found

    def take_over(
        self, state: Mapping[str, Tensor], *, older: Vocabulary, vocabulary: Vocabulary
    ) -> None:
        """Go on from an older run's `state`; what that did not learn starts anew.

        Args:
            state: what the older objective had learnt.
            older: vocabulary of the older run, by which an imputation's table is laid out.
            vocabulary: that of this one, grown from it.
        """
        own = self.state()
        if anew := sorted({_part(name) for name in own} - {_part(name) for name in state}):
            logger.info("%s: start anew, as the older run has learnt none", ", ".join(anew))
        for number, task in enumerate(self.tasks):
            name = f"log_variance.{task.name}"
            if self.log_variance_T is not None and name in state:
                with torch.no_grad():
                    self.log_variance_T[number] = state[name]
            if str(number) in self.towers:
                tower = self.towers[str(number)]
                assert isinstance(tower, PositionTower)
                name = f"place.{tower.mode}.{task.name}"
                if name in state:
                    tower.take_over(state[name])
        weights = {
            name.removeprefix(_IMPUTATION): value
            for name, value in state.items()
            if name.startswith(_IMPUTATION)
        }
        if isinstance(self.debiasing, DoublyRobust) and weights:
            imputation = self.debiasing.imputation
            take_over_weights(imputation, vocabulary, weights, older=older, source="imputation")

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """What is learnt beside the model, for the optimiser: an imputation as the model is.

        Places and variances are few, and zero says something: they do not decay.
        """
        groups: list[dict[str, Any]] = []
        tables: list[Tensor] = []
        dense: list[Tensor] = []
        if isinstance(self.debiasing, DoublyRobust):
            tables = list(self.debiasing.imputation.fields.id_tables())
            ids = {id(one) for one in tables}
            imputation = self.debiasing.imputation
            dense = [p for p in imputation.parameters() if p.requires_grad and id(p) not in ids]
        variances: list[Tensor] = [] if self.log_variance_T is None else [self.log_variance_T]
        for params, lr, decay in (
            (tables, config.id_lr, 0.0),
            (dense, config.lr, config.weight_decay),
            (list(self.towers.parameters()), config.position.lr, 0.0),
            (variances, config.lr, 0.0),
        ):
            if params:
                groups.append({"params": params, "lr": lr, "weight_decay": decay})
        return groups

    def forward(self, model: CtrModel, batch: Batch) -> Step:
        """Score a batch, and the loss of what came of it."""
        scored: Scored = model(batch)
        if self.has_arms:
            loss = self._arms(scored.output_BO, batch)
            return Step(loss, scored, {self.tasks[0].name: loss.detach()})
        if isinstance(self.debiasing, DoublyRobust):
            label_B = batch_label(batch, self.tasks[0].name)
            loss = self.debiasing.step(model, batch, output_B1=scored.output_BO, label_B=label_B)
            error = self.tasks[0].errors(scored.output_BO.detach(), label_B).mean()
            return Step(loss, scored, {self.tasks[0].name: error})
        parts = torch.split(scored.output_BO, [task.num_outputs for task in self.tasks], dim=1)
        losses, seen = [], {}
        for number, (task, output_BO) in enumerate(zip(self.tasks, parts, strict=True)):
            label_B = batch_label(batch, task.name)
            served_B = output_BO[:, 0]
            if str(number) in self.towers:
                place_B = batch.outcomes["position"]
                output_BO = self.towers[str(number)](output_BO[:, 0], place_B)[:, None]
            error_B = task.errors(output_BO, label_B)
            seen[task.name] = error_B.detach().mean()
            if number == 0 and TEACHER in batch.outcomes:
                error_B = distilled(error_B, served_B, batch, config=self.reuse)
            debiased = self.debiasing
            loss = error_B.mean() if debiased is None else debiased(error_B, batch, label_B)
            losses.append(self._weighed(loss, number))
        return Step(torch.stack(losses).sum(), scored, seen)

    def _weighed(self, loss: Tensor, number: int) -> Tensor:
        """Times weight; or L / (k σ²) + log σ, k 2 for squares, else 1 (Kendall et al. 2018)."""
        task = self.tasks[number]
        if self.log_variance_T is None:
            return loss * task.weight if task.weight != 1 else loss
        log_variance = self.log_variance_T[number]
        half = 1.0 if task.is_binary else 0.5
        return half * torch.exp(-log_variance) * loss + log_variance / 2

    def _arms(self, output_B2: Tensor, batch: Batch) -> Tensor:
        task = self.tasks[0]
        label_B = batch_label(batch, task.name)
        return factual_loss(
            Arms(output_B2[:, 0], output_B2[:, 1]),
            label_B if task.is_binary else task.standardised(label_B),
            treated_B=batch.outcomes["treatment"],
            treated_share=self.treated_share,
            kind="binary" if task.is_binary else "value",
        )

    def learnt(self) -> dict[str, Any]:
        """What metrics.json keeps of it: the tasks' weights and the places' parts."""
        found: dict[str, Any] = {}
        if self.log_variance_T is not None:
            weights = torch.exp(-self.log_variance_T.detach()).tolist()
            found["task_weights"] = dict(
                zip([task.name for task in self.tasks], weights, strict=True)
            )
        for number, tower in self.towers.items():
            assert isinstance(tower, PositionTower)
            place_P = tower.place_P.detach() if tower.mode == "add" else tower.seen_P()
            places = found.setdefault("places", {"mode": tower.mode})
            places[self.tasks[int(number)].name] = place_P.tolist()
        if self.debiasing is not None:
            found["debias"] = self.debiasing.weights
        return found


def _part(name: str) -> str:
    """What a name of the state is of: one place tower, one variance, or the imputation."""
    return _IMPUTATION.rstrip(".") if name.startswith(_IMPUTATION) else name


def batch_label(batch: Batch, name: str) -> Tensor:
    """One label of a batch, [B]."""
    return batch.label_B if name == CLICK else batch.outcomes[name]


def _tower(train: TrainConfig, data: CtrData) -> PositionTower:
    return PositionTower(
        int(data.train.outcomes["position"].max()) + 1,
        mode="add" if train.position.mode == "add" else "seen",
        dropout=train.position.dropout,
        first_is_seen=train.position.first_is_seen,
    )


def check_objective(config: FitConfig, *, data: CtrData, tasks: Sequence[Task]) -> None:
    """Refuse settings that ask for columns that the dataset lacks, or for two things at once."""
    train, has_arms = config.train, config.head.name == "two_arms"
    needs = {
        "train.debias.propensity": ("propensity", train.debias.loss != "naive"
                                    and train.debias.propensity == "logged"),
        "train.position.mode": ("position", train.position.mode != "none"),
        "head.name": ("treatment", has_arms),
    }  # fmt: skip
    for key, (column, is_needed) in needs.items():
        if is_needed and column not in data.dataset.manifest.features.exposure:
            raise ValueError(
                f"{key}: found a setting that reads the impressions' {column}, but "
                f"{data.dataset.dir} has none; map impressions.{column} and re-run python -m "
                "data_prep shard"
            )
    names = [task.name for task in tasks]
    is_debiased, is_dr = train.debias.loss != "naive", train.debias.loss == "dr"
    by_label = is_debiased and train.debias.propensity == "naive_bayes"
    has_place = train.position.mode != "none"
    alone = len(tasks) == 1 and tasks[0].num_outputs == 1
    refused = [
        (train.monitor is not None and train.monitor not in names, "train.monitor", train.monitor,
         f"null or one of the tasks, {names}"),
        (has_arms and (is_debiased or has_place), "head.name", "two_arms with a debiased loss or a "
         "place tower", "one of them; the arms are random already"),
        ("make" in parse_rung(config.rung).parts and names[0] != CLICK, "rung",
         f"{config.rung} with the tasks {names}",
         "the click, `label`, first, which is what make learns from content"),
        (config.reuse.teacher is not None and (has_arms or is_dr or not tasks[0].is_binary),
         "reuse.teacher", f"the head {config.head.name}, {train.debias.loss} and {names}",
         "a binary label first, and neither two_arms nor dr"),
        (has_place and not any(task.is_binary for task in tasks), "train.position.mode",
         f"{train.position.mode} with the tasks {names}", "a binary label among them"),
        (by_label and not (alone and tasks[0].is_binary), "train.debias.propensity",
         f"naive_bayes with the tasks {names}", "one binary label"),
        (is_dr and not alone, "train.debias.loss", f"dr with the tasks {names}",
         "one label, without ziln"),
        (is_dr and (config.rung != "none" or has_place), "train.debias.loss",
         f"dr on the rung {config.rung}, position {train.position.mode}",
         "the rung none and no place tower, as it scores items that were not shown"),
        (train.negative_rate < 1 and (has_arms or is_debiased or names != [CLICK]),
         "train.negative_rate", f"{train.negative_rate} with the head {config.head.name}, "
         f"{train.debias.loss} and {names}",
         "1, as the correction is for the click alone"),
        (train.task_weights == "uncertainty" and any(task.loss == "ziln" for task in tasks),
         "train.task_weights", "uncertainty with ziln", "fixed, as ziln learns a variance itself"),
    ]  # fmt: skip
    for is_refused, key, found, expected in refused:
        if is_refused:
            raise ValueError(f"{key}: found {found}, expected {expected}; correct it in the config")


def check_outcomes(
    config: FitConfig, *, data: CtrData, tasks: Sequence[Task], where: str, remedy: str
) -> None:
    """Refuse training impressions that say nothing of what is to be learnt.

    Those of one arm alone, with one value alone of a label, or with esmm's second label where the
    first is not.

    Args:
        config: says whether there are arms.
        data: whose training impressions are looked at.
        tasks: what is learnt.
        where: what they are called in an error.
        remedy: what makes more of them training impressions.
    """
    names = [task.name for task in tasks]
    if config.head.name == "esmm" and [task.is_binary for task in tasks] == [True, True]:
        click_N, after_N = (label_of(data.train, name) > 0.5 for name in names)
        if strange := int((after_N & ~click_N).sum()):
            raise ValueError(
                f"tasks: found {strange:,} of {len(click_N):,} training impressions with "
                f"{names[1]} but without {names[0]}, expected none, as esmm's second task is what "
                "follows its first; swap the tasks, or choose mmoe"
            )
    if config.head.name == "two_arms" and not has_both_arms(data.train):
        treated = float(data.train.outcomes["treatment"].mean())
        raise ValueError(
            f"{where}: found a share of {treated:g} treated, expected both arms; correct "
            "impressions.treatment"
        )
    if single := constant_labels(data, tasks):
        raise ValueError(
            f"tasks: found one value alone in the training labels of {single}, expected two or "
            f"more; leave them out of tasks, or {remedy}"
        )


def constant_labels(data: CtrData, tasks: Sequence[Task]) -> list[str]:
    """Labels of which the training impressions have one value alone."""
    return [task.name for task in tasks if _is_constant(label_of(data.train, task.name))]


def _is_constant(values_N: Tensor) -> bool:
    return bool((values_N == values_N[0]).all())
