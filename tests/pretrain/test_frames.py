"""Several pictures an item: chosen, decoded in one go, pooled over those that are there."""

import numpy as np
import pytest
import simplejpeg
import torch
from torch import nn

from data_prep.records import ItemRecord
from pretrain.backbone import TowerConfig
from pretrain.preprocess import FramesPreprocessor, build_preprocessors, prepare_records
from pretrain.tower_frames import FramePool, FramesBackbone
from pretrain.towers import build_backbone

CLIP = "configs/toy/open_clip_tiny.json"


def config(**settings: object) -> TowerConfig:
    return TowerConfig(library="open_clip", name=CLIP, image_size=32, **settings)  # type: ignore[arg-type]


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(coarse, quality=90))


def test_chosen_frames_are_spread_evenly() -> None:
    made = FramesPreprocessor(config(max_frames=3))
    assert made.chosen(0) == []
    assert made.chosen(2) == [0, 1]
    assert made.chosen(3) == [0, 1, 2]
    assert made.chosen(9) == [1, 4, 7]


def records() -> list[ItemRecord]:
    return [
        ItemRecord(frames=(jpeg(0), jpeg(1), jpeg(2))),
        ItemRecord(),
        ItemRecord(frames=(jpeg(3),)),
    ]


def test_features_are_the_mean_of_the_picture_towers_over_frames_present() -> None:
    torch.manual_seed(0)
    tower = config(max_frames=4)
    backbone = build_backbone("frames", tower).eval()
    assert isinstance(backbone, FramesBackbone)
    made = build_preprocessors({"frames": tower}, text_fields=(), vector_widths={})
    batch = prepare_records(records(), made)
    assert batch.presence["frames"].tolist() == [True, False, True]
    assert batch.inputs["frames"]["item"].tolist() == [0, 0, 0, 1]
    each = backbone.picture(pixels=batch.inputs["frames"]["pixels"])
    expected = torch.stack([each[:3].mean(0), each[3]])
    torch.testing.assert_close(backbone(**batch.inputs["frames"]), expected)


def test_items_without_frames_give_one_blank() -> None:
    inputs, presence = FramesPreprocessor(config()).batch([[], []])
    assert not presence.any()
    assert inputs["item"].tolist() == [0]
    assert not inputs["pixels"].any()
    assert inputs["pixels"].shape[0] == 1


def test_attention_starts_as_the_mean_and_is_a_softmax_within_each_item() -> None:
    torch.manual_seed(0)
    frames_fF, item_f = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 0, 0, 1, 1, 2])
    pool = FramePool(4, kind="attention")
    plain = FramePool(4, kind="mean")(frames_fF, item_f)
    torch.testing.assert_close(pool(frames_fF, item_f), plain)
    assert pool.score is not None
    nn.init.normal_(pool.score.weight, std=30.0)  # logits that would overflow without their maximum
    found = pool(frames_fF, item_f)
    for item in range(3):
        own = frames_fF[item_f == item]
        weights = pool.score(own).softmax(0)
        torch.testing.assert_close(found[item], (weights * own).sum(0))
    nn.init.normal_(pool.score.weight)
    pool(frames_fF, item_f)[:, 0].sum().backward()
    assert frames_fF.grad is not None
    assert frames_fF.grad.abs().sum(1).min() > 0
    assert pool.score.weight.grad is not None
    assert pool.score.weight.grad.abs().sum() > 0


def test_a_frozen_tower_still_learns_which_frames_matter() -> None:
    backbone = build_backbone("frames", config(train="frozen", frames_pool="attention")).train()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad] == ["pool.score.weight"]
    assert isinstance(backbone, FramesBackbone)
    assert not backbone.picture.training
    assert not config(train="frozen", frames_pool="attention").fixed_features
    assert config(train="frozen").fixed_features


@pytest.mark.parametrize("train", ["top_k", "lora"])
def test_the_picture_tower_is_tuned_in_part(train: str) -> None:
    if train == "lora":
        pytest.importorskip("peft")
    backbone = build_backbone("frames", config(train=train, frames_pool="attention"))
    inputs = FramesPreprocessor(config()).batch([[jpeg(0), jpeg(1)], [jpeg(2)]])[0]
    backbone(**inputs).square().sum().backward()
    trained = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
    assert "pool.score.weight" in trained
    assert all(grad is not None for grad in trained.values())
