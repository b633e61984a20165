"""report.html of daily training: one file, no script, nothing from elsewhere."""

from collections.abc import Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

from data_prep.figures import BLUE, GREY, RUST, house_style, new_figure, svg
from data_prep.html_page import Html, figure, page, section, table
from data_prep.records import replace_file

REPORT_FILE = "report.html"
COLOURS = {"incremental": RUST, "retrained": BLUE, "stale": GREY}
_SHOWN = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "calibration": "calibration",
          "gini": "normalised Gini", "rmse": "RMSE"}  # fmt: skip


def write_report(found: Mapping[str, Any], out_dir: Path) -> None:
    """Write the page."""
    names = {key: text for key, text in _SHOWN.items() if key in found["days"][0]}
    modes = list(found["mean"])
    text = page(
        title=f"{found['dataset']}: day by day",
        lead=[
            f"{mode}: mean {_mean(found, mode, names)}, trained for "
            f"{found['mean'][mode]['train_seconds']:.1f} s in all."
            for mode in modes
        ],
        sections=[
            section(
                "Every day",
                f"Each model is tested on a day before it learns from it. The first ones learnt "
                f"{_days(found['first_days'])}.",
                figure(_curves(found, names)),
            ),
            section(
                "In figures", "", table(["day", *_headings(modes, names)], _rows(found, names))
            ),
            *_odd_days(found),
        ],
    )
    replace_file(out_dir / REPORT_FILE, text.encode())


def _days(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"the {len(names)} days from {names[0]} to {names[-1]}"


def _odd_days(found: Mapping[str, Any]) -> list[Html]:
    if not found["odd_days"]:
        return []
    rows = [[one["day"], one["mode"], one["what"]] for one in found["odd_days"]]
    text = f"{len(rows)} of the days that were to be learnt."
    return [section("Odd days", text, table(["day", "model", "what"], rows))]


def _figure(value: float | None) -> str:
    """n/a where a day has no such figure, such as an AUC without a click."""
    return "n/a" if value is None or isnan(value) else f"{value:.4f}"


def _mean(found: Mapping[str, Any], mode: str, names: Mapping[str, str]) -> str:
    values = found["mean"][mode]
    return ", ".join(f"{text} {_figure(values[key])}" for key, text in names.items())


def _headings(modes: list[str], names: Mapping[str, str]) -> list[str]:
    first = list(names)[:2]
    return [f"{mode} {names[key]}" for mode in modes for key in first] + ["impressions"]


def _rows(found: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    first = list(names)[:2]
    days: dict[str, dict[str, Any]] = {}
    for row in found["days"]:
        days.setdefault(row["day"], {})[row["mode"]] = row
    return [
        [
            day,
            *(_figure(of_mode[mode][key]) for mode in found["mean"] for key in first),
            f"{next(iter(of_mode.values()))['impressions']:,}",
        ]
        for day, of_mode in days.items()
    ]


def _curves(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The first two figures over the days, a line a mode."""
    with house_style():
        drawing, both = new_figure(9, 3.2, columns=2)
        for axes, key in zip(both, list(names)[:2], strict=True):
            for mode in found["mean"]:
                rows = [row for row in found["days"] if row["mode"] == mode]
                axes.plot(
                    np.array([row["day"] for row in rows], dtype="datetime64[D]"),
                    [nan if row[key] is None else row[key] for row in rows],
                    "o-", ms=3, lw=1.3, color=COLOURS[mode], label=mode,
                )  # fmt: skip
            axes.set(title=f"{names[key]} on the next day")
            axes.xaxis.set_major_locator(AutoDateLocator(minticks=1, maxticks=8))
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        both[0].legend(frameon=False)
        return svg(drawing)
