"""Figures are drawn of whatever a comparison holds."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune.bootstrap import Interval
from finetune.compare import Comparison, Spread
from finetune.plots import ladder_figure, slices_figure

AUC = 0.6013


def comparison(interval: Interval, *, split: str = "test") -> Comparison:
    run = SimpleNamespace(record={"judged_on": split})
    names = ("auc", "auc_cold")
    return Comparison(
        runs={rung: [run] * 9 for rung in ("none", "raw")},
        spreads={rung: dict.fromkeys(names, Spread([AUC] * 9)) for rung in ("none", "raw")},
        intervals={rung: dict.fromkeys(names, interval) for rung in ("none", "raw")},
        differences={},
        counts={"impressions": 10, "impressions_cold": 4},
        best_reachable={"auc": None, "auc_cold": None},
        slices=["cold"],
        knock_outs={},
    )


@pytest.mark.parametrize("value", [np.nextafter(AUC, 0), np.nextafter(AUC, 1), float("nan")])
def test_an_interval_beside_its_value_by_a_rounding_is_drawn(value: float) -> None:
    """As of nine seeds and one user: a mean of equal numbers may be off by its last bit."""
    found = comparison(Interval(float(value), AUC, AUC))
    assert "<svg" in ladder_figure(found)
    assert "<svg" in slices_figure(found)


def test_the_figure_names_the_split() -> None:
    texts = ladder_figure(comparison(Interval(AUC, AUC, AUC), split="valid"))
    assert "AUC, whole valid split" in texts
    assert "test split" not in texts
