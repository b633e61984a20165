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
from finetune.content import Content
from finetune.content_items import FrozenItems, TunedItems
from finetune.content_settings import SIMILARITIES
from finetune.fields import ContentProjection, NumericFields
from finetune.heads.din import ActivationUnit
from finetune.make import MakeNet
from finetune.pair_cosines import centred, summarised


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
    """Those that the settings name, or all and the rate; NaN where history or content is
    missing."""
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
    square_sum: Tensor
    """Sum of squares of the other fields, for theirs."""


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

    Every rung has the target's vector, the user's vector and their similarities, or in place of the
    vectors the target's rate; other parts add to it. A head that reads the history has the vectors
    it compares.
    """

    mean_S: Tensor
    std_S: Tensor
    item_centre_W: Tensor | None

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
            self.register_buffer("item_centre_W", content.item_centre_W, persistent=False)
        else:
            self.items = FrozenItems(content.item_IW)
        self.reads_history = reads_history
        self.needs_history = reads_history or bool(parts & {"attention", "make", "tuned"})
        # Made only where they are used, so that no parameter is left without a gradient.
        vectors = "rate" not in parts
        self.item = ContentProjection(width, out) if vectors or reads_history else None
        self.user = ContentProjection(width, out) if vectors else None
        self.columns = (
            [SIMILARITIES.index(name) for name in config.similarities]
            if vectors
            else [*range(len(SIMILARITIES) + 1)]
        )
        self.similarity = NumericFields(len(self.columns), out)
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
            self.make = MakeNet(
                width, num_similarities=len(self.columns), config=config
            ).requires_grad_(False)
            self.make_field = nn.Linear(self.make.width, out)

    @property
    def num_fields(self) -> int:
        """Fields that content adds."""
        single = [self.tiers, self.attention, self.make]
        codes = self.codes.num_fields if self.codes else 0
        vectors = 2 if self.user is not None else 0
        return vectors + len(self.columns) + sum(one is not None for one in single) + codes

    def look_up(self, batch: Batch) -> ContentBatch:
        """Item vectors of a batch, each distinct item once."""
        assert batch.user_vector_BW is not None
        assert batch.similarity_BS is not None
        if not self.needs_history:
            distinct, target_B = torch.unique(batch.item_B, return_inverse=True)
            return ContentBatch(
                self.items(distinct), target_B, None, None,
                batch.user_vector_BW, batch.similarity_BS[:, self.columns], batch.tiers_BT,
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
            compared_nW = centred(vector_nW, self.item_centre_W)
            target_BW = compared_nW[target_B]
            cosine_BL = torch.einsum("blw,bw->bl", compared_nW[history_BL], target_BW)
            similarity_BS = summarised(
                cosine_BL, known_BL, target_BW=target_BW, user_BW=batch.user_vector_BW
            )
            num = len(SIMILARITIES)
            similarity_BS = (similarity_BS - self.mean_S[:num]) / self.std_S[:num]
            similarity_BS = torch.cat([similarity_BS, batch.similarity_BS[:, num:]], dim=1)
        return ContentBatch(
            vector_nW, target_B, history_BL, known_BL,
            batch.user_vector_BW, similarity_BS[:, self.columns], batch.tiers_BT,
        )  # fmt: skip

    def forward(self, batch: Batch) -> ContentOutput:
        """Fields [B, F, O], and the content of target and history for a head that reads it."""
        items = self.look_up(batch)
        target_BO: Tensor | None = None
        history_BLO: Tensor | None = None
        if self.reads_history:
            assert self.item is not None
            target_BO, history_BLO = items.each(self.item)
        fields = [self.similarity(items.similarity_BS)]
        if self.user is not None:
            assert self.item is not None
            if target_BO is None:
                vector_BO = self.item(items.distinct_nW[items.target_B])
            else:
                vector_BO = target_BO
            fields = [vector_BO[:, None], self.user(items.user_BW)[:, None], *fields]
        if self.tiers is not None:
            assert items.tiers_BT is not None
            fields.append(self.tiers(items.tiers_BT)[:, None])
        if self.attention is not None:
            fields.append(self.attention(items)[:, None])
        if self.make is not None:
            with torch.no_grad():
                made_BH, _ = self.make(items)
            fields.append(self.make_field(made_BH)[:, None])
        square_sum = torch.cat(fields, dim=1).square().sum()
        id_square_sum = torch.zeros_like(square_sum)
        if self.codes is not None:
            code_BFO, id_square_sum = self.codes(batch.item_B, batch.history_BL)
            fields.append(code_BFO)
        fields_BFO = torch.cat(fields, dim=1)
        return ContentOutput(fields_BFO, target_BO, history_BLO, id_square_sum, square_sum)
