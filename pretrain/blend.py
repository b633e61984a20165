"""`python -m pretrain blend`: learn how much behaviour, content, age and the release each weigh.

A release says what an item is and what a user likes. Which films are in the cinemas, which products
everybody buys this week and how far a new item may be trusted is in the log of the day: EASE on
it, its counts and the items' ages are further scores, and a blend weighs them all. It is a linear
softmax over the catalogue, learnt on cases that are later than the log (ListNet, Cao et al. 2007,
with one relevant item a list), so that what nobody has chosen yet gets the weight it deserves.

Shapes: B cases, N catalogue items, K sampled candidates, S signals.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data_prep.records import replace_file
from pretrain.blend_places import (
    PlaceConfig,
    Places,
    Ranked,
    closed_items,
    learn_places,
    ranked_targets,
    ranks_in_kind,
)
from pretrain.blend_samples import Question, Sources, chunks_of, draw_sample, open_question
from pretrain.blend_signals import SignalConfig, Signals
from pretrain.case_times import TimestampUnit
from pretrain.cases import marked
from pretrain.knock_out import refuse_knock_out, without_of_vectors

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The weight of each signal."""

    signals: SignalConfig
    """How the signals are made."""

    weights: Mapping[str, float]
    """Signal → its weight."""

    places: Places | None = None
    """Of the first k, those that are kept for new items; None: none are."""

    newest_event: int | None = None
    """Newest event of the cases, logs and release it was learnt on, unix milliseconds; None: not
    known."""

    def scores(self, signals: Signals, cases: slice, *, ranked_N: Tensor | None = None) -> Tensor:
        """Weighted sum of the signals [B, N], with the kept places on top.

        `ranked_N` says which items are ranked, where not all are.

        Raises:
            ValueError: other signals than those that were learnt on.
        """
        return self.placed(self.sums(signals, cases), signals, cases, ranked_N=ranked_N)

    def placed(
        self, sums_BN: Tensor, signals: Signals, cases: slice, *, ranked_N: Tensor | None = None
    ) -> Tensor:
        """The sums [B, N] of these cases, with the kept places on top."""
        if self.places is None:
            return sums_BN
        asked = signals.asked
        closed_BN = closed_items(asked, cases, ranked_N=ranked_N, num_items=sums_BN.shape[1])
        return self.places.keep(
            sums_BN, asked.history_BL[cases], new_N=signals.new_N, closed_BN=closed_BN
        )

    def sums(self, signals: Signals, cases: slice) -> Tensor:
        """Weighted sum of the signals [B, N]; refuses other signals than were learnt on."""
        total_BN: Tensor | float = 0.0
        found = []
        for name, values_BN in signals.each(cases):
            total_BN = total_BN + self.weights.get(name, 0.0) * values_BN
            found.append(name)
        if set(found) != set(self.weights):
            raise ValueError(
                f"blend: found the signals {sorted(set(found) ^ set(self.weights))} on one side "
                "only, expected those it was learnt on; give released, items and a train with "
                "timestamps as then, or none of them"
            )
        assert isinstance(total_BN, Tensor)
        return total_BN


def blend(
    questions: list[Question],
    out: Path,
    *,
    vectors: list[Path] | None = None,
    released: Path | None = None,
    items: Path | None = None,
    users: Path | None = None,
    signals: SignalConfig | None = None,
    places: PlaceConfig | None = None,
    max_cases: int = 1000,
    max_candidates: int = 4096,
    l2: float = 1e-3,
    seed: int = 0,
    timestamp_unit: TimestampUnit = "auto",
    allow_look_ahead: bool = False,
) -> None:
    """Learn one blend on all questions, each of the same weight; users weigh the same within one.

    The cases must be later than what the release and the logs were made of, and earlier than those
    that are reported later: validation, as a rule. Then `evaluate --blend` ranks with it. Where
    both sides have times, both are checked.

    Args:
        questions: JSON list of {"cases", "train", "candidates", "released", "vectors"}. Those of
            several days teach more than one's; each then needs the release of its day, as the
            latest has seen what the earlier ones ask.
        out: JSON to write: signals, their weights and what they were learnt on.
        vectors: Parquet files with item_id and columns of vectors (items.parquet of `embed`); null:
            every question has its own.
        released: released checkpoint whose vectors these are; null: without one.
        items: Parquet with item_id and the column `signals.born`.
        users: Parquet with user_id and the user features that `released` reads.
        signals: which signals there are.
        places: of each list, how many places are kept for items that nobody chose in the log.
        max_cases: most cases that are learnt on, of all questions together.
        max_candidates: most candidates a case, drawn evenly.
        l2: penalty on the squared weights.
        seed: of both draws.
        timestamp_unit: of the logs' `timestamp` where the cases have `at_time`: s, ms or us for
            numbers; auto: timestamps or dates.
        allow_look_ahead: accept a release or a log that has seen the time of its cases; `out`
            records it.

    Raises:
        ValueError: a release or a log that is not older than its cases, or that lacks what the
            signals need.
    """
    signals = signals or SignalConfig()
    if not questions:
        raise ValueError("questions: found none, expected at least one")
    vectors = vectors or []
    for number, one in enumerate(questions):
        if not (one.vectors or (vectors and not one.released)):
            raise ValueError(
                f"questions[{number}].vectors: found none, expected those that its release embedded"
            )
    for path in {*vectors, *itertools.chain.from_iterable(one.vectors for one in questions)}:
        refuse_knock_out(path, without_of_vectors([path]))
    rng = np.random.default_rng(seed)
    sources = Sources(
        vectors=vectors,
        released=released,
        items=items,
        users=users,
        config=signals,
        timestamp_unit=timestamp_unit,
        allow_look_ahead=allow_look_ahead,
    )
    sampled = [
        draw_sample(
            question,
            rng,
            sources,
            num_cases=max(1, max_cases // len(questions)),
            max_candidates=max_candidates,
        )
        for question in questions
    ]
    if len({tuple(one.names) for one in sampled}) > 1:
        raise ValueError(
            "questions: found different signals from one to the other, expected a release and a "
            "train with timestamps for all of them or for none"
        )
    weights, losses = fit_weights(
        [one.values_BKS for one in sampled], names=sampled[0].names, l2=l2
    )
    kept = None
    if places is not None and places.new_weight is not None:
        learnt = Blend(signals=signals, weights=weights)
        kept = learn_places(
            [rank_kinds(one, learnt, rng, sources, config=places) for one in questions], places
        )
    newest = [event for one in sampled if (event := one.times.newest()) is not None]
    about = {
        "questions": [dataclasses.asdict(one) for one in questions],
        "num_cases": [len(one.values_BKS) for one in sampled],
        "times": [dataclasses.asdict(one.times) for one in sampled],
        "log_loss": losses,
    }
    result = {
        "schema_version": SCHEMA_VERSION,
        "signals": dataclasses.asdict(signals),
        "weights": weights,
        "places": None if kept is None else dataclasses.asdict(kept),
        "newest_event": max(newest, default=None),
        "about": about,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(result, indent=2, default=str).encode())
    table = Table(
        "signal", "weight", title=f"log loss {losses['even']:.3f} → {losses['learnt']:.3f}"
    )
    for name, weight in sorted(weights.items(), key=lambda pair: -abs(pair[1])):
        table.add_row(name, f"{weight:+.3f}")
    Console().print(table)


def rank_kinds(
    question: Question,
    learnt: Blend,
    rng: np.random.Generator,
    sources: Sources,
    *,
    config: PlaceConfig,
) -> Ranked:
    """Rank the targets of a question among their kind."""
    opened = open_question(question, rng, sources, num_cases=config.max_cases)
    asked, new_N = opened.asked, opened.signals.new_N
    ranked_N = marked(opened.ranked_C, num_items=opened.num_items)
    rank_BTs = [
        ranks_in_kind(
            learnt.sums(opened.signals, cases),
            asked.targets_BT[cases],
            new_N=new_N,
            closed_BN=closed_items(asked, cases, ranked_N=ranked_N, num_items=opened.num_items),
        )
        for cases in chunks_of(asked, description=f"places in {question.cases.name}")
    ]
    return ranked_targets(torch.cat(rank_BTs), asked, new_N=new_N, latest=config.latest)


def load_blend(path: Path) -> Blend:
    """Read what `blend` wrote.

    Raises:
        ValueError: another schema, or weights that are no numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected what python -m pretrain blend wrote"
        )
    try:
        found = json.loads(path.read_text())
        version = found["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema {version}, this code reads {SCHEMA_VERSION}")
        weights = {str(name): float(weight) for name, weight in found["weights"].items()}
        if not all(map(math.isfinite, weights.values())):
            raise ValueError("weights that are not finite")
        newest, places = found.get("newest_event"), found.get("places")
        return Blend(
            signals=SignalConfig(**_tuples(found["signals"])),
            weights=weights,
            places=None if places is None else Places(**_tuples(places)),
            newest_event=None if newest is None else int(newest),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: found {error}, expected what python -m pretrain blend wrote; learn it again"
        ) from error


def _tuples(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that settings hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def fit_weights(
    samples: list[Tensor], *, names: list[str], l2: float, max_steps: int = 100
) -> tuple[dict[str, float], dict[str, float]]:
    """Weights that make the targets likeliest, and the log loss with none and with them.

    Each sample is [B, K, S]; candidate 0 is the target, a NaN in signal 0 marks one that does not
    count. L-BFGS: the loss is convex.
    """
    weight_S = torch.zeros(len(names), dtype=torch.float32, requires_grad=True)
    closed = [values_BKS[..., 0].isnan() for values_BKS in samples]
    filled = [values_BKS.nan_to_num(0.0) for values_BKS in samples]
    optimizer = torch.optim.LBFGS([weight_S], max_iter=max_steps, line_search_fn="strong_wolfe")

    def log_loss() -> Tensor:
        parts = [
            F.cross_entropy(
                (values_BKS @ weight_S).masked_fill(closed_BK, -math.inf),
                torch.zeros(len(values_BKS), dtype=torch.int64),
            )
            for values_BKS, closed_BK in zip(filled, closed, strict=True)
        ]
        return torch.stack(parts).mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = log_loss() + l2 * weight_S.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    even = float(log_loss().detach())
    optimizer.step(step)  # type: ignore[no-untyped-call]
    learnt = float(log_loss().detach())
    weights = dict(zip(names, weight_S.detach().tolist(), strict=True))
    return weights, {"even": even, "learnt": learnt}
