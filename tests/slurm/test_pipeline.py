"""The shipped batch files, as they are, with the real programs on a real two-node Slurm."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.slurm
REPOSITORY = Path(__file__).resolve().parents[2]
# A toy world of seconds; on CPU, a rank is a task and there are no GPUs.
WORLD = ("--num_users=150", "--num_items=120", "--num_events=4000", "--num_impressions=3000")
SHARD = ("--config", "configs/toy/shard.yaml", "--items_per_shard", "64")
NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
FIT = (
    *("--config", "configs/toy/pretrain.yaml", "--config", "configs/zero2.yaml"),
    *("--trainer.accelerator", "cpu", "--run.wandb", "off"),
    *("--run.progress_bar", "false", "--data.config.global_batch_size", "32"),
)


@pytest.fixture(scope="module")
def checkout(slurm: "Slurm", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to submit from: the shipped configurations, and raw tables where they look."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    run(slurm, folder, "data_prep", "toy", "--config", "configs/toy/toy.yaml", *WORLD)
    return folder


@pytest.fixture(scope="module")
def dataset(slurm: "Slurm", checkout: Path, scripts: Path) -> Path:
    """The dataset that the three chained jobs make, with an array of two parts."""
    submit = scripts / "submit_data_prep.sh"
    last = slurm.run(submit, "2", "--cpus-per-task=1", "--", *SHARD, cwd=checkout)
    assert slurm.wait(last, seconds=240) == "COMPLETED", output(checkout)
    return checkout / "data/toy/dataset"


@pytest.fixture(scope="module")
def run_dir(slurm: "Slurm", checkout: Path, dataset: Path, scripts: Path) -> Path:
    """A run of ZeRO-2 on two nodes that has ended."""
    job = submit_fit(slurm, checkout, scripts, "runs/whole", "--trainer.max_epochs", "2")
    assert slurm.wait(job, seconds=400) == "COMPLETED", output(checkout)
    return checkout / "runs/whole"


def run(slurm: "Slurm", folder: Path, *words: str) -> str:
    """Run a program as on the login node."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, cwd=folder, env={**slurm.env}, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def submit_fit(slurm: "Slurm", checkout: Path, scripts: Path, run_dir: str, *flags: str) -> str:
    """Submit pre-training of the toy configuration under ZeRO-2."""
    words = (*NODES, scripts / "pretrain.sbatch", *FIT, *flags)
    return slurm.submit(*words, cwd=checkout, RUN_DIR=run_dir)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its name; the manifest's among them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def output(folder: Path) -> str:
    """The end of every job's log."""
    return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in folder.glob("*.out"))


def test_an_array_of_two_parts_makes_an_intact_dataset(
    slurm: "Slurm", checkout: Path, dataset: Path
) -> None:
    run(slurm, checkout, "data_prep", "verify", "--dataset_dir", str(dataset))
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["counts"]["items"] == 120
    logs = [file.read_text() for file in checkout.glob("data_prep-content-*.out")]
    assert len(logs) == 2


def test_the_array_writes_the_bytes_of_one_local_run(
    slurm: "Slurm", checkout: Path, dataset: Path
) -> None:
    local = ("--dataset_dir", "data/toy/local")
    run(slurm, checkout, "data_prep", "shard", *SHARD, *local)
    found, expected = digests(dataset), digests(checkout / "data/toy/local")
    assert sum(name.endswith(".tar") for name in expected) > 2
    assert found == expected


def test_a_part_that_failed_is_run_again_alone(
    slurm: "Slurm", checkout: Path, dataset: Path, scripts: Path
) -> None:
    """Here it is one that never ran: the manifest is refused until it has."""
    folder = checkout / "data/toy/parts"
    here = (*SHARD, "--dataset_dir", "data/toy/parts")

    def ends(stage: str, *options: str, **env: str) -> str:
        words = ("--cpus-per-task=1", *options, scripts / "data_prep.sbatch", stage, *here)
        return slurm.wait(slurm.submit(*words, cwd=checkout, **env), seconds=120)

    assert ends("tables") == "COMPLETED", output(checkout)
    assert ends("content", "--array=0", NUM_PARTS="2") == "COMPLETED", output(checkout)
    assert ends("manifest") == "FAILED"
    first = {path: path.stat().st_mtime_ns for path in folder.glob("items/*.tar")}
    assert len(first) == 1
    assert ends("content", "--array=1", NUM_PARTS="2") == "COMPLETED", output(checkout)
    assert ends("manifest") == "COMPLETED", output(checkout)
    assert digests(folder) == digests(dataset)
    assert {path: path.stat().st_mtime_ns for path in first} == first, "the other was left alone"


def test_content_without_tables_is_refused(slurm: "Slurm", checkout: Path, scripts: Path) -> None:
    """As after an afterok that Slurm let through because it had forgotten the job."""
    shard = ("--config", "configs/toy/shard.yaml", "--dataset_dir", "data/none")
    content = ("--array=0-1", "--cpus-per-task=1", scripts / "data_prep.sbatch", "content", *shard)
    job = slurm.submit(*content, cwd=checkout)
    assert slurm.wait(job, seconds=120) == "FAILED"
    assert "--stage tables first" in output(checkout)


def test_zero_on_two_nodes_ends_with_done(run_dir: Path, checkout: Path) -> None:
    assert (run_dir / "DONE").exists()
    assert list((run_dir / "checkpoints").glob("step-*/checkpoint.json"))
    logs = [file.read_text() for file in checkout.glob("pretrain-*.out")]
    assert any(re.search(r"0: .*node1.*\n.*node2.*cpu", text) for text in logs), "check_ranks"


def test_a_misspelt_key_fails_before_any_rank_starts(
    slurm: "Slurm", checkout: Path, dataset: Path, scripts: Path
) -> None:
    job = submit_fit(slurm, checkout, scripts, "runs/misspelt", "--trainer.max_steppes", "2")
    assert slurm.wait(job, seconds=240) == "FAILED"
    assert slurm.jobs(job)[0]["ExitCode"] == "2:0"
    log = (checkout / f"pretrain-{job}.out").read_text()
    assert "max_steppes" in log
    assert "life 0" not in log


def test_a_signalled_run_is_requeued_and_goes_on_from_the_step_it_reached(
    slurm: "Slurm", checkout: Path, dataset: Path, scripts: Path
) -> None:
    steps = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "40")
    job = submit_fit(slurm, checkout, scripts, "runs/stopped", *steps)
    log, run_dir = checkout / f"pretrain-{job}.out", checkout / "runs/stopped"
    checkpoints = run_dir / "checkpoints"
    slurm.until(
        lambda: any(checkpoints.glob("step-*/checkpoint.json")),
        seconds=300,
        what="the first checkpoint",
    )
    slurm.run("scancel", "--signal=USR1", job, cwd=checkout)
    assert slurm.wait(job, seconds=400) == "COMPLETED", log.read_text()[-4000:]
    assert slurm.jobs(job)[0]["Restarts"] == "1"
    text = log.read_text()
    assert "asked to stop: saved at step" in text
    assert re.search(r"runs/stopped/checkpoints/step-\d+: going on from there", text)
    assert (run_dir / "DONE").read_text() == "step 40\n"


def test_a_run_whose_node_is_lost_goes_on_from_what_was_saved_last(
    slurm: "Slurm", checkout: Path, dataset: Path, scripts: Path
) -> None:
    steps = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "40")
    often = ("--run.checkpoint_steps", "5")
    job = submit_fit(slurm, checkout, scripts, "runs/lost", *steps, *often)
    log, run_dir = checkout / f"pretrain-{job}.out", checkout / "runs/lost"
    slurm.until(
        lambda: any((run_dir / "checkpoints").glob("step-*/checkpoint.json")),
        seconds=300,
        what="the first checkpoint",
    )
    slurm.node("fail", "node2")
    slurm.node("boot", "node2")
    assert slurm.wait(job, seconds=400) == "COMPLETED", log.read_text()[-4000:]
    assert slurm.jobs(job)[0]["Restarts"] == "1"
    assert re.search(r"runs/lost/checkpoints/step-\d+: going on from there", log.read_text())
    assert (run_dir / "DONE").read_text() == "step 40\n"
    assert json.loads((run_dir / "life.json").read_text())["slurm_restarts"] == 1


def test_one_command_goes_on_to_the_report(
    slurm: "Slurm", checkout: Path, run_dir: Path, scripts: Path
) -> None:
    """The whole chain; tars that are there and a run that has ended are left as they are."""
    before = digests(run_dir)
    ladder = {
        "rungs": ["none", "aligned"], "seeds": [0], "out_dir": "runs/report", "num_resamples": 20,
        "head": {"name": "deepfm"}, "train": {"max_epochs": 1, "batch_size": 256},
    }  # fmt: skip
    (checkout / "ladder.yaml").write_text(json.dumps(ladder))
    words = {
        "parts": "2", "shard": "shard.yaml", "pretrain": FIT[1], "ladder": "ladder.yaml",
        "dataset_dir": "data/toy/dataset", "run_dir": str(run_dir),
        "released_dir": "runs/released", "embeddings_dir": "runs/embeddings",
        "nodes": "2", "gpus": "0",
        "cpu_options": "--cpus-per-task=1", "gpu_options": "--cpus-per-task=1 --mem=4G",
    }  # fmt: skip
    shard = (REPOSITORY / SHARD[1]).read_text()
    (checkout / "shard.yaml").write_text(
        shard.replace("items_per_shard:", "#") + "items_per_shard: 64\n"
    )
    flags = [word for name, value in words.items() for word in (f"--{name}", value)]
    last = slurm.run(scripts / "pipeline.sh", *flags, cwd=checkout)
    assert slurm.wait(last, seconds=600) == "COMPLETED", output(checkout)
    assert (checkout / "runs/released/config.json").exists()
    assert (checkout / "runs/report/metrics.json").exists()
    assert (checkout / "runs/report/report.html").exists()
    assert digests(run_dir) == before
