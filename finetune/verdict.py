"""What the figures say, in plain words: also when pre-training did not help."""

import math

from finetune.compare import Comparison

_CONTROLS = ("none", "noise", "scratch")
_METRICS = {
    "auc": "On the whole {split} split",
    "auc_cold": "On cold items",
    "auc_tail": "On tail items",
    "auc_new_users": "For new users",
}


def verdict(comparison: Comparison) -> list[str]:
    """One sentence a question: whole split, cold and tail items, new users, noise, spread."""
    sentences: list[str] = []
    rung = _subject(comparison)
    if rung is not None:
        for metric, where in _METRICS.items():
            where = where.format(split=comparison.judged_on)
            sentences += _gain(comparison, rung, metric=metric, where=where)
        sentences += _rates(comparison, rung)
        sentences += _above_aligned(comparison)
    if "noise-none" in comparison.differences:
        sentences.append(_noise(comparison))
    fewest = min(len(runs) for runs in comparison.runs.values())
    if len(comparison.runs) > 1 and fewest < 3:
        sentences.append(
            f"With {fewest} seed{'s' if fewest > 1 else ''} a rung, the spread over seeds is not "
            "known well enough to believe these differences."
        )
    abouts = [run.record["provenance"] for runs in comparison.runs.values() for run in runs]
    ahead = {
        name
        for about in abouts
        if about["look_ahead"]
        for name in about.get("looks_ahead", ["release"])
    }
    if "release" in ahead:
        sentences.append(
            "The release has seen events of the validation or test time (allow_look_ahead), so "
            "its gains are not evidence."
        )
    if ahead - {"release"}:
        sentences.append(
            "A run that was built on has seen the validation or test time (allow_look_ahead), so "
            "these figures are not evidence."
        )
    return sentences


def overfitting(comparison: Comparison) -> list[str]:
    """Which rungs' validation AUC fell after its best epoch, the sign of ids learnt by heart."""
    fallen = []
    for rung, runs in comparison.runs.items():
        curves = [[row["val/auc"] for row in run.history] for run in runs]
        best = [curve.index(max(curve)) + 1 for curve in curves]
        lost = sum(max(curve) - curve[-1] for curve in curves) / len(curves)
        if all(place < len(curve) for place, curve in zip(best, curves, strict=True)):
            epoch = sum(best) / len(best)
            fallen.append(f"{rung} {lost:.3f} after epoch {epoch:.2g}")
    return [f"Lost from the best epoch to the last: {', '.join(fallen)}."] if fallen else []


def is_clear(comparison: Comparison, rung: str, base: str, *, metric: str) -> bool:
    """Whether a difference lies outside both the users' interval and the seeds' spread."""
    difference = comparison.differences[f"{rung}-{base}"][metric]
    spread = max(comparison.spreads[one][metric].std for one in (rung, base))
    return difference.excludes_zero and abs(difference.value) > spread


def _subject(comparison: Comparison) -> str | None:
    """The rung that is spoken of: aligned content, without it the highest that has content."""
    with_content = [
        rung
        for rung in comparison.runs
        if f"{rung}-none" in comparison.differences and rung not in _CONTROLS
    ]
    if not with_content:
        return None
    return "aligned" if "aligned" in with_content else with_content[-1]


def _rates(comparison: Comparison, rung: str) -> list[str]:
    """Whether a rung that may rank better predicts worse rates."""
    difference = comparison.differences[f"{rung}-none"].get("logloss")
    if difference is None or not (difference.value > 0 and difference.excludes_zero):
        return []
    ours, theirs = (comparison.spreads[one]["logloss"].mean for one in (rung, "none"))
    return [
        f"Its predicted rates are worse than those of ids alone, whatever the order is: log loss "
        f"{ours:.4f} against {theirs:.4f} (95 % interval of the difference {difference.low:+.4f} "
        f"to {difference.high:+.4f}); see Calibration before you bid with them."
    ]


def _gain(comparison: Comparison, rung: str, *, metric: str, where: str) -> list[str]:
    """How a rung with content, the aligned one as a rule, compares with ids and raw content."""
    difference = comparison.differences[f"{rung}-none"][metric]
    if math.isnan(difference.value):
        return [f"{where} the AUC does not exist: clicks or non-clicks are missing there."]
    over_ids = _phrase(comparison, rung, "none", metric=metric)
    subject = "aligned content" if rung == "aligned" else f"the rung {rung}"
    sentence = f"{where}, {subject} {over_ids} over ids alone"
    spread = max(comparison.spreads[one][metric].std for one in (rung, "none"))
    num_seeds = len(comparison.runs[rung])
    if not difference.excludes_zero:
        sentence += ", which the interval over users cannot tell from nothing"
    elif num_seeds == 1:
        sentence += ", with one seed"
    elif is_clear(comparison, rung, "none", metric=metric):
        sentence += f", outside the spread of {num_seeds} seeds ({spread:.3f})"
    else:
        sentence += f", but within the spread of {num_seeds} seeds ({spread:.3f})"
    if f"{rung}-raw" in comparison.differences:
        over_raw = _phrase(comparison, rung, "raw", metric=metric)
        clear = is_clear(comparison, rung, "raw", metric=metric)
        sentence += f"; it {over_raw} over off-the-shelf content"
        sentence += "" if clear else " (not clear of zero and the seeds' spread)"
    return [sentence + "."]


def _above_aligned(comparison: Comparison) -> list[str]:
    """Which rungs gain over aligned content as it is, on the whole split or on cold items."""
    tail = "-aligned"
    rungs = [pair.removesuffix(tail) for pair in comparison.differences if pair.endswith(tail)]
    if not rungs:
        return []
    parts = []
    for metric, where in (("auc", "on the whole split"), ("auc_cold", "on cold items")):
        clear = [rung for rung in rungs if is_clear(comparison, rung, "aligned", metric=metric)]
        better = [
            f"{rung} ({comparison.differences[f'{rung}-aligned'][metric].value:+.3f})"
            for rung in clear
            if comparison.differences[f"{rung}-aligned"][metric].value > 0
        ]
        parts.append(f"{where} {', '.join(better) if better else 'none'}")
    return [
        f"Of the {len(rungs)} rungs above aligned content, these gain over it clearly: "
        f"{'; '.join(parts)}."
    ]


def _phrase(comparison: Comparison, rung: str, base: str, *, metric: str) -> str:
    difference = comparison.differences[f"{rung}-{base}"][metric]
    verb = "gains" if difference.value >= 0 else "loses"
    return (
        f"{verb} {abs(difference.value):.3f} AUC "
        f"(95 % interval {difference.low:+.3f} to {difference.high:+.3f})"
    )


def _noise(comparison: Comparison) -> str:
    difference = comparison.differences["noise-none"]["auc"]
    if difference.value > 0 and is_clear(comparison, "noise", "none", metric="auc"):
        return (
            f"Warning: random vectors also gain {difference.value:+.3f} AUC, so part of any "
            "rung's gain comes from its extra weights, not from its content."
        )
    return (
        f"Random vectors of the same width change AUC by {difference.value:+.3f}: the extra "
        "weights alone gain nothing."
    )
