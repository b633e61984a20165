"""Semantic codes as trainable ids: an item's codes name the neighbourhoods that it lies in.

Codes come from residual k-means on a rung's vectors (`pretrain/residual_codes.py`). A code means
something only behind the codes before it, so that the id of a level is the prefix up to it: level
1 is one of K, level 2 one of K², and so on, as far as training saw it often enough.

Shapes: I items (one zero row more for no item), W width of their vectors, V levels, K codes of a
level, N impressions, B impressions of a batch, L history length, O width of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.content_settings import ContentConfig
from pretrain.residual_codes import encode_residual, residual_kmeans

MISSING, UNKNOWN, NUM_RESERVED = 0, 1, 2
_ITERATIONS = 25
_INIT_STD = 0.01


@dataclass(frozen=True)
class ItemCodes:
    """Every item's rows of the code table, and what they were made with."""

    codebooks_VKW: Tensor
    known_P2: Tensor
    """Level and number of each prefix that has a row of its own, int64, sorted."""
    row_IV: Tensor
    """Table rows of each item, int64."""

    @property
    def num_rows(self) -> int:
        """Rows of the code table."""
        return NUM_RESERVED + len(self.known_P2)

    @staticmethod
    def learn(item_IW: Tensor, item_N: Tensor, *, config: ContentConfig) -> "ItemCodes":
        """Codebooks of the items shown in training; rows of prefixes that it saw often enough.

        Raises:
            ValueError: no item of the training impressions has a vector.
        """
        count_I = torch.bincount(item_N, minlength=len(item_IW))
        shown_I = (count_I > 0) & (item_IW != 0).any(1)
        if not bool(shown_I.any()):
            raise ValueError(
                "rung codes: found no item with content among the training impressions, expected "
                "some to learn codes from; leave that rung out"
            )
        codebooks_VKW = residual_kmeans(
            item_IW[shown_I],
            levels=config.code_levels,
            num_codes=config.num_codes,
            seed=0,
            iterations=_ITERATIONS,
        )
        prefix_IV = _prefixes(item_IW, codebooks_VKW)
        known = []
        for level, prefix_I in enumerate(prefix_IV.T):
            values, index_n = torch.unique(prefix_I[shown_I], return_inverse=True)
            count_P = torch.zeros(len(values), dtype=torch.int64)
            count_P.index_add_(0, index_n, count_I[shown_I])
            values = values[count_P >= config.code_min_count]
            known.append(torch.stack([torch.full_like(values, level), values], dim=1))
        return ItemCodes._of(item_IW, codebooks_VKW, torch.cat(known))

    @staticmethod
    def restore(state: Mapping[str, Tensor], item_IW: Tensor) -> "ItemCodes":
        """Codes of these items by the codebooks of a finished run.

        Raises:
            ValueError: the items' vectors are of another width.
        """
        width = state["codebooks"].shape[-1]
        if width != item_IW.shape[1]:
            raise ValueError(
                f"rung codes: found item vectors of width {item_IW.shape[1]}, expected {width}, "
                "which the older run's codebooks are of; give embeddings_dir of the same release"
            )
        return ItemCodes._of(item_IW, state["codebooks"], state["known_prefixes"])

    @staticmethod
    def _of(item_IW: Tensor, codebooks_VKW: Tensor, known_P2: Tensor) -> "ItemCodes":
        prefix_IV = _prefixes(item_IW, codebooks_VKW)
        row_IV = torch.full_like(prefix_IV, UNKNOWN)
        first = NUM_RESERVED
        for level in range(len(codebooks_VKW)):
            values_P = known_P2[known_P2[:, 0] == level, 1].contiguous()
            if len(values_P):
                prefix_I = prefix_IV[:, level].contiguous()
                place_I = torch.searchsorted(values_P, prefix_I).clamp(max=len(values_P) - 1)
                found_I = values_P[place_I] == prefix_I
                row_IV[found_I, level] = first + place_I[found_I]
            first += len(values_P)
        row_IV[~(item_IW != 0).any(1)] = MISSING
        return ItemCodes(codebooks_VKW, known_P2, row_IV)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        return {"codebooks": self.codebooks_VKW, "known_prefixes": self.known_P2}


def _prefixes(item_IW: Tensor, codebooks_VKW: Tensor) -> Tensor:
    """Number of each item's codes up to every level, [I, V]: digits in base K."""
    code_IV = encode_residual(item_IW, codebooks_VKW)
    prefix_IV = code_IV.clone()
    for level in range(1, code_IV.shape[1]):
        prefix_IV[:, level] += prefix_IV[:, level - 1] * codebooks_VKW.shape[1]
    return prefix_IV


class CodeFields(nn.Module):
    """A field a level for the target, and one a level for the mean of the history."""

    row_IV: Tensor

    def __init__(self, codes: ItemCodes, *, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(codes.num_rows, width)
        self.reset()
        # They follow from the codebooks, which are kept with the run, and the items at hand.
        self.register_buffer("row_IV", codes.row_IV, persistent=False)

    def reset(self) -> None:
        """Start the table anew."""
        nn.init.normal_(self.table.weight, std=_INIT_STD)

    @property
    def num_fields(self) -> int:
        """Fields that this adds."""
        return 2 * self.row_IV.shape[1]

    def forward(self, item_B: Tensor, history_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Fields [B, 2V, O], and the sum of squares of the rows read of the targets."""
        target_BVO = self.table(self.row_IV[item_B])
        mask_BL = history_BL >= 0
        history_BLVO = self.table(self.row_IV[history_BL.long()])
        count_B11 = mask_BL.sum(1).clamp(min=1)[:, None, None]
        pooled_BVO = torch.einsum("blvo,bl->bvo", history_BLVO, mask_BL.to(history_BLVO.dtype))
        fields_BFO = torch.cat([target_BVO, pooled_BVO / count_B11], dim=1)
        return fields_BFO, target_BVO.square().sum()
