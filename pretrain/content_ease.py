"""EASE with content: behaviour and content in one linear model in closed form.

Shapes: U users of the training matrix, N items, F content width, R = U + F rows, B cases.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp

from pretrain.baselines import Floats, binary, ease_weights


class ContentEASE:
    """EASE on the training matrix with content features as further rows (Jeunen et al. 2020).

    With A = [X; √content_weight · Cᵀ] (R × N) the model is EASE on A: P = (AᵀA + λI)⁻¹ and
    B = I - P / diag(P), with a zero diagonal. Whichever is smaller is inverted: N × N, or R × R by
    Woodbury's identity: with M = (AAᵀ + λI)⁻¹ and d_j = a_jᵀMa_j,

        B_ij = a_iᵀ (M a_j / (1 - d_j))   for i ≠ j,

    a dot product of R numbers: an item's users and its content side by side. An item that nobody
    chose is reached through its content.
    """

    def __init__(
        self, content_NF: Floats, *, l2: float = 200.0, content_weight: float = 10.0
    ) -> None:
        if l2 <= 0 or content_weight < 0:
            raise ValueError(
                f"found l2={l2} and content_weight={content_weight}, expected l2 above 0 and a "
                "content_weight of 0 (plain EASE) or more"
            )
        self.content_NF, self.l2, self.content_weight = content_NF, l2, content_weight

    def fit(self, train: sp.csr_matrix) -> Self:
        """Solve for the weights; repeats and values of `train` are ignored."""
        num_items = len(self.content_NF)
        if train.shape[1] != num_items:
            raise ValueError(
                f"matrix: found {train.shape[1]} items, expected those of the content vectors, "
                f"{num_items}"
            )
        rows = train.shape[0] + self.content_NF.shape[1]
        self.weight_NN = self._by_rows(train) if rows < num_items else self._by_items(train)
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Sum of the weights of the history's items, for every item [B, N]."""
        return np.asarray(binary(histories) @ self.weight_NN, dtype=np.float32)

    def _by_items(self, train: sp.csr_matrix) -> Floats:
        chosen_UN = binary(train)
        gram_NN = (chosen_UN.T @ chosen_UN).toarray(order="F")
        gram_NN += self.content_weight * (self.content_NF @ self.content_NF.T)
        return ease_weights(gram_NN, l2=self.l2)

    def _by_rows(self, train: sp.csr_matrix) -> Floats:
        scale = np.float32(np.sqrt(self.content_weight))
        event_RN = np.concatenate([binary(train).toarray(), scale * self.content_NF.T])
        gram_RR = (event_RN @ event_RN.T).astype(np.float64)
        gram_RR[np.diag_indices(len(gram_RR))] += self.l2
        item_RN = np.linalg.solve(gram_RR, event_RN).astype(np.float32)
        own_N = np.einsum("rn,rn->n", event_RN, item_RN)
        weight_NN: Floats = event_RN.T @ (item_RN / (1 - own_N))
        np.fill_diagonal(weight_NN, 0.0)
        return weight_NN
