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
from data_prep.toy_settings import ToyConfig
from data_prep.toy_tables import Scored, event_chunks, impression_chunks, item_chunks, users_table

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ToyTruth:
    """What the best possible model would reach on the test period."""

    best_reachable_auc: float | None
    """None where the test period lacks clicks, as in a world of a few rows."""
    best_reachable_auc_cold: float | None
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
    pq.write_table(users_table(users), out / "users.parquet")
    _write_chunks(out / "items.parquet", item_chunks(config, items, item_ids=item_ids))

    shelf = world.Shelf(items)
    warm = np.zeros(config.num_items, dtype=bool)
    num_events = _write_chunks(
        out / "interactions.parquet",
        event_chunks(config, shelf, users=users, item_ids=item_ids, warm=warm),
    )
    scored: list[Scored] = []
    num_impressions = _write_chunks(
        out / "impressions.parquet",
        impression_chunks(config, shelf, users=users, item_ids=item_ids, warm=warm, scored=scored),
        aside=(out / "truth_impressions.parquet", ["true_probability"]),
    )
    probability, label, cold = (np.concatenate(part) for part in zip(*scored, strict=True))
    truth = ToyTruth(
        best_reachable_auc=_known(roc_auc(probability, label)),
        best_reachable_auc_cold=_known(roc_auc(probability[cold], label[cold])),
        cold_share=float(cold.mean()) if len(cold) else 0.0,
        click_rate=float(label.mean()) if len(label) else 0.0,
        num_events=num_events,
        num_impressions=num_impressions,
        num_test_impressions=len(label),
        seed=config.seed,
    )
    replace_file(out / "truth.json", (json.dumps(dataclasses.asdict(truth), indent=2)).encode())
    return truth


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


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
