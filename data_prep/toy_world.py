"""The toy world itself: what items are, what users want, who meets what and who clicks.

Letters: N items, U users, n events of a chunk, C candidates an event, D taste dimensions.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.toy_pictures import COLOURS, SHAPES, TEXTURES
from data_prep.toy_text import CATEGORIES, MATERIALS, MOODS, STYLES, USES

Float = NDArray[np.float32]
Int = NDArray[np.int64]

PERIOD_START_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
DAY_MS = 86_400_000
PERIOD_DAYS = 60
VALID_START_MS = PERIOD_START_MS + 45 * DAY_MS  # 2025-02-15
TEST_START_MS = PERIOD_START_MS + 51 * DAY_MS  # 2025-02-21
PERIOD_END_MS = PERIOD_START_MS + PERIOD_DAYS * DAY_MS

PICTURE_DIMS, TITLE_DIMS, DESCRIPTION_DIMS = 6, 3, 3
TASTE_DIMS = PICTURE_DIMS + TITLE_DIMS + DESCRIPTION_DIMS
PAIR_SHARE = 0.2
"""Variance of taste that only a pair of attributes explains (a red ring is not red plus ring)."""
ID_SHARE = 0.1
"""Variance of taste that no attribute explains."""
NEW_ITEM_SHARE = 0.35
"""Items that arrive during the period; the others are there from the start."""
NEW_WINDOW_MS = 6 * DAY_MS
"""How long an item stays in the shop window of new arrivals."""
CANDIDATES = 48
"""Items a user looks at before an interaction."""
CHOICE_SHARPNESS = 2.2
CLICK_SHARPNESS = 1.75
CLICK_BIAS = -1.3
DEVICES = ("phone", "desktop", "tablet")
DEVICE_EFFECT = np.array([0.1, 0.0, -0.25], np.float32)
AGE_GROUPS = ("18-29", "30-44", "45-64", "65+")
NUM_POSITIONS = 6


@dataclass(frozen=True)
class Items:
    """The catalogue, in order of arrival."""

    attributes: dict[str, Int]
    """[N] each: shape, colour, texture, style, material, mood, use, category."""
    taste_ND: Float
    arrival: Int
    """[N] unix milliseconds, ascending."""
    log_popularity: Float
    price: Float


@dataclass(frozen=True)
class Users:
    """Who is there."""

    taste_UD: Float
    arrival: Int
    """[U] unix milliseconds."""
    age_group: Int
    activity: NDArray[np.float64]
    """[U] share of all events, adding up to 1."""


def _part(
    rng: np.random.Generator, attributes: list[tuple[Int, int]], *, num_dims: int
) -> NDArray[np.float64]:
    """Taste dimensions [N, num_dims] as main effects and pair effects, each of unit variance."""
    main = sum(rng.normal(size=(size, num_dims))[values] for values, size in attributes)
    pairs = sum(
        rng.normal(size=(size, next_size, num_dims))[values, next_values]
        for (values, size), (next_values, next_size) in itertools.pairwise(attributes)
    )
    mixed = np.sqrt((1 - PAIR_SHARE) / len(attributes)) * np.asarray(main) + np.sqrt(
        PAIR_SHARE / (len(attributes) - 1)
    ) * np.asarray(pairs)
    standard: NDArray[np.float64] = (mixed - mixed.mean(0)) / np.maximum(mixed.std(0), 1e-9)
    return standard


def make_items(num_items: int, *, seed: int) -> Items:
    """Draw the catalogue."""
    rng = np.random.default_rng([seed, 1])
    sizes = {
        "shape": len(SHAPES), "colour": len(COLOURS), "texture": len(TEXTURES),
        "style": len(STYLES), "material": len(MATERIALS), "mood": len(MOODS), "use": len(USES),
    }  # fmt: skip
    attributes = {name: rng.integers(size, size=num_items) for name, size in sizes.items()}
    # A category says a little about the shape and the material, and nothing by itself.
    hint = (attributes["shape"] + attributes["material"]) % len(CATEGORIES)
    random_category = rng.integers(len(CATEGORIES), size=num_items)
    attributes["category"] = np.where(rng.random(num_items) < 0.35, hint, random_category)

    def columns(*names: str) -> list[tuple[Int, int]]:
        return [(attributes[name], sizes[name]) for name in names]

    taste = np.concatenate(
        [
            _part(rng, columns("shape", "colour", "texture"), num_dims=PICTURE_DIMS),
            _part(rng, columns("style", "material"), num_dims=TITLE_DIMS),
            _part(rng, columns("mood", "use"), num_dims=DESCRIPTION_DIMS),
        ],
        axis=1,
    )
    own = rng.normal(size=taste.shape)
    taste = np.sqrt(1 - ID_SHARE) * taste + np.sqrt(ID_SHARE) * own
    late = rng.random(num_items) < NEW_ITEM_SHARE
    late[: min(num_items, 8)] = False  # the shop never opens empty
    arrival = PERIOD_START_MS + np.where(
        late,
        rng.integers(0, PERIOD_END_MS - PERIOD_START_MS, num_items),
        -rng.integers(0, 300 * DAY_MS, num_items),
    )
    order = np.argsort(arrival, kind="stable")
    rank = rng.permutation(num_items) + 1
    return Items(
        attributes={name: values[order] for name, values in attributes.items()},
        taste_ND=taste[order].astype(np.float32),
        arrival=arrival[order],
        log_popularity=(-0.8 * np.log(rank + 10)).astype(np.float32),
        price=np.exp(rng.normal(3.2, 0.6, num_items)).astype(np.float32),
    )


def make_users(num_users: int, *, seed: int) -> Users:
    """Draw the users: a few kinds of taste, and something of their own."""
    rng = np.random.default_rng([seed, 2])
    kinds = rng.normal(size=(24, TASTE_DIMS))
    own = rng.normal(size=(num_users, TASTE_DIMS))
    taste = np.sqrt(0.5) * kinds[rng.integers(len(kinds), size=num_users)] + np.sqrt(0.5) * own
    late = rng.random(num_users) < 0.12
    latest = int(0.95 * (PERIOD_END_MS - PERIOD_START_MS))
    activity = rng.gamma(3.0, size=num_users)
    return Users(
        taste_UD=taste.astype(np.float32),
        arrival=PERIOD_START_MS + np.where(late, rng.integers(0, latest, num_users), 0),
        age_group=rng.integers(len(AGE_GROUPS), size=num_users),
        activity=activity / activity.sum(),
    )


def visit_times(users: Users, user_n: Int, *, rng: np.random.Generator) -> Int:
    """[n] when each user was there, between the user's arrival and the end of the period."""
    start = users.arrival[user_n]
    times: Int = start + (rng.random(len(user_n)) * (PERIOD_END_MS - start)).astype(np.int64)
    return times


def affinity(items: Items, users: Users, *, user_n: Int, item_nC: Int) -> Float:
    """[n, C] how much each user likes each of C items, of about unit variance."""
    taste = items.taste_ND[item_nC]
    liking: Float = np.einsum("nd,ncd->nc", users.taste_UD[user_n], taste) / np.sqrt(TASTE_DIMS)
    return liking.astype(np.float32)


class Shelf:
    """Draws items by popularity among those that had arrived at a time."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self.cumulative = np.cumsum(np.exp(items.log_popularity.astype(np.float64)))

    def popular(self, time_n: Int, *, count: int, rng: np.random.Generator) -> Int:
        """[n, count] items by popularity, all of them arrived."""
        arrived = np.maximum(np.searchsorted(self.items.arrival, time_n, side="right"), 1)
        total = self.cumulative[arrived - 1]
        draw = rng.random((len(time_n), count)) * total[:, None]
        drawn: Int = np.minimum(np.searchsorted(self.cumulative, draw), arrived[:, None] - 1)
        return drawn

    def new(self, time_n: Int, *, rng: np.random.Generator) -> Int:
        """[n] a recent arrival each, all of them alike; the latest one where there is none."""
        arrived = np.maximum(np.searchsorted(self.items.arrival, time_n, side="right"), 1)
        first = np.searchsorted(self.items.arrival, time_n - NEW_WINDOW_MS, side="right")
        first = np.minimum(first, arrived - 1)
        drawn: Int = first + (rng.random(len(time_n)) * (arrived - first)).astype(np.int64)
        return drawn


def choose(
    shelf: Shelf,
    users: Users,
    *,
    user_n: Int,
    time_n: Int,
    candidates: int,
    rng: np.random.Generator,
) -> Int:
    """[n] what each user takes: softmax of taste over candidates drawn by popularity."""
    item_nC = shelf.popular(time_n, count=candidates, rng=rng)
    liking_nC = affinity(shelf.items, users, user_n=user_n, item_nC=item_nC)
    noise_nC = rng.gumbel(size=item_nC.shape).astype(np.float32)
    best = np.argmax(CHOICE_SHARPNESS * liking_nC + noise_nC, axis=1)
    taken: Int = item_nC[np.arange(len(user_n)), best]
    return taken


def show(shelf: Shelf, users: Users, *, user_n: Int, time_n: Int, rng: np.random.Generator) -> Int:
    """[n] what the shop shows: popular, new, or what it guesses the user likes."""
    popular = shelf.popular(time_n, count=1, rng=rng)[:, 0]
    guessed = choose(shelf, users, user_n=user_n, time_n=time_n, candidates=3, rng=rng)
    new = shelf.new(time_n, rng=rng)
    kind = rng.random(len(user_n))
    return np.where(kind < 0.14, new, np.where(kind < 0.44, guessed, popular))


def click_probability(
    items: Items, users: Users, *, user_n: Int, item_n: Int, position_n: Int, device_n: Int
) -> Float:
    """[n] the true probability of a click."""
    liking = affinity(items, users, user_n=user_n, item_nC=item_n[:, None])[:, 0]
    fame = items.log_popularity[item_n]
    fame = (fame - items.log_popularity.mean()) / max(float(items.log_popularity.std()), 1e-6)
    thrift = (np.log(items.price[item_n]) - 3.2) * (users.age_group[user_n] - 1.5)
    logit = (
        CLICK_BIAS
        + CLICK_SHARPNESS * liking
        + 0.15 * fame
        - 0.15 * thrift
        - 0.12 * position_n
        + DEVICE_EFFECT[device_n]
    )
    probability: Float = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return probability
