"""EASE with content: behaviour and content in one linear model and one wide space.

Shapes: U users of the training matrix, N items, F content width, R = U + F rows, B cases.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp

from pretrain.baselines import Floats


class ContentEASE:
    """EASE on the training matrix with content features as further rows (Jeunen et al. 2020).

    With A = [X; √content_weight · Cᵀ] (R × N) the model is EASE on A: P = (AᵀA + λI)⁻¹ and
    B = I - P / diag(P). By Woodbury's identity, with M = (AAᵀ + λI)⁻¹ and d_j = a_jᵀMa_j,

        B_ij = a_iᵀ (M a_j / (1 - d_j))   for i ≠ j,

    so that it is a dot product of R numbers: an item's users and its content side by side. `event`
    and `item` below are these vectors; R × R is inverted instead of N × N. The diagonal of B is
    not zero here, which only matters to items of the history: ranking masks them.
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
        """Solve for both sides; repeats and values of `train` are ignored."""
        if train.shape[1] != len(self.content_NF):
            raise ValueError(
                f"matrix: found {train.shape[1]} items, expected those of the content vectors, "
                f"{len(self.content_NF)}"
            )
        chosen_UN = (train.toarray() > 0).astype(np.float32)
        scale = np.float32(np.sqrt(self.content_weight))
        event_RN = np.concatenate([chosen_UN, scale * self.content_NF.T])
        gram_RR = (event_RN @ event_RN.T).astype(np.float64)
        gram_RR[np.diag_indices(len(gram_RR))] += self.l2
        item_RN = np.linalg.solve(gram_RR, event_RN).astype(np.float32)
        own_N = np.einsum("rn,rn->n", event_RN, item_RN)
        self.event_NR = np.ascontiguousarray(event_RN.T)
        self.item_NR = np.ascontiguousarray((item_RN / (1 - own_N)).T)
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Sum of the history's event vectors times every item vector [B, N]."""
        binary_BN = (histories > 0).astype(np.float32)
        scores_BN: Floats = (binary_BN @ self.event_NR) @ self.item_NR.T
        return scores_BN
