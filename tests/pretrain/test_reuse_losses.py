"""Distillation and compatibility terms against closed forms and plain twins."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batch import Batch, ItemBatch
from pretrain.compatibility import influence, pull
from pretrain.distillation import distillation, relational_losses
from pretrain.known_vectors import KnownVectors
from pretrain.losses import log_inclusion_probability
from pretrain.negatives import NegativesConfig
from pretrain.objective import LossConfig

ROWS = torch.tensor([2, 3, 5, 8])
PLACES = torch.tensor([-1, -1, 3, 0, -1, 1, -1, -1, -1, 2])


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


KNOWN = KnownVectors(unit(4, 6, seed=1), PLACES)
"""Of a catalogue of 10 items; of `ROWS` it knows the first three, by rows 3, 0 and 1."""


def batch_of(targets: list[list[int]]) -> Batch:
    targets_BT = torch.tensor(targets)
    zeros = torch.zeros_like(targets_BT)
    return Batch(
        items=ItemBatch(rows_n=ROWS, inputs={}, presence={}),
        history_BL=torch.full((len(targets), 1), -1),
        times_BL=zeros[:, :1],
        targets_BT=targets_BT,
        states_BT=zeros,
    )


def test_known_vectors_are_found_by_row() -> None:
    vectors, known = KNOWN.of(ROWS)
    assert known.tolist() == [True, True, True, False]
    torch.testing.assert_close(vectors[:3], KNOWN.vectors_KE[[3, 0, 1]])


def test_a_student_with_the_teachers_similarities_has_no_loss_whatever_its_width() -> None:
    teacher = unit(5, 3, seed=2)
    turned = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3)))[0]
    student = F.pad(teacher, (0, 4)) @ turned
    losses = relational_losses(
        student, student, teacher_GE=teacher, own_P=torch.arange(5), temperature=0.1, tile=2
    )
    torch.testing.assert_close(losses, torch.zeros(5), atol=1e-5, rtol=0)


def test_three_items_by_hand() -> None:
    """The teacher sees item 0 by item 1 and far from 2, the student sees all alike."""
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    student = torch.eye(3)
    (loss,) = relational_losses(
        student[:1], student, teacher_GE=teacher, own_P=torch.tensor([0]), temperature=0.5, tile=0
    )
    share = torch.tensor([2.0, 0.0]).softmax(0)  # cosines 1 and 0 at temperature 0.5
    assert float(loss) == pytest.approx(float((share * (share / 0.5).log()).sum()))


def test_tiles_change_neither_loss_nor_gradient() -> None:
    found = []
    for tile in (0, 2):
        student = unit(5, 4, seed=4).requires_grad_()
        losses = relational_losses(
            student, student, teacher_GE=unit(5, 3, seed=5), own_P=torch.arange(5),
            temperature=0.1, tile=tile,
        )  # fmt: skip
        losses.sum().backward()
        found.append((losses.detach(), student.grad))
    torch.testing.assert_close(found[0], found[1])


def test_distillation_is_over_distinct_targets_that_the_teacher_knows() -> None:
    items = unit(4, 2, seed=6)
    found = distillation(items, batch_of([[0, 2], [2, 3]]), teacher=KNOWN, temperature=0.1, tile=0)
    # Items 0 and 2 are left: each has one other item, whose share is 1 on both sides.
    assert float(found) == pytest.approx(0, abs=1e-6)
    found = distillation(items, batch_of([[0, 1], [2, 3]]), teacher=KNOWN, temperature=0.1, tile=0)
    expected = relational_losses(
        items[:3], items[:3], teacher_GE=KNOWN.vectors_KE[[3, 0, 1]], own_P=torch.arange(3),
        temperature=0.1, tile=0,
    )  # fmt: skip
    torch.testing.assert_close(found, expected.mean())


def test_training_on_it_alone_gives_the_teachers_similarities() -> None:
    teacher, student = unit(5, 3, seed=2), unit(5, 8, seed=7).requires_grad_()
    optimizer = torch.optim.Adam([student], 0.03)
    for _ in range(400):
        unit_student = F.normalize(student, dim=-1)
        loss = relational_losses(
            unit_student, unit_student, teacher_GE=teacher, own_P=torch.arange(5),
            temperature=0.1, tile=0,
        ).mean()  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # A softmax does not see what all of a row's similarities have in common: orders, not numbers.
    found = F.normalize(student.detach(), dim=-1)
    own = torch.eye(5) * 9
    assert torch.equal((found @ found.T + own).argsort(1), (teacher @ teacher.T + own).argsort(1))


def test_pull_is_the_mean_cosine_distance_of_known_targets() -> None:
    items = unit(4, 6, seed=8)
    found = pull(items, batch_of([[0, 2], [2, 3]]), old=KNOWN)
    expected = 1 - (items[[0, 2]] * KNOWN.vectors_KE[[3, 1]]).sum(1)
    torch.testing.assert_close(found, expected.mean())


def test_influence_is_the_old_items_told_apart_by_new_users_and_items() -> None:
    items, states = unit(4, 6, seed=8), unit(2, 1, 6, seed=9)
    scale, probability = torch.tensor([5.0]), torch.linspace(0.01, 0.1, 10)
    found = influence(
        states, items, batch_of([[0, -1], [2, 3]]), old=KNOWN, probability_N=probability,
        scale=scale, config=NegativesConfig(),
    )  # fmt: skip
    old = KNOWN.vectors_KE[[3, 1]]  # of items 0 and 2; item 3 has none
    log_q = log_inclusion_probability(probability[ROWS[[0, 2]]], num_draws=2)
    target = torch.arange(2)
    users = F.cross_entropy(scale * states[:, 0] @ old.T - log_q, target)
    logits = scale * items[[0, 2]] @ old.T
    both_ways = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(found, users + both_ways)


@pytest.mark.parametrize("targets", [[[3, -1], [3, -1]], [[-1, -1], [-1, -1]]])
def test_a_batch_without_known_items_has_no_loss_but_a_gradient(targets: list[list[int]]) -> None:
    items, states = unit(4, 6, seed=8).requires_grad_(), unit(2, 1, 6, seed=9).requires_grad_()
    batch = batch_of(targets)
    losses = [
        pull(items, batch, old=KNOWN),
        distillation(items, batch, teacher=KNOWN, temperature=0.1, tile=0),
        influence(
            states, items, batch, old=KNOWN, probability_N=torch.full((10,), 0.1),
            scale=torch.tensor([5.0]), config=NegativesConfig(),
        ),
    ]  # fmt: skip
    total = torch.stack(losses).sum()
    total.backward()
    assert float(total) == 0
    assert items.grad is not None
    assert states.grad is not None


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"loss\.distil_temperature must be positive, got 0"):
        LossConfig(distil_temperature=0)
    with pytest.raises(ValueError, match=r"loss\.compatibility_weight must not be negative"):
        LossConfig(compatibility_weight=-1)
