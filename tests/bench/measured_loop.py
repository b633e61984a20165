"""What a loop costs: CPU time of every thread and finished child, and the process's peak memory.

Runs in every peer's environment, so it imports nothing but the standard library.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import time
from pathlib import Path


class MeasuredLoop:
    """Measures the block of a `with` statement."""

    def __enter__(self) -> MeasuredLoop:
        self._cpu = _cpu_seconds()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_seconds = time.perf_counter() - self._wall
        self.cpu_seconds = _cpu_seconds() - self._cpu

    def report(self, *, samples: int, versions: tuple[str, ...] = (), **more: object) -> None:
        """Print one JSON object, as `interleaved.run_once` expects it on the last line."""
        found = {
            "cpu_us": self.cpu_seconds / samples * 1e6,
            "wall_us": self.wall_seconds / samples * 1e6,
            "samples": samples,
            "peak_bytes": peak_bytes(),
            "versions": {name: importlib.metadata.version(name) for name in versions},
        }
        print(json.dumps(found | more), flush=True)


def peak_bytes() -> int:
    """Peak resident memory of this program, mapped files included.

    ru_maxrss, which os.wait4 returns too, starts from what the parent held before exec.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
