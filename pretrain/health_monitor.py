"""A callback that measures how the modalities share the space, and says when one is ignored.

Letters: see `batch.py`; M modalities. It reads what the training step computes anyway: the tokens
that go into the fusion and the gradients that reach them. Only the fusion is run again, once for
each modality that is knocked out.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pretrain.batch import Batch
from pretrain.collectives import sum_over_ranks, world_size
from pretrain.health import (
    alignment,
    effective_rank,
    knock_out_effect,
    modality_gap,
    uniformity,
)
from pretrain.item_encoder import ItemEncoder

log = logging.getLogger(__name__)

MOST_ITEMS = 1024
"""Items of a batch that are measured; uniformity is quadratic in them."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What is measured how often, and what counts as ignored."""

    every_steps: int = 50
    """Measure at every so many steps; 0 never does."""

    least_gate: float = 0.02
    """A modality whose mean weight in the fusion is below this is ignored."""

    least_effect: float = 1e-3
    """So is one without which items' vectors stay as they are: mean of 1 - cosine below this."""

    checks: int = 3
    """Warn after so many measurements in a row."""

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.checks < 1:
            raise ValueError(
                "health: every_steps must not be negative and checks at least 1, got "
                f"{self.every_steps} and {self.checks}"
            )
        if not 0 <= self.least_gate < 1 or not 0 <= self.least_effect < 1:
            raise ValueError(
                "health: least_gate and least_effect must be in [0, 1), got "
                f"{self.least_gate} and {self.least_effect}"
            )


@torch.no_grad()
def measure(
    fusion: nn.Module, modalities: list[str], *, tokens_nMD: Tensor, presence_nM: Tensor
) -> dict[str, Tensor]:
    """All measures of one batch; those for which it holds no items are left out.

    Args:
        fusion: `Fusion` of the item encoder.
        modalities: M names.
        tokens_nMD: what the adapters say, anything where absent.
        presence_nM: what the items have.
    """
    alone_nMD = F.normalize(tokens_nMD.float(), dim=-1)
    fused_nD, gate_nM = fusion(tokens_nMD, presence_nM)
    found = {"effective_rank": effective_rank(F.normalize(fused_nD.float(), dim=-1))}
    for m, name in enumerate(modalities):
        own_pD = alone_nMD[presence_nM[:, m], m]
        if len(own_pD) > 1:
            found[f"uniformity_{name}"] = uniformity(own_pD)
            found[f"effective_rank_{name}"] = effective_rank(own_pD)
        without_nM = presence_nM.clone()
        without_nM[:, m] = False
        replaceable_n = presence_nM[:, m] & without_nM.any(1)
        # Run for every modality on every rank, items or none: under ZeRO-3 it is a collective.
        knocked_nD, _ = fusion(tokens_nMD, without_nM)
        if bool(replaceable_n.any()):
            found[f"gate_{name}"] = gate_nM[replaceable_n, m].float().mean()
            found[f"knock_out_{name}"] = knock_out_effect(
                fused_nD[replaceable_n], knocked_nD[replaceable_n]
            )
    for left, right in itertools.combinations(range(len(modalities)), 2):
        both_n = presence_nM[:, left] & presence_nM[:, right]
        if bool(both_n.any()):
            pair = f"{modalities[left]}_{modalities[right]}"
            views = alone_nMD[both_n, left], alone_nMD[both_n, right]
            found[f"gap_{pair}"] = modality_gap(*views)
            found[f"alignment_{pair}"] = alignment(*views)
    return found


class IgnoredModalities:
    """Counts measurements in a row in which a modality is ignored."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.counts: dict[str, int] = {}

    def update(self, values: dict[str, float], modalities: list[str]) -> list[str]:
        """Names of the modalities that have just been ignored for the last time allowed."""
        due = []
        for name in modalities:
            if f"gate_{name}" not in values:
                continue
            ignored = (
                values[f"gate_{name}"] < self.config.least_gate
                or values[f"knock_out_{name}"] < self.config.least_effect
            )
            self.counts[name] = self.counts.get(name, 0) + 1 if ignored else 0
            if self.counts[name] == self.config.checks:
                due.append(name)
        return due


class HealthMonitor(pl.Callback):
    """Logs `health/…` at an interval: means over ranks of each rank's own measures."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.ignored = IgnoredModalities(config)
        self._handles: list[RemovableHandle] = []
        self._tokens: list[Tensor] = []
        self._squares: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, int]:
        """Measurements in a row, so that a resumed run warns when an uninterrupted one would."""
        return dict(self.ignored.counts)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.ignored.counts = dict(state_dict)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Listen to this step, where it is one to be measured; ids alone share no space."""
        self._listen_no_more()
        encoder = _item_encoder(pl_module)
        if batch_idx % self.config.every_steps or encoder.fusion is None:
            return
        self._handles.append(encoder.fusion.register_forward_hook(self._keep_tokens))
        for name, adapter in encoder.adapters.items():
            self._handles.append(adapter.register_forward_hook(self._keep_gradient(name)))

    def _keep_tokens(self, module: nn.Module, given: tuple[Tensor, ...], result: object) -> None:
        self._tokens.append(given[0].detach())

    def _keep_gradient(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def add(gradient: Tensor) -> None:
            self._squares[name] = self._squares.get(name, 0.0) + gradient.float().square().sum()

        def listen(module: nn.Module, given: object, projected_pD: Tensor) -> None:
            if projected_pD.requires_grad:
                projected_pD.register_hook(add)  # type: ignore[no-untyped-call]

        return listen

    def _listen_no_more(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tokens.clear()
        self._squares.clear()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Measure, log and warn."""
        if not self._tokens:
            return
        tokens_nMD = _first_pass(self._tokens, num_items=len(batch.items.rows_n))[:MOST_ITEMS]
        squares = dict(self._squares)
        self._listen_no_more()
        encoder = _item_encoder(pl_module)
        names = encoder.modalities
        presence_nM = batch.items.presence_of(names)
        assert encoder.fusion is not None, "tokens were heard"
        tokens_nMD = tokens_nMD.to(next(encoder.fusion.parameters()).dtype)
        found = measure(
            encoder.fusion, names, tokens_nMD=tokens_nMD, presence_nM=presence_nM[:MOST_ITEMS]
        )
        values = mean_over_ranks(found, names, device=tokens_nMD.device)
        for name in names:
            square = squares.get(name, torch.zeros((), device=tokens_nMD.device))
            # A rank's loss is its share times the number of ranks, see `objective.py`. An item on
            # two ranks counts as two items, each with a part of the gradient.
            values[f"gradient_{name}"] = float(sum_over_ranks(square).sqrt()) / world_size()
        metrics = {f"health/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:  # at once: self.log keeps only steps that Lightning logs
            logger.log_metrics(metrics, step=trainer.global_step)
        for name in self.ignored.update(values, names):
            log.warning(
                "modality %s is ignored: its mean gate is %.4f, and without it items move by %.5f "
                "(1 - cosine); raise model.loss.gate_balance_weight or "
                "model.encoders.modality_dropout, or take the tower out",
                *(name, values[f"gate_{name}"], values[f"knock_out_{name}"]),
            )


def _first_pass(parts: list[Tensor], *, num_items: int) -> Tensor:
    """Tokens of the batch's items: chunks in their order, without those the backward made again."""
    held = itertools.accumulate(len(part) for part in parts)
    count = next((place for place, items in enumerate(held, 1) if items >= num_items), len(parts))
    return torch.cat(parts[:count])[:num_items]


def mean_over_ranks(
    found: dict[str, Tensor], modalities: list[str], *, device: torch.device
) -> dict[str, float]:
    """Means over those ranks that could measure a thing, one collective for all of them."""
    singles = ("uniformity", "effective_rank", "gate", "knock_out")
    pairs = ["_".join(pair) for pair in itertools.combinations(modalities, 2)]
    names = ["effective_rank"]
    names += [f"{what}_{name}" for what in singles for name in modalities]
    names += [f"{what}_{pair}" for what in ("gap", "alignment") for pair in pairs]
    sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    for place, name in enumerate(names):
        if name in found:
            sums[0, place], sums[1, place] = found[name].double(), 1
    total, count = sum_over_ranks(sums).tolist()
    return {name: total[place] / count[place] for place, name in enumerate(names) if count[place]}


def _item_encoder(pl_module: pl.LightningModule) -> ItemEncoder:
    encoder = pl_module.model.item_encoder  # type: ignore[union-attr]
    assert isinstance(encoder, ItemEncoder)
    return encoder
