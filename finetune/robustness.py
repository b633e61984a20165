"""What a trained model says when content is noisy, or missing for some of the items.

Shapes: I items (one zero row more for no item), W width of item vectors, D width of the released
space.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.content import Content
from finetune.content_items import FrozenItems
from finetune.model import CtrModel
from finetune.trust_settings import TrustConfig

_SEED = 0x7255


def disturbances(
    config: TrustConfig, model: CtrModel, *, content: Content | None
) -> Iterator[tuple[str, float, Content]]:
    """Kind, level and disturbed content, which the model reads while a triple is looked at.

    Both kinds change the vectors that a head is given and those of a history's events alike, and
    draw the same for every model. Nothing is yielded without frozen content. Codes stay those of
    the whole content.
    """
    if content is None or not _holders(model):
        return
    for level in config.noise_levels:
        yield from _one(model, "noise", level, noisy(content, level))
    for share in config.missing_shares:
        yield from _one(model, "missing", share, without(content, share))


def noisy(content: Content, level: float) -> Content:
    """Vectors x become (x + level ε) / |x + level ε|, ε Gaussian of expected squared length 1.

    The cosine to the vector as it was is about 1 / √(1 + level²). Missing content stays missing.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def disturbed(vector_IW: Tensor) -> Tensor:
        noise_IW = torch.randn(vector_IW.shape, generator=generator) * vector_IW.shape[1] ** -0.5
        present_I1 = (vector_IW != 0).any(1, keepdim=True)
        return F.normalize(vector_IW + level * noise_IW * present_I1, dim=1)

    return _changed(content, disturbed)


def without(content: Content, share: float) -> Content:
    """Items drawn at random have no content: a head reads what it learnt for missing content.

    In a user's vector their events are zero vectors.
    """
    num_items = len(content.item_IW) - 1
    generator = torch.Generator().manual_seed(_SEED)
    lost = torch.randperm(num_items, generator=generator)[: round(share * num_items)]
    return _changed(content, lambda vector_IW: vector_IW.index_fill(0, lost, 0.0))


def _changed(content: Content, change: Callable[[Tensor], Tensor]) -> Content:
    event_ID = content.event_ID
    return dataclasses.replace(
        content,
        item_IW=change(content.item_IW),
        event_ID=None if event_ID is None else change(event_ID),
        made={},  # user vectors and cosines of other vectors than those that were kept
    )


def _one(
    model: CtrModel, kind: str, level: float, content: Content
) -> Iterator[tuple[str, float, Content]]:
    with _reading(model, content.item_IW):
        yield kind, level, content


def _holders(model: CtrModel) -> list[FrozenItems]:
    return [one for one in model.modules() if isinstance(one, FrozenItems)]


@contextmanager
def _reading(model: CtrModel, item_IW: Tensor) -> Iterator[None]:
    """Let the model read other vectors."""
    holders = _holders(model)
    whole = [one.item_IW for one in holders]
    try:
        for one in holders:
            one.item_IW = item_IW.to(one.item_IW.device)
        yield
    finally:
        for one, vectors in zip(holders, whole, strict=True):
            one.item_IW = vectors
