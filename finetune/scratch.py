"""The control `scratch`: the release's architecture over the same features, pre-trained on nothing.

What the rung `aligned` gains over it is owed to pre-training, and not to the shape of the vectors
or of the user encoder.

Shapes: I items (one zero row more for no item), F width of the off-the-shelf features, D width of
the released space.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune.embeddings import Embeddings
from pretrain.batch import ItemBatch
from pretrain.model import TwoSpaceModel

if TYPE_CHECKING:
    from pretrain import Release


def untrained_release(
    released: Path | None, embeddings: Embeddings, *, seed: int
) -> tuple["Release", Tensor, Tensor]:
    """A release of random weights drawn by `seed`, and its vectors of items and events, [I, D].

    The towers stay as they were before pre-training: their features are the column `raw`, each
    modality at unit length, by which the adapters are calibrated as at step 0 of a training.

    Raises:
        ValueError: no release to take the architecture from, or one on ids alone.
    """
    from pretrain import Release, load_released

    if released is None:
        raise ValueError(
            "released: found none, expected the released folder whose architecture the rung "
            "scratch needs; run python -m pretrain export and give its folder"
        )
    trained = load_released(released)
    config = trained.config
    if not config.feature_widths:
        raise ValueError(
            f"{released}: found a release on ids alone, expected one with content for the rung "
            "scratch; leave that rung out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TwoSpaceModel(
            config.model,
            backbones={},
            feature_widths=config.feature_widths,
            num_items=config.num_items,
            user_columns=config.user_columns,
        )
    raw_IF = embeddings.raw_features()
    items = split_modalities(raw_IF, config.feature_widths)
    model.item_encoder.calibrate(items)
    release = Release(config, folder=released, model=model, item_ids=trained.item_ids)
    item_ID = release.encode_batch(items)  # ids of step 0 are zero, so events are items
    item_ID = torch.cat([item_ID, torch.zeros(1, item_ID.shape[1])]).clone()
    return release, item_ID, item_ID


def split_modalities(raw_NF: Tensor, widths: dict[str, int]) -> ItemBatch:
    """The column `raw` as the towers' features: zeros mean that the item lacks the modality."""
    inputs: dict[str, dict[str, Tensor]] = {}
    presence: dict[str, Tensor] = {}
    for name, part_NF in zip(
        widths, torch.split(raw_NF, list(widths.values()), dim=1), strict=True
    ):
        presence[name] = (part_NF != 0).any(1)
        present_pF = part_NF[presence[name]]
        inputs[name] = {"features": present_pF if len(present_pF) else part_NF[:1]}
    return ItemBatch(rows_n=torch.arange(len(raw_NF)), inputs=inputs, presence=presence)
