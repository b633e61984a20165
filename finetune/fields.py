"""Fields to vectors: one embedding table for all ids, and projections of frozen content.

Shapes: B impressions, F fields, E width of a field, K numeric inputs, M list length, L history
length, H width of a history item, W width of item vectors, I items (and a zero row for none),
O = E, or E + 1 where every field also has a weight of its own (the last column).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.batches import Batch
from finetune.heads import HeadInputs

if TYPE_CHECKING:
    from finetune.content_fields import ContentFields

_INIT_STD = 0.01  # small: an id that was never trained says almost nothing


class NumericFields(nn.Module):
    """x → x v + b for each number, a learnt vector where it is missing."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.weight_KO = nn.Parameter(torch.randn(num_inputs, width) * _INIT_STD)
        self.bias_KO = nn.Parameter(torch.zeros(num_inputs, width))
        self.missing_KO = nn.Parameter(torch.zeros(num_inputs, width))

    def forward(self, numeric_BK: Tensor) -> Tensor:
        """[B, K] with NaN where missing → [B, K, O]."""
        x_BK1 = numeric_BK.nan_to_num()[..., None]
        present_BK1 = ~numeric_BK.isnan()[..., None]
        return torch.where(present_BK1, x_BK1 * self.weight_KO + self.bias_KO, self.missing_KO)


class ContentProjection(nn.Module):
    """A unit vector → a field, a learnt vector where it is missing (zero)."""

    def __init__(self, content_width: int, width: int) -> None:
        super().__init__()
        self.scale = content_width**0.5  # brings coordinates of a unit vector near unit variance
        self.linear = nn.Linear(content_width, width)
        nn.init.normal_(self.linear.weight, std=_INIT_STD)
        nn.init.zeros_(self.linear.bias)
        self.missing_O = nn.Parameter(torch.zeros(width))

    def forward(self, vector_nW: Tensor) -> Tensor:
        """[n, W] → [n, O]."""
        present_n1 = (vector_nW != 0).any(1, keepdim=True)
        return torch.where(present_n1, self.linear(vector_nW * self.scale), self.missing_O)


class FieldEmbedding(nn.Module):
    """An encoded batch → `HeadInputs`."""

    item_id_rows_I: Tensor

    def __init__(
        self,
        *,
        num_rows: int,
        num_ids: int,
        num_multi: int,
        num_numeric: int,
        width: int,
        id_columns: list[tuple[int, int]],
        item_id_rows_I: Tensor,
        content: "ContentFields | None",
        first_order: bool,
        pool_history: bool,
    ) -> None:
        """Build the table and the projections.

        Args:
            num_rows: rows of the concatenated table, over every field.
            num_ids: single-valued categorical fields.
            num_multi: fields that are lists.
            num_numeric: numeric inputs.
            width: width E of a field.
            id_columns: column and unknown row of the user's and the item's id, which training
                drops at times.
            item_id_rows_I: table row of each item's id.
            content: fields of the rung's content; None on the rung `none`.
            first_order: whether every field has a weight of its own.
            pool_history: whether the mean of the history is a field.
        """
        super().__init__()
        self.width = width
        self.id_columns = id_columns
        self.first_order = first_order
        self.pool_history = pool_history
        out = width + int(first_order)
        self.table = nn.Embedding(num_rows, out)
        nn.init.normal_(self.table.weight, std=_INIT_STD)
        self.numeric = NumericFields(num_numeric, out)
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("item_id_rows_I", item_id_rows_I.long(), persistent=False)
        self.content = content
        content_fields = content.num_fields if content is not None else 0
        self.num_fields = num_ids + num_multi + num_numeric + content_fields + int(pool_history)
        self.history_width = width * (1 + (content is not None))

    def id_tables(self) -> list[nn.Parameter]:
        """Embeddings of ids, those of semantic codes too: what overfits first."""
        codes = self.content.codes if self.content is not None else None
        tables = [self.table] if codes is None else [self.table, codes.table]
        return [parameter for table in tables for parameter in table.parameters()]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """What is trained of the release's item encoder; empty on rungs with frozen vectors."""
        if self.content is None:
            return []
        return [one for one in self.content.items.parameters() if one.requires_grad]

    def reset_ids(self) -> None:
        """Start every embedding of an id anew, those of semantic codes too."""
        nn.init.normal_(self.table.weight, std=_INIT_STD)
        if self.content is not None and self.content.codes is not None:
            self.content.codes.reset()

    def forward(self, batch: Batch) -> tuple[HeadInputs, Tensor]:
        """The head's inputs, and the sum of squares of the table's rows that were read."""
        ids_BFO = self.table(batch.ids_BF)
        fields = [ids_BFO, self.numeric(batch.numeric_BK)]
        fields += [self._mean_of(rows_BM)[:, None] for rows_BM in batch.multi]
        mask_BL = batch.history_BL >= 0
        # Padding reads the table row of "no item"; it is masked wherever it is used.
        history_ids_BLO = self.table(self.item_id_rows_I[batch.history_BL])
        target_BH = self.table(self.item_id_rows_I[batch.item_B])[..., : self.width]
        history_BLH = history_ids_BLO[..., : self.width]
        if self.pool_history:
            fields.append(_masked_mean(history_ids_BLO, mask_BL)[:, None])
        square_sum = ids_BFO.square().sum()
        if self.content is not None:
            content = self.content(batch)
            fields.append(content.fields_BFO)
            square_sum = square_sum + content.id_square_sum
            if content.target_BO is not None:
                target_BH = torch.cat([target_BH, content.target_BO[:, : self.width]], dim=-1)
                content_BLE = content.history_BLO[..., : self.width]
                history_BLH = torch.cat([history_BLH, content_BLE], dim=-1)
        fields_BFO = torch.cat(fields, dim=1)
        if self.first_order:
            first_order_B = self.bias + fields_BFO[..., -1].sum(1)
        else:
            first_order_B = self.bias.expand(len(fields_BFO))
        inputs = HeadInputs(
            fields_BFE=fields_BFO[..., : self.width],
            first_order_B=first_order_B,
            target_BH=target_BH,
            history_BLH=history_BLH,
            history_mask_BL=mask_BL,
        )
        return inputs, square_sum

    def _mean_of(self, rows_BM: Tensor) -> Tensor:
        """Mean of a list's vectors, [B, O]; -1 is padding."""
        return _masked_mean(self.table(rows_BM.clamp(min=0)), rows_BM >= 0)


def _masked_mean(vector_BLO: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the places marked, zero where there is none, [B, O]."""
    count_B1 = mask_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("blo,bl->bo", vector_BLO, mask_BL.to(vector_BLO.dtype)) / count_B1
