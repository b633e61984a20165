import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.id_table import DistinctRows, IdTable
from finetune.row_adam import RowSparseAdamW, average_over_ranks, clip_norm, coalesced

ROOT = Path(__file__).parents[2]
ROWS, WIDTH = 30, 4


def build(*, sparse: bool) -> IdTable:
    torch.manual_seed(0)
    table = IdTable(ROWS, WIDTH, first_order=True)
    table.sparse_gradient = sparse
    return table


def loss_of(table: IdTable, rows_n: Tensor, weight_nE: Tensor) -> Tensor:
    vector_nE, first_n1 = table.lookup(rows_n)
    assert first_n1 is not None
    return (vector_nE * weight_nE).sum().sin() + (first_n1.squeeze(1) * weight_nE[:, 0]).sum().cos()


def batches(num: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randint(ROWS // 2, (40,)).int(), torch.randn(40, WIDTH)) for _ in range(num)]


def lazy_adam_step(
    table_VE: Tensor, grad_VE: Tensor, *, moments: tuple[Tensor, Tensor], step: int, lr: float
) -> None:
    """Kingma and Ba 2015, algorithm 1, on the rows that were read; the others stand still."""
    average_VE, square_VE = moments
    for row in range(len(table_VE)):
        if not grad_VE[row].any():
            continue
        average_VE[row] = 0.9 * average_VE[row] + 0.1 * grad_VE[row]
        square_VE[row] = 0.999 * square_VE[row] + 0.001 * grad_VE[row] ** 2
        average_hat = average_VE[row] / (1 - 0.9**step)
        root_hat = square_VE[row].sqrt() / math.sqrt(1 - 0.999**step)
        table_VE[row] -= lr * average_hat / (root_hat + 1e-8)


def test_distinct_rows_sum_what_was_read_of_each() -> None:
    rows_n = torch.tensor([5, 2, 5, 9, 2, 5], dtype=torch.int32)
    value_nE = torch.randn(6, 3)
    distinct = DistinctRows.of(rows_n)
    assert distinct.rows_U.tolist() == [2, 5, 9]
    expected = torch.stack([value_nE[rows_n == row].sum(0) for row in (2, 5, 9)])
    torch.testing.assert_close(distinct.sum(value_nE), expected)


def test_a_sparse_gradient_is_the_dense_one() -> None:
    sparse, dense = build(sparse=True), build(sparse=False)
    ((rows_n, weight_nE),) = batches(1)
    for table in (sparse, dense):
        loss_of(table, rows_n, weight_nE).backward()
    for one, other in zip(sparse.tables, dense.tables, strict=True):
        assert one.grad is not None
        assert one.grad.is_sparse
        assert len(coalesced(one.grad)._indices()[0]) == len(rows_n.unique())
        torch.testing.assert_close(one.grad.to_dense(), other.grad)


def test_readings_of_two_batches_add_up() -> None:
    sparse, dense = build(sparse=True), build(sparse=False)
    for rows_n, weight_nE in batches(2):
        for table in (sparse, dense):
            loss_of(table, rows_n, weight_nE).backward()
    for one, other in zip(sparse.tables, dense.tables, strict=True):
        torch.testing.assert_close(coalesced(one.grad).to_dense(), other.grad)


def test_ten_steps_equal_a_slow_twin_over_dense_gradients() -> None:
    sparse, dense = build(sparse=True), build(sparse=False)
    optimizer = RowSparseAdamW([{"params": sparse.tables, "lr": 0.05, "weight_decay": 0.0}])
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in dense.tables]
    for step, (rows_n, weight_nE) in enumerate(batches(10), start=1):
        loss_of(sparse, rows_n, weight_nE).backward()
        optimizer.step()
        loss_of(dense, rows_n, weight_nE).backward()
        for one, both in zip(dense.tables, moments, strict=True):
            lazy_adam_step(one.data, one.grad, moments=both, step=step, lr=0.05)
            one.grad = None
    for one, other in zip(sparse.tables, dense.tables, strict=True):
        torch.testing.assert_close(one, other)


def test_torchs_own_sparse_adam_takes_the_same_steps() -> None:
    ours, theirs = build(sparse=True), build(sparse=True)
    optimizers = [
        RowSparseAdamW([{"params": ours.tables, "lr": 0.05, "weight_decay": 0}]),
        torch.optim.SparseAdam(theirs.tables, lr=0.05),
    ]
    for rows_n, weight_nE in batches(5):
        for table, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(table, rows_n, weight_nE).backward()
            optimizer.step()
    for one, other in zip(ours.tables, theirs.tables, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_that_no_batch_read_stand_still() -> None:
    table = build(sparse=True)
    before = table.weight.detach().clone()
    optimizer = RowSparseAdamW([{"params": table.tables, "weight_decay": 0}])
    read = torch.zeros(ROWS, dtype=torch.bool)
    for rows_n, weight_nE in batches(3):
        loss_of(table, rows_n, weight_nE).backward()
        optimizer.step()
        read[rows_n.long()] = True
    moved = (table.weight != before).any(1)
    assert torch.equal(moved, read)


def test_dense_groups_take_adamws_steps() -> None:
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [
        RowSparseAdamW([{"params": list(layers[0].parameters()), "weight_decay": 0.1}]),
        torch.optim.AdamW(layers[1].parameters(), weight_decay=0.1),
    ]
    for _ in range(4):
        x = torch.randn(5, 3)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(layers[0].weight, layers[1].weight)


def test_weight_decay_of_a_row_sparse_table_is_refused() -> None:
    table = build(sparse=True)
    optimizer = RowSparseAdamW([{"params": table.tables, "weight_decay": 0.1}])
    ((rows_n, weight_nE),) = batches(1)
    loss_of(table, rows_n, weight_nE).backward()
    with pytest.raises(ValueError, match=r"found 0\.1, expected 0"):
        optimizer.step()


def test_clipping_counts_sparse_and_dense_gradients_together() -> None:
    clipped = []
    for is_sparse in (True, False):
        table, layer = build(sparse=is_sparse), nn.Linear(2, 1)
        nn.init.ones_(layer.weight)
        ((rows_n, weight_nE),) = batches(1)
        (30 * loss_of(table, rows_n, weight_nE) + layer(torch.ones(2)).sum()).backward()
        parameters = [*table.parameters(), *layer.parameters()]
        if is_sparse:
            norm = clip_norm(parameters, 0.5)
        else:
            norm = nn.utils.clip_grad_norm_(parameters, 0.5)
        dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in parameters]
        clipped.append((norm, *dense))
    for one, other in zip(*clipped, strict=True):
        torch.testing.assert_close(one, other)


def test_a_saved_optimiser_goes_on_alike() -> None:
    def fresh() -> tuple[IdTable, RowSparseAdamW]:
        table = build(sparse=True)
        groups = [{"params": table.tables, "lr": 0.05, "weight_decay": 0}]
        return table, RowSparseAdamW(groups)

    def train(table: IdTable, optimizer: RowSparseAdamW, steps: slice) -> None:
        for rows_n, weight_nE in batches(6)[steps]:
            loss_of(table, rows_n, weight_nE).backward()
            optimizer.step()

    whole, half, rest = fresh(), fresh(), fresh()
    train(*whole, slice(0, 6))
    train(*half, slice(0, 3))
    rest[0].load_state_dict(half[0].state_dict())
    rest[1].load_state_dict(half[1].state_dict())
    train(*rest, slice(3, 6))
    assert torch.equal(whole[0].weight, rest[0].weight)


def _average(rank: int, world: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    table = build(sparse=True)
    rows_n, weight_nE = batches(2)[rank]
    kept = slice(0, 40 - 15 * rank)  # ranks read different numbers of rows
    loss_of(table, rows_n[kept], weight_nE[kept]).backward()
    averaged = average_over_ranks(table.weight.grad)
    torch.save(averaged.to_dense(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.ranks
def test_ranks_average_the_rows_that_each_read(tmp_path: Path) -> None:
    mp.spawn(_average, args=(2, str(tmp_path)), nprocs=2)
    expected = torch.zeros(ROWS, WIDTH)
    for rank, (rows_n, weight_nE) in enumerate(batches(2)):
        table, kept = build(sparse=False), slice(0, 40 - 15 * rank)
        loss_of(table, rows_n[kept], weight_nE[kept]).backward()
        expected += table.weight.grad / 2
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.ranks
def test_two_ranks_with_row_sparse_ids_give_the_weights_of_one(
    toy_dataset: Path, tmp_path: Path
) -> None:
    command = ["--dataset_dir", str(toy_dataset), "--history_length", "8"]
    command += ["--head.name", "deepfm", "--head.embedding_width", "4", "--head.hidden", "[8]"]
    command += ["--head.dropout", "0", "--train.id_dropout", "0", "--train.batch_size", "256"]
    command += ["--train.max_epochs", "2", "--trainer.accelerator", "cpu"]
    command += ["--trainer.progress", "none"]
    found = []
    for ranks in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += ["--nproc_per_node", str(ranks), "-m", "finetune", "fit", *command]
        launch += ["--out_dir", str(tmp_path / str(ranks)), "--trainer.devices", str(ranks)]
        launch += ["--trainer.strategy", "ddp"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(load_file(tmp_path / str(ranks) / "model.safetensors"))
    assert found[0]["fields.table.weight"].std() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
