"""Position as a bias of its own: learnt beside the model, gone when it serves.

A click needs the item to be seen and to be liked, and the log shows good items further up. A model
that is not told the position calls items good because they were seen; one that has it as a feature
needs a position when there is none yet. A shallow tower takes the position's part of the click.

Shapes: B impressions, P places.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PositionMode = Literal["add", "seen"]

_SEEN_AT_FIRST = 3.0
"""Logit of being seen before training, about 0.95: the model itself then starts to learn."""


class PositionTower(nn.Module):
    """The log odds of a click, given those of the model and the place it was shown in.

    - add: logit + b[place] (the shallow tower of Zhao et al. 2019, Recommending what video to watch
      next).
    - seen: P(click) = P(seen | place) P(click | seen) (Guo et al. 2019, PAL).

    Serve the model without the tower, which is `forward` with None, or fix the place, where the
    probability of a click there is wanted. The order of items is the same either way.

    The log alone does not tell how much is the place's: in `add` a constant can move between tower
    and model, in `seen` a factor. Hiding places at times (`dropout`) pins the first, a first place
    that is always seen (`first_is_seen`) the second.

    A place is any cell of what biases exposure: position, or position × device, counted from 0.
    """

    def __init__(
        self,
        num_places: int,
        *,
        mode: PositionMode = "add",
        dropout: float = 0.1,
        first_is_seen: bool = False,
    ) -> None:
        """Set up the tower.

        Args:
            num_places: distinct places of the log.
            mode: how the place acts on the click.
            dropout: `add`: share of impressions whose place is hidden in training (the paper's
                10 %), which keeps the model calibrated without one.
            first_is_seen: `seen`: place 0 is seen with certainty, so that P(click | seen) is the
                click probability there.
        """
        super().__init__()
        if num_places < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"PositionTower: found {num_places} places and dropout {dropout}, expected at "
                "least one place and a share in [0, 1)"
            )
        self.mode = mode
        self.dropout = dropout
        self.first_is_seen = first_is_seen
        at_first = 0.0 if mode == "add" else _SEEN_AT_FIRST
        self.place_P = nn.Parameter(torch.full((num_places,), at_first))

    def take_over(self, older_P: Tensor) -> None:
        """Go on from what an older tower of this mode had learnt; new places start at the start."""
        place_P = self.place_P.detach()
        num_new = max(0, len(place_P) - len(older_P))
        grown_P = torch.cat([older_P.to(place_P), place_P[len(place_P) - num_new :]])
        self.place_P = nn.Parameter(grown_P)

    def forward(self, logit_B: Tensor, place_B: Tensor | None) -> Tensor:
        """Logits of a click there; without places the model's own."""
        if place_B is None:
            return logit_B
        if place_B.shape != logit_B.shape or bool(
            ((place_B < 0) | (place_B >= len(self.place_P))).any()
        ):
            raise ValueError(
                f"place_B: found shape {tuple(place_B.shape)} or a place outside 0 … "
                f"{len(self.place_P) - 1}, expected one for each of the {len(logit_B)} impressions"
            )
        place_logit_B = self.place_P[place_B]
        if self.mode == "add":
            if self.training and self.dropout:
                kept_B = torch.rand_like(logit_B) >= self.dropout
                place_logit_B = place_logit_B * kept_B
            return logit_B + place_logit_B
        both_B = logit_of_product(place_logit_B, logit_B)
        return torch.where(place_B == 0, logit_B, both_B) if self.first_is_seen else both_B

    def seen_P(self) -> Tensor:
        """Probability that each place is seen; mode `seen`."""
        if self.mode != "seen":
            raise ValueError("seen_P: found mode add, which has odds instead; use mode seen")
        seen_P = torch.sigmoid(self.place_P.detach())
        return F.pad(seen_P[1:], (1, 0), value=1.0) if self.first_is_seen else seen_P


def logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Log odds of σ(a) σ(b): -log(e^-a + e^-b + e^-(a+b)), finite where the product is 0 or 1."""
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), dim=0)
