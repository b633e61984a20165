"""Pairs that were not shown: an impression's user and context with an item drawn from all.

Shapes: B impressions.
"""

from dataclasses import replace

import torch
from torch import Tensor

from finetune.batches import Batch
from finetune.data import CtrData


class DrawnPairs:
    """Batches whose items are drawn uniformly from the catalogue, and everything else kept."""

    def __init__(self, data: CtrData) -> None:
        self.items = data.items
        self.num_items = data.dataset.num_items
        users = data.users
        self.ids = _part(users.ids_RF.shape[1], self.items.ids_RF.shape[1])
        self.numeric = _part(users.numeric_RK.shape[1], self.items.numeric_RK.shape[1])
        self.multi = _part(len(users.multi), len(self.items.multi))

    def __call__(self, batch: Batch) -> Batch:
        """The batch with other items; without content, whose similarities are of the item shown."""
        item_B = torch.randint(self.num_items, batch.item_B.shape)
        return self.with_items(batch, item_B)

    def with_items(self, batch: Batch, item_B: Tensor) -> Batch:
        """The batch with these items in place of those shown."""
        if batch.user_vector_BW is not None:
            raise ValueError(
                "drawn pairs: found a rung with content, expected the rung none: similarities of "
                "items that were not shown are not computed"
            )
        device = batch.ids_BF.device
        ids_BF, numeric_BK = batch.ids_BF.clone(), batch.numeric_BK.clone()
        ids_BF[:, self.ids] = torch.from_numpy(self.items.ids_RF[item_B.numpy()]).to(device)
        numeric_BK[:, self.numeric] = torch.from_numpy(self.items.numeric_RK[item_B.numpy()]).to(
            device
        )
        multi = list(batch.multi)
        multi[self.multi] = [rows_RM[item_B].to(device) for rows_RM in self.items.multi]
        return replace(
            batch,
            ids_BF=ids_BF,
            numeric_BK=numeric_BK,
            multi=multi,
            item_B=item_B.to(device),
            outcomes={},
        )


def _part(before: int, count: int) -> slice:
    """Users' fields come first, then the items', then those of the context."""
    return slice(before, before + count)
