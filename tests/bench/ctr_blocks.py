"""Finished ladders of several blocks side by side: AUC of slices, with intervals over all users.

Shapes: N impressions of a block, U users of all blocks together, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune.bootstrap import Interval, WeightedAuc, user_draws

FEW = 10
"""Earlier interactions below which an item counts as tail, cold ones included (PROTOCOL.md)."""

SLICES = {
    "all": "every impression of the block",
    "cold_tail": f"items with fewer than {FEW} interactions before the block, cold ones included",
    "cold": "items without any",
    "warm_head": f"items with at least {FEW}",
    "new_users": "users without any interaction before the block",
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """What every run of one block said of the same impressions."""

    user_N: NDArray[np.int64]
    label_N: NDArray[np.float32]
    masks: dict[str, NDArray[np.bool_]]
    scores: dict[str, list[NDArray[np.float32]]]
    """Rung → the scores of each seed, [N]."""


def protocol_masks(
    interactions: pa.Table, *, before: int, user_N: NDArray[np.int64], item_N: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """The slices of films-ctr: by what was rated before second `before`, whatever the rating."""
    known = interactions["timestamp"].to_numpy() < before
    items, counts = np.unique(interactions["item_id"].to_numpy()[known], return_counts=True)
    users = np.unique(interactions["user_id"].to_numpy()[known])
    count_N = np.zeros(len(item_N), np.int64)
    place_N = np.searchsorted(items, item_N).clip(max=len(items) - 1)
    found_N = items[place_N] == item_N
    count_N[found_N] = counts[place_N[found_N]]
    return {
        "all": np.ones(len(item_N), bool),
        "cold_tail": count_N < FEW,
        "cold": count_N == 0,
        "warm_head": count_N >= FEW,
        "new_users": ~np.isin(user_N, users),
    }


def resampled_aucs(
    blocks: Sequence[BlockScores], *, num_resamples: int, seed: int = 0
) -> dict[str, dict[str, tuple[list[float], Floats]]]:
    """Rung → slice → the figure of each seed, and its mean over seeds on each draw, [R].

    A figure is the AUC within a block, averaged over the blocks, which weigh the same. A draw takes
    users of all blocks together with everything they saw, in whichever block; all rungs share the
    draws, which makes differences paired. A block whose drawn slice has one class is left out of
    that draw's mean, the same for every rung.
    """
    users = np.unique(np.concatenate([block.user_N for block in blocks]))
    weight_RU = user_draws(len(users), num_resamples=num_resamples, seed=seed)
    weight_RU = np.concatenate([np.ones((1, len(users)), weight_RU.dtype), weight_RU])
    found: dict[str, dict[str, tuple[list[float], Floats]]] = {}
    for rung in blocks[0].scores:
        found[rung] = {}
        for name in SLICES:
            aucs = np.array(
                [
                    [_block_aucs(block, score_N, name, users=users, weight_RU=weight_RU)
                     for score_N in block.scores[rung]]
                    for block in blocks
                ]
            )  # fmt: skip
            with np.errstate(invalid="ignore"):
                of_seeds = np.nanmean(aucs, axis=0)  # seed, draw; the first draw is of everyone
            found[rung][name] = (of_seeds[:, 0].tolist(), of_seeds[:, 1:].mean(axis=0))
    return found


def _block_aucs(
    block: BlockScores,
    score_N: NDArray[np.float32],
    name: str,
    *,
    users: NDArray[np.int64],
    weight_RU: NDArray[np.int32],
) -> Floats:
    rows = np.flatnonzero(block.masks[name])
    weighted = WeightedAuc(block.label_N[rows], score_N[rows])
    place_N = np.searchsorted(users, block.user_N[rows])
    return np.array([weighted(weight_U[place_N]) for weight_U in weight_RU])


def side_by_side(
    blocks: Sequence[BlockScores], *, num_resamples: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of every rung, and differences of every rung to none, raw and aligned."""
    found = resampled_aucs(blocks, num_resamples=num_resamples)
    figures = {
        rung: {name: figure(*found[rung][name]) for name in SLICES} for rung in blocks[0].scores
    }
    differences = {
        f"{rung}_minus_{base}": {
            name: difference(found[rung][name], found[base][name]) for name in SLICES
        }
        for base in ("none", "raw", "aligned")
        for rung in found
        if base in found and rung != base
    }
    return figures, differences


def figure(seeds: Sequence[float], draws_R: Floats) -> dict[str, Any]:
    """A mean over seeds with its interval over users."""
    one = Interval.of(float(np.mean(seeds)), draws_R)
    return _rounded(one) | {"seeds": [round(value, 4) for value in seeds]}


def difference(
    ours: tuple[Sequence[float], Floats], theirs: tuple[Sequence[float], Floats]
) -> dict[str, Any]:
    """A paired difference of means over seeds."""
    value = float(np.mean(ours[0]) - np.mean(theirs[0]))
    return _rounded(Interval.of(value, ours[1] - theirs[1]))


def _rounded(one: Interval) -> dict[str, Any]:
    return {"mean": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}


def counts(blocks: Sequence[BlockScores]) -> dict[str, Mapping[str, int]]:
    """Impressions and users of every slice, over all blocks."""
    return {
        name: {
            "impressions": int(sum(block.masks[name].sum() for block in blocks)),
            "users": len(
                np.unique(np.concatenate([block.user_N[block.masks[name]] for block in blocks]))
            ),
        }
        for name in SLICES
    }
