"""Item vectors in the plane, and how many directions they use, by numpy alone.

Shapes: I items, W width of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from data_prep.figures import BLUE, GOLD, GREY, RUST, house_style, new_figure, svg

Floats = NDArray[np.float64]

_MOST_GROUPS = 9
_OTHER = "#d1d5db"
_MOST_DRAWN = 2_000
"""Items of a map that are shapes of the SVG; more of them become one picture."""


@dataclass(frozen=True)
class Directions:
    """Principal components of item vectors, the main ones first."""

    place_I2: Floats
    """Coordinates in the two main directions."""

    variance_W: Floats
    """Share of the variance in each direction; sums to 1."""

    effective_rank: float
    """Exponential of the entropy of the singular values' shares, vectors not centred
    (Roy & Vetterli 2007, def. 1), as `health/effective_rank` has it."""

    @property
    def in_plane(self) -> float:
        """Share of the variance that the two main directions hold."""
        return float(self.variance_W[:2].sum())


def principal_directions(vector_IW: NDArray[np.float32]) -> Directions:
    """Principal component analysis by the W × W second moment, exact and small."""
    exact_IW = vector_IW.astype(np.float64)
    centred_IW = exact_IW - exact_IW.mean(0)
    _, square_W, direction_WW = np.linalg.svd(centred_IW.T @ centred_IW, hermitian=True)
    raw_W = np.sqrt(np.clip(np.linalg.eigvalsh(exact_IW.T @ exact_IW), 0, None))
    share_W = raw_W / max(raw_W.sum(), 1e-12)
    share_W = share_W[share_W > 0]
    return Directions(
        place_I2=centred_IW @ direction_WW[:2].T,
        variance_W=square_W / max(square_W.sum(), 1e-12),
        effective_rank=float(np.exp(-(share_W * np.log(share_W)).sum())),
    )


def item_map(
    directions: Mapping[str, Directions],
    groups: Sequence[str],
    *,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Each set of item vectors in its plane, coloured by group; the largest groups have a name.

    Args:
        directions: title → where the items are.
        groups: I names.
        colours: of named groups; null: the largest get one each, the others are grey.
    """
    names, counts = np.unique(np.array(groups), return_counts=True)
    if colours is None:
        palette = [to_hex(one) for one in mpl.colormaps["tab10"].colors]  # type: ignore[attr-defined]
        shown = [str(name) for name in names[np.argsort(-counts, kind="stable")][:_MOST_GROUPS]]
        colours = dict(zip(shown, palette, strict=False))
    with house_style():
        figure, axes_of = new_figure(9, 4.2, columns=len(directions))
        for axes, (title, one) in zip(axes_of, directions.items(), strict=True):
            # One call in the items' own order: group after group, the last would hide the others.
            axes.scatter(
                one.place_I2[:, 0], one.place_I2[:, 1], s=6, lw=0, alpha=0.7,
                color=[colours.get(name, _OTHER) for name in groups],
                rasterized=len(groups) > _MOST_DRAWN,
            )  # fmt: skip
            axes.set(title=f"{title} ({one.in_plane:.0%} of the variance)", xticks=[], yticks=[])
            axes.grid(visible=False)
        named = {name: colour for name, colour in colours.items() if name in names}
        if len(named) < len(names):
            named["other"] = _OTHER
        handles = [Line2D([], [], color=colour, marker="o", ls="") for colour in named.values()]
        if len(named) > 1:
            figure.legend(handles, list(named), loc="outside lower center", ncols=5, frameon=False)
        return svg(figure)


def spectrum_figure(directions: Mapping[str, Directions]) -> str:
    """How much of the variance each direction holds, and how much the first ones together."""
    with house_style():
        figure, (each, together) = new_figure(9, 3.0, columns=2)
        palette = [RUST, BLUE, GOLD, GREY]
        for number, (name, one) in enumerate(directions.items()):
            rank = np.arange(1, len(one.variance_W) + 1)
            colour = palette[number % len(palette)]
            held = one.variance_W > 1e-12
            label = f"{name}: effective rank {one.effective_rank:.0f} of {len(rank)}"
            each.loglog(rank[held], one.variance_W[held], color=colour, lw=1.5, label=label)
            together.semilogx(rank, np.cumsum(one.variance_W), color=colour, lw=1.5)
        each.set(title="share of the variance", xlabel="direction")
        together.set(title="share of the first directions together", xlabel="directions")
        together.set_ylim(0, 1.03)
        each.legend(frameon=False, fontsize=8)
        return svg(figure)
