"""The protocols `fashion-cold` and `fashion-all` on a week of purchases, as pure functions.

Their definition stands in PROTOCOL.md beside the data. Both depend on CRC-32 values only, so that
every run, here and elsewhere, holds out the same purchases. Time is known by day only and 80 % of
the users bought on one day: neither protocol is free of look-ahead, see `NOTES`.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ProtocolName = Literal["fashion-cold", "fashion-all"]
Stage = Literal["valid", "test"]

CAVEAT = (
    "Time is known by day only and most users bought on one day: the held-out purchases are not "
    "later than the input, so these figures are not free of look-ahead."
)

NOTES: dict[ProtocolName, str] = {
    "fashion-cold": "Nobody bought a cold item in training, so that methods on ids alone tie on "
    f"all of them and find none. {CAVEAT}",
    "fashion-all": CAVEAT,
}
"""What must stand beside the figures."""

COLD_BUCKETS: dict[Stage, range] = {"test": range(0, 15), "valid": range(15, 25)}
"""Products whose CRC-32 modulo 100 falls here are the cold ones."""

TEXT_FIELDS = (
    "title",
    "product_type",
    "colour",
    "graphical_appearance",
    "department",
    "section",
    "description",
)
"""What the reference text vectors read, in this order."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What may be learnt from, what is asked and what is ranked."""

    name: ProtocolName
    stage: Stage
    train: pa.Table
    """Interactions (all source columns) that a model may use."""
    cases: pa.Table
    """`user_id`, `history` and `targets` (lists of item ids, ascending), one row a user."""
    candidates: pa.Table
    """`item_id` of the items that are ranked."""


def data_dir() -> Path:
    """Find `hm_fashion_mm`: under $TRIPTYCH_DATA, else ../shared/data of the checkout."""
    root = os.environ.get("TRIPTYCH_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    return base / "hm_fashion_mm"


def read_interactions(folder: Path) -> pa.Table:
    """Read the purchases, ordered by user and item."""
    return pq.read_table(folder / "interactions.parquet").sort_by(
        [("user_id", "ascending"), ("item_id", "ascending")]
    )


def read_items(folder: Path, *, columns: list[str]) -> pa.Table:
    """Read catalogue columns, ordered by item id."""
    return pq.read_table(folder / "items.parquet", columns=columns).sort_by("item_id")


def item_texts(items: pa.Table) -> list[str]:
    """Join the fields of `TEXT_FIELDS` that an item has to the text of the reference vectors."""
    columns = [items[field].to_pylist() for field in TEXT_FIELDS]
    return [". ".join(value for value in values if value) for values in zip(*columns, strict=True)]


def protocol(
    name: ProtocolName, interactions: pa.Table, items: pa.Table, *, stage: Stage
) -> Protocol:
    """Build one protocol; `items` needs `item_id` and `product_code`."""
    if name == "fashion-cold":
        return fashion_cold(interactions, items, stage=stage)
    return fashion_all(interactions, items, stage=stage)


def fashion_cold(interactions: pa.Table, items: pa.Table, *, stage: Stage) -> Protocol:
    """Predict a user's purchases of products that nobody bought in training.

    In validation the test products are gone altogether: neither learnt from, nor in a history, nor
    ranked. In test the validation products are ordinary warm ones.
    """
    items = items.sort_by("item_id")
    item_ids = items["item_id"].to_numpy()
    bucket = np.array([_crc32(str(code)) % 100 for code in items["product_code"].to_pylist()])
    cold = np.isin(bucket, COLD_BUCKETS[stage])
    gone = np.isin(bucket, COLD_BUCKETS["test"]) if stage == "valid" else np.zeros_like(cold)
    place = np.searchsorted(item_ids, interactions["item_id"].to_numpy())
    warm = ~cold[place] & ~gone[place]
    return Protocol(
        name="fashion-cold",
        stage=stage,
        train=interactions.filter(pa.array(warm)),
        cases=_cases(
            interactions["user_id"].to_numpy(),
            interactions["item_id"].to_numpy(),
            history=warm,
            target=cold[place],
        ),
        candidates=pa.table({"item_id": item_ids[cold]}),
    )


def fashion_all(interactions: pa.Table, items: pa.Table, *, stage: Stage) -> Protocol:
    """Predict one held-out purchase of a user from all others, among the whole catalogue.

    Test holds out the purchase with a user's smallest CRC-32, validation the second smallest (of
    users with three or more), without the test purchases.
    """
    user = interactions["user_id"].to_numpy()
    item = interactions["item_id"].to_numpy()
    crc = np.array([_crc32(f"{u}:{i}") for u, i in zip(user.tolist(), item.tolist(), strict=True)])
    order = np.lexsort((item, crc, user))
    first = np.r_[True, user[order][1:] != user[order][:-1]]
    start = np.flatnonzero(first)
    size = np.diff(np.r_[start, len(order)])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(start, size)
    basket = np.empty(len(order), dtype=np.int64)
    basket[order] = np.repeat(size, size)

    test = (rank == 0) & (basket >= 2)
    target = test if stage == "test" else (rank == 1) & (basket >= 3)
    train = ~test & ~target
    return Protocol(
        name="fashion-all",
        stage=stage,
        train=interactions.filter(pa.array(train)),
        cases=_cases(user, item, history=train, target=target),
        candidates=items.sort_by("item_id").select(["item_id"]),
    )


def _cases(
    user: np.ndarray, item: np.ndarray, *, history: np.ndarray, target: np.ndarray
) -> pa.Table:
    """Collect both lists of each user that has both; rows must be ordered by user."""
    users = np.intersect1d(user[history], user[target])
    columns = {"user_id": pa.array(users)}
    for name, chosen in (("history", history), ("targets", target)):
        kept = chosen & np.isin(user, users)
        ends = np.searchsorted(user[kept], users, side="right")
        offsets = np.r_[0, ends].astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(item[kept]))
    return pa.table(columns)


def _crc32(text: str) -> int:
    return zlib.crc32(text.encode())
