"""What one training step sees, as tensors.

Letters, used in every file of this package:
    B  samples (a window of one user's events) on this rank
    L  events in a window          S  states of the user encoder, L + 1 (state 0: nothing seen)
    T  targets of a sample         P  (sample, target) pairs on this rank that exist
    n  distinct items on this rank G  candidate items of every rank
    N  items in the catalogue      D  shared width        F  width of one tower's features
    K  item-item pairs on this rank f  frames of the items that have some

The classes are not frozen: Lightning moves a batch to its device by setting fields of a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class ItemBatch:
    """The content of `n` distinct items, one entry a modality."""

    rows_n: Tensor
    """Item rows, int64."""

    inputs: dict[str, dict[str, Tensor]]
    """Modality → named inputs of its tower, for the items that have it, in the order of `rows_n`.

    Cached features come under the single name `features`. Frames are rows of their own; `item`
    says which of the items that have frames each belongs to, rising from 0.
    """

    presence: dict[str, Tensor]
    """Modality → bool [n]: does the item have it?"""

    def presence_of(self, modalities: Sequence[str]) -> Tensor:
        """What the items have of these modalities, bool [n, M]; M may be 0."""
        if not modalities:
            return torch.zeros(len(self.rows_n), 0, dtype=torch.bool, device=self.rows_n.device)
        return torch.stack([self.presence[name] for name in modalities], dim=1)


def inputs_of(inputs: dict[str, Tensor], chosen: slice | Tensor) -> dict[str, Tensor]:
    """Inputs of some of the items that have a modality: a slice, or a mask, of those items."""
    owner_f = inputs.get("item")
    if owner_f is None:
        return {name: value[chosen] for name, value in inputs.items()}
    if isinstance(chosen, slice):  # frames of neighbours are neighbours: a view, no copy
        bounds = torch.tensor([chosen.start, chosen.stop], device=owner_f.device)
        first, last = torch.searchsorted(owner_f, bounds).tolist()
        part = {name: value[first:last] for name, value in inputs.items()}
    else:
        part = {name: value[chosen[owner_f]] for name, value in inputs.items()}
    return part | {"item": torch.unique(part["item"], return_inverse=True)[1]}


@dataclass(kw_only=True)
class Batch:
    """Samples of one rank and every item they name, each once (resolve, de-duplicate, decode)."""

    items: ItemBatch
    history_BL: Tensor
    """Positions in `items.rows_n`, oldest first, -1 after the last."""

    times_BL: Tensor
    """Unix milliseconds, 0 where padded."""

    targets_BT: Tensor
    """Positions in `items.rows_n`, -1 where there is none."""

    states_BT: Tensor
    """Which state of the user encoder predicts the target: how many events precede it strictly."""

    groups_n: Tensor | None = None
    """Content group of each item of `items.rows_n`; None where equal content is unknown."""

    modality_groups_n: dict[str, Tensor] = field(default_factory=dict)
    """Modality → the same by that content alone, for those whose equal content is known."""

    pairs_K2: Tensor | None = None
    """Item-item pairs (trigger, target), as positions in `items.rows_n`; None without them."""

    users_BC: Tensor | None = None
    """The users' features, see `user_features.py`; None where the model reads none."""


@dataclass(kw_only=True)
class QueryBatch:
    """Users to be evaluated: what each did strictly before a moment, and what came then."""

    history_BL: Tensor
    """Item *rows* of the catalogue, oldest first, -1 after the last."""

    times_BL: Tensor
    targets_B: Tensor
    """Item rows; -1 marks a row that only fills the batch up."""

    at_times_B: Tensor
    """Moment of the prediction, unix milliseconds."""

    masked_BM: Tensor
    """Item rows that are never proposed (the user's own past), -1 where padded."""

    users_BC: Tensor | None = None
    """As in `Batch`."""
