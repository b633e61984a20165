"""Vectors → a few codes each: k-means on what the codes before have left over.

Letters: see `batch.py`; K codes of a level, V levels. Codebooks are [V, K, D].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 4096
"""Rows whose distances to every code are held at a time."""


def nearest_codes(rows_nD: Tensor, codes_KD: Tensor) -> Tensor:
    """[n] which code is nearest to each row; the first of equals."""
    half_K = codes_KD.square().sum(1) / 2
    chunks = [(half_K - part @ codes_KD.T).argmin(1) for part in torch.split(rows_nD, CHUNK_ROWS)]
    return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.int64)


def kmeans(rows_nD: Tensor, *, num_codes: int, seed: int, iterations: int) -> Tensor:
    """Codes [K, D] by Lloyd's iterations from a k-means++ start (Arthur & Vassilvitskii 2007).

    A code that no row is nearest to moves to the row that is worst served. With no more distinct
    rows than codes, the rows themselves are codes and the rest repeat the first.
    """
    distinct = torch.unique(rows_nD, dim=0)
    if len(distinct) <= num_codes:
        return torch.cat([distinct, distinct[:1].expand(num_codes - len(distinct), -1)])
    codes_KD = _spread_start(rows_nD, num_codes=num_codes, seed=seed)
    for _ in range(iterations):
        code_n = nearest_codes(rows_nD, codes_KD)
        count_K = torch.bincount(code_n, minlength=num_codes)
        sums_KD = torch.zeros_like(codes_KD).index_add(0, code_n, rows_nD)
        moved_KD = sums_KD / count_K.clamp(min=1)[:, None]
        empty = (count_K == 0).nonzero()[:, 0]
        if len(empty):
            error_n = (rows_nD - codes_KD[code_n]).square().sum(1)
            moved_KD[empty] = rows_nD[error_n.topk(len(empty)).indices]
        if torch.equal(moved_KD, codes_KD):
            break
        codes_KD = moved_KD
    return codes_KD


def _spread_start(rows_nD: Tensor, *, num_codes: int, seed: int) -> Tensor:
    """k-means++: each next code is a row, drawn by its squared distance to the codes so far."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(rows_nD), (1,), generator=generator))]
    distance_n = (rows_nD - rows_nD[chosen[0]]).square().sum(1)
    for _ in range(num_codes - 1):
        # A draw over the running sum, since torch.multinomial takes no more than 2^24 rows.
        sum_n = distance_n.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * sum_n[-1]
        chosen.append(int(torch.searchsorted(sum_n, draw).clamp(max=len(rows_nD) - 1)))
        distance_n = torch.minimum(distance_n, (rows_nD - rows_nD[chosen[-1]]).square().sum(1))
    return rows_nD[chosen]


def residual_kmeans(
    rows_nD: Tensor, *, levels: int, num_codes: int, seed: int, iterations: int
) -> Tensor:
    """Codebooks [V, K, D]: each level's k-means on the residuals of the levels before."""
    codebooks = []
    for level in range(levels):
        codes_KD = kmeans(rows_nD, num_codes=num_codes, seed=seed + level, iterations=iterations)
        rows_nD = rows_nD - codes_KD[nearest_codes(rows_nD, codes_KD)]
        codebooks.append(codes_KD)
    return torch.stack(codebooks)


def encode_residual(rows_nD: Tensor, codebooks_VKD: Tensor) -> Tensor:
    """Codes [n, V]: level by level the one nearest to what is left."""
    codes = []
    for codes_KD in codebooks_VKD:
        code_n = nearest_codes(rows_nD, codes_KD)
        rows_nD = rows_nD - codes_KD[code_n]
        codes.append(code_n)
    return torch.stack(codes, dim=1)


def decode_residual(codes_nV: Tensor, codebooks_VKD: Tensor) -> Tensor:
    """Sum of the chosen codes, [n, D]."""
    levels = torch.arange(len(codebooks_VKD))
    return codebooks_VKD[levels, codes_nV].sum(1)


@dataclass(frozen=True, kw_only=True)
class CodeUse:
    """How evenly the codes of one level are used."""

    used: int
    """Codes with at least one item."""

    perplexity: float
    """Exponential of the entropy of their shares: as many codes in even use would have it."""

    largest_share: float
    """Share of the items that the most common code has."""


def code_use(code_n: Tensor, *, num_codes: int) -> CodeUse:
    """Balance of one level."""
    count_K = torch.bincount(code_n, minlength=num_codes).double()
    share_K = count_K / count_K.sum().clamp(min=1)
    return CodeUse(
        used=int((count_K > 0).sum()),
        perplexity=float(torch.special.entr(share_K).sum().exp()),
        largest_share=float(share_K.max()),
    )


def collision_numbers(codes_nV: Tensor) -> Tensor:
    """[n] how many rows before a row have all of its codes: the last part of a unique id."""
    _, group_n, count = torch.unique(codes_nV, dim=0, return_inverse=True, return_counts=True)
    order_n = torch.argsort(group_n, stable=True)
    starts = count.cumsum(0) - count
    number_n = torch.empty_like(group_n)
    number_n[order_n] = torch.arange(len(group_n)) - starts[group_n[order_n]]
    return number_n
