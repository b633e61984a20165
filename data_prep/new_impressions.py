"""Impressions that are no part of a dataset, with the values that `shard` would have given them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.feature_types import FEATURE_TYPES, feature_fits, typed_feature
from data_prep.raw_files import RawFiles
from data_prep.records import FeatureType
from data_prep.sources import Source
from data_prep.text_lists import with_lists

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

_EXPECTED: dict[FeatureType, str] = {
    "numeric": "numbers",
    "categorical": "single values",
    "multi": "lists",
}


def read_new_impressions(path: Path, features: Mapping[str, FeatureType]) -> "pa.Table":
    """`user_id`, `item_id` (int64 or string) and context features of a Parquet file, row by row.

    DuckDB reads the file and casts its columns by the expressions of `shard`. A vocabulary knows
    its text of a boolean, a float, a date or a decimal (true, 1.0, 2025-01-01 00:00:00, 1.50), and
    that of Arrow is another for some of them.
    """
    import duckdb
    import ibis
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = {one.name for one in pq.read_schema(path) if pa.types.is_null(one.type)}
    con = ibis.duckdb.connect()  # in UTC and in order of the rows
    try:
        table = con.read_parquet(str(path), hive_partitioning=False)
        raw = RawFiles([path], "parquet", "impressions", str(path), None)
        source = Source(table=table, path=str(path), setting="impressions", given=table, raw=raw)
        columns: dict[str, ir.Value] = {}
        for name in ("user_id", "item_id"):
            is_empty = name in empty
            columns[name] = ibis.null("int64") if is_empty else source.ids(name, setting=name)
        for name, kind in features.items():
            if name in empty:  # such a column has no type that could be a wrong one
                columns[name] = ibis.null(FEATURE_TYPES[kind])
                continue
            column = source.column(name, setting=name)
            if not feature_fits(column, kind):
                raise ValueError(
                    f"{path}: found column {name} of type {column.type()}, expected "
                    f"{_EXPECTED[kind]}, as in the dataset; convert it"
                )
            columns[name] = typed_feature(column, kind)
        # Ibis 12's own to_pyarrow calls a method that DuckDB 2.0 no longer has.
        query = ibis.to_sql(table.select(**columns), dialect="duckdb")
        typed: pa.Table = con.con.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise ValueError(
            f"{path}: cannot be read as impressions ({str(error).splitlines()[0]}); correct the "
            "file"
        ) from error
    finally:
        con.disconnect()
    (parsed,) = with_lists([typed], dict(features), source=source)
    return parsed
