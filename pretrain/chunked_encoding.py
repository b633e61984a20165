"""Item encoding in chunks whose activations are made again in the backward.

GradCache (Gao et al., RepL4NLP 2021): vectors without a graph, the loss and its gradients with
respect to the vectors, then each chunk again with a graph. `torch.utils.checkpoint` does just that
inside one backward, random numbers replayed, so that DDP and ZeRO see one backward pass as ever.
Letters: see `batch.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.batch import ItemBatch, inputs_of
from pretrain.collectives import max_over_ranks
from pretrain.item_encoder import ItemEncoder, ItemVectors


def encode_in_chunks(
    encoder: ItemEncoder, items: ItemBatch, *, chunk_items: int, dropped_nM: Tensor | None = None
) -> ItemVectors:
    """What `encoder(items)` gives, with the activations of `chunk_items` items in memory at most.

    Every rank makes the same number of calls, as each is a collective under ZeRO-3.

    Raises:
        ValueError: batch statistics would depend on the chunk.
    """
    if any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in _trained(encoder)):
        raise ValueError(
            "loss.encode_chunk: a tower in training has batch normalisation, whose statistics are "
            "of the whole batch; freeze the tower or set loss.encode_chunk to 0"
        )
    num_items = len(items.rows_n)
    chunks = max_over_ranks(-(-num_items // chunk_items), device=items.rows_n.device)
    bounds = [number * num_items // chunks for number in range(chunks + 1)]
    parts = []
    for start, stop in pairwise(bounds):
        begin, end = min(start, num_items - 1), max(stop, start + 1)
        part = slice_items(items, begin, end)
        dropped_pM = None if dropped_nM is None else dropped_nM[begin:end]
        # A frozen tower has no graph to save: only its features are kept, and it runs once.
        for name, tower in encoder.backbones.items():
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                part.inputs[name] = {"features": encoder.features(name, part.inputs[name])}
        found = checkpoint(_encode, encoder, part, dropped_pM, use_reentrant=False)
        parts.append([tensor[: stop - start] for tensor in found])
    fused_nD, gate_nM, *alone = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return ItemVectors(fused_nD, dict(zip(encoder.modalities, alone, strict=True)), gate_nM)


def _encode(
    encoder: ItemEncoder, items: ItemBatch, dropped_nM: Tensor | None
) -> tuple[Tensor, ...]:
    vectors = encoder(items, dropped_nM=dropped_nM)
    alone = (vectors.modality_nD[name] for name in encoder.modalities)
    return vectors.fused_nD, vectors.gate_nM, *alone


def _trained(encoder: ItemEncoder) -> list[nn.Module]:
    """Parts of the towers that are tuned; a frozen tower keeps its statistics."""
    tuned = [
        tower
        for tower in encoder.backbones.values()
        if encoder.training and any(parameter.requires_grad for parameter in tower.parameters())
    ]
    return [part for tower in tuned for part in tower.modules()]


def slice_items(items: ItemBatch, start: int, stop: int) -> ItemBatch:
    """Items `start:stop` of a batch, at least one."""
    inputs, presence = {}, {}
    for name, present_n in items.presence.items():
        presence[name] = present_n[start:stop]
        first, last = int(present_n[:start].sum()), int(present_n[:stop].sum())
        if first == last:  # none of these has it: any input stands in, as in a whole batch
            first, last = 0, 1
        inputs[name] = inputs_of(items.inputs[name], slice(first, last))
    return ItemBatch(rows_n=items.rows_n[start:stop], inputs=inputs, presence=presence)
