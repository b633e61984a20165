"""A stage of `python -m data_prep shard`, or DuckDB's bare ORDER BY, measured from the inside.

    python tests/bench/table_cases.py shard --stage tables --interactions.path …
    python tests/bench/table_cases.py bare LOG OUT MEMORY_LIMIT SPILL_DIR

Everything is imported and the settings are parsed before the clock starts, on both sides.
"""

from __future__ import annotations

import json
import sys

from measured_loop import MeasuredLoop, peak_bytes


def run_shard(arguments: list[str]) -> MeasuredLoop:
    """The stage that the arguments name."""
    import ibis.backends.duckdb  # noqa: F401
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    import data_prep.finish
    import data_prep.item_shards
    import data_prep.user_shards  # noqa: F401
    from data_prep.__main__ import build_parser
    from data_prep.settings import RunConfig, ShardConfig
    from data_prep.shard import shard_dataset

    parser = build_parser()
    values = parser.instantiate(parser.parse_args(["shard", *arguments])).shard.as_dict()
    values.pop("config")
    run = RunConfig(**{name: values.pop(name) for name in RunConfig.__dataclass_fields__})
    config = ShardConfig(**values)
    with MeasuredLoop() as loop:
        shard_dataset(config, run)
    return loop


def run_bare(arguments: list[str]) -> MeasuredLoop:
    """From Parquet to sorted Parquet."""
    import duckdb

    log, out, limit, spill = arguments
    with MeasuredLoop() as loop:
        con = duckdb.connect(config={"memory_limit": limit, "threads": 2, "temp_directory": spill})
        order = "user_id, timestamp, item_id"
        con.execute(f"COPY (SELECT * FROM '{log}' ORDER BY {order}) TO '{out}' (FORMAT parquet)")
        con.close()
    return loop


if __name__ == "__main__":
    loop = {"shard": run_shard, "bare": run_bare}[sys.argv[1]](sys.argv[2:])
    print(json.dumps({"cpu_s": loop.cpu_seconds, "peak_mb": peak_bytes() / 1e6}))
