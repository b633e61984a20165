"""What the item encoder says before it has learnt anything, and of what an item lacks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batch import ItemBatch
from pretrain.item_encoder import ItemEncoder

WIDTHS = {"image": 5, "text": 7, "sound": 3}


def encoder(width: int = 24) -> ItemEncoder:
    torch.manual_seed(0)
    return ItemEncoder({}, feature_widths=WIDTHS, width=width, dropout=0.0).eval()


def items(presence_nM: Tensor) -> ItemBatch:
    """Features of very different scales, around a mean."""
    torch.manual_seed(1)
    inputs, presence = {}, {}
    for place, (name, width) in enumerate(WIDTHS.items()):
        presence[name] = presence_nM[:, place]
        features = 10.0**place * (torch.randn(int(presence[name].sum()), width) + 3.0)
        inputs[name] = {"features": features}
    return ItemBatch(rows_n=torch.arange(len(presence_nM)), inputs=inputs, presence=presence)


@torch.no_grad()
def test_at_step_0_it_is_the_features_side_by_side() -> None:
    batch = items(torch.ones(40, 3, dtype=torch.bool))
    made = encoder()
    made.calibrate(batch)
    made.eval()
    found_nD = made(batch).fused_nD
    expected_nn = torch.zeros(40, 40)
    for entry in batch.inputs.values():
        features = entry["features"]
        unit = F.normalize((features - features.mean(0)) / features.std(0, correction=0), dim=1)
        expected_nn += unit @ unit.T / len(WIDTHS)
    torch.testing.assert_close(found_nD @ found_nD.T, expected_nn, atol=0.01, rtol=0)


@torch.no_grad()
def test_with_less_room_it_keeps_the_principal_components() -> None:
    batch = items(torch.ones(40, 3, dtype=torch.bool))
    made = encoder(width=6)
    made.calibrate(batch)
    adapter = made.adapters["text"]
    features = batch.inputs["text"]["features"]
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    spread = torch.linalg.eigvalsh(standard.T @ standard).flip(0)
    kept = adapter(features)
    assert not kept[:, [0, 1, 4, 5]].any(), "the others' part of the space"
    variance = kept.square().sum(0)[2:4]
    torch.testing.assert_close(variance / variance.sum(), spread[:2] / spread[:2].sum())


def test_gradients_reach_every_parameter_from_the_zeros_of_the_start() -> None:
    batch = items(torch.rand(40, 3, generator=torch.Generator().manual_seed(2)) > 0.3)
    made = encoder()
    made.calibrate(batch)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):  # what stands before a zero layer learns from the second step on
        optimizer.zero_grad()
        (made(batch).fused_nD * torch.randn(40, 24)).sum().backward()
        optimizer.step()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("same", [True, False])
def test_items_that_are_all_alike_leave_the_weights_as_drawn(same: bool) -> None:
    batch = items(torch.ones(1 if same else 2, 3, dtype=torch.bool))
    if not same:
        for entry in batch.inputs.values():
            entry["features"][1] = entry["features"][0]
    made, drawn = encoder(), encoder()
    made.calibrate(batch)
    for name in WIDTHS:
        assert torch.equal(made.adapters[name].linear.weight, drawn.adapters[name].linear.weight)
    assert made(batch).fused_nD.isfinite().all()
