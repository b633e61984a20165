"""Tensors of every rank, with gradient; the identity on one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together, 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherPadded(torch.autograd.Function):
    """all_gather of equally sized blocks; the backward sums every rank's gradient of our block."""

    @staticmethod
    def forward(ctx: Any, block: Tensor) -> Tensor:  # noqa: ANN401 - torch's own signature
        ctx.length = len(block)
        blocks = [torch.empty_like(block) for _ in range(world_size())]
        dist.all_gather(blocks, block.contiguous())
        return torch.cat(blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - torch's own signature
        # Every rank holds a part of the loss, and our block took part in all of them.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = rank() * ctx.length
        return grad[start : start + ctx.length]


def gather_counts(count: int, *, device: torch.device) -> list[int]:
    """How many rows each rank holds."""
    if world_size() == 1:
        return [count]
    mine = torch.tensor([count], dtype=torch.int64, device=device)
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    return [int(value) for value in counts]


def gather_rows(rows: Tensor, *, counts: list[int]) -> Tensor:
    """Rows of every rank, one rank after the other, with gradient.

    Args:
        rows: this rank's [counts[rank], ...] block.
        counts: rows on each rank, from `gather_counts`.

    Returns:
        [sum(counts), ...]; the gradient of a row is the sum of its gradients on all ranks.
    """
    if world_size() == 1:
        return rows
    length = max(counts)
    if length == 0:
        return rows
    padded = torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
    gathered = _GatherPadded.apply(padded)
    assert isinstance(gathered, Tensor)
    return torch.cat([gathered[r * length : r * length + n] for r, n in enumerate(counts)])


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a detached value over the ranks."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def logsumexp_over_ranks(value: Tensor) -> Tensor:
    """Log-sum-exp of a detached value over the ranks; -inf where every rank has it."""
    if world_size() == 1:
        return value
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value.contiguous())
    return torch.stack(values).logsumexp(0)


def gather_objects(value: Any) -> list[Any]:  # noqa: ANN401 - anything that pickles
    """Every rank's object, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def max_over_ranks(value: int, *, device: torch.device) -> int:
    """The largest of every rank's number."""
    return max(gather_counts(value, device=device))
