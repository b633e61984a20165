"""How the batch files start the programs and judge their end; the interpreter is a stand-in."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Slurm, StandIn

pytestmark = pytest.mark.slurm
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")


def test_one_command_chains_the_stages_and_gives_each_task_its_part(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn", tmp_path: Path
) -> None:
    submit = scripts / "submit_data_prep.sh"
    last = slurm.run(
        submit, "2", "--cpus-per-task=1", "--", "--config", "c.yaml", cwd=tmp_path, **stand_in.env
    )
    assert slurm.wait(last, seconds=60) == "COMPLETED"
    words = [call["argv"] for call in sorted(stand_in.calls(), key=lambda call: call["time"])]
    command, config = ["-m", "data_prep", "shard"], ["--config", "c.yaml", "--stage"]
    assert words[0] == [*command, "--duckdb_threads", "1", *config, "tables"]
    shard = [*command, *config]
    assert sorted(words[1:3]) == [
        [*shard, "content", "--part", str(part), "--num_parts", "2", "--num_workers", "1"]
        for part in (0, 1)
    ]
    assert words[3:] == [[*shard, "manifest"]]


def test_a_failed_part_keeps_the_manifest_from_being_written(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn", tmp_path: Path
) -> None:
    env = stand_in.env | {"STAND_IN": "fail-1"}
    submit = scripts / "submit_data_prep.sh"
    last = slurm.run(submit, "2", "--cpus-per-task=1", "--", cwd=tmp_path, **env)
    assert slurm.wait(last, seconds=60) == "CANCELLED"
    assert not any("manifest" in call["argv"] for call in stand_in.calls())


PIPELINE = {
    "parts": "2", "shard": "s.yaml", "pretrain": "p.yaml", "ladder": "l.yaml",
    "dataset_dir": "data/mine", "released_dir": "released", "embeddings_dir": "vectors",
    "nodes": "2", "gpus": "2", "cpu_options": "--cpus-per-task=1",
    "gpu_options": "--cpus-per-task=1 --mem=1G",
}  # fmt: skip


def pipeline(slurm: "Slurm", scripts: Path, stand_in: "StandIn", *, behaviour: str) -> str:
    """Submit the whole pipeline; the last job's id."""
    folder = stand_in.folder
    for name in ("s", "p", "l"):
        (folder / f"{name}.yaml").touch()
    words = PIPELINE | {"run_dir": stand_in.env["RUN_DIR"]}
    flags = [word for name, value in words.items() for word in (f"--{name}", value)]
    env = stand_in.env | {"STAND_IN": behaviour}
    return slurm.run(scripts / "pipeline.sh", *flags, cwd=folder, **env)


def test_the_pipeline_hands_its_folders_from_stage_to_stage(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    last = pipeline(slurm, scripts, stand_in, behaviour="done")
    assert slurm.wait(last, seconds=90) == "COMPLETED", stand_in.output()
    calls = sorted(stand_in.calls(), key=lambda call: call["time"])
    stages = [call["argv"][1:3] for call in calls]
    fit = [["pretrain", "fit"]] * 4
    after = [["pretrain", "export"], ["pretrain", "embed"], ["finetune", "ladder"]]
    assert stages == [["data_prep", "shard"]] * 4 + fit + after
    run_dir = stand_in.env["RUN_DIR"]
    text = [" ".join(call["argv"][3:]) for call in calls]
    assert text[0] == "--duckdb_threads 1 --config s.yaml --dataset_dir data/mine --stage tables"
    assert all(
        one == "--config p.yaml --data.config.dataset_dir data/mine "
        f"--run.dir {run_dir} --trainer.num_nodes 2 --trainer.devices 2"
        for one in text[4:8]
    )
    assert text[8:] == [
        f"--run_dir {run_dir} --dataset_dir data/mine --out_dir released",
        "--released released --dataset_dir data/mine --out_dir vectors",
        "--config l.yaml --dataset_dir data/mine --released released --embeddings_dir vectors",
    ]


def test_a_stage_that_fails_takes_the_later_ones_out_of_the_queue(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    last = pipeline(slurm, scripts, stand_in, behaviour="forget")  # fit ends without DONE
    assert slurm.wait(last, seconds=90) == "CANCELLED"
    assert not any("embed" in call["argv"] or "ladder" in call["argv"] for call in stand_in.calls())


def test_running_some_parts_again_needs_the_number_of_parts_of_the_whole(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    content = ("--array=3", "--cpus-per-task=1", scripts / "data_prep.sbatch", "content")
    assert slurm.wait(stand_in.submit(*content), seconds=60) == "FAILED"
    assert "set NUM_PARTS" in stand_in.output()
    assert slurm.wait(stand_in.submit(*content, NUM_PARTS="4"), seconds=60) == "COMPLETED"
    assert stand_in.calls()[0]["argv"][-6:-2] == ["--part", "3", "--num_parts", "4"]


def test_every_gpu_of_every_node_gets_one_rank_and_the_same_master(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
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
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
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
    stand_in: "StandIn",
    *,
    behaviour: str,
    exit_code: str,
    launched: int,
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour=behaviour)
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == exit_code
    assert len(stand_in.calls()) == launched


def test_nodes_that_do_not_train_together_are_not_trained_on(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="apart")
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == "4:0"
    assert not stand_in.calls()
    job = stand_in.submit(
        *TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="apart", CHECK_RANKS="0"
    )
    assert slurm.wait(job, seconds=60) == "COMPLETED"


def test_unequal_numbers_of_tasks_and_gpus_are_refused(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    tasks = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=4", "--cpus-per-task=1")
    job = stand_in.submit(*tasks, scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert "found 2 tasks and 4 GPUs a node" in stand_in.output()


def test_a_node_without_gpus_is_taken(slurm: "Slurm", scripts: Path, stand_in: "StandIn") -> None:
    tasks = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
    job = stand_in.submit(*tasks, scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()


def test_a_dead_rank_ends_the_job_at_once(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    job = stand_in.submit(*TWO_BY_TWO, scripts / "pretrain.sbatch", behaviour="die")
    assert slurm.wait(job, seconds=30) == "FAILED"  # the other ranks would stay for 60 s


def test_tasks_keep_their_path_when_sbatch_exports_next_to_nothing(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
) -> None:
    exported = ",".join(f"{key}={value}" for key, value in stand_in.env.items())
    job = stand_in.submit(*TWO_BY_TWO, f"--export={exported}", scripts / "pretrain.sbatch")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    assert all("/bin" in call["env"]["PATH"] for call in stand_in.calls())


def test_only_a_run_that_is_done_is_released(
    slurm: "Slurm", scripts: Path, stand_in: "StandIn"
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


def test_finetune_is_one_task(slurm: "Slurm", scripts: Path, stand_in: "StandIn") -> None:
    few = ("--cpus-per-task=1", "--mem=2G")
    job = stand_in.submit(*few, scripts / "finetune.sbatch", "ladder", "--config", "c.yaml")
    assert slurm.wait(job, seconds=60) == "COMPLETED", stand_in.output()
    words = [call["argv"] for call in stand_in.calls()]
    assert words == [["-m", "finetune", "ladder", "--config", "c.yaml"]]
