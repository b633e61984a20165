"""The verdict is read before the figures: it must say what they say, also when nothing helped."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from finetune.bootstrap import Interval
from finetune.compare import Comparison, Spread
from finetune.verdict import verdict

COMPARED = ("auc", "auc_cold", "auc_tail", "auc_new_users")


def comparison(
    gain: Interval,
    *,
    noise: float = 0.0,
    seeds: int = 3,
    std: float = 0.001,
    late: bool = False,
    split: str = "test",
) -> Comparison:
    run = SimpleNamespace(record={"provenance": {"look_ahead": late}, "judged_on": split})
    rungs = ("none", "noise", "raw", "aligned")
    spread = Spread([0.6 - std, 0.6, 0.6 + std][:seeds])
    change = Interval(noise, noise - 0.001, noise + 0.001)
    gains = {"aligned-none": gain, "aligned-raw": gain, "noise-none": change, "raw-none": change}
    return Comparison(
        runs={rung: [run] * seeds for rung in rungs},
        spreads={rung: dict.fromkeys(COMPARED, spread) for rung in rungs},
        intervals={},
        differences={pair: dict.fromkeys(COMPARED, one) for pair, one in gains.items()},
        counts={},
        best_reachable={},
        slices=[],
        knock_outs={},
    )


CLEAR = Interval(0.05, 0.04, 0.06)


def text(**changes: object) -> str:
    return " ".join(verdict(comparison(**({"gain": CLEAR} | changes))))


def test_a_clear_gain_is_told_with_its_interval_and_spread() -> None:
    found = text()
    assert "On cold items, aligned content gains 0.050 AUC" in found
    assert "+0.040 to +0.060" in found
    assert "outside the spread of 3 seeds (0.001)" in found


def test_the_split_that_was_judged_is_named() -> None:
    assert text().startswith("On the whole test split, aligned content gains")
    found = text(split="valid")
    assert found.startswith("On the whole valid split, aligned content gains")
    assert "test" not in found


def test_a_loss_is_called_a_loss() -> None:
    assert "loses 0.050 AUC" in text(gain=Interval(-0.05, -0.06, -0.04))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gain": Interval(0.01, -0.01, 0.03)}, "cannot tell from nothing"),
        ({"std": 0.2}, "but within the spread of 3 seeds"),
        ({"seeds": 1}, "With 1 seed a rung"),
        ({"noise": 0.02}, "Warning: random vectors also gain"),
        ({"noise": -0.02}, "the extra weights alone gain nothing"),
        ({"late": True}, "its gains are not evidence"),
        ({"gain": Interval(float("nan"), 0, 0)}, "the AUC does not exist"),
    ],
)
def test_the_verdict_says_what_is_against_it(changes: dict[str, object], words: str) -> None:
    assert words in text(**changes)


def test_worse_rates_are_told_beside_a_better_order() -> None:
    found = comparison(CLEAR)
    assert "predicted rates" not in " ".join(verdict(found))
    worse = {"aligned-none": {"logloss": Interval(0.02, 0.01, 0.03)}}
    differences = {pair: one | worse.get(pair, {}) for pair, one in found.differences.items()}
    of_rungs = {"aligned": Spread([0.52] * 3), "none": Spread([0.5] * 3)}
    spreads = {
        rung: one | ({"logloss": of_rungs[rung]} if rung in of_rungs else {})
        for rung, one in found.spreads.items()
    }
    told = " ".join(verdict(replace(found, differences=differences, spreads=spreads)))
    assert "log loss 0.5200 against 0.5000 (95 % interval of the difference +0.0100" in told


def test_without_aligned_content_the_highest_rung_is_spoken_of() -> None:
    found = comparison(CLEAR)
    runs = {"none": found.runs["none"], "codes": found.runs["aligned"]}
    told = verdict(
        replace(
            found,
            runs=runs,
            spreads={rung: found.spreads["none"] for rung in runs},
            differences={"codes-none": found.differences["aligned-none"]},
        )
    )
    assert told[0].startswith("On the whole test split, the rung codes gains 0.050 AUC")


def test_a_rung_alone_has_no_verdict() -> None:
    found = comparison(CLEAR, seeds=1)
    alone = replace(found, runs={"aligned": found.runs["aligned"]}, differences={})
    assert verdict(alone) == []
