"""The toy world's tables, a chunk at a time; every chunk has its own generator of random numbers.

Letters: n events of a chunk.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep import toy_world as world
from data_prep.toy_settings import ToyConfig

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_EVENTS = 65_536
CHUNK_ITEMS = 1_024
REDRAWS = 1.6
"""Visits drawn for each wanted event, since a user's repeated item is dropped."""

Scored = tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_]]
"""Probability, label and coldness of a chunk's impressions in the test period."""


def users_table(users: world.Users) -> "pa.Table":
    """Every user and what is known of them."""
    import pyarrow as pa

    return pa.table(
        {
            "user_id": [f"u{user:07d}" for user in range(len(users.arrival))],
            "age_group": [world.AGE_GROUPS[group] for group in users.age_group],
        }
    )


def item_chunks(
    config: ToyConfig, items: world.Items, *, item_ids: NDArray[np.int64]
) -> Iterator["pa.Table"]:
    """Tables of items with their pictures and texts."""
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


def event_chunks(
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


def impression_chunks(
    config: ToyConfig,
    shelf: world.Shelf,
    *,
    users: world.Users,
    item_ids: NDArray[np.int64],
    warm: NDArray[np.bool_],
    scored: list[Scored],
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
