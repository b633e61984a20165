"""Impressions to one file a split, in order of time."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from data_prep.arrays import to_numpy
from data_prep.cleaning import Log
from data_prep.columns import ImpressionColumns
from data_prep.engines import Engine
from data_prep.manifest import Cutoffs
from data_prep.parquet_files import ROW_GROUP_ROWS, in_row_groups, write_parquet
from data_prep.records import SPLITS, impressions_file
from data_prep.settings import ImpressionDuplicates
from data_prep.shown_rows import ShownRows
from data_prep.text_lists import with_lists, with_lists_schema
from data_prep.work import WorkFiles

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

logger = logging.getLogger(__name__)


def write_impressions(
    engine: Engine,
    impressions: Log,
    *,
    users: "ir.Table",
    cutoffs: Cutoffs,
    duplicates: ImpressionDuplicates,
    work: WorkFiles,
) -> tuple[ShownRows, dict[str, int]]:
    """Sort them once and cut them at the cut-offs; returns what passed and the rows by split."""
    joined = impressions.usable.inner_join(users.select("user_row", "user_id"), "user_id")
    names = joined.drop("user_id", "user_row", "item_row", "time", "label").columns
    shown = joined.select("user_row", "item_row", "time", "label", *names)
    shown = shown.mutate(label=shown.label.cast("float32"))
    # By the features too, so that no order is left to the engine.
    ordered = shown.order_by(["time", "user_row", "item_row", "label", *names])
    schema = ordered.schema().to_pyarrow()
    features = impressions.features
    tables = engine.stream(ordered, rows=ROW_GROUP_ROWS, schema=schema)
    shown_rows = ShownRows(duplicates)
    tables = with_lists(shown_rows.count(tables), features, source=impressions.source)
    schema = with_lists_schema(schema, features)
    counts = {}
    parts = itertools.groupby(_cut(tables, schema, cutoffs), key=itemgetter(0))
    for split, (_, pieces) in zip(SPLITS, parts, strict=True):
        groups = in_row_groups(map(itemgetter(1), pieces), rows=ROW_GROUP_ROWS)
        path = work.dataset_dir / impressions_file(split)
        counts[f"impressions_{split}"] = rows = write_parquet(groups, path, schema=schema)
        logger.info("tables: wrote %s impressions (%s rows)", split, f"{rows:,}")
    _say(shown_rows, impressions)
    return shown_rows, counts | {"duplicate_impressions": shown_rows.repeated}


def _say(shown: ShownRows, impressions: Log) -> None:
    """Warn of what is most often a mistake in the table."""
    if shown.repeated and shown.duplicates == "keep_all":
        logger.warning(
            "impressions: %s of %s rows repeat another in every column that is used, and stay; "
            "filter.impression_duplicates: keep_exact_once drops them",
            *(f"{shown.repeated:,}", f"{shown.usable:,}"),
        )
    if shown.first_place:
        assert isinstance(impressions.columns, ImpressionColumns)
        logger.warning(
            "impressions.position: the places of column %r begin at %d and stay as they are, but "
            "the first place is 0 where finetune reads them; if %d is the first, take it off",
            *(impressions.columns.position, shown.first_place, shown.first_place),
        )


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
