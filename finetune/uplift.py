"""Uplift: how much a treatment changes an outcome, by one network with a head for each arm.

Shapes: B people of a batch, X width of their features, Z width of the representation.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Outcome = Literal["binary", "value"]


@dataclass(frozen=True)
class Arms:
    """What the two heads say of the same people: logits or values."""

    control_B: Tensor
    treated_B: Tensor


class TwoHeads(nn.Module):
    """Φ(x), then h_0(Φ) without and h_1(Φ) with treatment (TARNet, Shalit et al. 2017, figure 1).

    Without shared layers it is two models in one (the T-learner of Künzel et al. 2019).
    """

    def __init__(
        self,
        width: int,
        *,
        shared: tuple[int, ...] = (64, 64),
        head: tuple[int, ...] = (32,),
        outcome: Outcome = "binary",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.outcome = outcome
        self.shared = nn.Sequential(*_layers(width, shared, dropout=dropout))
        inner = (width, *shared)[-1]
        self.control, self.treated = (
            nn.Sequential(*_layers(inner, head, dropout=dropout), nn.Linear((inner, *head)[-1], 1))
            for _ in range(2)
        )

    def forward(self, x_BX: Tensor) -> Arms:
        """Both outcomes: logits where the outcome is binary."""
        z_BZ = self.shared(x_BX)
        return Arms(self.control(z_BZ).squeeze(1), self.treated(z_BZ).squeeze(1))

    def uplift(self, x_BX: Tensor) -> Tensor:
        """Treated minus control: difference of probabilities, or of values."""
        arms = self(x_BX)
        if self.outcome == "binary":
            return torch.sigmoid(arms.treated_B) - torch.sigmoid(arms.control_B)
        difference_B: Tensor = arms.treated_B - arms.control_B
        return difference_B


def factual_loss(
    arms: Arms, outcome_B: Tensor, *, treated_B: Tensor, treated_share: float, kind: Outcome
) -> Tensor:
    """Mean of w_i L(h_{t_i}(Φ(x_i)), y_i), w_i = t_i / 2u + (1 - t_i) / 2(1 - u).

    The objective of Shalit et al. 2017 without the distance between the arms, which a randomised
    log does not need. A person trains the head of their own arm only; the weights make both arms
    count alike.

    Args:
        arms: both heads' outputs.
        outcome_B: what happened.
        treated_B: 1 for the treated, 0 for the others; a batch may hold one arm only.
        treated_share: u, share of the treated in all training data, strictly between 0 and 1.
        kind: log loss or squared error.
    """
    check_arms(treated_B)
    if not 0 < treated_share < 1:
        raise ValueError(
            f"treated_share: found {treated_share}, expected a share strictly between 0 and 1: "
            "without two arms there is no uplift to learn"
        )
    if len(outcome_B) == 0 or not bool(torch.isfinite(outcome_B).all()):
        raise ValueError("outcome_B: found none, NaN or infinity, expected finite outcomes")
    is_treated_B = treated_B > 0.5
    factual_B = torch.where(is_treated_B, arms.treated_B, arms.control_B)
    target_B = outcome_B.to(factual_B.dtype)
    if kind == "binary":
        loss_B = F.binary_cross_entropy_with_logits(factual_B, target_B, reduction="none")
    else:
        loss_B = F.mse_loss(factual_B, target_B, reduction="none")
    half = torch.where(
        is_treated_B, loss_B / (2 * treated_share), loss_B / (2 * (1 - treated_share))
    )
    return half.mean()


def check_arms(treated_B: Tensor) -> None:
    """Refuse treatments that are not 0 or 1.

    Raises:
        ValueError: one is neither.
    """
    if not bool(((treated_B == 0) | (treated_B == 1)).all()):
        raise ValueError(
            f"treated_B: found {sorted(set(treated_B.tolist()))[:5]}, expected 0 and 1; encode one "
            "treatment against one control"
        )


def _layers(width: int, hidden: tuple[int, ...], *, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise((width, *hidden)):
        layers += [nn.Linear(before, after), nn.ELU(), nn.Dropout(dropout)]
    return layers
