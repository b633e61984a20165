"""What the latest events say of a user's taste for new, for popular and for young items.

Shapes: B cases, L events of a history, N catalogue items, Y birth years.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.metrics import PADDING

BIRTH_KERNEL_YEARS = 3.0
BIRTH_FLOOR = 0.01


def log_odds_of_new(history_BL: Tensor, *, new_N: Tensor) -> Tensor:
    """Log odds that a choice of the user is an item nobody chose in the log, [B].

    Both counts of the history start from a half (Jeffreys' prior).
    """
    seen_BL = history_BL != PADDING
    num_new_B = (new_N.bool()[history_BL.clamp(min=0)] & seen_BL).sum(1)
    num_known_B = seen_BL.sum(1) - num_new_B
    return ((num_new_B + 0.5) / (num_known_B + 0.5)).log()


def popularity_gap(history_BL: Tensor, *, log_count_N: Tensor) -> Tensor:
    """Squared distance of each item's log count to the history's mean log count, [B, N].

    0 for a case without a history.
    """
    seen_BL = history_BL != PADDING
    count_B1 = seen_BL.sum(1, keepdim=True)
    total_B1 = (log_count_N[history_BL.clamp(min=0)] * seen_BL).sum(1, keepdim=True)
    gap_BN = (log_count_N - total_B1 / count_B1.clamp(min=1)).square()
    return gap_BN * (count_B1 > 0)


def birth_affinity(history_BL: Tensor, *, born_N: Tensor) -> Tensor:
    """Log density of each item's year of birth among those of the history, [B, N].

    A kernel density, exp(-|difference| / 3 years), over whole years, with a floor; 0, the middle of
    the catalogue, for items of unknown birth and for histories without any birth.
    """
    known_N = ~born_N.isnan()
    if not known_N.any():
        return torch.zeros(len(history_BL), len(born_N))
    year_N = born_N.nan_to_num(0).floor().long()
    first, last = int(year_N[known_N].min()), int(year_N[known_N].max())
    place_N = torch.where(known_N, year_N - first, 0)
    num_years = last - first + 1
    seen_BL = (history_BL != PADDING) & known_N[history_BL.clamp(min=0)]
    history_BY = torch.zeros(len(history_BL), num_years)
    history_BY.scatter_add_(1, place_N[history_BL.clamp(min=0)], seen_BL.float())
    share_BY = history_BY / history_BY.sum(1, keepdim=True).clamp(min=1)
    years = torch.arange(num_years)
    kernel_YY = torch.exp(-(years[:, None] - years).abs() / BIRTH_KERNEL_YEARS)
    density_BN = (share_BY @ kernel_YY + BIRTH_FLOOR).log()[:, place_N]
    some_BN = known_N & (history_BY.sum(1, keepdim=True) > 0)
    middle_B1 = (density_BN * known_N).sum(1, keepdim=True) / known_N.sum()
    return torch.where(some_BN, density_BN - middle_B1, 0.0)
