"""Two ranks decide alike, and both say where they hang."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.exit_codes import NOT_FINITE, STOPPED
from pretrain.run_log import read_events

pytestmark = pytest.mark.ranks
SCRIPT = Path(__file__).with_name("two_rank_watch.py")
ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(SCRIPT), str(toy_dataset), str(out)], cwd=ROOT, text=True,
        capture_output=True, timeout=900, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (out / "stderr").write_text(done.stderr)
    assert (out / "zero3-rank-1.json").exists(), done.stderr[-6000:]
    return out


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loss_of_one_rank_that_is_not_finite_changes_nothing_on_any(
    runs: Path, name: str
) -> None:
    for rank in range(2):
        found = json.loads((runs / f"{name}-rank-{rank}.json").read_text())
        assert found["skip"] == [True, True, False, True, True]
        assert found["stop"] == [True, True]  # the third raised before it was looked at
        # Two steps an epoch.
        assert "batch 0 of epoch 1: not finite: loss on ranks [1]" in found["message"]
    (event,) = [one for one in read_events(runs / name) if one["event"] == "nonfinite"]
    assert (event["action"], event["epoch"], event["batch"]) == ("skip", 1, 0)
    assert event["not_finite_on_ranks"] == [1]
    assert event["losses"][1] == "nan"
    assert isinstance(event["losses"][0], float)
    # Epoch 0 was saved, and nothing after the step that was not finite.
    ends = [(one["event"], one["rank"]) for one in read_events(runs / f"{name}-stop")]
    assert ends[:3] == [("start", 0), ("save", 0), ("nonfinite", 0)]
    assert sorted(ends[3:]) == [("end", 0), ("end", 1)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_speed_gradient_norm_and_mfu_are_among_the_metrics(runs: Path, name: str) -> None:
    with (runs / name / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for metric in ("speed/samples_per_s", "speed/mfu", "memory/rss_gb", "train/gradient_norm"):
        values = [float(row[metric]) for row in rows if row.get(metric)]
        assert values, metric
        assert min(values) > 0, metric


def test_every_rank_says_where_it_hangs_before_the_first_one_leaves(runs: Path) -> None:
    stacks = [(runs / "hang" / f"stacks-rank-{rank}.txt").read_text() for rank in range(2)]
    assert "on_train_batch_start" in stacks[1]  # where it sleeps
    assert "HangAt" not in stacks[0]
    assert "two_rank_watch.py" in stacks[0]
    events = [one for one in read_events(runs / "hang") if one["event"] == "hang"]
    assert sorted(one["rank"] for one in events) == [0, 1]
    assert (runs / "hang" / "HANG").exists()
    assert "exitcode  : 76" in (runs / "stderr").read_text()


def fit(run_dir: Path, dataset: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m pretrain fit` on one process, for more steps than anybody waits for."""
    given = """-m pretrain fit --config configs/toy/pretrain.yaml --run.wandb off
        --run.progress_bar false --data.config.global_batch_size 64 --run.monitor null
        --data.config.valid_queries 0 --trainer.max_epochs 900 --trainer.accelerator cpu""".split()
    dirs = ("--run.dir", str(run_dir), "--data.config.dataset_dir", str(dataset))
    return subprocess.Popen(
        [sys.executable, *given, *dirs, *words], cwd=ROOT, text=True, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_run_that_is_asked_to_stop_ends_with_a_code_of_its_own(
    toy_dataset: Path, tmp_path: Path
) -> None:
    process = fit(tmp_path, toy_dataset)
    try:
        end = time.monotonic() + 240
        while not (tmp_path / "metrics.csv").exists() and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == STOPPED
    finally:
        process.kill()
    assert (tmp_path / "REQUEUE").exists()
    events = read_events(tmp_path)
    # Epochs save too.
    assert [one["event"] for one in events if one["event"] != "save"] == ["start", "signal", "end"]
    assert (events[-2]["event"], events[-2]["step"]) == ("save", events[-1]["step"])
    assert (events[-1]["status"], events[-1]["exit_code"]) == ("stopped", STOPPED)


def test_a_run_that_is_no_longer_finite_ends_with_a_code_of_its_own(
    toy_dataset: Path, tmp_path: Path
) -> None:
    process = fit(tmp_path, toy_dataset, "--model.optim.lr", "1e38")
    try:
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == NOT_FINITE, said[-3000:]
    assert "pretrain fit: step" in said.splitlines()[-1]
    assert [one["event"] for one in read_events(tmp_path)][-2:] == ["nonfinite", "end"]
    assert not (tmp_path / "DONE").exists()
    assert not (tmp_path / "REQUEUE").exists()
