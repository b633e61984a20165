"""`python -m pretrain check_ranks`: do all processes reach each other, on devices that compute?

A run of days is worth half a minute of looking first: a node with another driver, a GPU that
another job still holds, a network interface that leads nowhere end a run hours later with a message
that names none of them. Needs torch alone, and starts as `fit` does, under srun or torchrun.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.distributed import TCPStore  # type: ignore[attr-defined]

MATMUL_WIDTH = 2048
SLOW = 3.0
"""Times the median: so much slower than the others is worth a line."""
HELD_SHARE = 0.1
"""Of a GPU's memory that others may hold."""


TIMES = ("matmul_ms", "reduce_ms")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one process found."""

    rank: int
    host: str
    device: str
    """Name of the GPU, or cpu."""
    versions: str
    """torch, CUDA and NCCL."""
    held_share: float
    """Share of the device's memory that was taken before we came; 0 on a CPU."""
    matmul_ms: float
    matmul_right: bool
    reduce_ms: float
    reduce_right: bool


def check_ranks(timeout_s: float = 120.0, mib: int = 64) -> None:
    """Start the process group, compute and reduce; one table on rank 0.

    Args:
        timeout_s: how long to wait for the other processes.
        mib: size of the tensor that is summed over the ranks, in MiB.

    Raises:
        ValueError: processes that did not come, results that are wrong, software that differs or
            GPUs that others hold; with the rank and the host.
    """
    rank, world, local = placed()
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    store = meet(rank, world, timeout_s=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        reports: list[Report] = [None] * world  # type: ignore[list-item]
        dist.all_gather_object(reports, look(rank, world, device=device, mib=mib))
    finally:
        dist.destroy_process_group()
    if rank == 0:
        Console().print(table(reports))
    if wrong := faults(reports):
        raise ValueError("; ".join(wrong))


def placed() -> tuple[int, int, int]:
    """Rank, number of processes and local rank, as srun or torchrun started this one."""
    found = os.environ
    if "RANK" in found:
        return int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"])
    if "SLURM_PROCID" in found:
        return (
            int(found["SLURM_PROCID"]),
            int(found["SLURM_NTASKS"]),
            int(found["SLURM_LOCALID"]),
        )
    raise ValueError("found neither srun nor torchrun, expected to be started by one, as fit is")


def meet(rank: int, world: int, *, timeout_s: float) -> TCPStore:
    """The store on MASTER_ADDR, once everybody has signed in.

    Raises:
        ValueError: nobody answers there, or some ranks did not come; rank 0 names them.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(
            host,
            port,
            world,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except (RuntimeError, dist.DistError) as error:
        raise ValueError(
            f"rank {rank} on {socket.gethostname()}: nobody answers at {host}:{port} "
            f"(MASTER_ADDR:MASTER_PORT): {str(error).splitlines()[0]}"
        ) from error
    store.set(f"rank-{rank}", socket.gethostname())
    end = time.monotonic() + timeout_s
    missing = set(range(world))
    while missing:
        missing = {one for one in missing if not store.check([f"rank-{one}"])}
        if missing and time.monotonic() > end:
            came = sorted({store.get(f"rank-{one}").decode() for one in {*range(world)} - missing})
            raise ValueError(
                f"ranks {sorted(missing)} of {world} did not come within {timeout_s:g} s; those "
                f"that did are on {', '.join(came)}"
            )
        time.sleep(0.05 if missing else 0)
    return store


def look(rank: int, world: int, *, device: torch.device, mib: int) -> Report:
    """Compute and reduce on this process's device; a collective."""
    held, name = 0.0, "cpu"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held, name = 1 - free / total, torch.cuda.get_device_name(device)
    square = torch.eye(MATMUL_WIDTH, device=device) * 2
    product, matmul_ms = timed(lambda: square @ square, device=device)
    numbers = torch.empty(mib * 2**18, device=device)
    _, reduce_ms = timed(lambda: dist.all_reduce(numbers.fill_(rank + 1)), device=device)
    nccl = "none"
    if device.type == "cuda":
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return Report(
        rank=rank,
        host=socket.gethostname(),
        device=name,
        versions=f"torch {torch.__version__}, CUDA {torch.version.cuda}, NCCL {nccl}",
        held_share=held,
        matmul_ms=matmul_ms,
        matmul_right=torch.equal(product, torch.eye(MATMUL_WIDTH, device=device) * 4),
        reduce_ms=reduce_ms,
        reduce_right=bool((numbers == world * (world + 1) / 2).all()),
    )


def timed(compute: Callable[[], T], *, device: torch.device) -> tuple[T, float]:
    """A result and its milliseconds, after one run to warm up."""
    for _ in range(2):
        start = time.perf_counter()
        result = compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result, 1000 * (time.perf_counter() - start)


def faults(reports: Sequence[Report]) -> list[str]:
    """What keeps a run from beginning, with rank and host."""
    found = []
    for one in reports:
        where = f"rank {one.rank} on {one.host}"
        if not one.matmul_right:
            found.append(f"{where}: {one.device} computes wrong products, take the node out")
        if not one.reduce_right:
            found.append(f"{where}: a sum over the ranks came out wrong")
        if one.held_share > HELD_SHARE:
            found.append(
                f"{where}: {one.held_share:.0%} of {one.device} is held by others, end them first"
            )
        if one.versions != reports[0].versions:
            found.append(
                f"{where}: found {one.versions}, expected {reports[0].versions} as on "
                f"{reports[0].host}"
            )
    return found


def table(reports: Sequence[Report]) -> Table:
    """A row a rank; slow ones are marked."""
    medians = [statistics.median(getattr(one, name) for one in reports) for name in TIMES]
    made = Table("rank", "host", "device", "matmul ms", "all_reduce ms", title=reports[0].versions)
    for one in reports:
        cells = [
            f"{getattr(one, name):.1f}{' SLOW' if getattr(one, name) > SLOW * median else ''}"
            for name, median in zip(TIMES, medians, strict=True)
        ]
        made.add_row(str(one.rank), one.host, one.device, *cells)
    return made
