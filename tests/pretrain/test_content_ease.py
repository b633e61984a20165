"""EASE with content against its primal form, an inverse of items by items."""

import numpy as np
import pytest
import scipy.sparse as sp

from pretrain.baselines import EASE
from pretrain.content_ease import ContentEASE

ITEMS, WIDTH = 9, 4


@pytest.fixture(params=[12, 3], ids=["inverts_items", "inverts_rows"])
def train(request: pytest.FixtureRequest) -> sp.csr_matrix:
    chosen = np.random.default_rng(0).random((request.param, ITEMS)) < 0.4
    return sp.csr_matrix(chosen, dtype=np.float32)


@pytest.fixture
def content() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ITEMS, WIDTH)).astype(np.float32)


def test_either_inverse_gives_the_definition(train: sp.csr_matrix, content: np.ndarray) -> None:
    rows = np.concatenate([train.toarray(), np.sqrt(3.0) * content.T])
    inverse = np.linalg.inv(rows.T @ rows + 5.0 * np.eye(ITEMS))
    expected = np.where(np.eye(ITEMS, dtype=bool), 0, -inverse / np.diag(inverse))
    model = ContentEASE(content, l2=5.0, content_weight=3.0).fit(train)
    found = model.scores(sp.identity(ITEMS, format="csr"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_weight_on_content_it_is_ease(train: sp.csr_matrix, content: np.ndarray) -> None:
    model = ContentEASE(content, l2=5.0, content_weight=0.0).fit(train)
    found = model.scores(sp.identity(ITEMS, format="csr"))
    np.testing.assert_allclose(found, EASE(l2=5.0).fit(train).weight_NN, atol=1e-5)


def test_only_content_reaches_an_item_nobody_chose(
    train: sp.csr_matrix, content: np.ndarray
) -> None:
    train = sp.csr_matrix(train.multiply(np.arange(ITEMS) != 4))
    history = sp.csr_matrix(([1.0], ([0], [3])), shape=(1, ITEMS))
    assert EASE(l2=5.0).fit(train).scores(history)[0, 4] == 0
    assert ContentEASE(content, l2=5.0).fit(train).scores(history)[0, 4] != 0


def test_wrong_settings_and_another_catalogue_are_refused(
    train: sp.csr_matrix, content: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="l2=0"):
        ContentEASE(content, l2=0)
    with pytest.raises(ValueError, match="found 9 items"):
        ContentEASE(content[:5]).fit(train)
