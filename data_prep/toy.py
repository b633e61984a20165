"""A made-up world whose true preferences are known: `python -m data_prep toy`.

Users have latent tastes. A picture, a title and a description carry different parts of an item's
nature; a category says little. Items arrive over time, some after training ends. The probability
behind every click is kept aside, so the best reachable AUC is known.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep import toy_world as world
from data_prep.records import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

CHUNK_EVENTS = 65_536
CHUNK_ITEMS = 1_024
REDRAWS = 1.6
"""Visits drawn for each wanted event, since a user's repeated item is dropped."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Size and seed of the made-up world."""

    out_dir: Path
    """Folder for interactions, items, users and impressions as Parquet, and the truth."""
    num_users: int = 1_500
    """Users."""
    num_items: int = 1_200
    """Items; about a third of them arrive during the 60 days."""
    num_events: int = 60_000
    """Positive interactions, each user and item at most once; fewer if users run out of items."""
    num_impressions: int = 60_000
    """Items shown, clicked or not."""
    missing_image_share: float = 0.08
    """Share of items without a picture."""
    missing_text_share: float = 0.08
    """Share of items without title and description."""
    seed: int = 0
    """Everything follows from it."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_events", "num_impressions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("missing_image_share", "missing_text_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 <= share < 1")
        if self.seed < 0:
            raise ValueError(f"seed: found {self.seed}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ToyTruth:
    """What the best possible model would reach on the test period."""

    best_reachable_auc: float
    best_reachable_auc_cold: float
    """Over test impressions of items without an interaction before `valid_start`."""
    cold_share: float
    """Share of the test impressions that are of such items."""
    click_rate: float
    num_events: int
    num_impressions: int
    num_test_impressions: int
    valid_start: int = world.VALID_START_MS
    test_start: int = world.TEST_START_MS
    seed: int = 0


def make_toy(config: ToyConfig) -> ToyTruth:
    """Write the raw tables and the truth; memory is bounded by a chunk and the catalogue."""
    import pyarrow.parquet as pq

    items = world.make_items(config.num_items, seed=config.seed)
    users = world.make_users(config.num_users, seed=config.seed)
    # Ids say nothing: neither arrival nor popularity follows from their order.
    item_ids = 1_000 + 7 * np.random.default_rng([config.seed, 3]).permutation(config.num_items)
    out = config.out_dir
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(_users_table(users), out / "users.parquet")
    _write_chunks(out / "items.parquet", _item_chunks(config, items, item_ids=item_ids))

    shelf = world.Shelf(items)
    warm = np.zeros(config.num_items, dtype=bool)
    num_events = _write_chunks(
        out / "interactions.parquet",
        _event_chunks(config, shelf, users=users, item_ids=item_ids, warm=warm),
    )
    scored: list[tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_]]] = []
    num_impressions = _write_chunks(
        out / "impressions.parquet",
        _impression_chunks(config, shelf, users=users, item_ids=item_ids, warm=warm, scored=scored),
        aside=(out / "truth_impressions.parquet", ["true_probability"]),
    )
    probability, label, cold = (np.concatenate(part) for part in zip(*scored, strict=True))
    truth = ToyTruth(
        best_reachable_auc=roc_auc(probability, label),
        best_reachable_auc_cold=roc_auc(probability[cold], label[cold]),
        cold_share=float(cold.mean()),
        click_rate=float(label.mean()),
        num_events=num_events,
        num_impressions=num_impressions,
        num_test_impressions=len(label),
        seed=config.seed,
    )
    replace_file(out / "truth.json", (json.dumps(dataclasses.asdict(truth), indent=2)).encode())
    return truth


def roc_auc(score: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Area under the ROC curve, ties counted half; nan where one class is missing."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(label.sum())
    negatives = len(label) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    above = mean_rank[label == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _users_table(users: world.Users) -> "pa.Table":
    import pyarrow as pa

    return pa.table(
        {
            "user_id": [f"u{user:07d}" for user in range(len(users.arrival))],
            "age_group": [world.AGE_GROUPS[group] for group in users.age_group],
        }
    )


def _item_chunks(
    config: ToyConfig, items: world.Items, *, item_ids: NDArray[np.int64]
) -> Iterator["pa.Table"]:
    import pyarrow as pa

    from data_prep.toy_pictures import draw_jpegs
    from data_prep.toy_text import CATEGORIES, write_descriptions, write_titles

    for start in range(0, config.num_items, CHUNK_ITEMS):
        rng = np.random.default_rng([config.seed, 4, start])
        here = slice(start, start + CHUNK_ITEMS)
        part = {name: values[here] for name, values in items.attributes.items()}
        images = draw_jpegs(part["shape"], part["colour"], texture_n=part["texture"], rng=rng)
        titles = write_titles(part["style"], part["material"], category_n=part["category"], rng=rng)
        descriptions = write_descriptions(part["mood"], part["use"], rng=rng)
        no_image = rng.random(len(images)) < config.missing_image_share
        no_text = rng.random(len(images)) < config.missing_text_share
        yield pa.table(
            {
                "item_id": item_ids[here],
                "title": pa.array(titles, pa.string(), mask=no_text),
                "description": pa.array(descriptions, pa.string(), mask=no_text),
                "image": pa.array(images, pa.binary(), mask=no_image),
                "category": [CATEGORIES[category] for category in part["category"]],
                "price": np.round(items.price[here].astype(np.float64), 2),
                "arrival": pa.array(items.arrival[here], pa.timestamp("ms", tz="UTC")),
            }
        )


def _visits(
    config: ToyConfig, users: world.Users, *, total: int, stream: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], np.random.Generator]]:
    """Chunks of whole users: user [n], time [n] ordered by both, and the chunk's generator."""
    rng = np.random.default_rng([config.seed, stream])
    counts = rng.multinomial(total, users.activity)
    chunk_of_user = np.cumsum(counts) // CHUNK_EVENTS
    for chunk in np.unique(chunk_of_user):
        rows = np.flatnonzero(chunk_of_user == chunk)
        rng = np.random.default_rng([config.seed, stream, int(chunk)])
        user_n = np.repeat(rows, counts[rows])
        time_n = world.visit_times(users, user_n, rng=rng)
        order = np.lexsort((time_n, user_n))
        yield user_n[order], time_n[order], rng


def _event_chunks(
    config: ToyConfig,
    shelf: world.Shelf,
    *,
    users: world.Users,
    item_ids: NDArray[np.int64],
    warm: NDArray[np.bool_],
) -> Iterator["pa.Table"]:
    """Tables of interactions; marks the items seen before `valid_start` in `warm`."""
    import pyarrow as pa

    for user_n, time_n, rng in _visits(
        config, users, total=int(config.num_events * REDRAWS), stream=5
    ):
        item_n = np.concatenate(
            [
                world.choose(
                    shelf, users, user_n=user, time_n=time, candidates=world.CANDIDATES, rng=rng
                )
                for user, time in _slices(user_n, time_n, rows=8_192)
            ]
        )
        # In time order per user, so the first of a repeated pair is the one that stays.
        _, first = np.unique(user_n * len(item_ids) + item_n, return_index=True)
        wanted = min(len(first), round(len(user_n) / REDRAWS))
        first = np.sort(rng.choice(first, size=wanted, replace=False))
        user_n, time_n, item_n = user_n[first], time_n[first], item_n[first]
        warm[item_n[time_n < world.VALID_START_MS]] = True
        yield pa.table(
            {
                "user_id": _user_ids(user_n),
                "item_id": item_ids[item_n],
                "timestamp": pa.array(time_n, pa.timestamp("ms", tz="UTC")),
            }
        )


def _impression_chunks(
    config: ToyConfig,
    shelf: world.Shelf,
    *,
    users: world.Users,
    item_ids: NDArray[np.int64],
    warm: NDArray[np.bool_],
    scored: list[tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_]]],
) -> Iterator["pa.Table"]:
    """Tables of impressions; keeps probability, label and coldness of the test period aside."""
    import pyarrow as pa

    for user_n, time_n, rng in _visits(config, users, total=config.num_impressions, stream=6):
        item_n = world.show(shelf, users, user_n=user_n, time_n=time_n, rng=rng)
        position_n = rng.integers(world.NUM_POSITIONS, size=len(user_n))
        device_n = rng.choice(len(world.DEVICES), size=len(user_n), p=[0.6, 0.3, 0.1])
        probability = world.click_probability(
            shelf.items,
            users,
            user_n=user_n,
            item_n=item_n,
            position_n=position_n,
            device_n=device_n,
        )
        label = (rng.random(len(user_n)) < probability).astype(np.int8)
        test = time_n >= world.TEST_START_MS
        scored.append((probability[test], label[test], ~warm[item_n[test]]))
        yield pa.table(
            {
                "user_id": _user_ids(user_n),
                "item_id": item_ids[item_n],
                "timestamp": pa.array(time_n, pa.timestamp("ms", tz="UTC")),
                "click": label,
                "position": position_n.astype(np.int16),
                "device": pa.array(world.DEVICES).take(pa.array(device_n)),
                "true_probability": probability,
            }
        )


def _slices(
    user_n: NDArray[np.int64], time_n: NDArray[np.int64], *, rows: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for start in range(0, max(len(user_n), 1), rows):
        yield user_n[start : start + rows], time_n[start : start + rows]


def _user_ids(user_n: NDArray[np.int64]) -> "pa.Array":
    """Spell the user ids without a Python loop."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digits = pc.utf8_lpad(pc.cast(pa.array(user_n), pa.string()), width=7, padding="0")
    return pc.binary_join_element_wise("u", digits, "")


def _write_chunks(
    path: Path, tables: Iterator["pa.Table"], *, aside: tuple[Path, list[str]] | None = None
) -> int:
    """One row group a chunk; columns named in `aside` go, with ids and time, to the other file."""
    import pyarrow.parquet as pq

    rows = 0
    hidden = aside[1] if aside else []
    writers: dict[Path, Any] = {}
    for table in tables:
        parts = {path: table.drop_columns(hidden)}
        if aside:
            parts[aside[0]] = table.select(["user_id", "item_id", "timestamp", *hidden])
        for target, part in parts.items():
            if target not in writers:
                writers[target] = pq.ParquetWriter(target, part.schema, compression="zstd")
            writers[target].write_table(part)
        rows += table.num_rows
    for writer in writers.values():
        writer.close()
    return rows
