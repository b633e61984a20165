"""Finished runs side by side: mean and spread over seeds, paired differences over users.

Shapes: N impressions, R resamples.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from finetune.bootstrap import Interval, resampled_metrics
from finetune.metrics import Floats
from finetune.run_folder import PREDICTIONS_FILE, Run
from finetune.rungs import PARTS, VECTORS, parse_rung
from finetune.slices import slice_columns, slice_masks

BASES = ("none", "raw", "scratch", "aligned")
"""What rungs are compared with: each that comes before them."""


def order_of(rung: str) -> tuple[int, int, str]:
    """Rungs in the order of the ladder: by whose vectors, then by how much is made of them."""
    spec = parse_rung(rung)
    parts = sum(1 << PARTS.index(part) for part in spec.parts)
    return VECTORS.index(spec.vectors), parts, rung


@dataclass(frozen=True)
class Spread:
    """One metric of one rung over its seeds."""

    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if it is missing in one of them."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the seeds (n - 1); 0 with one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def text(self) -> str:
        """As a table shows it; one seed has no spread."""
        if np.isnan(self.mean):
            return "n/a"
        return f"{self.mean:.4f}" + (f" ± {self.std:.4f}" if len(self.values) > 1 else "")

    def as_json(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return {"mean": self.mean, "std": self.std, "values": self.values}


@dataclass(frozen=True)
class Comparison:
    """What a report is drawn from."""

    runs: dict[str, list[Run]]
    """Runs of each rung, in the ladder's order, by seed."""
    spreads: dict[str, dict[str, Spread]]
    """Rung → metric → spread over seeds."""
    intervals: dict[str, dict[str, Interval]]
    """Rung → metric → interval over users of the mean over seeds."""
    differences: dict[str, dict[str, Interval]]
    """`rung-base` → metric → paired interval over users of the mean difference over seeds."""
    counts: dict[str, int]
    """Impressions, clicks and users of the split and its slices."""
    best_reachable: dict[str, float | None]
    """Best AUC that any model could reach, where the data set knows it."""
    slices: list[str]
    """Slices that this data set has."""
    knock_outs: dict[str, dict[str, Spread]]
    """`rung without modality` → metric → what it loses, over seeds."""

    @property
    def judged_on(self) -> str:
        """The split that the figures are of."""
        return str(next(iter(self.runs.values()))[0].record["judged_on"])

    @property
    def rungs(self) -> list[str]:
        """Rungs with a finished run, in the ladder's order."""
        return list(self.runs)

    def as_json(self) -> dict[str, Any]:
        """The figures as metrics.json holds them: under "rungs", and again at the top."""
        rungs = {
            rung: {name: spread.as_json() for name, spread in metrics.items()}
            for rung, metrics in self.spreads.items()
        }
        return {
            **rungs,
            "best_reachable_auc": self.best_reachable["auc"],
            "best_reachable_auc_cold": self.best_reachable["auc_cold"],
            "rungs": rungs,
            "intervals": _intervals_json(self.intervals),
            "differences": _intervals_json(self.differences),
            "knock_outs": {
                name: {metric: spread.as_json() for metric, spread in metrics.items()}
                for name, metrics in self.knock_outs.items()
            },
            "counts": self.counts,
            "seeds": {rung: [run.seed for run in runs] for rung, runs in self.runs.items()},
            "test_opened": {
                f"{rung}/seed-{run.seed}": run.record["test_opened"]
                for rung, runs in self.runs.items()
                for run in runs
            },
        }


def compare(runs: list[Run], dataset: Dataset, *, num_resamples: int) -> Comparison:
    """Put runs of one data set side by side."""
    fingerprints = {run.record["provenance"]["dataset_fingerprint"] for run in runs}
    if len(fingerprints) != 1:
        raise ValueError(
            f"{runs[0].dir.parent.parent}: found runs of {len(fingerprints)} data sets, expected "
            "one; re-run python -m finetune ladder"
        )
    if "auc" not in runs[0].record["test"]:
        raise ValueError(
            f"{runs[0].dir}: found a run whose first task is a number, expected a binary one to "
            "compare; its figures are in metrics.json, or name a binary task first"
        )
    splits = {run.record["judged_on"] for run in runs}
    if len(splits) != 1:
        raise ValueError(
            f"{runs[0].dir.parent.parent}: found runs judged on {sorted(splits)}, expected one "
            "split; re-run python -m finetune ladder"
        )
    test = pq.read_table(runs[0].dir / PREDICTIONS_FILE, columns=["user_id"])
    impressions = dataset.impressions(splits.pop(), columns=slice_columns(dataset))
    user_N = impressions["user_row"].to_numpy()
    if test.num_rows != impressions.num_rows:
        raise ValueError(
            f"{runs[0].dir}: found {test.num_rows} predictions, expected the "
            f"{impressions.num_rows} impressions of {dataset.dir}; re-run the ladder"
        )
    masks = slice_masks(dataset, impressions)
    compared = ("auc", "gauc", "logloss", *(f"auc_{name}" for name in masks))
    by_rung: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (order_of(run.rung), run.seed)):
        by_rung[run.rung].append(run)
    spreads = {rung: _spreads(members) for rung, members in by_rung.items()}
    draws = {
        rung: _mean_draws(members, user_N, masks=masks, names=compared, num_resamples=num_resamples)
        for rung, members in by_rung.items()
    }
    intervals = {
        rung: {name: Interval.of(spreads[rung][name].mean, draws[rung][name]) for name in compared}
        for rung in by_rung
    }
    differences = {
        f"{rung}-{base}": {
            name: Interval.of(
                spreads[rung][name].mean - spreads[base][name].mean,
                draws[rung][name] - draws[base][name],
            )
            for name in compared
        }
        for rung, base in _pairs(list(by_rung))
    }
    extra = dataset.manifest.extra
    return Comparison(
        runs=dict(by_rung),
        spreads=spreads,
        intervals=intervals,
        differences=differences,
        counts=runs[0].record["counts"],
        best_reachable={
            "auc": extra.get("best_reachable_auc"),
            "auc_cold": extra.get("best_reachable_auc_cold"),
        },
        slices=list(masks),
        knock_outs=_knock_outs(by_rung),
    )


def _pairs(rungs: list[str]) -> list[tuple[str, str]]:
    """Each rung with the bases that come before it."""
    return [
        (rung, base)
        for place, rung in enumerate(rungs)
        for base in rungs[:place]
        if base in BASES and not (base == "raw" and rung == "scratch")
    ]


def _knock_outs(by_rung: dict[str, list[Run]]) -> dict[str, dict[str, Spread]]:
    """What each rung loses without a modality."""
    found: dict[str, dict[str, Spread]] = {}
    for rung, runs in by_rung.items():
        for without in runs[0].record["knock_outs"]:
            lost = [
                {
                    name: _number(run.record["knock_outs"][without][name]) - _number(value)
                    for name, value in run.record["test"].items()
                }
                for run in runs
            ]
            found[f"{rung} without {without}"] = {
                name: Spread([one[name] for one in lost]) for name in lost[0]
            }
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _spreads(runs: list[Run]) -> dict[str, Spread]:
    names = runs[0].record["test"]
    return {name: Spread([_number(run.record["test"][name]) for run in runs]) for name in names}


def _mean_draws(
    runs: list[Run],
    user_N: NDArray[np.integer],
    *,
    masks: dict[str, NDArray[np.bool_]],
    names: Sequence[str],
    num_resamples: int,
) -> dict[str, Floats]:
    """Mean over a rung's seeds of each metric on each draw; all rungs share the draws."""
    drawn = [
        resampled_metrics(
            user_N, run.label_N, score_N=run.score_N, masks=masks, num_resamples=num_resamples
        )
        for run in runs
    ]
    return {name: np.mean([one[name] for one in drawn], axis=0) for name in names}


def _intervals_json(
    intervals: dict[str, dict[str, Interval]],
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        key: {
            name: {"value": one.value, "low": one.low, "high": one.high}
            for name, one in metrics.items()
        }
        for key, metrics in intervals.items()
    }
