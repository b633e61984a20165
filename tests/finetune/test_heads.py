"""Duties that every head shares, and each against its paper's equation written slowly."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.batches import Batch
from finetune.fields import FieldEmbedding
from finetune.heads import HEADS, Head, HeadInputs, InputLayout, initialise
from finetune.heads.base import Dice, deep_part
from finetune.heads.fm import all_pairs
from finetune.metrics import auc
from finetune.settings import HeadConfig, HeadName

B, FIELDS, E, L, H = 18, 3, 4, 5, 6
WITH_HISTORY = [name for name, head in HEADS.items() if head.uses_history]
WITH_ORDER = ["dien", "bst"]
WITHOUT_DEEP_PART = ["lr", "fm"]

# Every head as it comes, and those that an option makes another network.
VARIANTS = [
    *((name, {}) for name in HEADS),
    ("pnn", {"product_type": "outer"}),
    ("dcnv2", {"low_rank": 2, "num_experts": 3}),
    ("xdeepfm", {"hidden": ()}),
    ("autoint", {"hidden": ()}),
    ("finalmlp", {"second_hidden": (6, 4)}),
    ("bst", {"transformer_layers": 2}),
]
every_head = pytest.mark.parametrize(("name", "changes"), VARIANTS)


def build(name: str, **changes: object) -> Head:
    torch.manual_seed(0)
    small = {"hidden": (8,), "attention_hidden": (8,), "cin_hidden": (3, 2), "gate_hidden": (5,)}
    settings = small | {"attention_width": 3, "dropout": 0.0} | changes
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


def random_inputs(seed: int = 0) -> HeadInputs:
    """Histories of every length, none included."""
    torch.manual_seed(seed)
    mask_BL = torch.arange(L) < (torch.arange(B) % (L + 1))[:, None]
    tensors = [torch.randn(B, FIELDS, E), torch.randn(B), torch.randn(B, H)]
    tensors.append(torch.randn(B, L, H))
    return HeadInputs(*(one.requires_grad_() for one in tensors), mask_BL)


def rows_of(inputs: HeadInputs, rows: slice) -> HeadInputs:
    return HeadInputs(*(getattr(inputs, one.name)[rows] for one in dataclasses.fields(inputs)))


def in_double(inputs: HeadInputs) -> HeadInputs:
    tensors = (getattr(inputs, one.name) for one in dataclasses.fields(inputs))
    return HeadInputs(*(one.double() if one.is_floating_point() else one for one in tensors))


def history_of(inputs: HeadInputs, b: int) -> list[Tensor]:
    return [
        item
        for item, there in zip(inputs.history_BLH[b], inputs.history_mask_BL[b], strict=True)
        if there
    ]


def test_every_name_of_the_settings_has_a_head() -> None:
    assert set(HEADS) == set(get_args(HeadName))


@every_head
def test_a_head_gives_one_logit_an_impression(name: str, changes: dict) -> None:
    assert build(name, **changes)(random_inputs()).shape == (B,)


@every_head
def test_all_that_a_head_reads_gets_a_gradient_and_padding_none(name: str, changes: dict) -> None:
    head, inputs = build(name, **changes), random_inputs()
    head(inputs).sin().sum().backward()  # under a plain sum, some gradients cancel
    read = {
        "fields_BFE": head.uses_fields,
        "first_order_B": head.uses_first_order,
        "target_BH": head.uses_history,
        "history_BLH": head.uses_history,
    }
    for key, is_read in read.items():
        gradient = getattr(inputs, key).grad
        assert (gradient is not None) == is_read, key
        assert gradient is None or gradient.isfinite().all(), key
    if head.uses_fields:
        assert (inputs.fields_BFE.grad != 0).any(2).all()
    if head.uses_history:
        reached_BL = (inputs.history_BLH.grad != 0).any(2)
        assert torch.equal(reached_BL, inputs.history_mask_BL)
        assert inputs.target_BH.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in head.parameters())


@every_head
def test_a_saved_head_gives_the_same_logits(name: str, changes: dict, tmp_path: Path) -> None:
    changes = changes | {"batch_norm": True}
    head, other = build(name, **changes), build(name, **changes)
    head(random_inputs(1))  # moves the statistics of batch normalisation
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    inputs = random_inputs()
    torch.testing.assert_close(other.eval()(inputs), head.eval()(inputs))


@every_head
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_logit_does_not_depend_on_the_other_rows(
    name: str, changes: dict, batch_norm: bool
) -> None:
    head, inputs = build(name, **changes, batch_norm=batch_norm).eval(), random_inputs()
    with torch.inference_mode():  # as in prediction, where torch takes other kernels
        alone = torch.cat([head(rows_of(inputs, slice(b, b + 1))) for b in range(B)])
    torch.testing.assert_close(alone, head(inputs))


@every_head
def test_padding_is_not_read(name: str, changes: dict) -> None:
    head, inputs = build(name, **changes).eval(), random_inputs()
    there_BL1 = inputs.history_mask_BL[..., None]
    filled = dataclasses.replace(inputs, history_BLH=inputs.history_BLH.where(there_BL1, 9.0))
    torch.testing.assert_close(head(filled), head(inputs))


@every_head
def test_the_order_of_the_history_matters_where_it_should(name: str, changes: dict) -> None:
    head, inputs = build(name, **changes).eval().double(), in_double(random_inputs())
    reversed_BLH = inputs.history_BLH.clone()
    for b in range(B):
        items = history_of(inputs, b)
        if items:
            reversed_BLH[b, : len(items)] = torch.stack(items[::-1])
    change_B = (head(dataclasses.replace(inputs, history_BLH=reversed_BLH)) - head(inputs)).abs()
    several_B = inputs.history_mask_BL.sum(1) > 1
    assert change_B[~several_B].max() < 1e-12
    if name in WITH_ORDER:
        assert change_B[several_B].min() > 1e-9
    else:
        assert change_B.max() < 1e-12


@pytest.mark.parametrize("name", HEADS)
def test_a_head_ignores_the_options_of_others(name: str) -> None:
    head = build(
        name,
        hidden=(6, 4),
        dropout=0.5,
        batch_norm=True,
        product_type="outer",
        cross_layers=1,
        low_rank=3,
        num_experts=1,
        cin_hidden=(5,),
        second_hidden=(4,),
        gate_hidden=(),
        attention_layers=1,
        attention_width=5,
        num_heads=1,
        attention_hidden=(),
        transformer_layers=3,
    )
    assert head(random_inputs()).isfinite().all()
    normalises = any(isinstance(one, nn.BatchNorm1d) and one.affine for one in head.modules())
    assert normalises == (name not in WITHOUT_DEEP_PART)


# Learning: through the embedding of fields, since LR and FM have no weights of their own.

VALUES, PLACES, TRAINED, HELD_OUT = 6, 4, 1024, 512


def random_impressions() -> Batch:
    """Fields user, item and context, and a full history, whose length says nothing."""
    torch.manual_seed(1)
    rows = TRAINED + HELD_OUT
    value_BF = torch.randint(VALUES, (rows, 3))
    return Batch(
        ids_BF=value_BF + VALUES * torch.arange(3),
        numeric_BK=torch.zeros(rows, 0),
        multi=[],
        item_B=value_BF[:, 1],
        history_BL=torch.randint(VALUES, (rows, PLACES)),
        label_B=torch.zeros(rows),
        user_vector_BW=None,
    )


def part_of(batch: Batch, rows: slice) -> Batch:
    values = vars(batch).items()
    return Batch(**{k: v[rows] if isinstance(v, Tensor) else v for k, v in values})


def held_out_auc(name: str, rule: Callable[[Batch], Tensor], *, steps: int = 60) -> float:
    batch = random_impressions()
    label_B = rule(batch).float()
    torch.manual_seed(0)
    head_type = HEADS[name]
    width = 8 if head_type.uses_fields else 0
    fields = FieldEmbedding(
        num_rows=3 * VALUES + 1,
        num_ids=3,
        num_multi=0,
        num_numeric=0,
        width=width,
        id_columns=[(0, 0), (1, VALUES)],
        item_id_rows_I=torch.cat([VALUES + torch.arange(VALUES), torch.tensor([3 * VALUES])]),
        content=None,
        first_order=head_type.uses_first_order,
        pool_history=not head_type.uses_history,
    )
    layout = InputLayout(
        num_fields=fields.num_fields,
        field_width=width,
        history_width=width,
        history_length=PLACES,
        user_field=0,
        item_field=1,
    )
    config = HeadConfig(name=name, embedding_width=8, hidden=(32,), dropout=0.0)
    head = head_type(config, layout)
    trained, held_out = part_of(batch, slice(TRAINED)), part_of(batch, slice(TRAINED, None))
    optimizer = torch.optim.Adam([*fields.parameters(), *head.parameters()], lr=0.02)
    for _ in range(steps):
        logit_B = head(fields(trained)[0])
        loss = F.binary_cross_entropy_with_logits(logit_B, label_B[:TRAINED])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        score_B = head.eval()(fields(held_out)[0])
    return auc(label_B[TRAINED:].numpy(), score_B.numpy())


def weighted_sum(batch: Batch) -> Tensor:
    weight_V = torch.randn(3 * VALUES, generator=torch.Generator().manual_seed(0))
    return weight_V[batch.ids_BF].sum(1) > 0


def even_sum(batch: Batch) -> Tensor:
    """Of user and item: neither says anything without the other."""
    return (batch.ids_BF[:, 0] + batch.ids_BF[:, 1]) % 2 == 0


def target_in_history(batch: Batch) -> Tensor:
    return (batch.history_BL == batch.item_B[:, None]).any(1)


def test_lr_learns_a_linear_rule_and_no_interaction() -> None:
    assert held_out_auc("lr", weighted_sum) > 0.95
    assert held_out_auc("lr", even_sum) < 0.6


@pytest.mark.parametrize("name", [name for name in HEADS if name != "lr"])
def test_a_head_learns_an_interaction_of_two_fields(name: str) -> None:
    assert held_out_auc(name, even_sum) > 0.9


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_a_head_with_history_learns_that_the_target_is_in_it(name: str) -> None:
    assert held_out_auc(name, target_in_history, steps=120) > 0.8


# Each head against its paper.


def sum_of_pairs(fields_FE: Tensor) -> Tensor:
    return sum(
        (fields_FE[i] * fields_FE[j]).sum() for i in range(FIELDS) for j in range(i + 1, FIELDS)
    )


def relu_layer(head: Head, x: Tensor) -> Tensor:
    """The only layer of these heads' deep part."""
    return torch.relu(head.deep[0].weight @ x + head.deep[0].bias)


def output(head: Head, x: Tensor) -> Tensor:
    return head.out.weight[0] @ x + head.out.bias[0]


def assert_logits(head: Head, inputs: HeadInputs, by_hand: Callable[[int], Tensor]) -> None:
    expected = torch.stack([by_hand(b) for b in range(B)])
    torch.testing.assert_close(head(inputs), expected, atol=1e-4, rtol=1e-4)


def test_lr_is_the_linear_part() -> None:
    inputs = random_inputs()
    assert torch.equal(build("lr")(inputs), inputs.first_order_B)


def test_fm_is_first_order_plus_all_pairs() -> None:
    head, inputs = build("fm"), random_inputs()
    assert_logits(
        head, inputs, lambda b: inputs.first_order_B[b] + sum_of_pairs(inputs.fields_BFE[b])
    )


def test_deepfm_is_first_order_plus_all_pairs_plus_deep() -> None:
    head, inputs = build("deepfm"), random_inputs()

    def by_hand(b: int) -> Tensor:
        fields = inputs.fields_BFE[b]
        deep = output(head, relu_layer(head, fields.flatten()))
        return inputs.first_order_B[b] + sum_of_pairs(fields) + deep

    assert_logits(head, inputs, by_hand)


def test_pnn_sees_every_inner_product() -> None:
    head, inputs = build("pnn"), random_inputs()

    def by_hand(b: int) -> Tensor:
        fields = inputs.fields_BFE[b]
        products = [(fields[i] * fields[j]).sum() for i in range(FIELDS) for j in range(i, FIELDS)]
        return output(head, relu_layer(head, torch.cat([fields.flatten(), torch.stack(products)])))

    assert_logits(head, inputs, by_hand)


def test_pnn_sees_the_sum_of_all_outer_products() -> None:
    head, inputs = build("pnn", product_type="outer"), random_inputs()

    def by_hand(b: int) -> Tensor:
        fields = inputs.fields_BFE[b]
        product = torch.zeros(E, E)
        for i in range(FIELDS):
            for j in range(FIELDS):
                product = product + torch.outer(fields[i], fields[j])
        upper = torch.stack([product[i, j] for i in range(E) for j in range(i, E)])
        return output(head, relu_layer(head, torch.cat([fields.flatten(), upper])))

    assert_logits(head, inputs, by_hand)


def test_dcnv2_crosses_as_in_equation_1() -> None:
    head, inputs = build("dcnv2"), random_inputs()

    def by_hand(b: int) -> Tensor:
        x0 = inputs.fields_BFE[b].flatten()
        x = x0
        for layer in head.cross:
            crossed = layer.weight @ x + layer.bias
            x = torch.stack([x0[i] * crossed[i] + x[i] for i in range(len(x0))])
        return output(head, torch.cat([x, relu_layer(head, x0)]))

    assert_logits(head, inputs, by_hand)


def test_dcnv2_mixes_low_rank_experts_as_in_equations_3_and_4() -> None:
    experts, rank = 3, 2
    head = build("dcnv2", low_rank=rank, num_experts=experts)
    inputs = random_inputs()

    def by_hand(b: int) -> Tensor:
        x0 = inputs.fields_BFE[b].flatten()
        x = x0
        for layer in head.cross:
            gate = (layer.gate.weight @ x + layer.gate.bias).exp()
            gate = gate / gate.sum()
            mixed = torch.zeros_like(x)
            for i in range(experts):
                rows = slice(i * rank, (i + 1) * rank)
                low = torch.tanh(layer.down.weight[rows] @ x)
                low = torch.tanh(layer.inner_KRR[i].T @ low)
                mixed = mixed + gate[i] * x0 * (layer.up.weight[:, rows] @ low + layer.up.bias)
            x = mixed + x
        return output(head, torch.cat([x, relu_layer(head, x0)]))

    assert_logits(head, inputs, by_hand)


def test_xdeepfm_compresses_interactions_as_in_equation_6() -> None:
    head, inputs = build("xdeepfm"), random_inputs()

    def by_hand(b: int) -> Tensor:
        x0 = inputs.fields_BFE[b]
        x, pooled = x0, []
        for layer in head.cin.layers:
            maps = []
            for weight in layer.weight:
                one = torch.zeros(E)
                for i in range(len(x)):
                    for j in range(FIELDS):
                        one = one + weight[i * FIELDS + j] * x[i] * x0[j]
                maps.append(one)
            x = torch.stack(maps)
            pooled += [one.sum() for one in maps]
        deep = relu_layer(head, x0.flatten())
        return inputs.first_order_B[b] + output(head, torch.cat([torch.stack(pooled), deep]))

    assert_logits(head, inputs, by_hand)


def test_finalmlp_gates_two_streams_and_fuses_them_head_by_head() -> None:
    heads = 2
    head, inputs = build("finalmlp", second_hidden=(6,), num_heads=heads), random_inputs()

    def stream(gate: nn.Module, layer: nn.Linear, *, seen: Tensor, x: Tensor) -> Tensor:
        weight = 2 * torch.sigmoid(gate.net[2](torch.relu(gate.net[0](seen))))
        return torch.relu(layer(weight * x))

    def by_hand(b: int) -> Tensor:
        user, item, _ = inputs.fields_BFE[b]
        x = inputs.fields_BFE[b].flatten()
        first = stream(head.first_gate, head.first[0], seen=user, x=x)
        second = stream(head.second_gate, head.second[0], seen=item, x=x)
        total = head.fusion.linear.weight[0] @ torch.cat([first, second])
        total = total + head.fusion.linear.bias[0]
        slices = zip(first.chunk(heads), second.chunk(heads), strict=True)
        for k, (one, other) in enumerate(slices):
            total = total + one @ head.fusion.product_KIJ[k] @ other
        return total

    assert_logits(head, inputs, by_hand)


def test_autoint_attends_as_in_equations_5_to_8() -> None:
    heads, width = 2, 3
    head, inputs = build("autoint", num_heads=heads, attention_width=width), random_inputs()

    def by_hand(b: int) -> Tensor:
        fields = list(inputs.fields_BFE[b])
        for layer in head.attention:
            new = []
            for m in range(FIELDS):
                parts = []
                for h in range(heads):
                    rows = slice(h * width, (h + 1) * width)
                    query = layer.query.weight[rows] @ fields[m]
                    keys = [layer.key.weight[rows] @ one for one in fields]
                    score = torch.stack([(query * key).sum() for key in keys]).exp()
                    values = [layer.value.weight[rows] @ one for one in fields]
                    weighted = zip(score / score.sum(), values, strict=True)
                    parts.append(sum(weight * value for weight, value in weighted))
                new.append(torch.relu(torch.cat(parts) + layer.residual.weight @ fields[m]))
            fields = new
        deep = relu_layer(head, inputs.fields_BFE[b].flatten())
        return output(head, torch.cat([*fields, deep]))

    assert_logits(head, inputs, by_hand)


def test_din_weighs_each_history_item_by_the_target() -> None:
    head, inputs = build("din"), random_inputs()
    pooled = []
    for b in range(B):
        total, target = torch.zeros(H), inputs.target_BH[b]
        for item in history_of(inputs, b):
            pair = torch.cat([item, target, item - target, item * target])
            total = total + head.attention.net(pair) * item
        pooled.append(total)
    x = torch.cat([inputs.fields_BFE.flatten(1), torch.stack(pooled)], dim=1)
    torch.testing.assert_close(head(inputs), head.out(head.deep(x)).squeeze(1))


def test_dien_evolves_interests_as_in_equations_2_to_12() -> None:
    head, inputs = build("dien"), random_inputs()
    gru, evolution = head.extraction, head.evolution
    states = []
    for b in range(B):
        state, interests = torch.zeros(H), []
        for item in history_of(inputs, b):
            of_item = (gru.weight_ih_l0 @ item + gru.bias_ih_l0).chunk(3)
            of_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).chunk(3)
            reset = torch.sigmoid(of_item[0] + of_state[0])
            update = 1 - torch.sigmoid(of_item[1] + of_state[1])  # torch's gate keeps the state
            candidate = torch.tanh(of_item[2] + reset * of_state[2])
            state = (1 - update) * state + update * candidate
            interests.append(state)
        scores = [one @ head.attention.weight @ inputs.target_BH[b] for one in interests]
        total = sum(score.exp() for score in scores)
        state = torch.zeros(H)
        for interest, score in zip(interests, scores, strict=True):
            of_input = (evolution.of_input.weight @ interest + evolution.of_input.bias).chunk(3)
            of_state = (evolution.of_state.weight @ state).chunk(3)
            update = score.exp() / total * torch.sigmoid(of_input[0] + of_state[0])
            reset = torch.sigmoid(of_input[1] + of_state[1])
            candidate = torch.tanh(of_input[2] + reset * of_state[2])
            state = (1 - update) * state + update * candidate
        states.append(state)
    x = torch.cat([inputs.fields_BFE.flatten(1), torch.stack(states)], dim=1)
    torch.testing.assert_close(head(inputs), head.out(head.deep(x)).squeeze(1))


def attend_by_hand(attention: nn.MultiheadAttention, tokens: list[Tensor]) -> list[Tensor]:
    """Scaled dot-product attention of every token to all of them."""
    query, key, value = (
        [weight @ token + bias for token in tokens]
        for weight, bias in zip(
            attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    )
    width = len(tokens[0]) // attention.num_heads
    out = []
    for one in query:
        parts = []
        for h in range(attention.num_heads):
            part = slice(h * width, (h + 1) * width)
            score = torch.stack([(one[part] * k[part]).sum() / width**0.5 for k in key]).exp()
            weighted = zip(score / score.sum(), value, strict=True)
            parts.append(sum(weight * v[part] for weight, v in weighted))
        out.append(attention.out_proj(torch.cat(parts)))
    return out


@pytest.mark.parametrize("num_layers", [1, 2])
def test_bst_transforms_history_and_target_as_in_equations_1_to_6(num_layers: int) -> None:
    head, inputs = build("bst", transformer_layers=num_layers), random_inputs()

    def by_hand(b: int) -> Tensor:
        items = [*history_of(inputs, b), inputs.target_BH[b]]
        ranks = range(len(items) - 1, -1, -1)
        tokens = [
            torch.cat([item, head.position.weight[rank]])
            for item, rank in zip(items, ranks, strict=True)
        ]
        for layer in head.layers:
            attended = attend_by_hand(layer.attention, tokens)
            tokens = [layer.norms[0](s + a) for s, a in zip(tokens, attended, strict=True)]
            inner, _, outer = layer.feed_forward
            tokens = [layer.norms[1](s + outer(F.leaky_relu(inner(s), 0.01))) for s in tokens]
        x = torch.cat([inputs.fields_BFE[b].flatten(), tokens[-1]])
        return output(head, F.leaky_relu(head.deep[0](x), 0.01))

    assert_logits(head, inputs, by_hand)


def test_dice_is_prelu_with_a_gate_that_follows_the_batch() -> None:
    dice, s = Dice(2), torch.randn(64, 2) * 3 + 1
    with torch.no_grad():
        dice.alpha += 0.3
    gate = torch.sigmoid((s - s.mean(0)) / s.std(0, correction=0))
    torch.testing.assert_close(dice(s), gate * s + (1 - gate) * 0.3 * s)


def test_linear_layers_start_at_glorots_scale() -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.PReLU())
    initialise(head)
    linear = head[0]
    assert linear.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert (linear.bias == 0).all()
    assert head[1].weight.item() == 0.25  # what is no linear layer stays


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_deep_part_in_onednn_gives_the_values_and_gradients_of_plain_layers(
    batch_norm: bool, dropout: float
) -> None:
    config = HeadConfig(name="deepfm", dropout=dropout, batch_norm=batch_norm)
    x_BX = torch.randn(40, 6)
    found = []
    for plain in (False, True):
        torch.manual_seed(0)
        deep = deep_part(6, (8, 5), config=config)
        x = x_BX.clone().requires_grad_()
        torch.manual_seed(1)  # of dropout
        out = nn.Sequential.forward(deep, x) if plain else deep(x)
        out.sin().sum().backward()
        found.append([out, x.grad, *(weight.grad for weight in deep.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_sum_of_all_pairs_has_the_gradient_that_differences_give() -> None:
    fields = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(all_pairs, fields)


@pytest.mark.parametrize("pool_history", [True, False])
def test_a_dropped_item_is_unknown_as_the_target_of_attention_too(pool_history: bool) -> None:
    fields = FieldEmbedding(
        num_rows=3 * VALUES + 1, num_ids=3, num_multi=0, num_numeric=0, width=8,
        id_columns=[(0, 0), (1, VALUES)],
        item_id_rows_I=torch.cat([VALUES + torch.arange(VALUES), torch.tensor([3 * VALUES])]),
        content=None, first_order=False, pool_history=pool_history,
    )  # fmt: skip
    batch = random_impressions()
    ids_BF = batch.ids_BF.clone()
    ids_BF[:, 1] = VALUES
    inputs = fields(dataclasses.replace(batch, ids_BF=ids_BF))[0]
    assert torch.equal(inputs.target_BH, inputs.fields_BFE[:, 1])
