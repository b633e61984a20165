"""The training objective of one global batch, on however many ranks. Letters: see `batch.py`.

Every rank returns its share of the sum times the number of ranks over the *global* number of
terms. DDP and ZeRO average gradients over ranks, so N ranks give the loss and the gradients of
one rank on the same global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.alignments import content_content, item_item, user_item
from pretrain.batch import Batch
from pretrain.chunked_encoding import encode_in_chunks
from pretrain.collaborative import collaborative
from pretrain.compatibility import influence, pull
from pretrain.distillation import distillation
from pretrain.gate_balance import gate_balance
from pretrain.known_vectors import KnownVectors
from pretrain.loss_state import LossState
from pretrain.losses import ramped
from pretrain.modality_dropout import dropped_modalities, row_hash
from pretrain.model import TwoSpaceModel
from pretrain.negatives import NegativesConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig(NegativesConfig):
    """Weights of the three alignments, and what each positive is told apart from."""

    user_item_weight: float = 1.0
    """Weight of user→item InfoNCE."""

    user_item_ramp_steps: int = 0
    """Steps over which that weight rises from 0; 0: constant."""

    behaviour_weight: float = 0.0
    """Weight of item-item InfoNCE over the pairs of `data.item_pairs`."""

    behaviour_ramp_steps: int = 0
    """Steps over which that weight rises from 0; 0: constant."""

    pair_weight: float = 0.1
    """Weight of content-content pairs (picture-text), shared by all pairs of two modalities."""

    pair_ramp_steps: int = 0
    """Steps over which that weight rises from 0; 0: constant."""

    pair_loss: Literal["info_nce", "sigmoid"] = "info_nce"
    """Content-content as one softmax each way (CLIP) or as independent sigmoids (SigLIP)."""

    collaborative_weight: float = 0.0
    """Weight of InfoNCE between an item's content and its vector of `model.reuse.collaborative`;
    0 is off."""

    collaborative_ramp_steps: int = 0
    """Steps over which that weight rises from 0; 0: constant."""

    distil_weight: float = 0.0
    """Weight of relational distillation from `model.reuse.teacher`: similarities of items to each
    other, not their vectors, are pulled to the teacher's; 0 is off."""

    distil_temperature: float = 0.1
    """Softmax temperature of the teacher's and the student's similarities."""

    compatibility_weight: float = 0.0
    """Weight of the term that keeps vectors comparable with `model.reuse.old_space`; 0 is off."""

    compatibility: Literal["influence", "pull"] = "influence"
    """`influence`: new users and items must be told apart by the old item vectors
    (backward-compatible training); `pull`: 1 - cosine of an item's new and old vector."""

    encode_chunk: int = 0
    """Items encoded at a time, their activations made again in the backward (GradCache); 0: all
    at once."""

    gate_balance_weight: float = 0.0
    """Weight of the term that keeps the fusion's mean gate even over an item's modalities; 0 is
    off. Turn it on where `health` warns that a modality is ignored, e.g. with 0.1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("user_item", "behaviour", "pair", "collaborative"):
            weight, steps = getattr(self, f"{name}_weight"), getattr(self, f"{name}_ramp_steps")
            if weight < 0 or steps < 0:
                raise ValueError(
                    f"loss: {name}_weight and {name}_ramp_steps must not be negative, got {weight} "
                    f"and {steps}"
                )
        if self.distil_temperature <= 0:
            raise ValueError(
                f"loss.distil_temperature must be positive, got {self.distil_temperature}"
            )
        for name in (
            "encode_chunk",
            "gate_balance_weight",
            "distil_weight",
            "compatibility_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")

    def state(
        self, *, width: int, temperature: float, target_width: int | None = None
    ) -> LossState:
        """What these losses learn or remember beside a model of this width.

        `target_width` is that of the collaborative target, where there is one.

        Raises:
            ValueError: a prefix is no prefix of that width.
        """
        if any(prefix >= width for prefix in self.matryoshka):
            raise ValueError(
                f"loss.matryoshka: found {sorted(self.matryoshka)}, expected widths below "
                f"model.encoders.width {width}"
            )
        return LossState(
            width=width,
            temperature=temperature,
            behaviour=self.behaviour_weight > 0,
            sigmoid=self.pair_loss == "sigmoid" and self.pair_weight > 0,
            queue_size=self.queue_size,
            target_width=target_width if self.collaborative_weight > 0 else None,
        )


@dataclass(frozen=True)
class Objective:
    """The loss to differentiate, and numbers to look at."""

    loss: Tensor
    report: dict[str, Tensor]


def hidden_ids(rows_n: Tensor, *, step: int, share: float) -> Tensor:
    """Which items' ids are hidden in a step: a hash of (row, step), the same on every rank."""
    return row_hash(rows_n, step=step) < share * 2**32


def objective(
    model: TwoSpaceModel,
    batch: Batch,
    *,
    config: LossConfig,
    item_probability_N: Tensor,
    step: int,
    state: LossState | None = None,
    pair_probability_N: Tensor | None = None,
    teacher: KnownVectors | None = None,
    old: KnownVectors | None = None,
    id_vectors: KnownVectors | None = None,
) -> Objective:
    """The weighted sum of the losses of one global batch.

    Args:
        model: both encoders.
        batch: this rank's part.
        config: weights and negatives.
        item_probability_N: how likely a target that the loader draws is each item.
        step: number of the global batch, for schedules and hidden ids.
        state: of `config.state`; None where it needs nothing.
        pair_probability_N: the same for the targets of item-item pairs.
        teacher: vectors to distil from.
        old: vectors to stay comparable with.
        id_vectors: of a model of ids, that content is pulled to.
    """
    rows_n = batch.items.rows_n
    seen_nM = batch.items.presence_of(model.item_encoder.modalities)
    dropped_nM = dropped_modalities(rows_n, seen_nM, step=step, share=model.config.modality_dropout)
    seen_nM = seen_nM & ~dropped_nM
    if config.encode_chunk:
        vectors = encode_in_chunks(
            model.item_encoder, batch.items, dropped_nM=dropped_nM, chunk_items=config.encode_chunk
        )
    else:
        vectors = model.item_encoder(batch.items, dropped_nM=dropped_nM)
    hidden_n = hidden_ids(rows_n, step=step, share=model.config.id_dropout)
    item_nD, event_nD = model.encode_items(vectors, rows_n, hidden_n=hidden_n)
    states_BSD = model.encode_histories(
        event_nD,
        history_BL=batch.history_BL,
        times_BL=batch.times_BL,
        users_BC=batch.users_BC,
    )
    aligned = user_item(
        states_BSD,
        item_nD,
        batch,
        probability_N=item_probability_N,
        scale=model.temperature(),
        config=config,
        queue=None if state is None else state.queue,
        step=step,
    )
    weight = ramped(config.user_item_weight, ramp_steps=config.user_item_ramp_steps, step=step)
    loss = weight * aligned.loss
    report = {
        "user_item_loss": aligned.loss,
        "user_item_weight": torch.tensor(weight),
        "negatives": aligned.negatives,
        "scale": model.temperature(),
    }
    if state is not None and state.queue is not None:
        report["distinct_targets"] = aligned.distinct_targets
    if batch.pairs_K2 is not None and state is not None and state.behaviour_temperature is not None:
        assert pair_probability_N is not None
        scale = state.behaviour_temperature()
        related = item_item(
            item_nD, batch, probability_N=pair_probability_N, scale=scale, config=config
        )
        weight = ramped(config.behaviour_weight, ramp_steps=config.behaviour_ramp_steps, step=step)
        loss = loss + weight * related.loss
        report |= {
            "item_item_loss": related.loss,
            "item_item_weight": torch.tensor(weight),
            "item_item_negatives": related.negatives,
            "item_item_scale": scale,
        }
    if len(vectors.modality_nD) > 1 and config.pair_weight:
        scale = model.pair_temperature()
        sigmoid_bias = None if state is None else state.sigmoid_bias
        pairs = content_content(
            vectors,
            batch,
            kind=config.pair_loss,
            scale=scale,
            bias=None if sigmoid_bias is None else sigmoid_bias(),
            config=config,
        )
        weight = ramped(config.pair_weight, ramp_steps=config.pair_ramp_steps, step=step)
        loss = loss + weight * torch.stack([one.loss for one in pairs.values()]).mean()
        report |= {f"{name}_loss": one.loss for name, one in pairs.items()}
        report |= {f"{name}_negatives": one.negatives for name, one in pairs.items()}
        report |= {"content_weight": torch.tensor(weight), "content_scale": scale}
    if id_vectors is not None and state is not None and state.target_projection is not None:
        assert state.target_temperature is not None
        scale = state.target_temperature()
        proxy = collaborative(
            vectors.fused_nD,
            batch,
            targets=id_vectors,
            projection=state.target_projection,
            scale=scale,
            config=config,
        )
        weight = ramped(
            config.collaborative_weight, ramp_steps=config.collaborative_ramp_steps, step=step
        )
        loss = loss + weight * proxy.loss
        report |= {
            "collaborative_loss": proxy.loss,
            "collaborative_weight": torch.tensor(weight),
            "collaborative_negatives": proxy.negatives,
            "collaborative_scale": scale,
        }
    if config.distil_weight and teacher is not None:
        report["distil_loss"] = distillation(
            item_nD,
            batch,
            teacher=teacher,
            temperature=config.distil_temperature,
            tile=config.tile,
        )
        loss = loss + config.distil_weight * report["distil_loss"]
    if config.compatibility_weight and old is not None:
        if config.compatibility == "pull":
            compatible = pull(item_nD, batch, old=old)
        else:
            compatible = influence(
                states_BSD,
                item_nD,
                batch,
                old=old,
                probability_N=item_probability_N,
                scale=model.temperature(),
                config=config,
            )
        report["compatibility_loss"] = compatible
        loss = loss + config.compatibility_weight * compatible
    if config.gate_balance_weight:
        balance = gate_balance(vectors.gate_nM, seen_nM, rows_n=rows_n)
        loss = loss + config.gate_balance_weight * balance
        report["gate_balance"] = balance
    for number, name in enumerate(model.item_encoder.modalities):
        gate_n = vectors.gate_nM[:, number][seen_nM[:, number]]
        report[f"gate_{name}"] = gate_n.mean() if len(gate_n) else gate_n.sum()
    return Objective(loss, {name: value.detach() for name, value in report.items()})
