"""Histories as places in the log: an impression holds where its history ends, not its items.

Shapes: U users, E positive events, N and B impressions, L history length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.events import EventLog

_CHUNK = 262_144  # queries whose int64 places are held at once


@dataclass(frozen=True)
class Histories:
    """The positive events of every user, and how many of the latest a history has."""

    item_rows_E: Tensor
    """int32, user after user, oldest first."""
    first_event_U: Tensor
    """A user's first event; of the last row, an unknown user, none follows."""
    length: int

    @staticmethod
    def of(positives: EventLog, *, length: int) -> "Histories":
        """Of a log of positive events."""
        items = positives.item_rows.astype(np.int32)
        return Histories(torch.from_numpy(items), torch.from_numpy(positives.offsets), length)

    def rows(self, user_B: Tensor, end_B: Tensor) -> Tensor:
        """int32 item rows [B, L] of the latest events before `end_B`, oldest first, -1 at the end.

        An unknown user's end is 0, so nothing lies before it.
        """
        if len(self.item_rows_E) == 0 or self.length == 0:
            return torch.full((len(user_B), self.length), -1, dtype=torch.int32)
        start_B = torch.maximum(self.first_event_U[user_B], end_B - self.length)
        place_BL = start_B[:, None] + torch.arange(self.length)
        inside_BL = place_BL < end_B[:, None]
        item_BL = self.item_rows_E[place_BL.clamp(max=len(self.item_rows_E) - 1)]
        return item_BL.masked_fill(~inside_BL, -1)


def history_ends(
    positives: EventLog, user_N: NDArray[np.int64], time_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where each impression's history ends in the log; 0 for an unknown user."""
    end_N = np.zeros(len(user_N), dtype=np.int64)
    known = np.flatnonzero(user_N < positives.num_users)
    for start in range(0, len(known), _CHUNK):
        rows = known[start : start + _CHUNK]
        end_N[rows] = positives.history_ends(user_N[rows], time_N[rows])
    return end_N
