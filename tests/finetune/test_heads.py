"""Duties that every head shares, and each against its paper's equation written slowly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from finetune.heads import DIN, HEADS, DCNv2, DeepFM, Head, HeadInputs, InputLayout
from finetune.heads.base import Dice
from finetune.settings import HeadConfig

B, FIELDS, E, L, H = 16, 3, 4, 5, 6
BuildHead = Callable[..., Head]


def build(name: str, **changes: object) -> Head:
    torch.manual_seed(0)
    settings = {"hidden": (8,), "attention_hidden": (8,), "dropout": 0.0} | changes
    config = HeadConfig(name=name, embedding_width=E, **settings)
    layout = InputLayout(
        num_fields=FIELDS,
        field_width=E,
        history_width=H,
        history_length=L,
        user_field=0,
        item_field=1,
    )
    return HEADS[name](config, layout)


def random_inputs(rows: int = B, *, seed: int = 0) -> HeadInputs:
    torch.manual_seed(seed)
    mask_BL = torch.arange(L) < torch.randint(0, L + 1, (rows, 1))
    tensors = [torch.randn(rows, FIELDS, E), torch.randn(rows), torch.randn(rows, H)]
    tensors.append(torch.randn(rows, L, H))
    return HeadInputs(*(one.requires_grad_() for one in tensors), mask_BL)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_one_logit_an_impression(name: str) -> None:
    assert build(name)(random_inputs()).shape == (B,)


@pytest.mark.parametrize("name", HEADS)
def test_every_input_that_a_head_reads_and_every_weight_gets_a_gradient(name: str) -> None:
    head, inputs = build(name), random_inputs()
    head(inputs).sum().backward()
    assert inputs.fields_BFE.grad.abs().sum() > 0
    assert (inputs.first_order_B.grad is not None) == head.uses_first_order
    assert (inputs.target_BH.grad is not None) == head.uses_history
    assert (inputs.history_BLH.grad is not None) == head.uses_history
    assert all(weight.grad is not None for weight in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    head, other = build(name), build(name)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    inputs = random_inputs()
    torch.testing.assert_close(other.eval()(inputs), head.eval()(inputs))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_whether_two_fields_agree(name: str) -> None:
    inputs = random_inputs(512)
    label_B = ((inputs.fields_BFE[:, 0] * inputs.fields_BFE[:, 1]).sum(1) > 0).float()
    head = build(name, hidden=(32,))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(150):
        loss = F.binary_cross_entropy_with_logits(head(inputs), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((head.eval()(inputs) > 0) == (label_B > 0)).float().mean() > 0.85


def test_deepfm_is_first_order_plus_all_pairs_plus_deep() -> None:
    head, inputs = build("deepfm"), random_inputs()
    assert isinstance(head, DeepFM)
    for b in range(B):
        fields = inputs.fields_BFE[b]
        pairs = sum(
            (fields[i] * fields[j]).sum() for i in range(FIELDS) for j in range(i + 1, FIELDS)
        )
        deep = head.out(torch.relu(head.deep[0](fields.flatten()))).squeeze()
        expected = inputs.first_order_B[b] + pairs + deep
        torch.testing.assert_close(head(inputs)[b], expected, atol=1e-4, rtol=1e-4)


def test_dcnv2_crosses_as_in_equation_1() -> None:
    head, inputs = build("dcnv2"), random_inputs()
    assert isinstance(head, DCNv2)
    for b in range(B):
        x0 = inputs.fields_BFE[b].flatten()
        x = x0
        for layer in head.cross:
            crossed = layer.weight @ x + layer.bias
            x = torch.stack([x0[i] * crossed[i] + x[i] for i in range(len(x0))])
        both = torch.cat([x, torch.relu(head.deep[0](x0))])
        torch.testing.assert_close(head(inputs)[b], head.out(both).squeeze())


def test_din_weighs_each_history_item_by_the_target() -> None:
    head, inputs = build("din"), random_inputs()
    assert isinstance(head, DIN)
    pooled = []
    for b in range(B):
        total = torch.zeros(H)
        for item, there in zip(inputs.history_BLH[b], inputs.history_mask_BL[b], strict=True):
            target = inputs.target_BH[b]
            pair = torch.cat([item, target, item - target, item * target])
            total = total + head.attention.net(pair) * item * there
        pooled.append(total)
    x = torch.cat([inputs.fields_BFE.flatten(1), torch.stack(pooled)], dim=1)
    torch.testing.assert_close(head(inputs), head.out(head.deep(x)).squeeze(1))


def test_din_does_not_read_padding() -> None:
    head, inputs = build("din").eval(), random_inputs()
    filled = torch.where(inputs.history_mask_BL[..., None], inputs.history_BLH, torch.full((), 9.0))
    changed = HeadInputs(
        inputs.fields_BFE, inputs.first_order_B, inputs.target_BH, filled, inputs.history_mask_BL
    )
    torch.testing.assert_close(head(changed), head(inputs))


def test_dice_is_prelu_with_a_gate_that_follows_the_batch() -> None:
    dice, s = Dice(2), torch.randn(64, 2) * 3 + 1
    with torch.no_grad():
        dice.alpha += 0.3
    gate = torch.sigmoid((s - s.mean(0)) / s.std(0, correction=0))
    torch.testing.assert_close(dice(s), gate * s + (1 - gate) * 0.3 * s)
