"""What must be seen in the figures of the report, read from matplotlib's own objects."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from data_prep import report_plots
from data_prep.manifest import Cutoffs

DAY_MS = 86_400_000
CUTOFFS = Cutoffs(valid_start=6 * DAY_MS, test_start=8 * DAY_MS)
EDGES = np.arange(11) * float(DAY_MS)
COUNTS = {
    "train": np.array([5] * 6 + [0] * 4),
    "valid": np.array([0] * 6 + [4] * 2 + [0] * 2),
    "test": np.array([0] * 8 + [3] * 2),
}


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is made, beside its SVG."""
    made: list[Figure] = []
    monkeypatch.setattr(report_plots, "svg", lambda figure: made.append(figure) or "")
    return made


def scales(axes: Axes) -> tuple[str, str]:
    return axes.get_xscale(), axes.get_yscale()


def test_popularity_and_histories_are_drawn_on_log_axes(figures: list[Figure]) -> None:
    counts = np.arange(1, 200)
    report_plots.popularity_figure(counts)
    report_plots.history_figure(counts)
    (ranks, shares), (lengths,) = (figure.axes for figure in figures)
    assert scales(ranks) == scales(lengths) == ("log", "log")
    assert scales(shares) == ("log", "linear")


def test_both_cutoffs_are_marked_with_a_line_a_name_and_a_date(figures: list[Figure]) -> None:
    report_plots.timeline_figure(EDGES, COUNTS, CUTOFFS)
    clicks = {split: count_T // 2 for split, count_T in COUNTS.items()}
    report_plots.click_rate_figure(EDGES, COUNTS, clicks, CUTOFFS)
    expected = [date2num(np.datetime64(day)) for day in ("1970-01-07", "1970-01-09")]
    assert len(figures) == 2
    for figure in figures:
        (axes,) = figure.axes
        assert [float(line.get_xdata()[0]) for line in axes.lines] == expected
        words = [text.get_text() for text in axes.texts]
        assert words == ["valid_start\n1970-01-07", "test_start\n1970-01-09"]
