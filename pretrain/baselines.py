"""Baselines that need no training loop: popularity, item-kNN, EASE and content kNN.

All share one interface: `fit(train)` on a users × items matrix, then `scores(histories)` gives a
dense float32 row of item scores for each row of histories. Matrices say who chose what; values and
repeats are ignored. Nothing is masked here: ranking masks the history (`pretrain.metrics`).

Shapes: B cases, U users of the training matrix, N items, D vector width.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Baseline(Protocol):
    """Scores every item for a history."""

    def fit(self, train: sp.csr_matrix) -> Self:
        """Learn from the training choices [U, N]."""
        ...

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Score all items for each history [B, N]; higher is better."""
        ...


class Popularity:
    """The number of users who chose an item; the same list for everyone."""

    def fit(self, train: sp.csr_matrix) -> Self:
        """Count users an item."""
        self.count_N = _counts(binary(train))
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Repeat the counts for each case."""
        _check_columns(histories, len(self.count_N))
        return np.repeat(self.count_N[None], histories.shape[0], axis=0)


class ItemKNN:
    """Sum of the cosines between an item's users and those of each item of the history.

    The whole column counts, not only the nearest neighbours. `shrink` is added to the product of
    the norms, which weakens cosines that rest on few users (Sarwar et al. 2001; Koren 2008, eq. 2).
    """

    def __init__(self, *, shrink: float = 0.0) -> None:
        if shrink < 0:
            raise ValueError(f"shrink: found {shrink}, expected 0 or more")
        self.shrink = shrink

    def fit(self, train: sp.csr_matrix) -> Self:
        """Compute the item-item cosines, without the diagonal."""
        train_UN = binary(train)
        norm_N = np.sqrt(_counts(train_UN))
        gram = (train_UN.T @ train_UN).tocoo()
        value = gram.data / (norm_N[gram.row] * norm_N[gram.col] + np.float32(self.shrink))
        value[gram.row == gram.col] = 0.0  # an item is no neighbour of its own
        self.cosine_NN = sp.csr_matrix((value, (gram.row, gram.col)), shape=gram.shape)
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Add up the columns of the history's items."""
        _check_columns(histories, self.cosine_NN.shape[0])
        scores_BN: Floats = (binary(histories) @ self.cosine_NN).toarray()
        return scores_BN


class EASE:
    """Linear item-item model in closed form (Steck 2019, arXiv 1905.03375, eq. 8).

    With P = (XᵀX + λI)⁻¹, B = -P / diag(P) by columns and a zero diagonal. The inverse is taken in
    place from the Cholesky factor, so that one N × N float32 matrix is the peak (0.5 GB at 11,000
    items), and in float32, whose error is far below a rank's spacing for λ of 1 or more.
    """

    def __init__(self, *, l2: float = 200.0) -> None:
        if l2 <= 0:
            raise ValueError(f"l2: found {l2}, expected more than 0; tens to hundreds are usual")
        self.l2 = l2

    def fit(self, train: sp.csr_matrix) -> Self:
        """Solve for the weights."""
        train_UN = binary(train)
        # Fortran order, or LAPACK would work on a copy.
        self.weight_NN = ease_weights((train_UN.T @ train_UN).toarray(order="F"), l2=self.l2)
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Multiply the histories with the weights."""
        _check_columns(histories, len(self.weight_NN))
        return np.asarray(binary(histories) @ self.weight_NN, dtype=np.float32)


class ContentKNN:
    """Inner product with the mean of the history's unit vectors; no behaviour is used.

    Vectors are normalised here. An item without content has a zero vector: it adds nothing to the
    mean and scores 0 for everyone.
    """

    def __init__(self, vector_ND: Floats) -> None:
        if vector_ND.ndim != 2 or not np.isfinite(vector_ND).all():
            raise ValueError(
                f"vectors: found shape {vector_ND.shape} with "
                f"{int((~np.isfinite(vector_ND)).sum())} values that are not numbers, expected "
                "finite [items, width]"
            )
        norm_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
        self.unit_ND = (vector_ND / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)

    def fit(self, train: sp.csr_matrix) -> Self:
        """Check that the items are those of the vectors; nothing is learnt."""
        _check_columns(train, len(self.unit_ND))
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Score all items by cosine to the mean, up to a factor a user."""
        return self.users(histories) @ self.unit_ND.T

    def users(self, histories: sp.csr_matrix) -> Floats:
        """Average the history's unit vectors [B, D]; zeros for an empty history."""
        _check_columns(histories, len(self.unit_ND))
        history_BN = binary(histories)
        length_B1 = np.diff(history_BN.indptr)[:, None]
        mean_BD: Floats = history_BN @ self.unit_ND
        mean_BD /= np.maximum(length_B1, 1).astype(np.float32)
        return mean_BD


def ease_weights(gram_NN: Floats, *, l2: float) -> Floats:
    """EASE's weights of a Gram matrix in Fortran order, which is overwritten; C order."""
    weight_NN, diagonal = gram_NN, np.arange(len(gram_NN))
    weight_NN[diagonal, diagonal] += np.float32(l2)
    for name, routine in (("spotrf", scipy.linalg.lapack.spotrf), ("spotri", _invert)):
        weight_NN, info = routine(weight_NN, lower=1, overwrite_a=1)
        if info != 0:
            raise ValueError(f"EASE: {name} found row {info} not positive; raise l2={l2}")
    _mirror_lower(weight_NN)
    weight_NN = weight_NN.T  # symmetric, so this only names it C order, which products need
    weight_NN /= -weight_NN[diagonal, diagonal]
    weight_NN[diagonal, diagonal] = 0.0
    return weight_NN


def binary(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return the matrix with 1 at each stored place, repeats and explicit zeros taken out."""
    ones = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    ones.sum_duplicates()
    ones.eliminate_zeros()
    ones.data[:] = 1.0
    return ones


def _counts(binary_UN: sp.csr_matrix) -> Floats:
    count_N = np.bincount(binary_UN.indices, minlength=binary_UN.shape[1])
    return np.asarray(count_N, dtype=np.float32)


def _invert(factor_NN: Floats, *, lower: int, overwrite_a: int) -> tuple[Floats, int]:
    inverse_NN, info = scipy.linalg.lapack.spotri(factor_NN, lower=lower, overwrite_c=overwrite_a)
    return inverse_NN, info


def _mirror_lower(matrix_NN: Floats, *, block: int = 1024) -> None:
    """Copy the lower triangle onto the upper one, by blocks, so that no second matrix is needed."""
    for start in range(0, len(matrix_NN), block):
        stop = min(start + block, len(matrix_NN))
        corner = matrix_NN[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        matrix_NN[start:stop, stop:] = matrix_NN[stop:, start:stop].T


def _check_columns(matrix: sp.csr_matrix, num_items: int) -> None:
    if matrix.shape[1] != num_items:
        raise ValueError(
            f"matrix: found {matrix.shape[1]} items, expected {num_items}; use the same catalogue "
            "for training, histories and vectors"
        )
