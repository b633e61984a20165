"""How the batch files meet signals, preemption, time limits and lost nodes; by a stand-in."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Slurm, StandIn

pytestmark = pytest.mark.slurm
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")


def test_a_signalled_run_is_requeued_and_goes_on_with_another_port(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.run("scancel", "--signal=USR1", job, cwd=stand_in.folder)
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    lives = {call["life"]: call["env"]["MASTER_PORT"] for call in stand_in.calls()}
    assert set(lives) == {0, 1}
    assert lives[0] != lives[1]
    assert "life 0" in stand_in.output()
    assert "life 1" in stand_in.output()
    assert not (stand_in.folder / "run" / "REQUEUE").exists()


def test_a_run_that_hung_is_requeued_as_often_as_allowed(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    hangs = (*TWO_BY_TWO, scripts / "pretrain.sbatch")
    job = stand_in.submit(*hangs, behaviour="hang", MAX_RESTARTS="0")
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == "3:0"
    job = stand_in.submit(*hangs, behaviour="hang")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert "hung (see" in stand_in.output()
    assert "everything saved" not in stand_in.output()
    assert not (stand_in.folder / "run" / "HANG").exists()


def test_restarts_are_bounded(slurm: "Slurm", scripts: Path, stand_in: "StandIn") -> None:
    job = stand_in.submit(
        *TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait", MAX_RESTARTS="0"
    )
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.run("scancel", "--signal=USR1", job, cwd=stand_in.folder)
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == "3:0"
    assert "MAX_RESTARTS" in stand_in.output()


def test_a_preempted_run_makes_room_and_comes_back(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "srun sleep 1")
    other = slurm.submit(*urgent, cwd=stand_in.folder)
    assert slurm.wait(other, seconds=60) == "COMPLETED"
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert slurm.jobs(job)[0]["Restarts"] == "1"


def test_a_lost_node_puts_the_job_back(slurm: "Slurm", scripts: Path, stand_in: "StandIn") -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.node("fail", "node2")
    slurm.node("boot", "node2")
    assert slurm.wait(job, seconds=90) == "COMPLETED", stand_in.output()
    assert slurm.jobs(job)[0]["Restarts"] == "1"


def test_a_run_that_only_gets_term_at_its_time_limit_goes_on(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    """Its state is that of a cancelled job. A minute is the shortest limit there is."""
    limit = ("--time=1", "--signal=CONT@1")  # instead of USR1: CONT does nothing
    job = stand_in.submit(*TWO_BY_TWO, *limit, scripts / "pretrain.sbatch", behaviour="wait")
    assert slurm.wait(job, seconds=150) == "COMPLETED", stand_in.output()
    assert {call["life"] for call in stand_in.calls()} == {0, 1}


def test_a_cancelled_run_stays_cancelled(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    """scancel sends TERM first, to which the program answers by asking to be requeued."""
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.run("scancel", job, cwd=stand_in.folder)
    slurm.until(
        lambda: slurm.run("squeue", "-h", cwd=stand_in.folder) == "", seconds=60, what="quiet"
    )
    assert slurm.wait(job, seconds=60) == "CANCELLED", stand_in.output()
    assert {call["life"] for call in stand_in.calls()} == {0}


@pytest.mark.parametrize("script", ["finetune.sbatch", "data_prep.sbatch"])
def test_a_preempted_single_task_is_put_back_whatever_code_it_ended_with(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn", *, script: str
) -> None:
    """Lightning answers TERM with exit code 0, as the stand-in does."""
    few = ("--cpus-per-task=1", "--mem=2G", "--time=10")
    word = "tables" if script == "data_prep.sbatch" else "ladder"
    job = stand_in.submit(*few, scripts / script, word, behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 1, seconds=60, what="the task")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "srun sleep 1")
    other = slurm.submit(*urgent, cwd=stand_in.folder)
    assert slurm.wait(other, seconds=60) == "COMPLETED"
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert [call["life"] for call in stand_in.calls()] == [0, 1]
