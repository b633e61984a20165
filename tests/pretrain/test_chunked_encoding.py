"""Encoding in chunks: the same vectors and gradients, dropout replayed, less kept in between."""

import pytest
import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone
from pretrain.batch import ItemBatch
from pretrain.chunked_encoding import encode_in_chunks, slice_items
from pretrain.embed import knocked_out
from pretrain.item_encoder import ItemEncoder, ItemVectors
from pretrain.tower_frames import FramesBackbone

WIDTHS = {"image": 7, "text": 5}


def make_items() -> ItemBatch:
    generator = torch.Generator().manual_seed(0)
    presence = {"image": torch.arange(11) >= 5, "text": torch.arange(11) % 3 > 0}
    inputs = {
        name: {"features": torch.randn(int(presence[name].sum()), width, generator=generator)}
        for name, width in WIDTHS.items()
    }
    return ItemBatch(rows_n=torch.arange(11), inputs=inputs, presence=presence)


def make_encoder(*, dropout: float) -> ItemEncoder:
    torch.manual_seed(0)
    return ItemEncoder({}, feature_widths=WIDTHS, width=6, dropout=dropout)


def gradients(encoder: ItemEncoder, vectors: ItemVectors) -> dict[str, Tensor]:
    target = torch.linspace(-1, 1, vectors.fused_nD.numel()).view_as(vectors.fused_nD)
    loss = (vectors.fused_nD * target).sum() + (vectors.modality_nD["image"] ** 3).sum()
    (loss + vectors.gate_nM[:, 0].sum()).backward()
    return {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("chunk_items", [1, 4, 11, 100])
def test_chunks_give_the_vectors_and_gradients_of_one_pass(chunk_items: int) -> None:
    items, whole, chunked = make_items(), make_encoder(dropout=0.0), make_encoder(dropout=0.0)
    dropped = torch.stack([torch.arange(11) % 4 == 3, torch.arange(11) % 4 == 1], dim=1)
    expected = whole(items, dropped_nM=dropped)
    found = encode_in_chunks(chunked, items, chunk_items=chunk_items, dropped_nM=dropped)
    torch.testing.assert_close(found.fused_nD, expected.fused_nD)
    torch.testing.assert_close(found.modality_nD, expected.modality_nD)
    torch.testing.assert_close(gradients(chunked, found), gradients(whole, expected))


def test_the_second_pass_drops_out_what_the_first_did() -> None:
    items, chunked, twin = make_items(), make_encoder(dropout=0.5), make_encoder(dropout=0.5)
    torch.manual_seed(7)
    found = encode_in_chunks(chunked, items, chunk_items=4)
    torch.manual_seed(7)
    bounds = [(0, 3), (3, 7), (7, 11)]  # the same chunks, their graphs kept
    parts = [twin(slice_items(items, *bound)) for bound in bounds]
    expected = ItemVectors(
        torch.cat([part.fused_nD for part in parts]),
        {name: torch.cat([part.modality_nD[name] for part in parts]) for name in WIDTHS},
        torch.cat([part.gate_nM for part in parts]),
    )
    torch.testing.assert_close(found.fused_nD, expected.fused_nD)
    torch.manual_seed(99)  # what other layers draw in between must not matter
    torch.testing.assert_close(gradients(chunked, found), gradients(twin, expected))


def saved_elements(encoder: ItemEncoder, *, chunk_items: int | None) -> int:
    """What autograd keeps between the forward and the backward, parameters aside."""
    kept: dict[int, int] = {}
    parameters = {one.untyped_storage().data_ptr() for one in encoder.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    items = make_items()
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if chunk_items is None:
            alive.append(encoder(items))
        else:
            alive.append(encode_in_chunks(encoder, items, chunk_items=chunk_items))
    return sum(kept.values())


def test_no_activation_is_kept_for_the_backward() -> None:
    encoder = make_encoder(dropout=0.0)
    assert saved_elements(encoder, chunk_items=4) < 0.5 * saved_elements(encoder, chunk_items=None)


def test_batch_statistics_are_refused() -> None:
    encoder = make_encoder(dropout=0.0)
    encoder.backbones["image"] = nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7))
    with pytest.raises(ValueError, match="batch normalisation"):
        encode_in_chunks(encoder, make_items(), chunk_items=4)


class Counting(nn.Module):
    """A tower that counts the items it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.width, self.seen = nn.Linear(7, 7), 7, 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        out: Tensor = self.linear(pixels)
        return out


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_runs_once_and_a_tuned_one_again_in_the_backward(frozen: bool) -> None:
    items, encoder, tower = make_items(), make_encoder(dropout=0.0), Counting()
    encoder.backbones["image"] = tower.requires_grad_(not frozen)
    items.inputs["image"] = {"pixels": items.inputs["image"]["features"]}
    expected = encoder(items).fused_nD
    present, tower.seen = tower.seen, 0
    found = encode_in_chunks(encoder, items, chunk_items=11)
    gradients(encoder, found)
    torch.testing.assert_close(found.fused_nD, expected)
    assert tower.seen == (1 if frozen else 2) * present
    assert (tower.linear.weight.grad is None) == frozen


class Picture(Backbone):
    """A picture tower of one matrix."""

    width = 7

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, **inputs: Tensor) -> Tensor:
        out: Tensor = self.linear(inputs["pixels"].mean((2, 3)))
        return out


FRAMES = {0: 2, 2: 3, 3: 1, 5: 2}
"""Item → how many frames it has."""


def items_with_frames() -> tuple[ItemBatch, ItemEncoder]:
    torch.manual_seed(0)
    counts = torch.tensor(list(FRAMES.values()))
    presence = {
        "frames": torch.tensor([item in FRAMES for item in range(6)]),
        "text": torch.arange(6) != 2,  # item 2 has nothing but frames
    }
    inputs = {
        "frames": {
            "pixels": torch.randn(int(counts.sum()), 3, 2, 2),
            "item": torch.repeat_interleave(counts),
        },
        "text": {"features": torch.randn(5, WIDTHS["text"])},
    }
    widths = {"frames": 7, "text": WIDTHS["text"]}
    backbones = {"frames": FramesBackbone(Picture(), pool="attention")}
    encoder = ItemEncoder(backbones, feature_widths=widths, width=6, dropout=0.0)
    return ItemBatch(rows_n=torch.arange(6), inputs=inputs, presence=presence), encoder


@pytest.mark.parametrize("chunk_items", [1, 2, 4])
def test_an_items_frames_go_with_it(chunk_items: int) -> None:
    items, encoder = items_with_frames()
    expected = encoder(items)
    found = encode_in_chunks(encoder, items, chunk_items=chunk_items)
    torch.testing.assert_close(found.fused_nD, expected.fused_nD)
    torch.testing.assert_close(found.modality_nD, expected.modality_nD)


def test_frames_are_knocked_out_but_of_items_that_have_nothing_else() -> None:
    items, encoder = items_with_frames()
    left = knocked_out(items, ["frames"])
    assert left.presence["frames"].tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(encoder(left).fused_nD[2], encoder(items).fused_nD[2])
