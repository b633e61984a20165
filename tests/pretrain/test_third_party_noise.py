"""Known lines of other packages are left out, and nothing else."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pretrain import third_party_noise

ROOT = Path(__file__).parents[2]
NOISE = (
    "wandb:", "sync this run", "LeafSpec", "`srun` command", "Experiment logs directory", "TPU",
    "in eval mode at", "Tip:", "FutureWarning", "many workers",
)  # fmt: skip
NEWS = ("GPU available", "pretrain.data: toy: 240 items", "`max_epochs=1` reached",
        "smaller than the logging interval")  # fmt: skip


def test_a_fit_shows_its_own_lines_and_no_noise(toy_dataset: Path, tmp_path: Path) -> None:
    """With Weights & Biases as it is by default, frozen towers, and a second life."""
    words = f"""fit --config configs/toy/pretrain.yaml --run.dir {tmp_path}
    --data.config.dataset_dir {toy_dataset} --data.config.valid_queries 20
    --model.encoders.width 16 --model.encoders.towers.image.train frozen
    --model.encoders.towers.text.train frozen --trainer.accelerator cpu"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for epochs in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "pretrain", *words.split(), "--trainer.max_epochs", epochs],
            cwd=ROOT, text=True, capture_output=True, timeout=600,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert [line for line in said.splitlines() if any(one in line for one in NOISE)] == []
        assert all(one.replace("=1", f"={epochs}") in said for one in NEWS)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert (tmp_path / "metrics.csv").exists()


def test_what_is_not_known_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        third_party_noise.silence()
        warnings.warn("Found 3 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("The 'train_dataloader' does not have many workers which", stacklevel=1)
        warnings.warn("Found 3 modules that are not used", stacklevel=1)
        warnings.warn("this is about to change", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == [
        "Found 3 modules that are not used",
        "this is about to change",
    ]
    with caplog.at_level(logging.INFO, logger=third_party_noise.LIGHTNING.name):
        third_party_noise.silence()
        for line in ("💡 Tip: buy this", "TPU available: False, using: 0", "GPU available: True"):
            third_party_noise.LIGHTNING.info(line)
    assert caplog.messages == ["GPU available: True"]
