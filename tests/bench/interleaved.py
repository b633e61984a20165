"""Cases in turns, A B C A B C, each a program of its own; medians and the ratios of each round.

On a shared machine wall time and even CPU time swing between minutes: only figures of one round
are compared.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A program that prints one JSON object as its last line."""

    name: str
    python: Path
    script: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a benchmark found; `ours` and `peers` are in `unit`."""

    name: str
    unit: str
    ours: float
    peers: dict[str, float]
    ratio: dict[str, float]
    """Ours / peer."""
    more: dict[str, Any]

    def line(self) -> str:
        """The benchmark's last line."""
        named = {key: getattr(self, key) for key in ("name", "unit", "ours", "peers", "ratio")}
        return json.dumps(_rounded(named | self.more))


def run_rounds(cases: Sequence[Case], *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run every case once a round; what each printed, by name, in order of the rounds."""
    found: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            measured = run_once(case)
            found[case.name].append(measured)
            log.info("round %d: %s %.1f CPU us", number + 1, case.name, measured["cpu_us"])
    return found


def run_once(case: Case) -> dict[str, Any]:
    """Run a case to its end; its last line.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    command = [str(case.python), str(case.script), *case.arguments]
    # First on the path, as an environment may have this project installed from elsewhere.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise RuntimeError(
            f"{case.name}: {' '.join(command)} ended with {done.returncode}: "
            f"{(done.stderr or done.stdout)[-2000:]}"
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def outcome(
    name: str,
    found: dict[str, list[dict[str, Any]]],
    *,
    peers: Sequence[str],
    **more: object,
) -> Outcome:
    """CPU time a sample of the case `ours` against the peers'; every other case goes beside."""
    ours = median(found["ours"], "cpu_us")
    values = {peer: median(found[peer], "cpu_us") for peer in peers}
    others = sorted(set(found) - {"ours", *peers})
    every = ("ours", *peers, *others)
    return Outcome(
        name=name,
        unit="CPU us/sample",
        ours=ours,
        peers=values,
        ratio={peer: ours / value for peer, value in values.items()},
        more={
            "paired_ratio": {peer: paired_ratio(found, "ours", peer) for peer in peers},
            "others": {case: median(found[case], "cpu_us") for case in others},
            "samples_per_second": {case: 1e6 / median(found[case], "wall_us") for case in every},
            "peak_mb": {case: median(found[case], "peak_bytes") / 1e6 for case in every},
            "rounds": len(found["ours"]),
            "samples": {case: found[case][0]["samples"] for case in every},
            "versions": {k: v for case in every for k, v in found[case][0]["versions"].items()},
        }
        | more,
    )


def median(measured: Sequence[dict[str, Any]], key: str) -> float:
    """Median over the rounds."""
    return statistics.median(entry[key] for entry in measured)


def paired_ratio(
    found: dict[str, list[dict[str, Any]]], numerator: str, denominator: str
) -> dict[str, float]:
    """Ratios of CPU time inside each round: the least, the median and the largest."""
    pairs = zip(found[numerator], found[denominator], strict=True)
    ratios = [above["cpu_us"] / below["cpu_us"] for above, below in pairs]
    return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def _rounded(value: object) -> object:
    """Floats to four significant digits, anywhere."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
