"""Adam that updates the rows of an embedding table that a batch read, and AdamW for the rest.

Lazy Adam: a row that a step did not read keeps its vector and its moments, where dense Adam would
go on moving it by its momentum and decay both moments. A row's moments so remember its own latest
readings, however long ago. The correction of the bias counts the steps of the table, as in
`torch.optim.SparseAdam`, of which this is the same arithmetic without its second sort.

Shapes: V rows of the table, E width of a row, U distinct rows of a batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adam import adam

from finetune.id_table import DistinctRows, sparse_rows


class RowSparseAdamW(torch.optim.AdamW):
    """AdamW, lazy for parameters whose gradient is sparse.

    Those are tables; their group has no weight decay, which would walk all of them.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, fused=True)
        self._step_supports_amp_scaling = False  # a scaler then unscales gradients by itself

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # noqa: ANN401
        """One step; sparse gradients are used up."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table_VE in group["params"]:
                if table_VE.grad is not None and table_VE.grad.is_sparse:
                    self._step_rows(table_VE, group)
                    table_VE.grad = None
        super().step()
        return loss

    def _step_rows(self, table_VE: nn.Parameter, group: dict[str, Any]) -> None:
        """Gather the rows read and their moments, step, put them back."""
        if group["weight_decay"]:
            raise ValueError(
                f"weight_decay of a table with sparse gradients: found {group['weight_decay']}, "
                "expected 0, as it would walk the whole table; use train.id_l2"
            )
        if group["lr"] == 0:  # the table has had its epochs
            return
        assert table_VE.grad is not None
        grad = coalesced(table_VE.grad)
        rows_U, grad_UE = grad._indices()[0], grad._values()
        state = self.state[table_VE]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table_VE.device)
            state["exp_avg"] = torch.zeros_like(table_VE)
            state["exp_avg_sq"] = torch.zeros_like(table_VE)
        whole = (table_VE, state["exp_avg"], state["exp_avg_sq"])
        part_UE, average_UE, square_UE = (one.index_select(0, rows_U) for one in whole)
        beta1, beta2 = group["betas"]
        adam(
            [part_UE],
            [grad_UE],
            [average_UE],
            [square_UE],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        for one, new_UE in zip(whole, (part_UE, average_UE, square_UE), strict=True):
            one.index_copy_(0, rows_U, new_UE)


def coalesced(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once.

    That of a single reading has them so already, though autograd forgets to say so.
    """
    rows_n = grad._indices()[0]
    if grad.is_coalesced():
        return grad
    if bool((rows_n[1:] > rows_n[:-1]).all()):
        return grad._coalesced_(True)
    distinct = DistinctRows.of(rows_n)
    return sparse_rows(distinct.rows_U[None], distinct.sum(grad._values()), grad.shape)


def clip_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients to a norm of at most `max_norm`, sparse ones too; returns the norm."""
    grads = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = coalesced(parameter.grad)
                grads.append(parameter.grad._values())
            else:
                grads.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(grads)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    if norm.device.type != "cpu" or float(scale) < 1:  # on a GPU, asking would wait for it
        torch._foreach_mul_(grads, scale)
    return norm


def average_over_ranks(grad: Tensor) -> Tensor:
    """Mean over every rank of a sparse gradient: the rows of each are gathered and summed.

    Sparse all-reduce exists for gloo alone; gathering works with NCCL too, and moves no more than
    the rows that were read.
    """
    world = dist.get_world_size()
    grad = coalesced(grad)
    rows_U, value_UE = grad._indices()[0], grad._values()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows_U.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows_U)], device=rows_U.device))
    longest = max(int(count) for count in counts)
    padding = longest - len(rows_U)
    row_parts = [rows_U.new_empty(longest) for _ in range(world)]
    value_parts = [value_UE.new_empty(longest, value_UE.shape[1]) for _ in range(world)]
    dist.all_gather(row_parts, nn.functional.pad(rows_U, (0, padding)))
    dist.all_gather(value_parts, nn.functional.pad(value_UE, (0, 0, 0, padding)))
    sizes = [int(count) for count in counts]
    rows_n = torch.cat([part[:size] for part, size in zip(row_parts, sizes, strict=True)])
    value_nE = torch.cat([part[:size] for part, size in zip(value_parts, sizes, strict=True)])
    distinct = DistinctRows.of(rows_n)
    return sparse_rows(distinct.rows_U[None], distinct.sum(value_nE) / world, grad.shape)
