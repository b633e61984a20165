"""The negatives engine on one process: masks, logQ, the queue and the warning."""

import logging
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.alignments import user_item
from pretrain.batch import Batch, ItemBatch
from pretrain.losses import log_inclusion_probability
from pretrain.memory_queue import VectorQueue
from pretrain.negatives import (
    DistinctItems,
    NegativesConfig,
    contrast,
    first_places,
    positions_of,
    warn_few_negatives,
    warn_small_queue,
)

ITEMS = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
QUERIES = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
ROWS = torch.tensor([3, 5, 8, 9, 12, 14])
GROUPS = torch.tensor([3, 5, 5, 9, 12, 14])
PROBABILITY = torch.linspace(0.01, 0.1, 20)
SCALE = torch.tensor([4.0])
NO_OWN = torch.full((3, 1), -1)


def loss_of(config: NegativesConfig, *, own: Tensor = NO_OWN, queue: VectorQueue | None = None):  # noqa: ANN201
    return contrast(
        QUERIES, ITEMS, target_P=torch.tensor([0, 2, 1]), own_PH=own, rows_n=ROWS,
        groups_n=GROUPS, probability_N=PROBABILITY, scale=SCALE, config=config, queue=queue,
    )  # fmt: skip


def by_hand(
    allowed: list[list[int]], *, width: int = 4, draws: float = 3, past: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the given candidates, the target first; past ones from 6 on."""
    items = ITEMS if past is None else torch.cat([ITEMS, past])
    rows = torch.cat([ROWS, torch.tensor([1, 2])])
    items, queries = (F.normalize(one[:, :width], dim=-1) for one in (items, QUERIES))
    losses = []
    for query, candidates in zip(queries, allowed, strict=True):
        log_q = log_inclusion_probability(PROBABILITY[rows[candidates]], num_draws=draws)
        logits = SCALE * items[candidates] @ query - log_q
        losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(losses).mean()


def test_same_content_is_no_negative_unless_asked_for() -> None:
    masked = loss_of(NegativesConfig())
    torch.testing.assert_close(masked.loss, by_hand([[0, 1, 2], [2, 0], [1, 0]]))
    assert float(masked.negatives) == pytest.approx((2 + 1 + 1) / 3)
    negative = loss_of(NegativesConfig(same_content="negative"))
    torch.testing.assert_close(negative.loss, by_hand([[0, 1, 2], [2, 0, 1], [1, 0, 2]]))


def test_what_a_user_chose_is_no_negative_of_theirs() -> None:
    own = torch.tensor([[2, -1], [2, 0], [-1, -1]])
    found = loss_of(NegativesConfig(same_content="negative"), own=own)
    torch.testing.assert_close(found.loss, by_hand([[0, 1], [2, 1], [1, 0, 2]]))


@pytest.mark.parametrize(
    ("own_history", "allowed"),
    [("masked", [[0, 2], [1, 2], [2, 1]]), ("negative", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])],
)
def test_a_users_other_items_are_negatives_only_where_asked_for(
    own_history: Literal["masked", "negative"], allowed: list[list[int]]
) -> None:
    """The first user has items 0 and 1 as targets; the second item 2, and item 0 as history."""
    batch = Batch(
        items=ItemBatch(rows_n=ROWS, inputs={}, presence={}),
        history_BL=torch.tensor([[-1], [0]]),
        times_BL=torch.zeros(2, 1, dtype=torch.int64),
        targets_BT=torch.tensor([[0, 1], [2, -1]]),
        states_BT=torch.zeros(2, 2, dtype=torch.int64),
    )
    found = user_item(
        QUERIES[:2, None], ITEMS, batch, probability_N=PROBABILITY, scale=SCALE,
        config=NegativesConfig(logq=0.0, own_history=own_history), queue=None, step=0,
    )  # fmt: skip
    expected = [
        F.cross_entropy(SCALE * ITEMS[places] @ QUERIES[user], torch.tensor(0))
        for user, places in zip((0, 0, 1), allowed, strict=True)
    ]
    torch.testing.assert_close(found.loss, torch.stack(expected).mean())


def test_matryoshka_adds_the_losses_of_renormalised_prefixes() -> None:
    candidates = [[0, 1, 2], [2, 0], [1, 0]]
    found = loss_of(NegativesConfig(matryoshka={2: 0.5}))
    expected = by_hand(candidates) + 0.5 * by_hand(candidates, width=2)
    torch.testing.assert_close(found.loss, expected)


def test_past_items_are_negatives_of_more_draws_and_fresh_ones_replace_them() -> None:
    queue = VectorQueue(4, width=4)
    past = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)), dim=-1)
    rows = torch.tensor([1, 2, 5])  # row 5 comes again, with the content group of 8
    queue.push(past, rows, rows, draws=torch.tensor(7.0), step=2)
    found = loss_of(NegativesConfig(), queue=queue)
    expected = by_hand([[0, 1, 2, 6, 7], [2, 0, 6, 7], [1, 0, 6, 7]], draws=3 + 7, past=past)
    torch.testing.assert_close(found.loss, expected)
    assert float(queue.age_Q.max()) == 10
    assert set(queue.rows_Q.tolist()) > {3, 5, 8}
    place = queue.rows_Q.tolist().index(5)
    torch.testing.assert_close(queue.vectors_QD[place], ITEMS[1])


def test_the_queue_drops_the_oldest_and_comes_back_from_its_state() -> None:
    queue, again = VectorQueue(3, width=1), VectorQueue(3, width=1)
    for rows in ([4, 6], [4, 9], [7]):
        ids = torch.tensor(rows)
        queue.push(ids[:, None].float(), ids, ids, draws=torch.tensor(2.0), step=2)
    assert queue.rows_Q[0] == 7
    assert sorted(queue.rows_Q.tolist()) == [4, 7, 9]
    assert queue.age_Q.tolist() == [2.0, 4.0, 4.0]
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.vectors_QD, queue.rows_Q[:, None].float())
    assert sorted(again.without(torch.tensor([9])).rows_Q.tolist()) == [4, 7]


def test_other_items_of_a_step_fall_out_each_time() -> None:
    """A queue that holds half of a step, of the same items every time."""
    queue, rows, held = VectorQueue(50, width=1), torch.arange(100), torch.zeros(100)
    for step in range(200):
        queue.push(rows[:, None].float(), rows, rows, draws=torch.tensor(100.0), step=step)
        held[queue.rows_Q] += 1
    assert 70 < int(held.min()) <= int(held.max()) < 130  # 100 and 7 by chance


def test_a_queue_below_one_step_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    report = {"distinct_targets": loss_of(NegativesConfig()).distinct_targets}
    with caplog.at_level(logging.WARNING):
        warn_small_queue({}, size=0)
        warn_small_queue(report, size=3)
        assert not caplog.records
        warn_small_queue(report, size=2)
    assert "loss.queue_size 2: a step has 3 distinct targets" in caplog.text


def test_items_named_several_times_are_one_item() -> None:
    rows = torch.tensor([7, 3, 7, 9, 3])
    assert first_places(rows).tolist() == [1, 0, 3]
    assert positions_of(torch.tensor([[3, 8], [9, 7]]), rows_G=rows).tolist() == [[1, -1], [3, 0]]
    distinct = DistinctItems.of(torch.tensor([4, 2, 3, 1]), rows_n=rows)
    assert distinct.rows_G.tolist() == [3, 7, 9]
    assert distinct.gather(torch.arange(5)).tolist() == [4, 2, 3]
    assert distinct.local_of(distinct.mine_G()).tolist() == [4, 2, 3]


def test_few_negatives_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_few_negatives({"negatives": torch.tensor(16.0)}, floor=16)
        assert not caplog.records
        warn_few_negatives({"negatives": torch.tensor(1.5)}, floor=16)
    assert "train/negatives: 1.5 of each query" in caplog.text
