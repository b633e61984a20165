"""A short run of the bench of kills: lives on two processes, on one, and on two again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    script = str(ROOT / "tests" / "bench" / "kill_resume.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--elastic", "2", "--stops", "1",
         "--mutations", "60"],
        cwd=ROOT, text=True, capture_output=True, timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout, done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def test_killed_runs_of_zero2_end_with_the_same_bits(found: dict[str, Any]) -> None:
    assert found["kills"] == 2
    assert found["bitwise_equal"] == found["multiset_exact"] == found["trials"]


def test_runs_that_change_their_processes_see_the_same_batches(found: dict[str, Any]) -> None:
    """ZeRO-3 and DDP, from two processes to one and back."""
    assert found["elastic_exact"] == 2


def test_a_signal_loses_no_step(found: dict[str, Any]) -> None:
    assert found["steps_lost_on_signals"] == [0]


def test_damaged_checkpoints_of_zero2_are_not_loaded(found: dict[str, Any]) -> None:
    counts = found["mutations"]
    assert counts["fallen_back"] + counts["loaded_right"] == 60
    assert not counts["code_ran"]
