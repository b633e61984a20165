"""Groups, exposure and robustness of finished runs, side by side: for metrics.json and the page."""

from typing import Any

import numpy as np

from data_prep.html_page import Html, figure, section
from finetune import trust_plots
from finetune.compare import Comparison, Spread

Summary = dict[str, Any]
"""Rung → part → … → figure → spread over seeds, nested as in the runs' own metrics.json."""


def trust_summary(comparison: Comparison) -> Summary:
    """What the runs of each rung found, each figure as a spread over seeds."""
    return {
        rung: _spreads([run.record["trust"] for run in runs])
        | {"auc": comparison.spreads[rung]["auc"]}
        for rung, runs in comparison.runs.items()
        if all(run.record["trust"] for run in runs)  # empty for a label that is a number
    }


def _spreads(records: list[Any]) -> Any:  # noqa: ANN401 - a dictionary or a spread
    first = records[0]
    if isinstance(first, dict):
        return {key: _spreads([one[key] for one in records]) for key in first}
    return Spread([float("nan") if one is None else float(one) for one in records])


def summary_json(summary: Any) -> Any:  # noqa: ANN401 - a dictionary or a spread
    """The summary as metrics.json holds it."""
    if isinstance(summary, Spread):
        return summary.as_json()
    return {key: summary_json(one) for key, one in summary.items()}


def trust_sections(summary: Summary) -> list[Html]:
    """The sections of the report."""
    if not summary:
        return []
    return [*_groups(summary), *_exposure(summary), *_robustness(summary)]


def _groups(summary: Summary) -> list[Html]:
    if not any(one["groups"] for one in summary.values()):
        return []
    text = (
        "Predicted over observed clicks (1: calibrated; right of it the model promises too much), "
        "the calibration error in bins of equally many impressions, and the group's AUC less that "
        "of all impressions (left of 0: the group is served worse). Groups of few clicks swing; "
        "their sizes stand beside their names. Mean over the seeds, a line from least to most."
    )
    drawing = trust_plots.groups_figure(summary)
    return [section("Groups: calibration and AUC gaps", text, figure(drawing))]


def _exposure(summary: Summary) -> list[Html]:
    first = next(iter(summary.values()))["exposure"]
    users, k = int(first["users"].mean), int(first["k"].mean)
    if not users:
        return []
    text = (
        f"The impressions of each of the {users:,} users with more than {k} are ranked, and the "
        f"first {k} count as shown. Gini: 0 if every item is shown equally often, 1 if one item is "
        "all that is shown. New items had no positive event before the validation time. The line "
        "is what the log itself offered these users: where a ranker ends that looks at nothing."
    )
    drawing = trust_plots.exposure_figure(summary)
    return [section(f"Exposure: what the top {k} shows", text, figure(drawing))]


def _robustness(summary: Summary) -> list[Html]:
    asked = {rung: one for rung, one in summary.items() if one["robustness"]}
    if not asked:
        return []
    text = (
        "The trained models are asked again with other content. Left: Gaussian noise is added to "
        "the unit vectors, which are brought to unit length again; 1 is noise as long as the "
        "content, which leaves a cosine of 0.71. Right: content is taken from this share of the "
        "items. The dashed line is the rung without content."
    )
    worst = _falls_below(summary, asked)
    drawing = trust_plots.robustness_figure(summary)
    return [section("Robustness: noisy and missing content", f"{text}{worst}", figure(drawing))]


def _falls_below(summary: Summary, asked: Summary) -> str:
    """Rungs that without any content are worse than the rung that never had any."""
    if "none" not in summary:
        return ""
    base = summary["none"]["auc"].mean
    below = []
    for rung, one in asked.items():
        blind = one["robustness"].get("missing", {}).get("1")
        if blind is not None and not np.isnan(blind["auc"].mean) and blind["auc"].mean < base:
            below.append(f"{rung} ({blind['auc'].mean - base:+.3f})")
    if not below:
        return ""
    return (
        " Without any content these are worse than a model that never had it, so they need their "
        f"content to be there: {', '.join(below)}."
    )
