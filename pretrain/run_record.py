"""What a run folder says of the software that ran: versions, commit, and every warning.

run.dir/
  lives.json     one entry a start: when, commit, versions, processes
  warnings.log   what `pretrain` warned of, on rank 0; absent where it had no reason to
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from data_prep.credentials import HideCredentials
from data_prep.records import replace_file

LIVES_FILE, WARNINGS_FILE = "lives.json", "warnings.log"
PACKAGES = (
    "triptych",
    "torch",
    "pytorch-lightning",
    "deepspeed",
    "transformers",
    "open_clip_torch",
)
"""Those that are installed are named in `lives.json`."""


class RunRecord(pl.Callback):
    """Notes each start of a run, and keeps its warnings."""

    def __init__(self, run_dir: Path) -> None:
        """Write into this folder."""
        self.run_dir = run_dir
        self._handler: logging.Handler | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the start; listen from here on."""
        if not trainer.is_global_zero or stage != "fit":
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        life = {
            "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit_of_code(),
            "processes": trainer.world_size,
            "versions": versions(),
        }
        lives = [*read_lives(self.run_dir), life]
        replace_file(self.run_dir / LIVES_FILE, json.dumps(lives, indent=2).encode())
        self._handler = logging.FileHandler(self.run_dir / WARNINGS_FILE, delay=True)
        self._handler.setLevel(logging.WARNING)
        self._handler.addFilter(HideCredentials())
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logging.getLogger("pretrain").addHandler(self._handler)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        self._listen_no_more()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Listen no more: a run that fails is not torn down."""
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._handler is not None:
            logging.getLogger("pretrain").removeHandler(self._handler)
            self._handler.close()
            self._handler = None


def read_lives(run_dir: Path) -> list[dict[str, Any]]:
    """Every start of a run; none for a run of an older version."""
    path = run_dir / LIVES_FILE
    lives: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return lives


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter, where installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit_of_code() -> str | None:
    """Commit of the checkout that this file is in, `+` where it was changed; None elsewhere."""
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie inside a checkout of something else.
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except subprocess.SubprocessError:
        return None
    return f"{commit}{'+' if changed else ''}"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
