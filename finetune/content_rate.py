"""How often items of such content are clicked: leave-one-out ridge regression on item vectors.

A head that is given an item's vector can learn every training item by heart, as it does by its id,
and what it then says of new items is noise. Here an item's click rate is predicted from the
vectors and rates of the *other* items, so that the number means the same for an item that training
saw and for one that it did not.

Items are weighted by n / (n + NOISE), n their training impressions. The constant bears no penalty.
What training is given leaves the item itself out: y - (y - ŷ) / (1 - h), h the diagonal of the hat
matrix (Allen 1974, "The relationship between variable selection and data augmentation and a method
for prediction", PRESS), and the penalty is the one with the smallest weighted square of
that error.

Shapes: I items (one zero row more for no item), W width of their vectors, S items with content that
training saw, s some of them, P penalties.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 5.0
"""Impressions at which chance moves an item's rate as much as items differ: p (1 - p) over their
variance, about .24 / .05."""

PENALTIES = tuple(10 ** (half / 2) for half in range(-10, 5))
"""Candidates, as shares of the sum of the items' weights."""

_CHUNK_ITEMS = 1 << 14


@dataclass(frozen=True)
class ContentRate:
    """A click rate for every item that has content."""

    weight_W: Tensor
    constant: Tensor
    """Of no axis."""
    left_out_I: Tensor | None = None
    """Of items that training saw, the prediction without themselves; of others as `of`. None once
    it was read back."""
    penalty: float | None = None
    """Share of the sum of weights that was chosen."""

    def of(self, item_IW: Tensor) -> Tensor:
        """Rates [I]; NaN where there is no content."""
        rate_I = item_IW @ self.weight_W + self.constant
        return rate_I.masked_fill(~_present(item_IW), torch.nan)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        return {"rate_weight": self.weight_W, "rate_constant": self.constant}

    @staticmethod
    def learn(item_IW: Tensor, item_N: Tensor, label_N: Tensor) -> "ContentRate":
        """Regress the training impressions' rates on their items' vectors.

        Raises:
            ValueError: fewer than two items with content among them.
        """
        count_I = torch.bincount(item_N.long(), minlength=len(item_IW)).double()
        click_I = torch.zeros(len(item_IW), dtype=torch.float64)
        click_I.index_add_(0, item_N.long(), label_N.double())
        shown_S = torch.nonzero((count_I > 0) & _present(item_IW)).squeeze(1)
        if len(shown_S) < 2:
            raise ValueError(
                f"rung rate: found {len(shown_S)} items with content among the training "
                "impressions, expected at least two to learn a click rate from; leave that rung out"
            )
        rate_S = click_I[shown_S] / count_I[shown_S]
        share_S = count_I[shown_S] / (count_I[shown_S] + NOISE)
        share_S /= share_S.sum()
        mean_W = torch.zeros(item_IW.shape[1], dtype=torch.float64)
        for some in torch.split(torch.arange(len(shown_S)), _CHUNK_ITEMS):
            mean_W += share_S[some] @ item_IW[shown_S[some]].double()
        mean_rate = share_S @ rate_S
        gram_WW = torch.zeros(len(mean_W), len(mean_W), dtype=torch.float64)
        moment_W = torch.zeros_like(mean_W)
        for some in torch.split(torch.arange(len(shown_S)), _CHUNK_ITEMS):
            x_sW = item_IW[shown_S[some]].double() - mean_W
            gram_WW += (x_sW * share_S[some, None]).T @ x_sW
            moment_W += x_sW.T @ (share_S[some] * (rate_S[some] - mean_rate))
        spread_W, axis_WW = torch.linalg.eigh(gram_WW)
        # Of unit vectors a coordinate has mean square 1 / W.
        penalty_P = torch.tensor(PENALTIES, dtype=torch.float64) / len(mean_W)
        inverse_WP = 1 / (spread_W.clamp(min=0)[:, None] + penalty_P)
        coefficient_WP = inverse_WP * (axis_WW.T @ moment_W)[:, None]
        left_out_SP = torch.empty(len(shown_S), len(PENALTIES), dtype=torch.float64)
        for some in torch.split(torch.arange(len(shown_S)), _CHUNK_ITEMS):
            x_sW = (item_IW[shown_S[some]].double() - mean_W) @ axis_WW
            hat_sP = share_S[some, None] * (1 + x_sW.square() @ inverse_WP)
            fit_sP = mean_rate + x_sW @ coefficient_WP
            y_s1 = rate_S[some, None]
            left_out_SP[some] = y_s1 - (y_s1 - fit_sP) / (1 - hat_sP)
        error_P = share_S @ (rate_S[:, None] - left_out_SP).square()
        best = int(error_P.argmin())
        weight_W = axis_WW @ coefficient_WP[:, best]
        learnt = ContentRate(
            weight_W.float(), (mean_rate - mean_W @ weight_W).float(), penalty=PENALTIES[best]
        )
        left_out_I = learnt.of(item_IW)
        left_out_I[shown_S] = left_out_SP[:, best].float()
        return ContentRate(learnt.weight_W, learnt.constant, left_out_I, learnt.penalty)

    @staticmethod
    def restore(state: Mapping[str, Tensor], item_IW: Tensor) -> "ContentRate":
        """What an older run had learnt, for vectors of the same space.

        Raises:
            ValueError: they are of another width.
        """
        width = len(state["rate_weight"])
        if width != item_IW.shape[1]:
            raise ValueError(
                f"rung rate: found item vectors of width {item_IW.shape[1]}, expected {width}, "
                "on which the older run's rate was learnt; give embeddings_dir of the same release"
            )
        return ContentRate(state["rate_weight"], state["rate_constant"])


def _present(item_IW: Tensor) -> Tensor:
    return (item_IW != 0).any(1)
