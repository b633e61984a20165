"""Figures of groups, exposure and robustness; numbers in, one self-contained SVG out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.figures import house_style, new_figure, svg
from finetune.plots import colour

if TYPE_CHECKING:
    from finetune.compare import Spread

_LINE = "#9ca3af"


def groups_figure(summary: dict[str, Any]) -> str:
    """Calibration, its error and the AUC gap of every group, a dot a rung."""
    names = list(dict.fromkeys(name for one in summary.values() for name in one["groups"]))
    panels = {
        "calibration": ("predicted / observed clicks", 1.0),
        "ece": ("calibration error", 0.0),
        "auc_gap": ("AUC less that of all", 0.0),
    }
    with house_style():
        drawn, columns = new_figure(
            9, 1.2 + (0.2 + 0.05 * len(summary)) * len(names), columns=len(panels)
        )
        for axes, (metric, (title, neutral)) in zip(columns, panels.items(), strict=True):
            axes.axvline(neutral, color=_LINE, lw=0.9, ls="--")
            for place, rung in enumerate(summary):
                offset = 0.66 * (place - (len(summary) - 1) / 2) / max(len(summary), 2)
                _dots(axes, summary[rung]["groups"], names, metric, offset=offset, rung=rung)
            axes.set(title=title, ylim=(len(names) - 0.4, -0.6))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_yticks(range(len(names)), [])
            axes.grid(axis="y", visible=False)
        columns[0].set_yticks(range(len(names)), _labels(summary, names))
        _legend(drawn, columns[0])
        return svg(drawn)


def _dots(
    axes: Axes,
    groups: dict[str, Any],
    names: Sequence[str],
    metric: str,
    *,
    offset: float,
    rung: str,
) -> None:
    """A dot a group at the mean over seeds, and a line over the seeds' range."""
    label: str | None = rung
    for place, name in enumerate(names):
        spread: Spread | None = groups.get(name, {}).get(metric)
        if spread is None or np.isnan(spread.mean):
            continue
        axes.plot(
            [min(spread.values), max(spread.values)], [place + offset] * 2,
            color=colour(rung), lw=1.2, alpha=0.6,
        )  # fmt: skip
        axes.plot(spread.mean, place + offset, "o", color=colour(rung), ms=4.5, label=label)
        label = None


def _labels(summary: dict[str, Any], names: Sequence[str]) -> list[str]:
    sizes = {
        name: one["groups"][name]["impressions"].mean
        for one in summary.values()
        for name in one["groups"]
    }
    return [f"{name.replace('_', ' ')} ({sizes[name]:,.0f})" for name in names]


def exposure_figure(summary: dict[str, Any]) -> str:
    """Gini coefficient and new items' share of what each rung shows, with the log's own."""
    panels = {"gini": "Gini of exposure", "new_item_share": "share of new items"}
    rungs = list(summary)
    with house_style():
        drawn, columns = new_figure(9, 1.2 + 0.3 * len(rungs), columns=2)
        for axes, (metric, title) in zip(columns, panels.items(), strict=True):
            logged = summary[rungs[0]]["exposure"][f"{metric}_of_candidates"].mean
            axes.axvline(logged, color=_LINE, lw=1, ls="--", label="as logged")
            for place, rung in enumerate(rungs):
                spread: Spread = summary[rung]["exposure"][metric]
                axes.plot(spread.values, [place] * len(spread.values), ".", color=colour(rung))
                axes.plot(spread.mean, place, "o", color=colour(rung), ms=7)
            axes.set(title=title, ylim=(len(rungs) - 0.4, -0.6))
            axes.set_yticks(range(len(rungs)), rungs if metric == "gini" else [])
            axes.grid(axis="y", visible=False)
            axes.margins(x=0.15)
        columns[1].legend(frameon=False, loc="best")
        return svg(drawn)


def robustness_figure(summary: dict[str, Any]) -> str:
    """AUC against the level of noise and against the share of items without content."""
    panels = {
        "noise": ("AUC with noisy content", "length of the noise"),
        "missing": ("AUC with missing content", "share of items without content"),
    }
    with house_style():
        drawn, columns = new_figure(9, 3.2, columns=2)
        for axes, (kind, (title, along)) in zip(columns, panels.items(), strict=True):
            for rung, one in summary.items():
                levels = one["robustness"].get(kind, {})
                if not levels:
                    continue
                places = [0.0, *map(float, levels)]
                means = [one["auc"].mean, *(level["auc"].mean for level in levels.values())]
                axes.plot(places, means, "o-", color=colour(rung), ms=4, lw=1.4, label=rung)
            if "none" in summary:
                axes.axhline(summary["none"]["auc"].mean, color=colour("none"), ls="--", lw=1.2)
            axes.set(title=title, xlabel=along)
        _legend(drawn, columns[0])
        return svg(drawn)


def _legend(drawn: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        drawn.legend(handles, labels, frameon=False, ncols=6, loc="outside upper center")
