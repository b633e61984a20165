"""Show `debias`: losses that undo selection on coat-random, and off-policy estimates on bandit-ope.

    python tests/bench/debias.py

One matrix factorisation, trained on ratings that users chose to give with the naive, IPS, clipped
IPS, SNIPS and doubly robust loss, is tested on ratings of random items. Every loss has the same
grid of settings and chooses from it on the same fifth of train, by the estimate of the error that
goes with it: the plain mean for the naive loss, IPS for IPS, SNIPS for SNIPS, doubly robust for
doubly robust. Clipped IPS is chosen by SNIPS, as a capped estimate would choose the lowest cap.
Two controls are the naive loss with settings chosen by SNIPS (`naive_by_snips`: what weighing the
validation alone would do) and with all predictions moved to the weighted mean of train
(`naive_moved`: what their level alone is worth). Train is then fitted whole, with ten seeds.
Nothing is chosen on the test.

The last line is one JSON object.

Shapes: U users, I items, B ratings, R resamples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import bandit_ope
import coat_random
from coat_random import Coat, MatrixFactorisation, Ratings

from finetune.bootstrap import Interval, WeightedAuc, user_draws
from finetune.debiasing import (
    doubly_robust_loss,
    imputation_loss,
    ips_loss,
    snips_loss,
)
from finetune.metrics import auc

log = logging.getLogger("debias")

Loss = Literal["naive", "ips", "snips", "clipped_ips", "dr"]

WIDTH = 16
LR = 0.05
STEPS = (50, 100, 200)
"""Steps after which a model is looked at; how many is chosen with the other settings."""
L2_FACTOR = (0.1, 0.2, 0.3, 0.5, 1.0)
L2_BIAS = (0.03, 0.1, 0.3, 1.0, 3.0)
MAX_WEIGHT = (20.0, 60.0)
CHOICE_SEEDS = (100, 101)
"""Others than those of the test."""
NUM_RESAMPLES = 500
BASES = ("naive", "naive_by_snips", "naive_moved")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen on validation."""

    l2_factor: float
    l2_bias: float
    steps: int
    max_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A loss, its propensities and the estimate by which its settings are chosen."""

    loss: Loss
    propensity_UI: Tensor
    chosen_by: Literal["naive", "ips", "snips", "dr"]
    moved: bool = False
    """Whether predictions are moved as one, so that their mean is the weighted mean of train."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Ratings of every pair after some steps."""

    steps: int
    rating_UI: Tensor
    imputed_UI: Tensor | None


def train(
    method: Method, settings: Settings, coat: Coat, *, ratings: Ratings, seed: int
) -> list[Trained]:
    """Fit a factorisation to ratings by full batches; what it was at each of `STEPS`.

    Adam sees every rating in every step, so a seed is the initial factors. Doubly robust trains the
    imputation, a factorisation with the same settings, in turns with the prediction.
    """
    torch.manual_seed(seed)
    share = len(ratings) / len(coat.train)
    num_pairs = float(coat.num_pairs)
    label_B, weighed = ratings.rating_B, method.loss != "naive"
    # A part of the ratings was observed with that part of the propensity.
    propensity_B = ratings.of(method.propensity_UI) * share
    mean = (snips_loss(label_B, propensity_B) if weighed else label_B.mean()).item()
    model, imputation = (
        MatrixFactorisation(*coat.given_UI.shape, width=WIDTH, mean=mean) for _ in range(2)
    )
    optimiser, of_imputation = (
        torch.optim.Adam(m.parameters(), lr=LR) for m in (model, imputation)
    )
    max_weight = None if settings.max_weight is None else settings.max_weight / share
    l2 = {"l2_factor": settings.l2_factor, "l2_bias": settings.l2_bias}
    found = []
    for step in range(1, settings.steps + 1):
        rating_UI = model()
        error_B = (ratings.of(rating_UI) - label_B).square()
        if method.loss == "naive":
            loss = error_B.mean()
        elif method.loss == "snips":
            loss = snips_loss(error_B, propensity_B)
        elif method.loss == "dr":
            imputed_UI = (rating_UI - imputation().detach()).square()
            loss = doubly_robust_loss(
                error_B,
                propensity_B,
                imputed_error_B=ratings.of(imputed_UI),
                imputed_error_A=imputed_UI.flatten(),
                num_pairs=num_pairs,
            )
        else:
            loss = ips_loss(error_B, propensity_B, num_pairs=num_pairs, max_weight=max_weight)
        optimiser.zero_grad()
        (loss + model.penalty(**l2)).backward()
        optimiser.step()
        if method.loss == "dr":
            # Errors with their sign, so that an imputed rating must lie on the right side.
            predicted_B = ratings.of(rating_UI.detach())
            loss = imputation_loss(
                predicted_B - ratings.of(imputation()),
                predicted_B - label_B,
                propensity_B,
                num_pairs=num_pairs,
            )
            of_imputation.zero_grad()
            (loss + imputation.penalty(**l2)).backward()
            of_imputation.step()
        if step in STEPS:
            imputed = imputation.predict() if method.loss == "dr" else None
            found.append(Trained(steps=step, rating_UI=model.predict(), imputed_UI=imputed))
    return found


def validation_error(trained: Trained, method: Method, coat: Coat) -> float:
    """The mean squared error of all pairs, estimated from the ratings of the validation."""
    valid = coat.valid
    error_B = (valid.of(trained.rating_UI) - valid.rating_B).square()
    if method.chosen_by == "naive":
        return float(error_B.mean())
    propensity_B = valid.of(method.propensity_UI) * len(valid) / len(coat.train)
    if method.chosen_by == "snips":
        return float(snips_loss(error_B, propensity_B))
    if method.chosen_by == "ips":
        return float(ips_loss(error_B, propensity_B, num_pairs=coat.num_pairs))
    assert trained.imputed_UI is not None
    imputed_UI = (trained.rating_UI - trained.imputed_UI).square()
    return float(
        doubly_robust_loss(
            error_B,
            propensity_B,
            imputed_error_B=valid.of(imputed_UI),
            imputed_error_A=imputed_UI.flatten(),
            num_pairs=coat.num_pairs,
        )
    )


def choose(
    methods: dict[str, Method], coat: Coat, *, seeds: Sequence[int]
) -> dict[str, tuple[Settings, float]]:
    """Each method's best settings on validation and their estimate, mean over the seeds."""
    chosen = {}
    runs: dict[tuple[object, ...], list[Trained]] = {}
    for name, method in methods.items():
        errors: dict[Settings, list[float]] = defaultdict(list)
        caps = MAX_WEIGHT if method.loss == "clipped_ips" else (None,)
        for l2_factor, l2_bias, cap, seed in itertools.product(L2_FACTOR, L2_BIAS, caps, seeds):
            longest = Settings(
                l2_factor=l2_factor, l2_bias=l2_bias, steps=STEPS[-1], max_weight=cap
            )
            # Two methods may share a training and differ in the estimate that chooses.
            key = (method.loss, id(method.propensity_UI), longest, seed)
            if key not in runs:
                runs[key] = train(method, longest, coat, ratings=coat.fit, seed=seed)
            for trained in runs[key]:
                error = validation_error(trained, method, coat)
                errors[replace(longest, steps=trained.steps)].append(error)
        means = {settings: float(np.mean(values)) for settings, values in errors.items()}
        best = min(means, key=means.__getitem__)
        chosen[name] = best, means[best]
        log.info("%s: %s, %.4f on validation", name, *chosen[name])
    return chosen


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One method on the test, by seed, and on the same draws of users as every other."""

    mse: list[float]
    auc: list[float]
    mse_R: np.ndarray
    auc_R: np.ndarray


def test(
    method: Method, settings: Settings, coat: Coat, *, seeds: Sequence[int], weight_RU: np.ndarray
) -> Tested:
    """Fit the whole of train, once a seed; squared errors and AUC of the test."""
    centre = None
    if method.moved:
        centre = snips_loss(coat.train.rating_B, coat.train.of(method.propensity_UI))
    label_B = (coat.test.rating_B >= coat_random.POSITIVE_FROM).numpy().astype(np.float64)
    user_B = coat.test.user_B.numpy()
    mses, aucs, mse_SR, auc_SR = [], [], [], []
    for seed in seeds:
        rating_UI = train(method, settings, coat, ratings=coat.train, seed=seed)[-1].rating_UI
        if centre is not None:
            rating_UI = rating_UI + centre - rating_UI.mean()  # may leave the range by a little
        score_B = coat.test.of(rating_UI).numpy()
        error_B = np.square(score_B - coat.test.rating_B.numpy())
        mses.append(float(error_B.mean()))
        aucs.append(auc(label_B, score_B))
        weighted = WeightedAuc(label_B, score_B)
        weight_RB = weight_RU[:, user_B]
        mse_SR.append((weight_RB @ error_B) / weight_RB.sum(1))
        auc_SR.append([weighted(weight_B) for weight_B in weight_RB])
    return Tested(mse=mses, auc=aucs, mse_R=np.mean(mse_SR, axis=0), auc_R=np.mean(auc_SR, axis=0))


def methods_of(coat: Coat) -> tuple[dict[str, Method], dict[str, float]]:
    """Every loss with the propensities that came with the data, and IPS and DR with our own."""
    logistic_UI, l2 = coat_random.logistic_propensities(coat)
    bayes_UI = coat_random.naive_bayes_propensities(coat, coat.given_UI)
    given_UI = coat.given_UI
    methods = {
        "naive": Method(loss="naive", propensity_UI=given_UI, chosen_by="naive"),
        "naive_by_snips": Method(loss="naive", propensity_UI=given_UI, chosen_by="snips"),
        "naive_moved": Method(loss="naive", propensity_UI=given_UI, chosen_by="naive", moved=True),
        "ips": Method(loss="ips", propensity_UI=given_UI, chosen_by="ips"),
        "snips": Method(loss="snips", propensity_UI=given_UI, chosen_by="snips"),
        "clipped_ips": Method(loss="clipped_ips", propensity_UI=given_UI, chosen_by="snips"),
        "dr": Method(loss="dr", propensity_UI=given_UI, chosen_by="dr"),
        "ips_logistic": Method(loss="ips", propensity_UI=logistic_UI, chosen_by="ips"),
        "dr_logistic": Method(loss="dr", propensity_UI=logistic_UI, chosen_by="dr"),
        "ips_naive_bayes": Method(loss="ips", propensity_UI=bayes_UI, chosen_by="ips"),
    }
    weights = {
        name: 1 / coat.train.of(propensity_UI)
        for name, propensity_UI in (
            ("given", given_UI), ("logistic", logistic_UI), ("naive_bayes", bayes_UI)
        )
    }  # fmt: skip
    effective = {
        name: float(weight_B.sum().square() / weight_B.square().sum())
        for name, weight_B in weights.items()
    }
    return methods, {"logistic_l2": l2} | {
        f"effective_ratings_{k}": v for k, v in effective.items()
    }


def coat_part(coat: Coat, *, seeds: Sequence[int]) -> dict[str, Any]:
    """Choose, fit and test every method."""
    methods, propensities = methods_of(coat)
    chosen = choose(methods, coat, seeds=CHOICE_SEEDS[: len(seeds)])
    weight_RU = user_draws(len(coat.given_UI), num_resamples=NUM_RESAMPLES, seed=0)
    tested = {}
    for name, method in methods.items():
        settings = chosen[name][0]
        tested[name] = test(method, settings, coat, seeds=seeds, weight_RU=weight_RU)
        log.info(
            "%s: mse %.4f, auc %.4f", name, np.mean(tested[name].mse), np.mean(tested[name].auc)
        )
    return {
        "mse": {name: figure(one.mse, one.mse_R) for name, one in tested.items()},
        "auc": {name: figure(one.auc, one.auc_R) for name, one in tested.items()},
        "minus_naive": {
            name: {base: difference(tested[name], tested[base]) for base in BASES}
            for name in tested
            if not name.startswith("naive")
        },
        "settings": {name: asdict(settings) for name, (settings, _) in chosen.items()},
        "validation": {name: error for name, (_, error) in chosen.items()},
        "propensities": propensities,
        "ratings": {"fit": len(coat.fit), "valid": len(coat.valid), "test": len(coat.test)},
    }


def figure(by_seed: list[float], draws_R: np.ndarray) -> dict[str, Any]:
    """Mean of the seeds, their spread and an interval over the test's users."""
    one = Interval.of(float(np.mean(by_seed)), draws_R)
    return {"mean": one.value, "low": one.low, "high": one.high, "seeds": by_seed}


def difference(one: Tested, base: Tested) -> dict[str, Any]:
    """What one method has over another: on the same users, and in how many seeds it is better."""
    mse = Interval.of(float(np.mean(one.mse) - np.mean(base.mse)), one.mse_R - base.mse_R)
    area = Interval.of(float(np.mean(one.auc) - np.mean(base.auc)), one.auc_R - base.auc_R)
    return {
        "mse": asdict(mse),
        "auc": asdict(area),
        "better_mse": sum(a < b for a, b in zip(one.mse, base.mse, strict=True)),
        "better_auc": sum(a > b for a, b in zip(one.auc, base.auc, strict=True)),
    }


def outcome(coat: dict[str, Any], bandit: dict[str, Any]) -> dict[str, Any]:
    """The benchmark's last line."""
    mse = {name: figures["mean"] for name, figures in coat["mse"].items()}

    def over(base: str) -> dict[str, float]:
        return {f"{name}_mse": mse[name] / mse[base] for name in ("ips", "dr")}

    return {
        "name": "debias",
        "unit": "squared error of a rating",
        "reading": "settings by each loss's own estimate on validation; ratio: ours / naive; "
        "ratio_of_controls: ours / the naive loss with settings that SNIPS chose, or moved to the "
        "weighted mean; intervals over test users, differences paired; bandit: a policy's click "
        "rate from the other policy's log beside its own, z over both errors; direct's interval "
        "leaves out its model's error",
        "ours": {name: mse[name] for name in ("ips", "dr")},
        "peers": {base: mse[base] for base in BASES},
        "ratio": over("naive"),
        "ratio_of_controls": {base: over(base) for base in BASES[1:]},
        "coat": coat,
        "bandit": bandit,
    }


def rounded(value: object, *, digits: int = 4) -> object:
    """Floats to some significant digits, anywhere."""
    if isinstance(value, dict):
        return {key: rounded(entry, digits=digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits=digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def main() -> None:
    """Run both parts and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--quick", action="store_true", help="one seed: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    for folder in (coat_random.data_dir(), bandit_ope.data_dir()):
        if not folder.is_dir():
            sys.exit(
                f"{folder}: not there; set TRIPTYCH_DATA to the folder that holds {folder.name}"
            )
    bandit = bandit_ope.bandit_part(bandit_ope.data_dir())
    coat = coat_part(
        coat_random.read_coat(coat_random.data_dir()),
        seeds=args.seeds[:1] if args.quick else args.seeds,
    )
    print(json.dumps(rounded(outcome(coat, bandit))))


if __name__ == "__main__":
    main()
