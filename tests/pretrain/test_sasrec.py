"""SASRec sees no future, agrees with a plain twin and learns a chain."""

import dataclasses

import numpy as np
import pytest
import torch

from pretrain.sasrec import SASRec, SASRecConfig, latest

SMALL = SASRecConfig(width=8, layers=2, length=6, dropout=0.0, epochs=60, lr=0.01)


def test_a_state_does_not_change_with_what_comes_later_or_with_padding() -> None:
    model = SASRec(9, SMALL).eval()
    full = model(torch.tensor([[1, 2, 3, 4]]))
    other = model(torch.tensor([[1, 2, 8, 7]]))
    torch.testing.assert_close(full[:, :2], other[:, :2])
    padded = model(torch.tensor([[1, 2, -1, -1]]))
    torch.testing.assert_close(model(torch.tensor([[1, 2]])), padded[:, :2])


def test_places_are_counted_from_the_latest_event() -> None:
    model = SASRec(9, SMALL).eval()
    found = []
    model.position.register_forward_hook(lambda _, given, __: found.append(given[0]))
    model(torch.tensor([[1, 2, -1, -1], [1, 2, 3, 4]]))
    assert found[0].tolist() == [[4, 5, 5, 5], [2, 3, 4, 5]]


def test_a_block_is_the_papers_formula() -> None:
    model = SASRec(9, SMALL).eval()
    block, x = model.blocks[0], torch.randn(3, 8)
    query = block.norm_1(x)
    w_q, w_k, w_v = block.attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = block.attention.in_proj_bias.chunk(3)
    weights = ((query @ w_q.T + b_q) @ (x @ w_k.T + b_k).T / 8**0.5).masked_fill(
        torch.ones(3, 3).triu(1) > 0, float("-inf")
    )
    seen = block.attention.out_proj(weights.softmax(1) @ (x @ w_v.T + b_v))
    hidden = block.norm_2(query + seen)
    expected = hidden + block.mlp(hidden)
    found = block(x[None], hidden_LL=torch.ones(3, 3).triu(1) > 0)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_it_learns_that_each_item_follows_the_one_before(loss: str) -> None:
    chain = [np.arange(start, start + 5) % 10 for start in range(10)]
    config = SASRecConfig(width=16, layers=1, length=6, dropout=0.0, epochs=150, lr=0.01, loss=loss)
    model = SASRec(10, config).fit(chain)
    history = torch.tensor([[2, 3, 4], [6, 7, 8]])
    scores = model.scores(history).scatter(1, history, float("-inf"))  # never a negative, so high
    assert scores.argmax(1).tolist() == [5, 9]


def test_the_latest_events_are_read_and_an_empty_history_ties() -> None:
    assert latest([np.arange(5), np.array([7])], length=3).tolist() == [[2, 3, 4], [7, -1, -1]]
    model = SASRec(9, SMALL).eval()
    assert model.scores(torch.tensor([[-1, -1]])).eq(0).all()


def test_an_unknown_loss_and_nothing_to_learn_from_are_refused() -> None:
    with pytest.raises(ValueError, match="found 'hinge'"):
        SASRecConfig(loss="hinge")
    with pytest.raises(ValueError, match="found none of two events"):
        SASRec(3, SMALL).fit([np.array([1])])


def test_the_scores_of_an_epoch_are_those_of_a_training_of_so_many_epochs() -> None:
    chain = [np.arange(start, start + 5) % 9 for start in range(9)]
    history, seen = torch.tensor([[2, 3, 4]]), {}
    long = SASRec(9, dataclasses.replace(SMALL, epochs=4, dropout=0.3))
    long.fit(chain, after_epoch=lambda epoch: seen.update({epoch: long.scores(history)}))
    short = SASRec(9, dataclasses.replace(SMALL, epochs=2, dropout=0.3)).fit(chain)
    assert list(seen) == [1, 2, 3, 4]
    torch.testing.assert_close(seen[2], short.scores(history))
    assert not torch.equal(seen[2], seen[4])
