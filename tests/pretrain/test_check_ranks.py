"""A look at the processes before they train: what it finds, and what it says of it."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from pretrain.check_ranks import Report, faults, meet, placed, table

REPORT = Report(
    rank=0, host="node1", device="GPU", versions="torch 2", held_share=0.0, matmul_ms=1.0,
    matmul_right=True, reduce_ms=2.0, reduce_right=True,
)  # fmt: skip


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.ranks
def test_two_processes_reach_each_other(port: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pretrain", "check_ranks", "--mib", "1"],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            | {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    ends = [one.communicate(timeout=300) for one in processes]
    assert [one.returncode for one in processes] == [0, 0], ends
    rows = [line for line in ends[0][0].splitlines() if "cpu" in line]
    assert len(rows) == 2
    assert "cpu" not in ends[1][0], "rank 0 alone has a table"


def test_ranks_that_do_not_come_are_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(ValueError, match=rf"ranks \[1, 2\] of 3 .* are on {socket.gethostname()}"):
        meet(0, 3, timeout_s=0.3)


def test_nobody_at_the_master_is_said(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(ValueError, match=rf"rank 1 on .*: nobody answers at 127.0.0.1:{port}"):
        meet(1, 2, timeout_s=0.5)


def test_without_a_launcher_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="found neither srun nor torchrun"):
        placed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matmul_right": False}, "rank 1 on node2: GPU computes wrong products"),
        ({"reduce_right": False}, "rank 1 on node2: a sum over the ranks came out wrong"),
        ({"held_share": 0.4}, "rank 1 on node2: 40% of GPU is held by others"),
        ({"versions": "torch 3"}, "rank 1 on node2: found torch 3, expected torch 2 as on node1"),
    ],
)
def test_what_is_wrong_is_said_with_rank_and_host(change: dict[str, object], message: str) -> None:
    other = replace(REPORT, rank=1, host="node2")
    assert faults([REPORT, other]) == []
    (found,) = faults([REPORT, replace(other, **change)])
    assert found.startswith(message)


def test_a_slow_rank_is_marked() -> None:
    reports = [replace(REPORT, rank=rank) for rank in range(3)]
    reports[2] = replace(reports[2], matmul_ms=3.1)
    cells = [list(column.cells) for column in table(reports).columns]
    assert cells[3] == ["1.0", "1.0", "3.1 SLOW"]
