"""A CTR model: fields and a head. No Lightning, so that scoring needs none.

Shapes: B impressions, N impressions of a split, O outputs of all tasks side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.batches import Batch, CtrTable, EvalBatches
from finetune.content import Content
from finetune.content_fields import ContentFields
from finetune.data import CtrData
from finetune.fields import FieldEmbedding
from finetune.heads import HEADS, TASK_HEADS, Head, InputLayout, TaskHead, initialise
from finetune.order import corrected_logit_shift
from finetune.settings import HeadConfig
from finetune.tasks import CLICK_TASK, Task
from finetune.vocabulary import ID_FIELDS


@dataclass(frozen=True)
class Scored:
    """What a step gives."""

    output_BO: Tensor
    id_square_sum: Tensor
    """Sum of squares of the embedding rows read, for their penalty."""
    content_square_sum: Tensor
    """The same of the fields made of content; 0 on the rung `none`."""

    @property
    def logit_B(self) -> Tensor:
        """The first output: of a click, its log odds."""
        return self.output_BO[:, 0]


class CtrModel(nn.Module):
    """Scores encoded impressions."""

    def __init__(
        self,
        config: HeadConfig,
        *,
        data: CtrData,
        content: Content | None,
        tasks: Sequence[Task] = (CLICK_TASK,),
        negative_rate: float = 1.0,
    ) -> None:
        super().__init__()
        head: type[Head] | type[TaskHead] = (HEADS | TASK_HEADS)[config.name]
        self.tasks = list(tasks)
        self.has_arms = config.name == "two_arms"
        self.logit_shift = corrected_logit_shift(negative_rate)
        """Added to a click's logit that becomes a probability; training sees it without."""
        if head.uses_history and data.history_length == 0:
            raise ValueError(
                f"history_length: found 0, expected at least 1 for head {config.name}, which reads "
                "the history; raise it, or choose a head that reads fields alone"
            )
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
            reads_history=data.history_length > 0,
            id_std=config.id_std,
        )
        layout = InputLayout(
            num_fields=self.fields.num_fields,
            field_width=width,
            history_width=self.fields.history_width,
            history_length=data.history_length,
            user_field=id_column["user"],  # single-valued ids are the first fields
            item_field=id_column["item"],
        )
        num_outputs = [task.num_outputs for task in self.tasks]
        self.head: Head | TaskHead
        if issubclass(head, TaskHead):
            self.head = head(config, layout, num_outputs=num_outputs)
            initialise(self.head)
            self.head.begin_at([task.first_output for task in self.tasks])
        elif num_outputs == [1]:
            self.head = head(config, layout)
            initialise(self.head)
        else:
            raise ValueError(
                f"head.name: found {config.name}, which has one output, with the tasks "
                f"{[(task.name, task.loss) for task in self.tasks]}, expected one of "
                f"{[name for name in TASK_HEADS if name != 'two_arms']}, or a single label "
                "without ziln; correct it in the config"
            )

    def forward(self, batch: Batch) -> Scored:
        """Outputs and what the penalties need."""
        inputs, id_square_sum, content_square_sum = self.fields(batch)
        output_B: Tensor = self.head(inputs)
        output_BO = output_B if output_B.ndim == 2 else output_B[:, None]
        return Scored(output_BO, id_square_sum, content_square_sum)

    @torch.inference_mode()
    def predict(self, table: CtrTable) -> Tensor:
        """The first prediction, such as the click probability, of a whole split, in order."""
        return next(iter(self.predictions(table).values()))

    @torch.inference_mode()
    def predictions(self, table: CtrTable) -> dict[str, Tensor]:
        """What is predicted of a whole split, by name [N]; see `read`."""
        self.eval()
        device = self.fields.bias.device
        parts = [self(batch.to(device)).output_BO.float().cpu() for batch in EvalBatches(table)]
        return self.read(torch.cat(parts))

    def read(self, output_NO: Tensor) -> dict[str, Tensor]:
        """Outputs as a prediction of every task by name; of two arms uplift, control and treated.

        Probabilities, or numbers in the unit of the label.
        """
        if self.logit_shift:  # of a click alone, as `check_objective` sees to
            output_NO = output_NO + self.logit_shift
        if self.has_arms:
            control_N, treated_N = (
                self.tasks[0].predict(output_N1) for output_N1 in torch.split(output_NO, 1, dim=1)
            )
            return {"uplift": treated_N - control_N, "control": control_N, "treated": treated_N}
        parts = torch.split(output_NO, [task.num_outputs for task in self.tasks], dim=1)
        pairs = zip(self.tasks, parts, strict=True)
        return {task.name: task.predict(part_NO) for task, part_NO in pairs}
