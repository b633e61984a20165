"""Impressions to one file a split, in order of time."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from data_prep.arrays import to_numpy
from data_prep.cleaning import Log
from data_prep.engines import Engine
from data_prep.manifest import Cutoffs
from data_prep.parquet_files import ROW_GROUP_ROWS, in_row_groups, write_parquet
from data_prep.records import SPLITS, impressions_file
from data_prep.text_lists import with_lists, with_lists_schema
from data_prep.work import WorkFiles

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

logger = logging.getLogger(__name__)


def write_impressions(
    engine: Engine, impressions: Log, *, users: "ir.Table", cutoffs: Cutoffs, work: WorkFiles
) -> dict[str, int]:
    """Sort them once and cut them at the cut-offs; returns the rows of every split."""
    joined = impressions.usable.inner_join(users.select("user_row", "user_id"), "user_id")
    names = joined.drop("user_id", "user_row", "item_row", "time", "label").columns
    shown = joined.select("user_row", "item_row", "time", "label", *names)
    shown = shown.mutate(label=shown.label.cast("float32"))
    # By the features too, so that no order is left to the engine.
    ordered = shown.order_by(["time", "user_row", "item_row", "label", *names])
    schema = ordered.schema().to_pyarrow()
    features = impressions.features
    tables = engine.stream(ordered, rows=ROW_GROUP_ROWS, schema=schema)
    tables = with_lists(tables, features, source=impressions.source)
    schema = with_lists_schema(schema, features)
    counts = {}
    parts = itertools.groupby(_cut(tables, schema, cutoffs), key=itemgetter(0))
    for split, (_, pieces) in zip(SPLITS, parts, strict=True):
        groups = in_row_groups(map(itemgetter(1), pieces), rows=ROW_GROUP_ROWS)
        path = work.dataset_dir / impressions_file(split)
        counts[f"impressions_{split}"] = rows = write_parquet(groups, path, schema=schema)
        logger.info("tables: wrote %s impressions (%s rows)", split, f"{rows:,}")
    return counts


def _cut(
    tables: Iterable["pa.Table"], schema: "pa.Schema", cutoffs: Cutoffs
) -> Iterator[tuple[int, "pa.Table"]]:
    """Tables in order of time, cut at the cut-offs: pieces of part 0, then 1, then 2."""
    import pyarrow as pa

    empty = pa.Table.from_batches([], schema=schema)
    bounds = [cutoffs.valid_start, cutoffs.test_start]
    part = 0
    yield part, empty
    for table in tables:
        time_n, start = to_numpy(table["time"]), 0
        while part < len(bounds) and time_n[-1] >= bounds[part]:
            end = int(np.searchsorted(time_n, bounds[part]))
            yield part, table.slice(start, end - start)
            start, part = end, part + 1
        yield part, table.slice(start)
    for rest in range(part + 1, len(SPLITS)):
        yield rest, empty
