"""LightGCN against dense propagation, and on a graph whose answer is known."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pretrain.light_gcn import LightGCN, propagate


def test_propagation_is_that_of_dense_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.rand(5, 7, generator=generator) * (torch.rand(5, 7, generator=generator) < 0.5)
    items = torch.randn(7, 3, generator=generator)
    users, smooth = propagate(items, edges.to_sparse(), edges.T.to_sparse(), layers=2)
    once, twice = edges.T @ edges @ items, edges.T @ edges @ edges.T @ edges @ items
    torch.testing.assert_close(smooth, (items + once + twice) / 3)
    torch.testing.assert_close(users, edges @ (items + once) / 3)


def test_a_history_of_training_scores_as_its_user_did() -> None:
    train = sp.csr_matrix(np.random.default_rng(0).random((8, 6)) < 0.5, dtype=np.float32)
    model = LightGCN(width=4, epochs=1).fit(train)
    degree = np.asarray(train.sum(0)).ravel(), np.asarray(train.sum(1)).ravel()
    edges = train.toarray() / np.sqrt(np.maximum(degree[1], 1))[:, None]
    edges = edges / np.sqrt(np.maximum(degree[0], 1))
    np.testing.assert_allclose(
        model.scores(train), edges @ model.event_ND @ model.smooth_ND.T, rtol=1e-4
    )


def test_it_finds_two_groups_of_items_that_go_together() -> None:
    rng = np.random.default_rng(0)
    train = np.zeros((60, 12), np.float32)
    for user in range(60):
        train[user, 6 * (user % 2) + rng.choice(6, 4, replace=False)] = 1
    model = LightGCN(width=8, epochs=30, lr=0.05).fit(sp.csr_matrix(train))
    scores = model.scores(sp.csr_matrix(np.eye(12, dtype=np.float32)))
    same = (np.arange(12)[:, None] // 6) == (np.arange(12) // 6)
    assert scores[same].min() > scores[~same].max()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="lr above 0"):
        LightGCN(lr=0)
