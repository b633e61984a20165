"""The figures of `report`, each a function from numbers to one self-contained SVG.

Shapes: I items, U users, T time bins.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from data_prep.events import Int64
from data_prep.figures import BLUE, GOLD, GREY, RUST, house_style, new_figure, svg
from data_prep.manifest import Cutoffs
from data_prep.records import Split

COLOURS: dict[Split, str] = {"train": BLUE, "valid": GOLD, "test": RUST}
_INK = "#111827"
_MS_PER_S = 1000
_POINTS = 400
"""Points of a curve at most, so that a page of many items stays small."""


def popularity_figure(train_count_I: Int64) -> str:
    """Rank against frequency, and the share of events that the most popular items have."""
    with house_style():
        figure, (ranks, shares) = new_figure(9, 3.2, columns=2)
        count_I = -np.sort(-train_count_I[train_count_I > 0])
        rank = _spaced(len(count_I))
        ranks.loglog(rank, count_I[rank - 1], color=BLUE, lw=1.6)
        ranks.set(
            title="rank and frequency", xlabel="rank of the item", ylabel="positives in training"
        )
        total = max(int(count_I.sum()), 1)
        places = _spaced(len(train_count_I))
        running = np.append(np.cumsum(count_I), np.full(len(train_count_I) - len(count_I), total))
        shares.plot(places / len(train_count_I), running[places - 1] / total, color=BLUE, lw=1.6)
        for share in (0.01, 0.1):
            top = max(round(share * len(train_count_I)), 1)
            held = running[top - 1] / total
            shares.plot(share, held, "o", color=RUST, ms=5)
            shares.annotate(
                f"top {100 * share:.0f} %: {100 * held:.0f} %",
                (share, held),
                (7, -9),
                textcoords="offset points",
            )
        shares.set(xscale="log", ylim=(0, 1.03), xlabel="share of the catalogue, most popular "
                   "first", title="share of training positives")  # fmt: skip
        _plain_numbers(ranks.xaxis, ranks.yaxis, shares.xaxis)
        return svg(figure)


def history_figure(lengths_U: Int64) -> str:
    """How many users have at least that many events before `valid_start`, on log axes."""
    with house_style():
        figure, (axes,) = new_figure(9, 2.9)
        length = np.sort(lengths_U[lengths_U > 0])
        values, first = np.unique(length, return_index=True)
        at_least = len(length) - first
        shown = _spaced(len(values)) - 1
        axes.step(values[shown], at_least[shown], where="pre", color=BLUE, lw=1.6)
        for share in (0.5, 0.9, 0.99):
            place = float(np.quantile(length, share)) if len(length) else 1.0
            axes.axvline(place, color=GREY, lw=0.9, ls="--")
            axes.annotate(
                f"{100 * share:.0f} %\n{place:,.0f}", (place, 1), (3, -3), va="top", color=GREY,
                fontsize=8, xycoords=("data", "axes fraction"), textcoords="offset points",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="events before valid_start",
                 ylabel="users with at least as many")  # fmt: skip
        _plain_numbers(axes.xaxis, axes.yaxis)
        return svg(figure)


def timeline_figure(
    edges: NDArray[np.float64], timelines: Mapping[Split, Int64], cutoffs: Cutoffs
) -> str:
    """Events over time, coloured by split, with the cut-offs."""
    with house_style():
        figure, (axes,) = new_figure(9, 2.9)
        below = np.zeros(len(edges) - 1)
        for split, count_T in timelines.items():
            axes.stairs(below + count_T, _days(edges), baseline=below, fill=True, lw=0,
                        color=COLOURS[split], label=split)  # fmt: skip
            below = below + count_T
        axes.set(ylabel="events", ylim=(0, 1.18 * max(below.max(), 1)))
        _mark_cutoffs(axes, cutoffs)
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return svg(figure)


def click_rate_figure(
    edges: NDArray[np.float64],
    shown: Mapping[Split, Int64],
    clicks: Mapping[Split, Int64],
    cutoffs: Cutoffs,
) -> str:
    """Click rate over time, coloured by split; the larger a dot, the more impressions."""
    with house_style():
        figure, (axes,) = new_figure(9, 2.9)
        middle = _days((edges[:-1] + edges[1:]) / 2)
        most = max((int(count_T.max()) for count_T in shown.values()), default=1)
        highest = 0.0
        for split, shown_T in shown.items():
            seen = shown_T > 0
            rate = clicks[split][seen] / shown_T[seen]
            # Bins with few impressions scatter up to a rate of 1; they must not set the scale.
            heavy = shown_T[seen] >= most / 50
            highest = max(highest, rate[heavy].max(initial=0))
            axes.scatter(middle[seen], rate, s=4 + 36 * shown_T[seen] / max(most, 1),
                         color=COLOURS[split], alpha=0.8, lw=0, label=split)  # fmt: skip
        axes.set(ylabel="click rate", ylim=(0, min(1.35 * highest, 1.15) or 1))
        _mark_cutoffs(axes, cutoffs)
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return svg(figure)


def _plain_numbers(*log_axes: Axis) -> None:
    """Label a log axis with numbers rather than powers, the twos and fives too if it is short."""
    for axis in log_axes:
        low, high = sorted(axis.get_view_interval())
        steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_locator(NullLocator())


def _mark_cutoffs(axes: Axes, cutoffs: Cutoffs) -> None:
    """Lines at the two times, and dates on the axis."""
    for place, name in enumerate(("valid_start", "test_start")):
        moment = getattr(cutoffs, name)
        axes.axvline(float(_days(np.array(moment))), color=_INK, lw=1, ls="--")
        day = datetime.fromtimestamp(moment / _MS_PER_S, UTC).strftime("%Y-%m-%d")
        axes.annotate(
            f"{name}\n{day}", (float(_days(np.array(moment))), 1),
            (-4 if place == 0 else 4, -2), ha="right" if place == 0 else "left", va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.grid(axis="x", visible=False)


def _days(time_ms: NDArray[np.generic]) -> NDArray[np.float64]:
    """Matplotlib's dates count days."""
    return np.asarray(time_ms, np.float64) / (86_400 * _MS_PER_S)


def _spaced(size: int) -> Int64:
    """Some of 1..size, evenly spaced on a log axis, the ends among them."""
    return np.unique(np.geomspace(1, max(size, 1), _POINTS).round().astype(np.int64))[:size]
