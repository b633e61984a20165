"""The look of our figures, and how one becomes a self-contained SVG."""

import io
import re
from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY, GOLD, BLUE, RUST = "#6b7280", "#c9a227", "#3b82c4", "#c2410c"
_STYLE = {
    "svg.fonttype": "path",  # text as outlines: the same look on every machine
    "svg.hashsalt": "triptych",  # the same bytes for the same figures
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
}


def house_style() -> AbstractContextManager[None]:
    """Draw inside it, from the first axes to `svg`."""
    style: AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return style


def new_figure(width: float, height: float, *, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of that many inches, and its axes from left to right."""
    with house_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def svg(figure: Figure) -> str:
    """The figure as an SVG element to stand inside HTML."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text[text.index("<svg") :])
