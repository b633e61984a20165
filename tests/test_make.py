"""What the Makefile promises of a target that costs too much to run here."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_slow_tests_install_spark_and_do_not_skip_it() -> None:
    plan = ["make", "--dry-run", "--always-make", "--no-print-directory", "test-slow"]
    lines = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--editable '.[spark]'" in lines
    assert "TRIPTYCH_SPARK=1 .venv/bin/python -m pytest -m slow" in lines
    # No pyspark here, or none that starts: the tests are there all the same, and would fail.
    collect = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "tests/data_prep/test_spark.py",
    ]
    environment = os.environ | {"TRIPTYCH_SPARK": "1", "PATH": ""}
    found = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, env=environment)
    written = (ROOT / "tests/data_prep/test_spark.py").read_text().count("\ndef test_")
    assert found.stdout.count("test_spark.py::test_") == written > 0, found.stdout
