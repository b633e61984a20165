"""Content-content against plain cross-entropies: what is no negative, prefixes, and the count."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.alignments import content_content
from pretrain.batch import Batch, ItemBatch
from pretrain.item_encoder import ItemVectors
from pretrain.negatives import Contrast, NegativesConfig, warn_few_negatives

SCALE = torch.tensor([5.0])
SAME = {"image": torch.tensor([0, 0, 2, 3, 4, 5]), "text": torch.tensor([0, 1, 2, 1, 4, 5])}
"""Items 0 and 1 have one picture, 1 and 3 one text; item 5 is no target, item 4 has no text."""


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


IMAGE, TEXT = unit(0), unit(1)


def loss_of(config: NegativesConfig, *, kind: str = "info_nce") -> Contrast:
    presence = {"image": torch.ones(6, dtype=torch.bool), "text": torch.arange(6) != 4}
    batch = Batch(
        items=ItemBatch(rows_n=torch.arange(6), inputs={}, presence=presence),
        history_BL=torch.full((2, 1), 5),
        times_BL=torch.zeros(2, 1, dtype=torch.int64),
        targets_BT=torch.tensor([[0, 1, 3], [2, 1, 4]]),
        states_BT=torch.zeros(2, 3, dtype=torch.int64),
        groups_n=torch.arange(6),
        modality_groups_n=SAME,
    )
    found = content_content(
        ItemVectors(IMAGE, {"image": IMAGE, "text": TEXT}, torch.ones(6, 2)), batch,
        kind=kind, scale=SCALE, bias=None, config=config,
    )  # fmt: skip
    assert list(found) == ["image_text"]
    return found["image_text"]


def by_hand(*, width: int = 8, apart: Tensor | None = None) -> Tensor:
    """Both cross-entropies of items 0 to 3, whose pairs marked in `apart` are no negatives."""
    left, right = (F.normalize(one[:4, :width], dim=-1) for one in (IMAGE, TEXT))
    logits = SCALE * left @ right.T
    if apart is not None:
        logits = logits.masked_fill(apart, float("-inf"))
    own = torch.arange(4)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


APART = torch.zeros(4, 4, dtype=torch.bool)
APART[0, 1] = APART[1, 0] = APART[1, 3] = APART[3, 1] = True


@pytest.mark.parametrize("tile", [0, 2])
def test_one_picture_or_one_text_is_no_negative(tile: int) -> None:
    found = loss_of(NegativesConfig(tile=tile))
    torch.testing.assert_close(found.loss, by_hand(apart=APART))
    assert float(found.negatives) == pytest.approx((2 + 1 + 3 + 2) / 4)
    negative = loss_of(NegativesConfig(tile=tile, same_content="negative"))
    torch.testing.assert_close(negative.loss, by_hand())
    assert float(negative.negatives) == 3


def test_prefixes_count_here_too() -> None:
    found = loss_of(NegativesConfig(matryoshka={2: 5.0, 4: 0.5}))
    expected = (
        by_hand(apart=APART)
        + 5.0 * by_hand(apart=APART, width=2)
        + 0.5 * by_hand(apart=APART, width=4)
    )
    torch.testing.assert_close(found.loss, expected)
    sigmoid = [loss_of(NegativesConfig(matryoshka=m), kind="sigmoid").loss for m in ({}, {2: 5.0})]
    assert float(sigmoid[1]) > float(sigmoid[0])


def test_few_negatives_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    report = {"image_text_negatives": loss_of(NegativesConfig()).negatives}
    with caplog.at_level(logging.WARNING):
        warn_few_negatives(report, floor=3)
    assert "train/image_text_negatives: 2.0 of each query" in caplog.text
    assert "queue_size" not in caplog.text  # it would not help here
