"""One embedding table for every id, and its gradient as the rows that a batch read.

A dense gradient of the table costs its whole length every step, of which a batch reads a few
thousand rows: at 10 million ids that is nearly all the time of training. Here the gradient is a
coalesced sparse tensor, for `RowSparseAdamW`.

Shapes: V rows of the table, E width of a row, n rows read, U distinct ones among them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.01
"""Small: an id that was never trained says almost nothing."""


@dataclass(frozen=True)
class DistinctRows:
    """The distinct rows among those read, and where each was read."""

    rows_U: Tensor
    """Ascending, int64."""
    place_n: Tensor
    """Positions in reading order, those of `rows_U[0]` first."""
    start_U: Tensor
    """Where a row's positions begin in `place_n`."""

    @staticmethod
    def of(rows_n: Tensor) -> "DistinctRows":
        """Sort once; every column of a gradient is summed by the same order."""
        sorted_n, place_n = torch.sort(rows_n, stable=True)  # stable: sums keep their order
        rows_U, count_U = torch.unique_consecutive(sorted_n, return_counts=True)
        return DistinctRows(rows_U.long(), place_n, count_U.cumsum(0) - count_U)

    def sum(self, values_nE: Tensor) -> Tensor:
        """Sum of the values read of each distinct row, [U, E].

        An embedding bag is a gather and a segment sum in one pass over the values.
        """
        return F.embedding_bag(self.place_n, values_nE, self.start_U, mode="sum")


class _RowSparseLookup(torch.autograd.Function):
    """Rows of several tables of equal length; their gradients are sparse and coalesced."""

    @staticmethod
    def forward(ctx: Any, rows_n: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.save_for_backward(rows_n)
        ctx.shapes = [table_VE.shape for table_VE in tables]
        return tuple(
            # Of one column, the copy of numbers is three times as fast as the copy of rows.
            table_VE.view(-1).index_select(0, rows_n)[:, None]
            if table_VE.shape[1] == 1
            else table_VE.index_select(0, rows_n)
            for table_VE in tables
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        distinct = DistinctRows.of(ctx.saved_tensors[0])
        needed = ctx.needs_input_grad[1:]
        out: list[Tensor | None] = [None]
        for grad_nE, shape, is_needed in zip(grads, ctx.shapes, needed, strict=True):
            if grad_nE is None or not is_needed:
                out.append(None)
                continue
            sum_UE = distinct.sum(grad_nE.contiguous())
            # A clone, as autograd copies the values of a gradient whose indices are shared.
            index_1U = distinct.rows_U[None].clone()
            out.append(sparse_rows(index_1U, sum_UE, shape))
        return tuple(out)


def sparse_rows(index_1U: Tensor, value_UE: Tensor, shape: torch.Size) -> Tensor:
    """A sparse tensor of distinct, ascending rows."""
    return torch.sparse_coo_tensor(
        index_1U, value_UE, shape, is_coalesced=True, check_invariants=False
    )


class IdTable(nn.Module):
    """Vectors of ids, and the weight of each in the linear part, in tables of their own.

    Apart, as a row of 16 floats is one cache line and goes to the head without being copied.
    """

    def __init__(
        self, num_rows: int, width: int, *, first_order: bool, std: float = INIT_STD
    ) -> None:
        super().__init__()
        self.num_rows, self.std = num_rows, std
        self.weight: nn.Parameter | None = None
        if width:
            self.weight = nn.Parameter(torch.empty(num_rows, width))
        self.first_order: nn.Parameter | None = None
        if first_order:
            self.first_order = nn.Parameter(torch.empty(num_rows, 1))
        self.reset()
        self.sparse_gradient = False
        """Whether gradients are sparse; their optimiser must know."""

    def reset(self) -> None:
        """Draw every vector and weight anew."""
        for table_VE in self.tables:
            nn.init.normal_(table_VE, std=self.std)

    @property
    def tables(self) -> list[nn.Parameter]:
        """Both parameters, of which one may be missing; a row an id each."""
        return [table for table in (self.weight, self.first_order) if table is not None]

    def lookup(self, rows_n: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors [n, E] and weights [n, 1] of these rows."""
        tables = self.tables
        if self.sparse_gradient and torch.is_grad_enabled():
            found = list(_RowSparseLookup.apply(rows_n, *tables))
        else:
            found = [F.embedding(rows_n, table_VE) for table_VE in tables]
        first_order_n1 = None if self.first_order is None else found.pop()
        if self.weight is None:
            return torch.empty(len(rows_n), 0, device=rows_n.device), first_order_n1
        return found[0], first_order_n1
