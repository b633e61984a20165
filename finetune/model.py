"""A CTR model: fields and a head. No Lightning, so that scoring needs none.

Shapes: B impressions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.batches import Batch, CtrTable, EvalBatches
from finetune.content import Content
from finetune.content_fields import ContentFields
from finetune.data import CtrData
from finetune.fields import FieldEmbedding
from finetune.heads import HEADS, InputLayout, initialise
from finetune.settings import HeadConfig
from finetune.vocabulary import ID_FIELDS


@dataclass(frozen=True)
class Scored:
    """What a step gives."""

    logit_B: Tensor
    id_square_sum: Tensor
    """Sum of squares of the embedding rows read, for their penalty."""


class CtrModel(nn.Module):
    """Scores encoded impressions."""

    def __init__(self, config: HeadConfig, *, data: CtrData, content: Content | None) -> None:
        super().__init__()
        head = HEADS[config.name]
        width = config.embedding_width if head.uses_fields else 0
        vocabulary = data.vocabulary
        single = [one for one in vocabulary.categorical if one.kind == "categorical"]
        id_column = {
            one.owner: column
            for column, one in enumerate(single)
            if one.name == ID_FIELDS.get(one.owner)
        }
        out, reads_history = width + int(head.uses_first_order), head.uses_history
        fields_of_content = None
        if content is not None:
            fields_of_content = ContentFields(
                content, dataset=data.dataset, out=out, reads_history=reads_history
            )
        self.fields = FieldEmbedding(
            num_rows=vocabulary.num_rows,
            num_ids=len(single),
            num_multi=len(vocabulary.categorical) - len(single),
            num_numeric=len(vocabulary.numeric),
            width=width,
            id_columns=[(column, single[column].unknown) for column in id_column.values()],
            item_id_rows_I=data.item_id_rows,
            content=fields_of_content,
            first_order=head.uses_first_order,
            pool_history=not head.uses_history,
        )
        layout = InputLayout(
            num_fields=self.fields.num_fields,
            field_width=width,
            history_width=self.fields.history_width,
            history_length=data.history_length,
            user_field=id_column["user"],  # single-valued ids are the first fields
            item_field=id_column["item"],
        )
        self.head = head(config, layout)
        initialise(self.head)

    def forward(self, batch: Batch) -> Scored:
        """Logits and what the penalty needs."""
        inputs, id_square_sum = self.fields(batch)
        return Scored(self.head(inputs), id_square_sum)

    @torch.inference_mode()
    def predict(self, table: CtrTable) -> Tensor:
        """Click probabilities of a whole split, in order."""
        self.eval()
        device = self.fields.bias.device
        parts = [
            torch.sigmoid(self(batch.to(device)).logit_B.float()).cpu()
            for batch in EvalBatches(table)
        ]
        return torch.cat(parts)
