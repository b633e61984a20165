"""One throw-away Slurm for the whole test session, and what tests ask of it.

With TRIPTYCH_SLURM_NET=1 every node has a network of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE"}


@dataclass(frozen=True)
class Slurm:
    """A running cluster and the environment of its clients."""

    dir: Path
    env: Mapping[str, str]

    def run(self, *command: str | Path, cwd: Path, **env: str) -> str:
        """Run a client in `cwd`; its output."""
        words = [HERE / "cluster.sh", "exec", self.dir, *command]
        done = subprocess.run(
            [str(word) for word in words],
            env={**self.env, **env},
            cwd=cwd,
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, cwd: Path, **env: str) -> str:
        """The id of a batch job whose log goes to `cwd`."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **env).split(";")[0]

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """What Slurm knows of a job: one record, or one a task of an array."""
        lines = self.run("scontrol", "-o", "show", "job", job_id, cwd=self.dir).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def wait(self, job_id: str, *, seconds: float) -> str:
        """The state a job, or every task of an array, ends in."""
        # Not `sbatch --wait`, which polls every 2 s at first and then ever slower.
        self.until(
            lambda: all(job["JobState"] in FINAL for job in self.jobs(job_id)),
            seconds=seconds,
            what=f"the end of {job_id}",
        )
        return ",".join(sorted({job["JobState"] for job in self.jobs(job_id)}))

    def until(self, condition: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Wait for `condition`; no longer than there are jobs it could come from."""
        end = time.monotonic() + seconds
        while not condition():
            queue = self.run("squeue", "-h", "-o", "%i %j %T %r", cwd=self.dir)
            if time.monotonic() > end or (not queue and not condition()):
                pytest.fail(f"{what}: not within {seconds} s; the queue: {queue or 'empty'}")
            time.sleep(0.3)

    def node(self, action: str, name: str) -> None:
        """`fail` or `boot` a node."""
        subprocess.run(
            [HERE / "cluster.sh", action, name, self.dir], check=True, timeout=60, env=self.env
        )


class StandIn:
    """Submits with the stand-in interpreter and reads what it noted."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder, self.log = slurm, folder, folder / "calls.jsonl"
        self.env = {
            "TRIPTYCH_PYTHON": str(HERE / "stand_in.py"),
            "STAND_IN_LOG": str(self.log),
            "RUN_DIR": str(folder / "run"),
        }

    def submit(self, *arguments: str | Path, behaviour: str = "done", **env: str) -> str:
        env = self.env | {"STAND_IN": behaviour} | env
        return self.slurm.submit(*arguments, cwd=self.folder, **env)

    def calls(self) -> list[dict[str, Any]]:
        """Every call but the dry parses and the looks at the nodes."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if not {"--print_config", "check_ranks"} & {*call["argv"]}]

    def output(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("*.out"))


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if os.environ.get("TRIPTYCH_SLURM") != "1":
        pytest.skip("needs a real Slurm, which `make test-slurm` installs (as root) and starts")
    state_dir = Path(f"/tmp/triptych-slurm-{os.getpid()}")  # short: unix sockets live in it
    port = 30001 + os.getpid() % 2000  # above every MASTER_PORT, below the ephemeral range
    cluster = [str(HERE / "cluster.sh")]
    mode = ["net"] if os.environ.get("TRIPTYCH_SLURM_NET") == "1" else []
    subprocess.run([*cluster, "start", str(state_dir), str(port), *mode], check=True, timeout=300)
    # Tests may themselves run inside a job: its variables would steer srun and sbatch.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
    env |= {
        "SLURM_CONF": str(state_dir / "etc" / "slurm.conf"),
        "TRIPTYCH_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),  # jobs are submitted from the test's own folder
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield Slurm(dir=state_dir, env=env)
    finally:
        subprocess.run([*cluster, "stop", str(state_dir)], check=True, timeout=60)


@pytest.fixture(scope="session")
def scripts() -> Path:
    return REPOSITORY / "slurm"


@pytest.fixture
def stand_in(slurm: Slurm, tmp_path: Path) -> StandIn:
    return StandIn(slurm, tmp_path)
