"""A student whose items relate to each other as a teacher's do. Letters: see `batch.py`.

Relational knowledge distillation (Park et al., CVPR 2019) in the form of CLIP-KD's contrastive
relational distillation (Yang et al., CVPR 2024, arXiv 2307.12732): each item's similarities to the
batch's other items, softmaxed, are pulled to the teacher's. Only similarities are compared, so the
two widths may differ. E is the teacher's width.

Items only: the folder of `python -m pretrain embed` holds users as of `valid_start`, when they had
already chosen what the training steps ask for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.batch import Batch
from pretrain.known_vectors import KnownVectors, SharedItems


def distillation(
    item_nD: Tensor, batch: Batch, *, teacher: KnownVectors, temperature: float, tile: int
) -> Tensor:
    """The loss of one global batch over its targets that the teacher knows."""
    shared = SharedItems.of(item_nD, batch, known=teacher)
    losses_P = relational_losses(
        shared.new_PD,
        shared.new_GD,
        teacher_GE=shared.known_GE,
        own_P=shared.own_P,
        temperature=temperature,
        tile=tile,
    )
    return shared.mean(losses_P)


def relational_losses(
    student_PD: Tensor,
    student_GD: Tensor,
    *,
    teacher_GE: Tensor,
    own_P: Tensor,
    temperature: float,
    tile: int,
) -> Tensor:
    """KL(teacher ∥ student) of each item's softmaxed cosines to the other items.

    Args:
        student_PD: unit vectors of this rank's items.
        student_GD: unit vectors of every rank's items.
        teacher_GE: the teacher's unit vectors of the same items.
        own_P: where this rank's items stand among those of every rank; an item is no relation of
            its own.
        temperature: of both softmaxes.
        tile: rows of similarities in memory at once, made again in the backward; 0: all.

    Returns:
        One loss a row, [P]; 0 where there is no other item.
    """
    if len(student_GD) < 2 or not len(student_PD):
        return student_PD.new_zeros(len(student_PD))
    size = tile or len(student_PD)
    parts = []
    for start in range(0, len(student_PD), size):
        rows = slice(start, start + size)
        given = (student_PD[rows], student_GD, teacher_GE, own_P[rows], temperature)
        parts.append(checkpoint(_rows, *given, use_reentrant=False))
    return torch.cat(parts)


def _rows(
    student_pD: Tensor, student_GD: Tensor, teacher_GE: Tensor, own_p: Tensor, temperature: float
) -> Tensor:
    with torch.autocast(student_pD.device.type, enabled=False):
        own_pG = F.one_hot(own_p, len(student_GD)).bool()
        log_student_pG = _log_shares(student_pD, student_GD, own_pG, temperature)
        log_teacher_pG = _log_shares(teacher_GE[own_p], teacher_GE, own_pG, temperature)
        # -inf less -inf at the item itself, where both shares are 0.
        ratio_pG = (log_teacher_pG - log_student_pG).masked_fill(own_pG, 0.0)
        return (log_teacher_pG.exp() * ratio_pG).sum(1)


def _log_shares(rows_pD: Tensor, all_GD: Tensor, own_pG: Tensor, temperature: float) -> Tensor:
    logits_pG = rows_pD.float() @ all_GD.float().T / temperature
    return logits_pG.masked_fill(own_pG, float("-inf")).log_softmax(1)
