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
from finetune.id_table import INIT_STD, IdTable

if TYPE_CHECKING:
    from finetune.content_fields import ContentFields


class NumericFields(nn.Module):
    """x → x v + b for each number, a learnt vector where it is missing."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.weight_KO = nn.Parameter(torch.randn(num_inputs, width) * INIT_STD)
        self.bias_KO = nn.Parameter(torch.zeros(num_inputs, width))
        self.missing_KO = nn.Parameter(torch.zeros(num_inputs, width))
        self.requires_grad_(num_inputs > 0)

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
        nn.init.normal_(self.linear.weight, std=INIT_STD)
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
        reads_history: bool = True,
        id_std: float = INIT_STD,
    ) -> None:
        """Build the table and the projections.

        Args:
            num_rows: rows of the concatenated table, over every field.
            num_ids: single-valued categorical fields.
            num_multi: fields that are lists.
            num_numeric: numeric inputs.
            width: width E of a field.
            id_columns: column and unknown row of the user's and then the item's id, which
                training drops at times.
            item_id_rows_I: table row of each item's id.
            content: fields of the rung's content; None on the rung `none`.
            first_order: whether every field has a weight of its own.
            pool_history: whether the mean of the history is a field; otherwise the head attends
                to its items one by one.
            reads_history: whether impressions have a history at all.
            id_std: standard deviation of the table's vectors at the start.
        """
        super().__init__()
        self.width = width
        self.id_columns = id_columns
        self.first_order = first_order
        self.attends = not pool_history
        self.reads_history = reads_history
        self.pool_history = reads_history and pool_history
        self.item_column = id_columns[-1][0]
        self.sums_squares = True
        """Whether the penalty of the ids is wanted."""
        out = width + int(first_order)
        self.table = IdTable(num_rows, width, first_order=first_order, std=id_std)
        self.numeric = NumericFields(num_numeric, out)
        self.bias = nn.Parameter(torch.zeros(1))  # DeepSpeed sends no parameter without a dimension
        self.bias.requires_grad_(first_order)  # DDP waits for the gradient of what is trained
        self.register_buffer("item_id_rows_I", item_id_rows_I.long(), persistent=False)
        self.content = content
        content_fields = content.num_fields if content is not None else 0
        self.num_fields = (
            num_ids + num_multi + num_numeric + content_fields + int(self.pool_history)
        )
        self.history_width = width * (1 + (content is not None))

    def id_tables(self) -> list[nn.Parameter]:
        """Embeddings of ids, those of semantic codes too: what overfits first."""
        codes = self.content.codes if self.content is not None else None
        return [*self.table.tables, *([] if codes is None else codes.table.parameters())]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """What is trained of the release's item encoder; empty on rungs with frozen vectors."""
        if self.content is None:
            return []
        return [one for one in self.content.items.parameters() if one.requires_grad]

    def reset_ids(self) -> None:
        """Start every embedding of an id anew, those of semantic codes too."""
        self.table.reset()
        if self.content is not None and self.content.codes is not None:
            self.content.codes.reset()

    def forward(self, batch: Batch) -> tuple[HeadInputs, Tensor, Tensor]:
        """The head's inputs, and sums of squares: of the tables' rows read, of content fields."""
        ids_BFE, ids_first_BF, target_BE, lists_BLO = self._read_table(batch)
        history_BLO = lists_BLO.pop() if self.reads_history else None
        fields = [self.numeric(batch.numeric_BK)] if batch.numeric_BK.shape[1] else []
        fields += [
            _masked_mean(list_BMO, rows_BM >= 0)[:, None]
            for list_BMO, rows_BM in zip(lists_BLO, batch.multi, strict=True)
        ]
        mask_BL = batch.history_BL >= 0
        target_BH = target_BE
        if history_BLO is None:
            history_BLH = target_BE.new_zeros(*mask_BL.shape, self.width)
        else:
            history_BLH = history_BLO[..., : self.width]
            if self.pool_history:
                fields.append(_masked_mean(history_BLO, mask_BL)[:, None])
        square_sum = ids_BFE.new_zeros(())
        if self.sums_squares:
            square_sum = square_sum + ids_BFE.square().sum()
            if ids_first_BF is not None:
                square_sum = square_sum + ids_first_BF.square().sum()
        content_square_sum = torch.zeros_like(square_sum)
        if self.content is not None:
            content = self.content(batch)
            fields.append(content.fields_BFO)
            square_sum = square_sum + content.id_square_sum
            content_square_sum = content.square_sum
            if content.target_BO is not None:
                target_BH = torch.cat([target_BH, content.target_BO[:, : self.width]], dim=-1)
                content_BLE = content.history_BLO[..., : self.width]
                history_BLH = torch.cat([history_BLH, content_BLE], dim=-1)
        fields_BFE, first_order_B = ids_BFE, self.bias.expand(len(ids_BFE))
        if fields:  # otherwise the ids' vectors go to the head without being copied
            fields_BFE = torch.cat([ids_BFE, *(one[..., : self.width] for one in fields)], dim=1)
        if ids_first_BF is not None:
            weights = [ids_first_BF, *(one[..., -1] for one in fields)]
            first_order_B = self.bias + torch.stack([one.sum(1) for one in weights]).sum(0)
        inputs = HeadInputs(
            fields_BFE=fields_BFE,
            first_order_B=first_order_B,
            target_BH=target_BH,
            history_BLH=history_BLH,
            history_mask_BL=mask_BL,
        )
        return inputs, square_sum, content_square_sum

    def _read_table(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """Everything that a batch reads of the table, in one look-up, so that its gradient is one.

        Returns:
            Vectors [B, F, E] and weights [B, F] of the single-valued ids, the target's vector
            [B, E], and the lists [B, M, O], the history last where it is read; zero at padding,
            which reads no row.
        """
        num, width = batch.ids_BF.shape
        parts = [batch.ids_BF.flatten()]
        if self.attends:
            parts.append(batch.ids_BF[:, self.item_column])  # unknown where training dropped it
        lists = list(batch.multi)
        if self.reads_history:
            rows_BL = self.item_id_rows_I[batch.history_BL].to(batch.ids_BF.dtype)
            lists.append(rows_BL.masked_fill(batch.history_BL < 0, -1))
        parts += [rows_BM[rows_BM >= 0] for rows_BM in lists]
        vector_nE, weight_n1 = self.table.lookup(torch.cat(parts) if len(parts) > 1 else parts[0])
        sizes = [len(part) for part in parts]
        vectors = list(torch.split(vector_nE, sizes))
        weights = [None] * len(sizes) if weight_n1 is None else list(torch.split(weight_n1, sizes))
        ids_BFE, ids_weight = vectors[0].view(num, width, self.width), weights[0]
        ids_first_BF = None if ids_weight is None else ids_weight.view(num, width)
        target_BE = vectors[1] if self.attends else ids_BFE[:, self.item_column]
        listed: list[Tensor] = []
        first_list = 1 + int(self.attends)
        for rows_BM, vector, weight in zip(
            lists, vectors[first_list:], weights[first_list:], strict=True
        ):
            both = vector if weight is None else torch.cat([vector, weight], dim=1)
            padded_BMO = both.new_zeros(*rows_BM.shape, both.shape[1])
            listed.append(padded_BMO.masked_scatter((rows_BM >= 0)[..., None], both))
        return ids_BFE, ids_first_BF, target_BE, listed


def _masked_mean(vector_BLO: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the places marked, zero where there is none, [B, O]."""
    count_B1 = mask_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("blo,bl->bo", vector_BLO, mask_BL.to(vector_BLO.dtype)) / count_B1
