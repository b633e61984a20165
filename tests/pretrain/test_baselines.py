"""Baselines against closed forms on matrices small enough to work out."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from pretrain.baselines import EASE, Baseline, ContentKNN, ItemKNN, Popularity

# Three items: 0 and 1 share user 0; 1 and 2 share users 1 and 2.
TRAIN = sp.csr_matrix([[1, 1, 0], [0, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=np.float32)
FIRST = sp.csr_matrix([[1, 0, 0]], dtype=np.float32)


def random_matrix(num_users: int, num_items: int, *, seed: int = 0) -> sp.csr_matrix:
    dense = np.random.default_rng(seed).random((num_users, num_items)) < 0.2
    return sp.csr_matrix(dense.astype(np.float32))


def test_popularity_counts_users() -> None:
    assert Popularity().fit(TRAIN).scores(FIRST).tolist() == [[1, 3, 3]]


def test_item_knn_is_the_cosine_of_columns() -> None:
    scores = ItemKNN().fit(TRAIN).scores(FIRST)
    np.testing.assert_allclose(scores, [[0, 1 / np.sqrt(3), 0]], rtol=1e-6)


def test_shrink_weakens_cosines_of_few_users() -> None:
    scores = ItemKNN(shrink=10).fit(TRAIN).scores(FIRST)
    np.testing.assert_allclose(scores, [[0, 1 / (np.sqrt(3) + 10), 0]], rtol=1e-6)


def test_item_knn_adds_up_over_the_history() -> None:
    train = random_matrix(50, 12)
    knn = ItemKNN().fit(train)
    histories = random_matrix(5, 12, seed=1)
    dense = train.toarray()
    norm = np.linalg.norm(dense, axis=0)
    cosine = dense.T @ dense / np.outer(norm, norm)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(knn.scores(histories), histories @ cosine, rtol=1e-5)


def test_ease_equals_the_plain_formula_in_float64() -> None:
    train, histories = random_matrix(200, 40), random_matrix(6, 40, seed=1)
    inverse = np.linalg.inv(train.toarray().astype(np.float64).T @ train.toarray() + 5 * np.eye(40))
    weight = inverse / -np.diag(inverse)
    np.fill_diagonal(weight, 0)
    np.testing.assert_allclose(
        EASE(l2=5).fit(train).scores(histories), histories @ weight, atol=2e-6
    )


def test_ease_minimises_its_ridge_loss() -> None:
    train = random_matrix(200, 10).toarray()
    weight = EASE(l2=5).fit(sp.csr_matrix(train)).weight_NN
    # Steck 2019, eq. 1: each column is the ridge solution on all other columns.
    for item in range(10):
        others = [i for i in range(10) if i != item]
        x = train[:, others].astype(np.float64)
        best = np.linalg.solve(x.T @ x + 5 * np.eye(9), x.T @ train[:, item])
        np.testing.assert_allclose(weight[others, item], best, atol=1e-5)
        assert weight[item, item] == 0


def test_ease_on_more_items_than_a_mirror_block_is_symmetric_before_scaling() -> None:
    weight = EASE(l2=50).fit(random_matrix(300, 1100)).weight_NN
    # With B_ij = -P_ij / P_jj and P symmetric, the three cycles of P_ii / P_jj cancel.
    forth = weight[1050, 3] * weight[3, 700] * weight[700, 1050]
    back = weight[3, 1050] * weight[700, 3] * weight[1050, 700]
    np.testing.assert_allclose(forth, back, rtol=1e-3)
    assert forth != 0


def test_ease_needs_little_more_than_one_square_matrix() -> None:
    train = random_matrix(50, 2000)
    square = 2000 * 2000 * 4
    tracemalloc.start()
    EASE(l2=50).fit(train)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gram_nonzeros = (train.T @ train).nnz * 8  # values and columns of the sparse Gram matrix
    assert peak < 1.6 * square + 2 * gram_nonzeros


def test_content_knn_scores_by_the_mean_of_unit_vectors() -> None:
    vectors = np.array([[3, 0], [0, 5], [1, 1], [0, 0]], dtype=np.float32)
    histories = sp.csr_matrix([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=np.float32)
    half = np.sqrt(0.5)
    expected = [[0.5, 0.5, half, 0], [0.5, 0, half / 2, 0], [0, 0, 0, 0]]
    model = ContentKNN(vectors).fit(histories)
    np.testing.assert_allclose(model.scores(histories), expected, rtol=1e-6)


@pytest.mark.parametrize("model", [Popularity(), ItemKNN(), EASE(l2=1), ContentKNN(np.eye(3))])
def test_values_and_repeats_are_ignored(model: Baseline) -> None:
    loud = sp.csr_matrix(TRAIN * 7.0)
    repeated = sp.csr_matrix(
        (np.ones(3), (np.zeros(3, int), np.array([0, 0, 1]))), shape=(1, 3), dtype=np.float32
    )
    once = sp.csr_matrix([[1, 1, 0]], dtype=np.float32)
    expected = model.fit(TRAIN).scores(once)
    np.testing.assert_array_equal(model.fit(loud).scores(repeated), expected)
    assert expected.dtype == np.float32


@pytest.mark.parametrize("model", [Popularity(), ItemKNN(), EASE(l2=1), ContentKNN(np.eye(3))])
def test_another_catalogue_is_an_error(model: Baseline) -> None:
    model.fit(TRAIN)
    with pytest.raises(ValueError, match="found 4 items, expected 3"):
        model.scores(sp.csr_matrix((1, 4)))


def test_an_item_nobody_chose_scores_zero_and_stays_finite() -> None:
    train = sp.csr_matrix([[1, 1, 0], [1, 0, 0]], dtype=np.float32)
    for model in (ItemKNN(), EASE(l2=1)):
        scores = model.fit(train).scores(FIRST)
        assert scores[0, 2] == 0
        assert np.isfinite(scores).all()


def test_settings_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match="shrink: found -1"):
        ItemKNN(shrink=-1)
    with pytest.raises(ValueError, match="l2: found 0"):
        EASE(l2=0)
    with pytest.raises(ValueError, match="1 values that are not numbers"):
        ContentKNN(np.array([[np.nan, 1]], dtype=np.float32))
