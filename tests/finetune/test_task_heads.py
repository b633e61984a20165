"""Duties that heads of several labels share, and each against its paper's equation."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.heads import TASK_HEADS, HeadInputs, InputLayout, TaskHead
from finetune.settings import HeadConfig, TaskHeadName

B, FIELDS, E, L, H = 12, 3, 4, 5, 4
OUTPUTS = {"two_arms": [1], "esmm": [1, 1]}
VARIANTS = [
    *((name, {}) for name in TASK_HEADS),
    ("ple", {"extraction_layers": 3}),
    ("shared_bottom", {"tower_hidden": ()}),
    ("mmoe", {"tower_hidden": (), "hidden": (6, 3)}),
]
every_head = pytest.mark.parametrize(("name", "changes"), VARIANTS)


def outputs_of(name: str) -> list[int]:
    """A click, a number and a lifetime value, where the head takes any tasks."""
    return OUTPUTS.get(name, [1, 1, 3])


def build(name: str, **changes: object) -> TaskHead:
    torch.manual_seed(0)
    settings = {"hidden": (8,), "tower_hidden": (5,), "dropout": 0.0, "num_experts": 3} | changes
    config = HeadConfig(name=name, embedding_width=E, **settings)
    layout = InputLayout(
        num_fields=FIELDS,
        field_width=E,
        history_width=H,
        history_length=L,
        user_field=0,
        item_field=1,
    )
    return TASK_HEADS[name](config, layout, num_outputs=outputs_of(name))


def random_inputs(seed: int = 0) -> HeadInputs:
    torch.manual_seed(seed)
    fields_BFE = torch.randn(B, FIELDS, E, requires_grad=True)
    return HeadInputs(
        fields_BFE, torch.zeros(B), torch.zeros(B, H), torch.zeros(B, L, H), torch.zeros(B, L) > 0
    )


def test_every_name_of_the_settings_has_a_head() -> None:
    assert set(TASK_HEADS) == set(get_args(TaskHeadName))


@every_head
def test_outputs_stand_side_by_side(name: str, changes: dict) -> None:
    width = 2 if name == "two_arms" else sum(outputs_of(name))
    assert build(name, **changes)(random_inputs()).shape == (B, width)


@every_head
def test_every_weight_and_every_field_gets_a_gradient(name: str, changes: dict) -> None:
    head, inputs = build(name, **changes), random_inputs()
    head(inputs).sin().sum().backward()
    assert (inputs.fields_BFE.grad != 0).any(2).all()
    assert all(weight.grad is not None for weight in head.parameters())


@every_head
def test_an_output_does_not_depend_on_the_other_rows(name: str, changes: dict) -> None:
    head, inputs = build(name, **changes).eval(), random_inputs()
    alone = [
        head(dataclasses.replace(inputs, fields_BFE=inputs.fields_BFE[b : b + 1])) for b in range(B)
    ]
    torch.testing.assert_close(torch.cat(alone), head(inputs))


@every_head
def test_a_saved_head_gives_the_same_outputs(name: str, changes: dict, tmp_path: Path) -> None:
    head, other = build(name, **changes), build(name, **changes)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    torch.testing.assert_close(other(random_inputs()), head(random_inputs()))


def layer(expert: torch.nn.Sequential, x: Tensor) -> Tensor:
    """The only layer of an expert."""
    return torch.relu(expert[0].weight @ x + expert[0].bias)


def tower(head: TaskHead, k: int, x: Tensor) -> Tensor:
    *_, out = head.towers.towers[k]
    return out.weight @ layer(head.towers.towers[k], x) + out.bias


def assert_outputs(head: TaskHead, by_hand) -> None:  # noqa: ANN001
    inputs = random_inputs()
    expected = torch.stack([by_hand(inputs.fields_BFE[b].flatten()) for b in range(B)])
    torch.testing.assert_close(head(inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_shared_bottom_is_read_by_every_tower() -> None:
    head = build("shared_bottom")
    assert_outputs(
        head, lambda x: torch.cat([tower(head, k, layer(head.bottom, x)) for k in range(3)])
    )


def test_mmoe_mixes_experts_by_a_gate_a_task() -> None:
    head = build("mmoe")

    def by_hand(x: Tensor) -> Tensor:
        outs = []
        for k in range(3):
            weight = F.softmax(head.gates[k].weight @ x, 0)
            mixed = sum(weight[i] * layer(head.experts[i], x) for i in range(3))
            outs.append(tower(head, k, mixed))
        return torch.cat(outs)

    assert_outputs(head, by_hand)


def test_ple_gates_see_own_and_shared_experts_layer_by_layer() -> None:
    head = build("ple", extraction_layers=2, task_experts=2)

    def by_hand(x: Tensor) -> Tensor:
        tasks, shared = [x, x, x], x
        for extraction in head.layers:
            common = [layer(one, shared) for one in extraction.shared]
            own = [[layer(one, tasks[k]) for one in extraction.own[k]] for k in range(3)]
            new = []
            for k in range(3):
                weight = F.softmax(extraction.gates[k].weight @ tasks[k], 0)
                seen = own[k] + common
                assert len(weight) == len(seen) == 5
                new.append(sum(w * one for w, one in zip(weight, seen, strict=True)))
            if extraction.shared_gate is not None:
                weight = F.softmax(extraction.shared_gate.weight @ shared, 0)
                every = [one for group in own for one in group] + common
                shared = sum(w * one for w, one in zip(weight, every, strict=True))
            tasks = new
        assert head.layers[1].shared_gate is None
        return torch.cat([tower(head, k, tasks[k]) for k in range(3)])

    assert_outputs(head, by_hand)


def test_a_ple_expert_of_one_task_moves_that_task_alone() -> None:
    head, inputs = build("ple"), random_inputs()
    before = head(inputs).detach()
    with torch.no_grad():
        for expert in head.layers[0].own[1]:
            expert[0].bias += 1
    moved = (head(inputs) != before).any(0)
    assert moved.tolist() == [False, True, False, False, False]


def test_esmm_multiplies_the_chances_of_click_and_conversion() -> None:
    head, inputs = build("esmm"), random_inputs()
    x = inputs.fields_BFE.flatten(1)
    click, after = head.towers([x, x]).sigmoid().unbind(1)
    found = head(inputs).sigmoid()
    torch.testing.assert_close(found, torch.stack([click, click * after], dim=1))


@pytest.mark.parametrize(
    ("name", "outputs"), [("esmm", [1]), ("two_arms", [1, 1]), ("esmm", [1, 3])]
)
def test_a_head_of_fixed_tasks_refuses_others(name: str, outputs: list[int]) -> None:
    head = build(name)
    layout = InputLayout(
        num_fields=2, field_width=E, history_width=H, history_length=L, user_field=0, item_field=1
    )
    with pytest.raises(ValueError, match=rf"head.name: found {name} with"):
        type(head)(HeadConfig(name=name), layout, num_outputs=outputs)


FIRST = {"two_arms": [[-1.5]], "esmm": [[-1.0], [-3.0]]}


@every_head
def test_a_head_begins_where_it_is_told(name: str, changes: dict) -> None:
    head = build(name, **changes)
    outputs = FIRST.get(name, [[-2.0], [0.0], [1.0, 2.0, 3.0]])
    head.begin_at(outputs)
    with torch.no_grad():
        for layer in head.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
    expected = torch.tensor([one for values in outputs for one in values])
    if name == "two_arms":
        expected = expected.repeat(2)
    torch.testing.assert_close(head(random_inputs()), expected.expand(B, -1))
