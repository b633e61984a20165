"""One life of a run at a time: the newest start owns the run folder.

A node that Slurm has given up may live on, with the processes of the life that ran there, when the
job has long been put back and runs elsewhere; or a run is started twice by mistake. Each start
leaves its mark in `run.dir/life.json`. A life that finds another's there saves nothing more, says
nothing of how the run ended, and ends itself.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from data_prep.records import replace_file
from pretrain.collectives import gather_objects, rank

LIFE_FILE = "life.json"


class Superseded(RuntimeError):
    """Another life of this run has begun."""


class Life:
    """This start of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LIFE_FILE
        self.mark: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Short, the same on every rank, and no other life's."""
        return str(self.mark["token"])[:8]

    def begin(self) -> None:
        """Take the run folder; a collective.

        Raises:
            Superseded: a later start of the same Slurm job has it.
        """
        mark, fault = self._take() if rank() == 0 else (None, None)
        self.mark, fault = gather_objects((mark, fault))[0]
        if fault is not None:
            raise Superseded(fault)

    def check(self) -> None:
        """Whether the folder is still this life's; asked by rank 0 before it writes.

        Raises:
            Superseded: it is not.
        """
        found = self._read()
        if found is not None and found.get("token") != self.mark["token"]:
            raise Superseded(
                f"{self.path}: another life of this run began at {found.get('started')} on "
                f"{found.get('host')}; this one leaves the folder as it is"
            )

    def _take(self) -> tuple[dict[str, Any], str | None]:
        mark = {
            "token": uuid4().hex,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        }
        found = self._read() or {}
        same_job = mark["slurm_job"] is not None and found.get("slurm_job") == mark["slurm_job"]
        if same_job and found.get("slurm_restarts", 0) > mark["slurm_restarts"]:
            return mark, (
                f"{self.path}: found restart {found['slurm_restarts']} of job {mark['slurm_job']}, "
                f"this is restart {mark['slurm_restarts']}, left over on {mark['host']}"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(mark, indent=2).encode())
        return mark, None

    def _read(self) -> dict[str, Any] | None:
        """None where there is none, or none that can be read: nobody to give way to."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None
