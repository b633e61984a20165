"""The whole objective of a tiny batch against a sum by hand, one query and one item at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.batch import Batch, ItemBatch
from pretrain.known_vectors import KnownVectors
from pretrain.loss_state import LossState
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.objective import LossConfig, objective
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig

WIDTHS = {"image": 3, "text": 2}
ROWS = [2, 3, 5, 8, 11, 12, 14]
HISTORY = [[0, 1, 2], [4, 2, -1], [6, -1, -1], [-1, -1, -1]]
TARGETS = [[3, -1], [0, 5], [1, -1], [6, 4]]
STATES = [[3, 0], [2, 1], [0, 0], [0, 0]]
PAIRS = [[0, 3], [3, 1], [5, 0]]
GROUPS = [0, 1, 2, 3, 4, 3, 6]
IMAGES = [0, 0, 2, 3, 4, 3, 6]
TEXTS = [0, 1, 2, 3, 4, 3, 6]
"""Items 3 and 5 are the same, items 0 and 1 have one picture."""
CHOSEN = torch.arange(1.0, 17) / torch.arange(1.0, 17).sum()
PAIRED = CHOSEN.flip(0)
"""How likely each item of the catalogue is a user's target, and a pair's."""
STEP = 2
SCALES = {"user": 4.0, "pair": 5.0, "behaviour": 6.0, "target": 7.0}
ID_VECTORS = KnownVectors(
    F.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), dim=-1),
    torch.where(torch.arange(16) == 5, -1, torch.arange(16)),
)
"""Of all but item 2, whose row is 5."""


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    n = len(ROWS)
    return Batch(
        items=ItemBatch(
            rows_n=torch.tensor(ROWS),
            inputs={
                name: {"features": torch.randn(n, width, generator=generator)}
                for name, width in WIDTHS.items()
            },
            presence={name: torch.ones(n, dtype=torch.bool) for name in WIDTHS},
        ),
        history_BL=torch.tensor(HISTORY),
        times_BL=torch.arange(12).view(4, 3) * 3_600_000,
        targets_BT=torch.tensor(TARGETS),
        states_BT=torch.tensor(STATES),
        groups_n=torch.tensor(GROUPS),
        modality_groups_n={"image": torch.tensor(IMAGES), "text": torch.tensor(TEXTS)},
        pairs_K2=torch.tensor(PAIRS),
    )


def make_model() -> TwoSpaceModel:
    torch.manual_seed(0)
    config = ModelConfig(
        towers={name: TowerConfig(library="given") for name in WIDTHS},
        width=8,
        dropout=0.0,
        user=UserEncoderConfig(layers=1, heads=2, dropout=0.0, history_length=3),
        ids="both",
        id_dropout=0.0,
    )
    model = TwoSpaceModel(config, backbones={}, feature_widths=WIDTHS, num_items=16)
    assert model.ids is not None
    nn.init.normal_(model.ids.weight, std=0.3)
    nn.init.constant_(model.temperature.log_scale, math.log(SCALES["user"]))
    nn.init.constant_(model.pair_temperature.log_scale, math.log(SCALES["pair"]))
    return model


def make_state(config: LossConfig) -> LossState:
    torch.manual_seed(1)
    state = config.state(width=8, temperature=1 / SCALES["behaviour"], target_width=5)
    assert state.target_temperature is not None
    nn.init.constant_(state.target_temperature.log_scale, math.log(SCALES["target"]))
    return state


def one_loss(
    query_D: Tensor, items_nD: Tensor, *, target: int, own: list[int], targets: list[int],
    scale: float, probability: Tensor, form: str,
) -> Tensor:  # fmt: skip
    """What a query pays for its item among the distinct targets of all."""
    others = [
        item
        for item in sorted(set(targets))
        if item != target and item not in own and GROUPS[item] != GROUPS[target]
    ]
    draws = len(targets) - (form == "corrected")
    logits = {item: scale * query_D @ items_nD[item] for item in (target, *others)}
    log_q = {item: math.log(1 - (1 - float(probability[ROWS[item]])) ** draws) for item in logits}
    negatives = torch.stack([logits[item] - log_q[item] for item in others]).logsumexp(0)
    if form == "corrected":
        margin = negatives - logits[target]
        return margin.sigmoid().detach() * margin
    return F.softplus(negatives - (logits[target] - log_q[target]))


def by_hand(
    model: TwoSpaceModel, state: LossState, batch: Batch, *, form: str
) -> dict[str, Tensor]:
    vectors = model.item_encoder(batch.items)
    item_nD, event_nD = model.encode_items(vectors, batch.items.rows_n)
    states_BSD = model.encode_histories(
        event_nD, history_BL=batch.history_BL, times_BL=batch.times_BL
    )
    queries = [
        (user, place) for user in range(4) for place in range(2) if TARGETS[user][place] >= 0
    ]
    targets = [TARGETS[user][place] for user, place in queries]
    users = [
        one_loss(
            states_BSD[user, STATES[user][place]], item_nD, target=TARGETS[user][place],
            own=HISTORY[user] + TARGETS[user], targets=targets, scale=SCALES["user"],
            probability=CHOSEN, form=form,
        )
        for user, place in queries
    ]  # fmt: skip
    related = [
        one_loss(
            item_nD[trigger], item_nD, target=target, own=[trigger],
            targets=[pair[1] for pair in PAIRS], scale=SCALES["behaviour"], probability=PAIRED,
            form=form,
        )
        for trigger, target in PAIRS
    ]  # fmt: skip
    content = []
    for item in sorted(set(targets)):
        apart = [
            other
            for other in sorted(set(targets))
            if other == item or (IMAGES[other] != IMAGES[item] and TEXTS[other] != TEXTS[item])
        ]
        for left, right in (("image", "text"), ("text", "image")):
            logits = (
                SCALES["pair"] * vectors.modality_nD[right][apart] @ vectors.modality_nD[left][item]
            )
            content.append(logits.logsumexp(0) - logits[apart.index(item)])
    assert state.target_projection is not None
    id_vectors_nD = F.normalize(state.target_projection(ID_VECTORS.vectors_KE[ROWS]), dim=-1)
    known, proxies = [item for item, row in enumerate(ROWS) if row != 5], []
    for item in known:
        apart = [one for one in known if one == item or GROUPS[one] != GROUPS[item]]
        for here, there in ((vectors.fused_nD, id_vectors_nD), (id_vectors_nD, vectors.fused_nD)):
            logits = SCALES["target"] * there[apart] @ here[item]
            proxies.append(logits.logsumexp(0) - logits[apart.index(item)])
    return {
        "user_item_loss": torch.stack(users).mean(),
        "item_item_loss": torch.stack(related).mean(),
        "image_text_loss": torch.stack(content).mean(),
        "collaborative_loss": torch.stack(proxies).mean(),
    }


@pytest.mark.parametrize("form", ["plain", "corrected"])
def test_every_loss_is_the_one_by_hand_and_their_sum_is_weighed(form: str) -> None:
    model, batch = make_model(), make_batch()
    config = LossConfig(
        logq_form=form, user_item_weight=0.8, user_item_ramp_steps=4,
        behaviour_weight=0.3, behaviour_ramp_steps=6, pair_weight=0.5, pair_ramp_steps=12,
        collaborative_weight=0.9, collaborative_ramp_steps=9,
    )  # fmt: skip
    state = make_state(config)
    found = objective(
        model, batch, config=config, item_probability_N=CHOSEN, step=STEP, state=state,
        pair_probability_N=PAIRED, id_vectors=ID_VECTORS,
    )  # fmt: skip
    expected = by_hand(model, state, batch, form=form)
    for name, loss in expected.items():
        torch.testing.assert_close(
            found.report[name], loss, msg=lambda text, name=name: f"{name}: {text}"
        )
    weights = {  # at step 2, the third
        "user_item_loss": 0.8 * 3 / 4,
        "item_item_loss": 0.3 * 3 / 6,
        "image_text_loss": 0.5 * 3 / 12,
        "collaborative_loss": 0.9 * 3 / 9,
    }
    total = torch.stack([weights[name] * loss for name, loss in expected.items()]).sum()
    torch.testing.assert_close(found.loss, total)
    parameters = [*model.parameters(), *state.parameters()]
    grads, by_hands = (
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        for loss in (found.loss, total)
    )
    for one, other in zip(grads, by_hands, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_batch_has_what_must_be_masked() -> None:
    """A chosen item that is another's target, a trigger that is a target, equal content."""
    targets = {item for row in TARGETS for item in row if item >= 0}
    assert any(set(row) & (targets - set(TARGETS[user])) for user, row in enumerate(HISTORY))
    assert {pair[0] for pair in PAIRS} & {pair[1] for pair in PAIRS}
    assert len({GROUPS[item] for item in targets}) < len(targets)
    assert len({IMAGES[item] for item in targets}) < len({GROUPS[item] for item in targets})
