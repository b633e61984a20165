"""Thousands of mutated inputs: read, set aside by cause, or refused with a clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main

ROOT = Path(__file__).parents[2]
CASES = {"pictures": 1000, "dataset": 400, "manifests": 1000, "tables": 300, "configs": 300}
FEW = {"pictures": 60, "manifests": 60}
PEAK_MB = 1500
RUNS = [pytest.param(kind, count, marks=pytest.mark.slow) for kind, count in CASES.items()]


@pytest.mark.parametrize(("kind", "num_cases"), [*FEW.items(), *RUNS])
def test_mutated_inputs_never_crash_hang_or_fill_the_memory(
    kind: str, num_cases: int, tmp_path: Path
) -> None:
    sizes = ["--num_users", "60", "--num_items", "64", "--num_events", "1500"]
    sizes += ["--num_impressions", "1000"]
    assert main(["toy", "--out_dir", str(tmp_path / "raw"), *sizes]) == 0
    if kind in ("dataset", "manifests"):
        from tests.data_prep.fuzz_cases import CONFIG

        config = CONFIG.replace(" raw/", f" {tmp_path}/raw/")
        (tmp_path / "intact.yaml").write_text(config)
        given = ["--config", str(tmp_path / "intact.yaml"), "--dataset_dir"]
        assert main(["shard", *given, str(tmp_path / "intact")]) == 0
    script = Path(__file__).with_name("fuzz_cases.py")
    command = [sys.executable, str(script), kind, str(num_cases), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcome["outcomes"].values()) == num_cases
    assert outcome["peak_mb"] < PEAK_MB
