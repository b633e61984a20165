"""LightGCN: ids smoothed over the graph of who chose what (He et al. 2020, arXiv 2002.02126).

Shapes: B cases, U users, N items, D width, P (user, item) draws of a step.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.baselines import Floats


class LightGCN:
    """Layer k of a user is the normalised sum of layer k - 1 of their items, and vice versa.

    The score is the dot product of the means over layers 0 … K (eq. 3-6), trained by BPR (Rendle
    et al. 2009) with one uniform negative a choice. `scores` is asked of histories, not of the
    users of training: layer 0 of a user is zero here, in training too, so that a history says
    everything of its user (with own user embeddings a new history could not be scored).
    """

    def __init__(
        self,
        *,
        width: int = 64,
        layers: int = 2,
        l2: float = 1e-4,
        lr: float = 5e-3,
        epochs: int = 100,
        batch_size: int = 4096,
        seed: int = 0,
    ) -> None:
        if min(width, layers, epochs, batch_size) < 1 or lr <= 0 or l2 < 0:
            raise ValueError(
                "LightGCN: width, layers, epochs and batch_size must be at least 1, lr above 0 and "
                f"l2 not negative, got {width}, {layers}, {epochs}, {batch_size}, {lr}, {l2}"
            )
        self.width, self.layers, self.l2, self.lr = width, layers, l2, lr
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed

    def fit(self, train: sp.csr_matrix) -> Self:
        """Adam on BPR; every choice is drawn once an epoch."""
        chosen_UN = sp.csr_matrix((train > 0).astype(np.float32))
        item_degree_N = np.asarray(chosen_UN.sum(0)).ravel()
        self.item_scale_N = 1 / np.sqrt(np.maximum(item_degree_N, 1))
        edges_UN = _as_tensor(self._normalised(chosen_UN))
        edges_NU = edges_UN.transpose(0, 1).coalesce()
        users, items = (torch.from_numpy(one.astype(np.int64)) for one in chosen_UN.nonzero())
        known = torch.from_numpy(_keys(chosen_UN))
        generator = torch.Generator().manual_seed(self.seed)
        num_items = chosen_UN.shape[1]
        item_ND = (0.1 * torch.randn(num_items, self.width, generator=generator)).requires_grad_()
        optimizer = torch.optim.Adam([item_ND], lr=self.lr)
        for _ in range(self.epochs):
            order = torch.randperm(len(users), generator=generator)
            for drawn_P in torch.split(order, self.batch_size):
                user_P, item_P = users[drawn_P], items[drawn_P]
                negative_P = torch.randint(num_items, (len(drawn_P),), generator=generator)
                valid_P = ~torch.isin(user_P * num_items + negative_P, known)
                user_UD, smooth_ND = propagate(item_ND, edges_UN, edges_NU, layers=self.layers)
                margin_P = ((smooth_ND[item_P] - smooth_ND[negative_P]) * user_UD[user_P]).sum(1)
                named_PD = torch.cat([item_ND[item_P], item_ND[negative_P]])
                penalty = self.l2 * named_PD.square().sum() / len(drawn_P)
                loss = F.softplus(-margin_P)[valid_P].mean() + penalty
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            per_layer = item_layers(item_ND, edges_UN, edges_NU, layers=self.layers)
            self.smooth_ND = torch.stack(per_layer).mean(0).numpy()
            # Users of layer 1 … K are made of items of layer 0 … K - 1; layer 0 is zero.
            self.event_ND = torch.stack(per_layer[:-1]).sum(0).numpy() / (self.layers + 1)
        return self

    def scores(self, histories: sp.csr_matrix) -> Floats:
        """Fold the histories in as users that propagate nothing back [B, N]."""
        binary_BN = sp.csr_matrix((histories > 0).astype(np.float32))
        user_BD = self._normalised(binary_BN) @ self.event_ND
        return np.asarray(user_BD @ self.smooth_ND.T, np.float32)

    def _normalised(self, binary_BN: sp.csr_matrix) -> sp.csr_matrix:
        """1 / √(events of the user · users of the item) at every edge (eq. 3)."""
        degree_B = np.maximum(np.diff(binary_BN.indptr), 1)
        return sp.csr_matrix(sp.diags(degree_B**-0.5) @ binary_BN @ sp.diags(self.item_scale_N))


def item_layers(
    item_ND: Tensor, edges_UN: Tensor, edges_NU: Tensor, *, layers: int
) -> list[Tensor]:
    """Items of layer 0 … K when users of layer 0 are zero.

    Layer k of the items needs layer k - 1 of the users, which needs layer k - 2 of the items: with
    layer 0 of the users zero, items of odd layers and users of even ones would stay zero. A layer
    is therefore the whole way here, item → user → item.
    """
    found = [item_ND]
    for _ in range(layers):
        found.append(torch.sparse.mm(edges_NU, torch.sparse.mm(edges_UN, found[-1])))
    return found


def propagate(
    item_ND: Tensor, edges_UN: Tensor, edges_NU: Tensor, *, layers: int
) -> tuple[Tensor, Tensor]:
    """Users and items, each the mean over the layers."""
    per_layer = item_layers(item_ND, edges_UN, edges_NU, layers=layers)
    events_ND = torch.stack(per_layer[:-1]).sum(0) / (layers + 1)
    return torch.sparse.mm(edges_UN, events_ND), torch.stack(per_layer).mean(0)


def _as_tensor(matrix: sp.csr_matrix) -> Tensor:
    entries = matrix.tocoo()
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    return torch.sparse_coo_tensor(places, values, entries.shape).coalesce()


def _keys(chosen_UN: sp.csr_matrix) -> np.ndarray:
    users, items = chosen_UN.nonzero()
    keys: np.ndarray = users.astype(np.int64) * chosen_UN.shape[1] + items
    return keys
