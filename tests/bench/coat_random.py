"""The protocol `coat-random`: ratings that users chose to give, and ratings of random items.

Its definition stands in PROTOCOL.md beside the data. A model is trained on the first and judged on
the second; a fifth of the first is its validation.

Shapes: U users, I items, N = U · I pairs, B ratings, F features of a pair, R values of a rating,
D width of a factor.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.propensity import fit_logistic, naive_bayes

POSITIVE_FROM = 4
RATINGS = (1, 2, 3, 4, 5)
VALID_PARTS = 5
L2_OF_LOGISTIC = (1e-5, 1e-4, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Some ratings and the pairs they are of."""

    user_B: Tensor
    item_B: Tensor
    rating_B: Tensor

    def __len__(self) -> int:
        return len(self.user_B)

    def where(self, mask_B: Tensor) -> Ratings:
        """Those marked."""
        return Ratings(
            user_B=self.user_B[mask_B], item_B=self.item_B[mask_B], rating_B=self.rating_B[mask_B]
        )

    def of(self, matrix_UI: Tensor) -> Tensor:
        """The entries of a matrix at these pairs."""
        return matrix_UI[self.user_B, self.item_B]


@dataclass(frozen=True, kw_only=True)
class Coat:
    """The data set, with a fifth of train apart."""

    train: Ratings
    valid_mask_B: Tensor
    """Ratings of train that are its validation."""
    test: Ratings
    given_UI: Tensor
    """Propensities that came with the data."""
    feature_NF: Tensor
    """Every pair, users in rows: what user and item are, their crossings, and which item."""

    @property
    def fit(self) -> Ratings:
        """Train without its validation."""
        return self.train.where(~self.valid_mask_B)

    @property
    def valid(self) -> Ratings:
        """The fifth by which settings are chosen."""
        return self.train.where(self.valid_mask_B)

    @property
    def num_pairs(self) -> int:
        """Pairs that could have been rated."""
        return self.given_UI.numel()


def data_dir() -> Path:
    """Find `coat`: under $TRIPTYCH_DATA, else ../shared/data of the checkout."""
    root = os.environ.get("TRIPTYCH_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    return base / "coat"


def is_valid(user_id: int, item_id: int) -> bool:
    """Whether a pair is in the fifth that validates."""
    return zlib.crc32(f"{user_id}:{item_id}".encode()) % VALID_PARTS == 0


def read_coat(folder: Path) -> Coat:
    """Read the folder; ids are rows of a matrix already."""
    train, test = (_ratings(folder / f"{name}.parquet") for name in ("train", "test"))
    given = pq.read_table(folder / "propensities.parquet")
    users, items = (pq.read_table(folder / f"{name}.parquet") for name in ("users", "items"))
    given_UI = torch.zeros(users.num_rows, items.num_rows)
    user_N, item_N = (given[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id"))
    given_UI[torch.from_numpy(user_N), torch.from_numpy(item_N)] = torch.from_numpy(
        given["propensity"].to_numpy().copy()
    )
    pairs = zip(train.user_B.tolist(), train.item_B.tolist(), strict=True)
    return Coat(
        train=train,
        valid_mask_B=torch.tensor([is_valid(user, item) for user, item in pairs]),
        test=test,
        given_UI=given_UI,
        feature_NF=_pair_features(_one_hot(users, "user_id"), _one_hot(items, "item_id")),
    )


def _ratings(path: Path) -> Ratings:
    table = pq.read_table(path)
    user, item, rating = (
        torch.from_numpy(table[name].to_numpy().astype(np.int64))
        for name in ("user_id", "item_id", "rating")
    )
    return Ratings(user_B=user, item_B=item, rating_B=rating.float())


def _one_hot(table: pa.Table, id_column: str) -> Tensor:
    table = table.sort_by(id_column)
    columns = []
    for name in table.schema.names:
        if name != id_column:
            code = table[name].combine_chunks().dictionary_encode().indices.to_numpy()
            columns.append(F.one_hot(torch.from_numpy(code.astype(np.int64))).float())
    return torch.cat(columns, dim=1)


def _pair_features(user_UF: Tensor, item_IF: Tensor) -> Tensor:
    users, items = len(user_UF), len(item_IF)
    user_UIF = user_UF[:, None].expand(-1, items, -1)
    item_UIF = item_IF[None].expand(users, -1, -1)
    crossed_UIF = (user_UIF[..., :, None] * item_UIF[..., None, :]).flatten(2)
    which_UIF = torch.eye(items)[None].expand(users, -1, -1)
    return torch.cat([user_UIF, item_UIF, crossed_UIF, which_UIF], dim=2).flatten(0, 1)


def logistic_propensities(coat: Coat) -> tuple[Tensor, float]:
    """Propensities [U, I] by logistic regression on who rated what in train, and their l2.

    The penalty is the one with the best log loss on a fifth of all pairs, rated or not; the fit is
    then repeated on all of them.
    """
    users, items = coat.given_UI.shape
    observed_N = torch.zeros(users, items)
    observed_N[coat.train.user_B, coat.train.item_B] = 1
    observed_N = observed_N.flatten()
    held_N = torch.tensor([is_valid(*pair) for pair in product(range(users), range(items))])
    feature_NF = coat.feature_NF
    fit_NF, held_NF = feature_NF[~held_N], feature_NF[held_N]
    losses = {}
    for l2 in L2_OF_LOGISTIC:
        model = fit_logistic(fit_NF, observed_N[~held_N], l2=l2, max_steps=60)
        losses[l2] = F.binary_cross_entropy(model(held_NF), observed_N[held_N]).item()
    best = min(losses, key=losses.__getitem__)
    model = fit_logistic(feature_NF, observed_N, l2=best, max_steps=60)
    return model(feature_NF).view(users, items), best


def naive_bayes_propensities(coat: Coat, propensity_UI: Tensor) -> Tensor:
    """Propensities [U, I] of rated pairs by their rating, 1 elsewhere, where nothing reads them.

    The shares of the ratings over all pairs would come from a random sample. Here that is the test,
    so they are estimated: the ratings of train, weighed by other propensities.
    """
    code_B = coat.train.rating_B.long() - RATINGS[0]
    weight_B = 1 / coat.train.of(propensity_UI)
    marginal_R = torch.bincount(code_B, weights=weight_B, minlength=len(RATINGS)).float()
    found_B = naive_bayes(
        code_B, marginal_R=marginal_R / marginal_R.sum(), num_pairs=coat.num_pairs
    )
    found_UI = torch.ones_like(propensity_UI)
    found_UI[coat.train.user_B, coat.train.item_B] = found_B
    return found_UI


class MatrixFactorisation(nn.Module):
    """μ + b_u + b_i + p_uᵀ q_i (Koren et al. 2009), within the range of the ratings."""

    def __init__(self, num_users: int, num_items: int, *, width: int, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.user_bias_U = nn.Parameter(torch.zeros(num_users))
        self.item_bias_I = nn.Parameter(torch.zeros(num_items))
        self.user_UD = nn.Parameter(torch.randn(num_users, width) * 0.1)
        self.item_ID = nn.Parameter(torch.randn(num_items, width) * 0.1)

    def forward(self) -> Tensor:
        """Every pair, [U, I]."""
        bias_UI = self.mean + self.user_bias_U[:, None] + self.item_bias_I
        return bias_UI + self.user_UD @ self.item_ID.T

    def penalty(self, *, l2_factor: float, l2_bias: float) -> Tensor:
        """Mean squares a user and an item, so that it compares with a mean error a pair."""
        factors = self.user_UD.square().sum(1).mean() + self.item_ID.square().sum(1).mean()
        biases = self.user_bias_U.square().mean() + self.item_bias_I.square().mean()
        return l2_factor * factors + l2_bias * biases

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Ratings of every pair, [U, I]."""
        return self().clamp(RATINGS[0], RATINGS[-1])
