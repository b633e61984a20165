"""The curves of `report`: what a run logged, in panels that are read together.

Letters: P points of a curve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from data_prep.figures import BLUE, GOLD, GREY, RUST, house_style, svg
from data_prep.html_page import Html, figure, section
from pretrain.run_curves import Curve

_MOST_POINTS = 300
"""Points of a drawn curve; of more, neighbours are averaged."""
_LOG_FROM = 20
"""A log axis is for values that span at least this factor; on a shorter one it says little."""
_COLUMNS = 3
"""Panels side by side."""
_SLICES = {"all": "#1f2937", "warm": BLUE, "cold": RUST}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the curves whose names match, each under what its group says."""

    title: str
    pattern: str
    log: bool = False
    """On a log axis, where the values span enough of it."""

    plain: str = "all"
    """Label of the curve whose name has no part of its own."""

    inverse: bool = False
    """Draw one over the value: runs log the inverse temperature."""


@dataclass(frozen=True)
class Group:
    """One section of the page."""

    title: str
    text: str
    panels: tuple[Panel, ...]


GROUPS = (
    Group(
        "Validation",
        "Every query's item ranked among the whole catalogue. Cold items have no positive event in "
        "training. Recall that falls at the end is overfitting.",
        tuple(
            Panel(f"{name}@{k}", rf"val/{name.lower()}@{k}(?:_(warm|cold))?")
            for name, k in (("Recall", 20), ("Recall", 50), ("NDCG", 20))
        ),
    ),
    Group(
        "Training",
        "Negatives are effective ones: how many a positive is told apart from.",
        (
            Panel("losses", r"train/(?:(.*)_)?loss", plain="together"),
            Panel("weights of the losses", r"train/(.*)_weight"),
            Panel("temperature", r"train/(?:(.*)_)?scale", plain="user item", inverse=True),
            Panel("negatives", r"train/(?:(.*)_)?negatives", plain="user item", log=True),
            Panel("mean gate", r"train/gate_(?!balance)(.*)"),
            Panel("gate balance", r"train/gate_balance()"),
            Panel("gradient norm", r"train/gradient_norm()", log=True),
            Panel("learning rate", r"lr-(.*)"),
        ),
    ),
    Group(
        "Speed",
        "Waiting for data is that of the rank that waits longest. MFU is the share of the device's "
        "peak that the model's own arithmetic takes. Memory is the largest of any process so far.",
        (
            Panel("samples a second", r"speed/samples_per_s()"),
            Panel("seconds a step", r"speed/step_s()"),
            Panel("share of time that waits for data", r"speed/data_wait_share()"),
            Panel("MFU, share of the peak", r"speed/mfu()"),
            Panel("memory, GB", r"memory/(.*)_gb"),
        ),
    ),
    Group(
        "Health of the space",
        "A modality whose gate or knock-out is near 0 is ignored. The gap is the distance of two "
        "modalities' means, alignment the mean squared distance of an item's two views (0 is "
        "best), uniformity 0 where all vectors are one; an effective rank that falls is collapse.",
        (
            Panel("mean gate", r"health/gate_(.*)"),
            Panel("knock-out (1 - cosine)", r"health/knock_out_(.*)"),
            Panel("gradient norm", r"health/gradient_(.*)", log=True),
            Panel("gap", r"health/gap_(.*)"),
            Panel("alignment", r"health/alignment_(.*)"),
            Panel("uniformity", r"health/uniformity_(.*)"),
            Panel("effective rank", r"health/effective_rank(?:_(.*))?", plain="fused"),
        ),
    ),
)


def curve_sections(curves: Mapping[str, Curve]) -> list[Html]:
    """A section a group that the run logged something of; what no panel claims comes last."""
    sections = []
    left = dict(curves)
    for group in GROUPS:
        drawn = []
        for panel in group.panels:
            lines = matching(panel, left)
            left = {name: curve for name, curve in left.items() if name not in lines}
            if any(_says_something(curve, panel) for _, curve in lines.values()):
                drawn.append((panel, dict(lines.values())))
        if drawn:
            sections.append(section(group.title, group.text, _figure(drawn)))
    counts = ("val/queries", "val/queries_warm", "val/queries_cold")
    rest = {
        name: curve
        for name, curve in left.items()
        if name not in counts
        and np.ptp(curve.values_P) > 0
        and not re.match("val/(recall|ndcg)@", name)
    }
    if rest:
        panels = [(Panel(name, name), {"": curve}) for name, curve in rest.items()]
        text = "What else the run logged and was not constant."
        sections.append(section("Other curves", text, _figure(panels)))
    return sections


def matching(panel: Panel, curves: Mapping[str, Curve]) -> dict[str, tuple[str, Curve]]:
    """Name → (label in this panel, curve)."""
    found = {}
    for name, curve in curves.items():
        if match := re.fullmatch(panel.pattern, name):
            label = next((group for group in match.groups() if group), panel.plain)
            found[name] = (label.replace("_", " "), curve)
    return found


def thinned(curve: Curve, *, most: int = _MOST_POINTS) -> Curve:
    """At most so many points, each the mean of as many neighbours."""
    if len(curve.steps_P) <= most:
        return curve
    parts = np.array_split(np.arange(len(curve.steps_P)), most)
    return Curve(
        np.array([curve.steps_P[part].mean() for part in parts]),
        np.array([curve.values_P[part].mean() for part in parts]),
    )


def _says_something(curve: Curve, panel: Panel) -> bool:
    """A weight that never changes is a setting and no curve."""
    return "weight" not in panel.title or float(np.ptp(curve.values_P)) > 0


def grid(panels: list[tuple[Panel, dict[str, Curve]]]) -> Figure:
    """The panels side by side, each with its curves by label; drawn inside the house style."""
    rows = -(-len(panels) // _COLUMNS)
    drawing = Figure(figsize=(9.6, 2.6 * rows), layout="constrained")
    drawing.get_layout_engine().set(h_pad=0.09)  # type: ignore[union-attr, call-arg]
    places = drawing.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, (panel, lines) in zip(places, panels, strict=False):
        _draw(axes, panel, lines)
    for axes in places[len(panels) :]:
        axes.remove()
    return drawing


def _figure(panels: list[tuple[Panel, dict[str, Curve]]]) -> Html:
    with house_style():
        return figure(svg(grid(panels)))


def _draw(axes: Axes, panel: Panel, lines: Mapping[str, Curve]) -> None:
    palette = [RUST, BLUE, GOLD, GREY, *mpl.colormaps["tab10"].colors]  # type: ignore[attr-defined]
    sliced = "warm" in lines or "cold" in lines
    if sliced:
        lines = {label: lines[label] for label in _SLICES if label in lines}
    for number, (label, curve) in enumerate(lines.items()):
        shown = thinned(curve)
        values_P = 1 / shown.values_P if panel.inverse else shown.values_P
        colour = _SLICES[label] if sliced else palette[number % len(palette)]
        marker = "o" if len(values_P) < 3 else None
        axes.plot(shown.steps_P, values_P, color=colour, lw=1.3, marker=marker, ms=3, label=label)
    low, high = (f([f(curve.values_P) for curve in lines.values()]) for f in (np.min, np.max))
    if panel.log and low > 0 and high > _LOG_FROM * low:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)  # which would stand on the title
    label = next(iter(lines))
    axes.set_title(
        panel.title if len(lines) > 1 or label in ("", "all") else f"{panel.title}: {label}"
    )
    axes.set_xlabel("step", fontsize=8, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(which="both", labelsize=7.5)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7, handlelength=1.2)
