"""A report's figures, each a function from numbers to one self-contained SVG."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.figures import BLUE, GOLD, GREY, RUST, house_style, new_figure, svg
from finetune.bootstrap import Interval
from finetune.compare import Comparison
from finetune.metrics import Floats, calibration_curve

COLOURS = {
    "none": GREY,
    "noise": GOLD,
    "scratch": "#a3a380",
    "raw": BLUE,
    "aligned": RUST,
    "raw+rate": "#1e3a8a",
    "rate": "#f97316",
    "simtier": "#7c3aed",
    "content_attention": "#0f766e",
    "codes": "#be185d",
    "tuned": "#166534",
    "make": "#7f1d1d",
}
_MORE = ("#0891b2", "#65a30d", "#c026d3", "#ea580c")


def colour(rung: str) -> str:
    """A rung's colour, the same in every figure; combinations take one of a few others."""
    return COLOURS.get(rung) or _MORE[sum(rung.encode()) % len(_MORE)]


def learning_curves(comparison: Comparison) -> str:
    """Training and validation AUC per epoch, a thin line a seed."""
    with house_style():
        figure, (train, valid) = new_figure(9, 3.6, columns=2)
        for rung, runs in comparison.runs.items():
            for run in runs:
                epochs = [row["epoch"] for row in run.history]
                for axes, key in ((train, "train/auc"), (valid, "val/auc")):
                    values = [row.get(key, np.nan) for row in run.history]
                    first = run is runs[0]
                    label = rung if first else None
                    axes.plot(epochs, values, color=colour(rung), lw=1.3, alpha=0.8, label=label)
                best = run.record["best_epoch"]
                valid.plot(best, run.history[best - 1]["val/auc"], "o", color=colour(rung), ms=4)
        train.set(title="training AUC, within the epoch", xlabel="epoch")
        valid.set(title="validation AUC; ● the epoch that was kept", xlabel="epoch")
        for axes in (train, valid):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        names, labels = valid.get_legend_handles_labels()
        figure.legend(names, labels, frameon=False, ncols=6, loc="outside upper center")
        return svg(figure)


def ladder_figure(comparison: Comparison) -> str:
    """AUC of every rung on the whole split and on cold items, with intervals and seeds."""
    with house_style():
        figure, both = new_figure(9, 3.2, columns=2)
        titles = {"auc": f"whole {comparison.judged_on} split", "auc_cold": "cold items"}
        for axes, (metric, title) in zip(both, titles.items(), strict=True):
            for place, rung in enumerate(comparison.rungs):
                one = comparison.intervals[rung][metric]
                if np.isnan(one.value):
                    continue
                axes.errorbar(
                    place,
                    one.value,
                    yerr=_reach([one]),
                    fmt="o",
                    color=colour(rung),
                    ms=7,
                    capsize=4,
                )
                seeds = comparison.spreads[rung][metric].values
                axes.plot(
                    place + np.linspace(0.14, 0.26, len(seeds)), seeds, ".", color=colour(rung)
                )
            best = comparison.best_reachable[metric]
            if best is not None:
                axes.axhline(best, color="#111827", ls="--", lw=1)
                axes.annotate(
                    "best reachable", (0, best), (0, -4), textcoords="offset points", va="top"
                )
            axes.axhline(0.5, color="#9ca3af", lw=0.8)
            many = len(comparison.rungs) > 5
            axes.set_xticks(
                range(len(comparison.rungs)),
                [rung.replace("content_", "") for rung in comparison.rungs],
                rotation=40 if many else 0,
                ha="right" if many else "center",
            )
            axes.set_xlim(-0.5, len(comparison.rungs) - 0.4)
            axes.set(title=f"AUC, {title}")
            axes.grid(axis="x", visible=False)
        return svg(figure)


def _reach(intervals: list[Interval]) -> Floats:
    """How far intervals reach below and above their values [2, intervals].

    A mean of values that are all one and the same may lie beside them by its rounding.
    """
    below = [one.value - one.low for one in intervals]
    above = [one.high - one.value for one in intervals]
    return np.maximum([below, above], 0.0)


def slices_figure(comparison: Comparison) -> str:
    """AUC of every slice as bars with intervals."""
    names = {"auc": "all"}
    for name in ("warm", "head", "tail", "cold", "new_users", *comparison.slices):
        if name in comparison.slices:
            items = name in ("warm", "head", "tail", "cold")
            names[f"auc_{name}"] = name.replace("_", " ", 1) + (" items" if items else "")
    with house_style():
        figure, (axes,) = new_figure(9, 3.0)
        width = 0.8 / len(comparison.rungs)
        for index, rung in enumerate(comparison.rungs):
            places = np.arange(len(names)) + (index - (len(comparison.rungs) - 1) / 2) * width
            cells = [comparison.intervals[rung][name] for name in names]
            values = np.array([one.value for one in cells])
            axes.bar(places, values - 0.5, width * 0.92, bottom=0.5, color=colour(rung),
                     label=rung)  # fmt: skip
            axes.errorbar(places, values, yerr=_reach(cells), fmt="none", ecolor="#374151",
                          elinewidth=0.9, capsize=2)  # fmt: skip
        counts = [comparison.counts["impressions" + name.removeprefix("auc")] for name in names]
        labels = [  # a word a line, so that many slices do not run into each other
            "\n".join([*label.split(" "), f"{count:,}"])
            for label, count in zip(names.values(), counts, strict=True)
        ]
        axes.set_xticks(range(len(names)), labels)
        axes.set(ylabel="AUC (0.5: chance)")
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return svg(figure)


def calibration_figure(comparison: Comparison) -> str:
    """Observed against predicted click rate, all seeds of a rung together."""
    with house_style():
        figure, (axes,) = new_figure(5.6, 3.6)
        axes.plot([0, 1], [0, 1], color="#9ca3af", lw=1, ls="--")
        highest = 0.0
        for rung, runs in comparison.runs.items():
            label = np.concatenate([run.label_N for run in runs])
            curve = calibration_curve(label, np.concatenate([run.score_N for run in runs]))
            axes.plot(curve.predicted, curve.observed, "o-", ms=3, lw=1.3, color=colour(rung),
                      label=rung)  # fmt: skip
            highest = max(highest, curve.predicted.max(), curve.observed.max())
        limit = min(1.0, highest * 1.08)
        axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="predicted", ylabel="observed",
                 title="click rate in 15 bins of equal size")  # fmt: skip
        figure.legend(frameon=False, loc="outside right center")
        return svg(figure)


def pretrain_curves(metrics_csv: Path) -> str | None:
    """Every figure that a CSVLogger's metrics.csv holds at least twice; None if there is none."""
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    curves = dict(_curves(rows))
    if not curves:
        return None
    columns = 3
    lines = -(-len(curves) // columns)
    with house_style():
        figure = Figure(figsize=(9, 1.9 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, (name, (steps, values)) in zip(grid, curves.items(), strict=False):
            axes.plot(steps, values, color=COLOURS["aligned"], lw=1.3)
            axes.set_title(name, fontsize=8)
        for axes in grid[len(curves) :]:
            axes.set_visible(False)
        return svg(figure)


def _curves(rows: list[dict[str, str]]) -> Iterator[tuple[str, tuple[list[float], list[float]]]]:
    """Losses and validation figures first, at most twelve."""
    names = [name for name in rows[0] if name not in ("step", "epoch")] if rows else []
    wanted = [n for n in names if "loss" in n or n.startswith("val/")]
    for name in (wanted + [n for n in names if n not in wanted])[:12]:
        points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if len(points) > 1:
            yield name, ([step for step, _ in points], [value for _, value in points])
