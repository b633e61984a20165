"""A rung's content as fields of a head: item and user vectors, similarities, and its parts.

Shapes: B impressions, L history length, n distinct items, W width of item vectors, O width of a
field, S similarities, T tiers, A width of attention.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_prep.dataset import Dataset
from finetune.batches import Batch
from finetune.code_fields import CodeFields
from finetune.content import SIMILARITIES, Content, cosines
from finetune.content_items import FrozenItems, TunedItems
from finetune.fields import ContentProjection, NumericFields
from finetune.heads.din import ActivationUnit
from finetune.make import MakeNet


@dataclass(frozen=True)
class ContentBatch:
    """A batch's item vectors, each distinct item once, and what was made beforehand."""

    distinct_nW: Tensor
    target_B: Tensor
    """Place of the target in `distinct_nW`."""
    history_BL: Tensor | None
    """Places of the history; None where nothing reads it item by item."""
    known_BL: Tensor | None
    """True where the history has an item with content."""
    user_BW: Tensor
    similarity_BS: Tensor
    """NaN where history or content is missing."""
    tiers_BT: Tensor | None

    def each(self, project: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Project every distinct item once: target [B, …] and history [B, L, …]."""
        assert self.history_BL is not None
        projected = project(self.distinct_nW)
        return projected[self.target_B], projected[self.history_BL]


@dataclass(frozen=True)
class ContentOutput:
    """What the head is given."""

    fields_BFO: Tensor
    target_BO: Tensor | None
    """The target's content, and the history's; None where the head reads no history."""
    history_BLO: Tensor | None
    id_square_sum: Tensor
    """Sum of squares of the rows of the code table that were read, for their penalty."""


class ContentAttention(nn.Module):
    """Target attention over the history's content: DIN's unit (Zhou et al. 2018, eq. 3)."""

    def __init__(
        self, content_width: int, *, width: int, hidden: tuple[int, ...], out: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(content_width, width)
        self.scale = content_width**0.5  # brings coordinates of a unit vector near unit variance
        self.unit = ActivationUnit(width, hidden)
        self.out = nn.Linear(width, out)

    def forward(self, items: ContentBatch) -> Tensor:
        """One field [B, O]; an empty history pools to zero."""
        target_BA, history_BLA = items.each(lambda nW: self.project(nW * self.scale))
        assert items.known_BL is not None
        weight_BL = self.unit(target_BA, history_BLA) * items.known_BL
        # Divided by the length, as content has no embedding that would learn to be small.
        count_B1 = items.known_BL.sum(1, keepdim=True).clamp(min=1)
        pooled_BA = torch.einsum("bl,bla->ba", weight_BL, history_BLA) / count_B1
        field_BO: Tensor = self.out(pooled_BA)
        return field_BO


class ContentFields(nn.Module):
    """An encoded batch → fields of content.

    Every rung has the target's vector, the user's vector and their similarities; parts add to it.
    """

    mean_S: Tensor
    std_S: Tensor

    def __init__(
        self, content: Content, *, dataset: Dataset, out: int, reads_history: bool
    ) -> None:
        """Build the parts of a rung.

        Args:
            content: the rung's vectors, after `fit` or `restore`.
            dataset: where a tuned encoder finds the items' content.
            out: width O of a field.
            reads_history: whether the head looks at the history item by item.
        """
        super().__init__()
        config, parts, width = content.config, content.rung.parts, content.width
        self.items: FrozenItems | TunedItems
        if "tuned" in parts:
            assert content.release is not None
            self.items = TunedItems(content.release, dataset, config=config)
            assert content.mean_S is not None
            assert content.std_S is not None
            self.register_buffer("mean_S", content.mean_S, persistent=False)
            self.register_buffer("std_S", content.std_S, persistent=False)
        else:
            self.items = FrozenItems(content.item_IW)
        self.reads_history = reads_history
        self.needs_history = reads_history or bool(parts & {"attention", "make", "tuned"})
        self.item = ContentProjection(width, out)
        self.user = ContentProjection(width, out)
        self.similarity = NumericFields(len(SIMILARITIES), out)
        self.tiers = ContentProjection(config.tiers, out) if "simtier" in parts else None
        self.attention: ContentAttention | None = None
        if "attention" in parts:
            hidden = config.attention_hidden
            self.attention = ContentAttention(
                width, width=config.attention_width, hidden=hidden, out=out
            )
        self.codes = CodeFields(content.codes, width=out) if content.codes else None
        self.make: MakeNet | None = None
        if "make" in parts:
            self.make = MakeNet(width, config=config).requires_grad_(False)
            self.make_field = nn.Linear(self.make.width, out)

    @property
    def num_fields(self) -> int:
        """Fields that content adds."""
        single = [self.tiers, self.attention, self.make]
        codes = self.codes.num_fields if self.codes else 0
        return 2 + len(SIMILARITIES) + sum(one is not None for one in single) + codes

    def look_up(self, batch: Batch) -> ContentBatch:
        """Item vectors of a batch, each distinct item once."""
        assert batch.user_vector_BW is not None
        assert batch.similarity_BS is not None
        if not self.needs_history:
            distinct, target_B = torch.unique(batch.item_B, return_inverse=True)
            return ContentBatch(
                self.items(distinct), target_B, None, None,
                batch.user_vector_BW, batch.similarity_BS, batch.tiers_BT,
            )  # fmt: skip
        rows = torch.cat([batch.item_B, batch.history_BL.flatten().long()])
        # A negative row is padding, which indexes the zero row at the end.
        distinct, place = torch.unique(rows, return_inverse=True)
        vector_nW = self.items(distinct)
        target_B = place[: len(batch.item_B)]
        history_BL = place[len(batch.item_B) :].unflatten(0, batch.history_BL.shape)
        present_n = (vector_nW.detach() != 0).any(1)
        known_BL = (batch.history_BL >= 0) & present_n[history_BL]
        similarity_BS = batch.similarity_BS
        if isinstance(self.items, TunedItems):  # the vectors have moved since it was made
            similarity_BS = cosines(
                vector_nW[target_B], vector_nW[history_BL], known_BL, user_BW=batch.user_vector_BW
            )
            similarity_BS = (similarity_BS - self.mean_S) / self.std_S
        return ContentBatch(
            vector_nW, target_B, history_BL, known_BL,
            batch.user_vector_BW, similarity_BS, batch.tiers_BT,
        )  # fmt: skip

    def forward(self, batch: Batch) -> ContentOutput:
        """Fields [B, F, O], and the content of target and history for a head that reads it."""
        items = self.look_up(batch)
        target_BO: Tensor | None = None
        history_BLO: Tensor | None = None
        if self.reads_history:
            target_BO, history_BLO = items.each(self.item)
            fields = [target_BO[:, None]]
        else:
            fields = [self.item(items.distinct_nW[items.target_B])[:, None]]
        fields += [self.user(items.user_BW)[:, None], self.similarity(items.similarity_BS)]
        if self.tiers is not None:
            assert items.tiers_BT is not None
            fields.append(self.tiers(items.tiers_BT)[:, None])
        if self.attention is not None:
            fields.append(self.attention(items)[:, None])
        if self.make is not None:
            with torch.no_grad():
                made_BH, _ = self.make(items)
            fields.append(self.make_field(made_BH)[:, None])
        square_sum = fields[0].new_zeros(())
        if self.codes is not None:
            code_BFO, square_sum = self.codes(batch.item_B, batch.history_BL)
            fields.append(code_BFO)
        return ContentOutput(torch.cat(fields, dim=1), target_BO, history_BLO, square_sum)
