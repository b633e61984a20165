"""The curves that a run left in its folder: metrics.csv, and those of its earlier lives."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

METRICS_FILE = "metrics.csv"


@dataclass(frozen=True)
class Curve:
    """One figure over a run; P points."""

    steps_P: Floats
    """Optimizer steps."""

    values_P: Floats


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Name → curve, in the order of the names. Where a run was continued, the later life counts.

    Raises:
        FileNotFoundError: the run left no metrics.csv.
    """
    if not (run_dir / METRICS_FILE).is_file():
        raise FileNotFoundError(
            f"{run_dir}: found no {METRICS_FILE}, expected the folder of a run; "
            "train with python -m pretrain fit, or give another run_dir"
        )
    found: dict[str, dict[float, float]] = {}
    for path in [*_earlier_lives(run_dir), run_dir / METRICS_FILE]:
        points = _points(path)
        steps = [step for curve in points.values() for step in curve]
        for name, curve in found.items():
            # What an earlier life did after the checkpoint that this one started from is undone.
            found[name] = {s: value for s, value in curve.items() if s < min(steps, default=s + 1)}
        for name, curve in points.items():
            found.setdefault(name, {}).update(curve)
    return {
        name: Curve(np.array(sorted(curve)), np.array([curve[step] for step in sorted(curve)]))
        for name, curve in sorted(found.items())
        if curve
    }


def _earlier_lives(run_dir: Path) -> list[Path]:
    """metrics-1.csv, metrics-2.csv, …, oldest first."""
    numbered = [
        (int(match[1]), path)
        for path in run_dir.glob("metrics-*.csv")
        if (match := re.fullmatch(r"metrics-(\d+)\.csv", path.name))
    ]
    return [path for _, path in sorted(numbered)]


def _points(path: Path) -> dict[str, dict[float, float]]:
    """Name → step → value."""
    found: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames and "step" not in reader.fieldnames:
            raise ValueError(
                f"{path}: found the columns {list(reader.fieldnames)[:5]}, expected `step` among "
                "them; it is not the log of python -m pretrain fit"
            )
        for row in reader:
            for name, cell in row.items():
                if cell and name not in ("step", "epoch"):
                    found.setdefault(name, {})[float(row["step"])] = float(cell)
    return found
