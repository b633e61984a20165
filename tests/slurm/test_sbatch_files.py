"""The batch files as text: what holds without a Slurm."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"
SBATCH_FILES = sorted(SLURM.glob("*.sbatch"))
SHELL_FILES = [*SBATCH_FILES, *sorted(SLURM.glob("*.sh")), Path(__file__).with_name("cluster.sh")]
EVERYWHERE = {"--job-name", "--nodes", "--cpus-per-task", "--time", "--requeue", "--output"}
EVERYWHERE |= {"--open-mode=append", "--mem"}
NEEDED = {
    "data_prep.sbatch": EVERYWHERE | {"--ntasks=1"},
    "pretrain.sbatch": EVERYWHERE
    | {"--ntasks-per-node", "--gpus-per-node", "--signal=USR1@180", "--mem=0"},
    "release.sbatch": EVERYWHERE | {"--ntasks=1", "--gpus-per-node=1"},
    "finetune.sbatch": EVERYWHERE | {"--ntasks=1", "--gpus-per-node=1"},
}


def directives(file: Path) -> list[str]:
    """The options that sbatch reads from a file: it stops at the first command."""
    found = []
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if match := re.match(r"#SBATCH (\S+)", line):
            found.append(match[1])
    return found


@pytest.mark.parametrize("file", SHELL_FILES, ids=lambda file: file.name)
def test_bash_reads_it(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("file", SHELL_FILES, ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=bash", file], text=True, capture_output=True)
    assert done.stdout == ""


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_its_directives_are_there(name: str) -> None:
    found = directives(SLURM / name)
    found_with_name_only = {option.partition("=")[0] for option in found}
    assert NEEDED[name] <= set(found) | found_with_name_only


@pytest.mark.parametrize("file", SBATCH_FILES, ids=lambda file: file.name)
def test_every_directive_is_read(file: Path) -> None:
    """None stands below the first command, where sbatch no longer looks."""
    assert len(directives(file)) == len(re.findall(r"^#SBATCH ", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", SBATCH_FILES, ids=lambda file: file.name)
def test_what_belongs_to_a_site_is_left_to_the_command_line(file: Path) -> None:
    site = {"--partition", "-p", "--account", "-A", "--qos", "-q", "--reservation", "--constraint"}
    assert not site & {option.partition("=")[0] for option in directives(file)}


def test_the_job_name_is_not_one_that_switches_lightnings_slurm_support_off() -> None:
    names = {option for file in SBATCH_FILES for option in directives(file) if "job-name" in option}
    assert not names & {"--job-name=bash", "--job-name=interactive"}


@pytest.mark.parametrize("num_parts", ["", "0", "x", "--config"])
def test_a_number_of_parts_that_is_none_submits_nothing(num_parts: str) -> None:
    command = [SLURM / "submit_data_prep.sh", num_parts, "--", "--config", "c.yaml"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 2
    assert f"NUM_PARTS: found '{num_parts}', expected a whole number above 0" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "2"], "--shard: found none, expected one"),
        (["--part", "2"], "--part: no such option"),
        (["--parts"], "--parts: found no value"),
        (
            "--parts 2 --shard s --ladder l --dataset_dir d --run_dir r --released_dir r "
            "--embeddings_dir e --pretrain p".split(),
            "s: no such file",
        ),
    ],
)
def test_a_pipeline_that_is_not_said_whole_submits_nothing(words: list[str], message: str) -> None:
    done = subprocess.run([SLURM / "pipeline.sh", *words], text=True, capture_output=True)
    assert done.returncode == 2
    assert f"pipeline.sh: {message}" in done.stderr
    assert "Submit everything from raw tables" in done.stderr


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("tables", "shard --duckdb_threads 6 --config c.yaml --stage tables"),
        (
            "content",
            "shard --config c.yaml --stage content --part 1 --num_parts 3 --num_workers 6",
        ),
        ("manifest", "shard --config c.yaml --stage manifest"),
    ],
)
def test_each_stage_of_sharding_uses_the_cpus_of_its_task(
    tmp_path: Path, stage: str, words: str
) -> None:
    """What the script hands to srun."""
    for name, text in (("srun", 'echo "srun $*"'), ("scontrol", "true")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "6", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node"}
    array = ("TASK_ID=1", "TASK_MIN=0", "TASK_MAX=2", "TASK_COUNT=3")
    slurm |= dict(f"SLURM_ARRAY_{one}".split("=") for one in array)
    environment = slurm | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", SLURM / "data_prep.sbatch", stage, "--config", "c.yaml"]
    done = subprocess.run(command, text=True, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("srun")]
    assert line.endswith(f"-m data_prep {words}")
