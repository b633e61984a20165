"""The report's part on runs of several labels, or of a treatment."""

from collections.abc import Sequence

import numpy as np

from data_prep.html_page import Html, section, table
from finetune.compare import Comparison, Spread
from finetune.run_folder import Run

_BINARY = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "calibration": "calibration"}
_NUMERIC = {"gini": "normalised Gini", "rmse": "RMSE", "mae": "MAE", "r2": "R²",
            "calibration": "calibration"}  # fmt: skip
_UPLIFT = {"qini": "Qini coefficient", "auuc": "AUUC", "average_effect": "average effect",
           "predicted_effect": "predicted effect"}  # fmt: skip


def tasks_section(comparison: Comparison) -> list[Html]:
    """Figures of every task of every rung; nothing where all runs learnt the click alone."""
    runs = next(iter(comparison.runs.values()))
    tasks = runs[0].record.get("tasks", {})
    if not tasks:
        return []
    binary = [name for name, figures in tasks.items() if "auc" in figures]
    parts = [
        _table(comparison, binary, names=_BINARY),
        _table(comparison, [name for name in tasks if name not in binary], names=_NUMERIC),
    ]
    text = (
        "Every label that the runs learnt, mean ± standard deviation over the seeds. Calibration "
        "is predicted over observed, 1 at best."
    )
    if "uplift" in runs[0].record:
        text += (
            " The label's figures are of the arm that an impression was in; Qini and AUUC judge "
            "the order by uplift, in outcomes an impression. By chance Qini is 0, and AUUC half "
            "the average effect."
        )
        parts.append(_uplift(comparison))
    return [section("Every task", text, *(part for part in parts if part))]


def places_section(comparison: Comparison) -> list[Html]:
    """What place towers learnt of every place; nothing where there are none."""
    runs = next(iter(comparison.runs.values()))
    places = runs[0].record.get("places")
    if not places:
        return []
    is_seen = places["mode"] == "seen"
    text = (
        "The part of the click that training gave to the place, which is gone when the model "
        "serves; mean over the seeds. "
        + ("The chance that the place is seen." if is_seen else "Log odds of a click there.")
        + " Values that hardly differ were not learnt: raise train.position.lr or train longer."
    )
    columns = {
        f"{task}, {rung}": np.mean([run.record["places"][task] for run in members], axis=0)
        for rung, members in comparison.runs.items()
        for task in places
        if task != "mode"
    }
    rows = [
        [str(place), *(f"{values_P[place]:.3f}" for values_P in columns.values())]
        for place in range(len(next(iter(columns.values()))))
    ]
    return [section("Places", text, table(["place", *columns], rows))]


def _table(comparison: Comparison, tasks: Sequence[str], *, names: dict[str, str]) -> Html:
    if not tasks:
        return Html("")
    rows = [
        [f"{task}, {rung}", *(_spread(runs, "tasks", task, name) for name in names)]
        for task in tasks
        for rung, runs in comparison.runs.items()
    ]
    return table(["task", *names.values()], rows)


def _uplift(comparison: Comparison) -> Html:
    rows = [
        [rung, *(_spread(runs, "uplift", name) for name in _UPLIFT)]
        for rung, runs in comparison.runs.items()
    ]
    return table(["uplift", *_UPLIFT.values()], rows)


def _spread(runs: Sequence[Run], *keys: str) -> str:
    """One figure of metrics.json over the seeds."""
    values = []
    for run in runs:
        figure = run.record
        for key in keys:
            figure = figure[key]
        values.append(float("nan") if figure is None else float(figure))  # type: ignore[arg-type]
    return Spread(values).text
