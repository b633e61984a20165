"""Whether the raw tables have the columns that the settings name, before anything is replaced.

A dataset may be hours of work, and the users are read when the log has been sorted: a misspelt
column ends a run at its beginning.
"""

import tempfile
from pathlib import Path

from data_prep.catalogue import typed_items, typed_users
from data_prep.cleaning import open_log_source, typed_log
from data_prep.engines import DuckDBEngine, first_line
from data_prep.settings import ShardConfig
from data_prep.sources import open_source


def check_tables(config: ShardConfig) -> None:
    """Open every table and type its columns, without reading more than its first rows.

    Raises:
        ValueError: a table or a column is not there, or of another type; it says what to do.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = DuckDBEngine(Path(folder), memory_limit=config.memory_limit, threads=1)
        try:
            _open_all(engine, config)
        except engine.errors as error:
            raise ValueError(
                f"{config.name}: the raw tables cannot be read ({first_line(error)}); correct them"
            ) from error
        finally:
            engine.close()


def _open_all(engine: DuckDBEngine, config: ShardConfig) -> None:
    facts, _ = typed_items(open_source(engine, config.items, setting="items"), config.items)
    if config.users is not None:
        typed_users(open_source(engine, config.users, setting="users"), config.users)
    for setting in ("interactions", "impressions"):
        if (log := getattr(config, setting)) is not None:
            source = open_log_source(engine, log, setting=setting)
            # Hashed ids are of one type.
            is_hashed = "item" in config.privacy.hash_ids
            ids = source.ids(log.item, setting="item") if is_hashed else facts.item_id
            typed_log(source, log, item_id=ids)
