"""What the batch files do around the programs, on a real Slurm with a stand-in interpreter."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.slurm
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")


class StandIn:
    """Submits with the stand-in interpreter and reads what it noted."""

    def __init__(self, slurm: "Slurm", folder: Path) -> None:
        self.slurm, self.folder, self.log = slurm, folder, folder / "calls.jsonl"
        self.env = {
            "TRIPTYCH_PYTHON": str(Path(__file__).with_name("stand_in.py")),
            "STAND_IN_LOG": str(self.log),
            "RUN_DIR": str(folder / "run"),
        }

    def submit(self, *arguments: str | Path, behaviour: str = "done", **env: str) -> str:
        env = self.env | {"STAND_IN": behaviour} | env
        return self.slurm.submit(*arguments, cwd=self.folder, **env)

    def calls(self) -> list[dict[str, Any]]:
        """Every call but the dry parses."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if "--print_config" not in call["argv"]]

    def output(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("*.out"))


@pytest.fixture
def stand_in(slurm: "Slurm", tmp_path: Path) -> StandIn:
    return StandIn(slurm, tmp_path)


def test_one_command_chains_the_stages_and_gives_each_task_its_part(
    slurm: "Slurm", scripts: Path, stand_in: StandIn, tmp_path: Path
) -> None:
    submit = scripts / "submit_data_prep.sh"
    last = slurm.run(
        submit, "2", "--cpus-per-task=1", "--", "--config", "c.yaml", cwd=tmp_path, **stand_in.env
    )
    assert slurm.wait(last, seconds=60) == "COMPLETED"
    words = [call["argv"] for call in sorted(stand_in.calls(), key=lambda call: call["time"])]
    shard = ["-m", "data_prep", "shard", "--config", "c.yaml", "--stage"]
    assert words[0] == [*shard, "tables"]
    assert sorted(words[1:3]) == [
        [*shard, "content", "--part", str(part), "--num_parts", "2", "--num_workers", "1"]
        for part in (0, 1)
    ]
    assert words[3:] == [[*shard, "manifest"]]


def test_a_failed_part_keeps_the_manifest_from_being_written(
    slurm: "Slurm", scripts: Path, stand_in: StandIn, tmp_path: Path
) -> None:
    env = stand_in.env | {"STAND_IN": "fail-1"}
    submit = scripts / "submit_data_prep.sh"
    last = slurm.run(submit, "2", "--cpus-per-task=1", "--", cwd=tmp_path, **env)
    assert slurm.wait(last, seconds=60) == "CANCELLED"
    assert not any("manifest" in call["argv"] for call in stand_in.calls())


def test_running_some_parts_again_needs_the_number_of_parts_of_the_whole(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    content = ("--array=3", "--cpus-per-task=1", scripts / "data_prep.sbatch", "content")
    assert slurm.wait(stand_in.submit(*content), seconds=60) == "FAILED"
    assert "set NUM_PARTS" in stand_in.output()
    assert slurm.wait(stand_in.submit(*content, NUM_PARTS="4"), seconds=60) == "COMPLETED"
    assert stand_in.calls()[0]["argv"][-6:-2] == ["--part", "3", "--num_parts", "4"]


def test_every_gpu_of_every_node_gets_one_rank_and_the_same_master(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", "--config", "c.yaml")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    calls = sorted(stand_in.calls(), key=lambda call: call["rank"])
    nodes = [(call["rank"], call["env"]["SLURMD_NODENAME"]) for call in calls]
    assert nodes == [(0, "node1"), (1, "node1"), (2, "node2"), (3, "node2")]
    masters = {(call["env"]["MASTER_ADDR"], call["env"]["MASTER_PORT"]) for call in calls}
    assert len(masters) == 1
    assert masters.pop()[0] == "node1"
    filled_in = ["--trainer.num_nodes", "2", "--trainer.devices", "2"]
    assert calls[0]["argv"] == [
        *("-m", "pretrain", "fit", "--config", "c.yaml"),
        *("--run.dir", stand_in.env["RUN_DIR"], *filled_in),
    ]


def test_a_run_that_is_done_is_not_run_again(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    (stand_in.folder / "run").mkdir()
    (stand_in.folder / "run" / "DONE").touch()
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "COMPLETED"
    assert stand_in.calls() == []


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "launched"),
    [("misparse", "2:0", 0), ("forget", "1:0", 4)],
    ids=["a configuration that does not parse", "exit code 0 without DONE"],
)
def test_is_a_failure(
    slurm: "Slurm",
    scripts: Path,
    stand_in: StandIn,
    *,
    behaviour: str,
    exit_code: str,
    launched: int,
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour=behaviour)
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == exit_code
    assert len(stand_in.calls()) == launched


def test_unequal_numbers_of_tasks_and_gpus_are_refused(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    tasks = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=4", "--cpus-per-task=1")
    job = stand_in.submit(*tasks, scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert "found 2 tasks and 4 GPUs a node" in stand_in.output()


def test_a_node_without_gpus_is_taken(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
    tasks = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
    job = stand_in.submit(*tasks, scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()


def test_a_dead_rank_ends_the_job_at_once(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="die")
    assert slurm.wait(job, seconds=30) == "FAILED"  # the other ranks would stay for 60 s


def test_tasks_keep_their_path_when_sbatch_exports_next_to_nothing(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    exported = ",".join(f"{key}={value}" for key, value in stand_in.env.items())
    job = stand_in.submit(*TWO_BY_TWO, f"--export={exported}", scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert all("/bin" in call["env"]["PATH"] for call in stand_in.calls())


def test_a_signalled_run_is_requeued_and_goes_on_with_another_port(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
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


def test_restarts_are_bounded(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
    job = stand_in.submit(
        *TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait", MAX_RESTARTS="0"
    )
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.run("scancel", "--signal=USR1", job, cwd=stand_in.folder)
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == "3:0"
    assert "MAX_RESTARTS" in stand_in.output()


def test_a_preempted_run_makes_room_and_comes_back(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "srun sleep 1")
    other = slurm.submit(*urgent, cwd=stand_in.folder)
    assert slurm.wait(other, seconds=60) == "COMPLETED"
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert slurm.jobs(job)[0]["Restarts"] == "1"


def test_a_lost_node_puts_the_job_back(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="wait")
    slurm.until(lambda: len(stand_in.calls()) == 4, seconds=60, what="four ranks")
    slurm.node("fail", "node2")
    slurm.node("boot", "node2")
    assert slurm.wait(job, seconds=90) == "COMPLETED", stand_in.output()
    assert slurm.jobs(job)[0]["Restarts"] == "1"


def test_only_a_run_that_is_done_is_released(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    few = ("--cpus-per-task=1", "--mem=2G", scripts / "release.sbatch", "data", "rel", "emb")
    job = stand_in.submit(*few)
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert "DONE, expected a run that has ended" in stand_in.output()
    (stand_in.folder / "run").mkdir()
    (stand_in.folder / "run" / "DONE").touch()
    job = stand_in.submit(*few, "--batch_size", "8")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    run_dir, data = stand_in.env["RUN_DIR"], ["--dataset_dir", "data"]
    export = ["export", "--run_dir", run_dir, *data, "--out_dir", "rel"]
    embed = ["embed", "--released", "rel", *data, "--out_dir", "emb", "--batch_size", "8"]
    assert [call["argv"][2:] for call in stand_in.calls()] == [export, embed]


def test_finetune_is_one_task(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
    few = ("--cpus-per-task=1", "--mem=2G")
    job = stand_in.submit(*few, scripts / "finetune.sbatch", "ladder", "--config", "c.yaml")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    words = [call["argv"] for call in stand_in.calls()]
    assert words == [["-m", "finetune", "ladder", "--config", "c.yaml"]]


def test_a_run_that_only_gets_term_at_its_time_limit_goes_on(
    slurm: "Slurm", scripts: Path, stand_in: StandIn
) -> None:
    """Its state is that of a cancelled job. A minute is the shortest limit there is."""
    limit = ("--time=1", "--signal=CONT@1")  # instead of USR1: CONT does nothing
    job = stand_in.submit(*TWO_BY_TWO, *limit, scripts / "pretrain.sbatch", behaviour="wait")
    assert slurm.wait(job, seconds=150) == "COMPLETED", stand_in.output()
    assert {call["life"] for call in stand_in.calls()} == {0, 1}


def test_a_cancelled_run_stays_cancelled(slurm: "Slurm", scripts: Path, stand_in: StandIn) -> None:
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
    slurm: "Slurm", scripts: Path, stand_in: StandIn, *, script: str
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
