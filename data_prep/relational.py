"""The relational step, in Ibis on DuckDB or Spark and out of core: raw tables to rows and splits.

It writes a hidden work folder inside the dataset folder, from which the content step of any part
can be run: items, users, events, and the items' raw content in the order of the rows. The log is
read, cleaned, joined and sorted in one query, whose result is numbered and counted as it streams.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, read_catalogue, write_users
from data_prep.check_tables import check_tables
from data_prep.cleaning import Ledger, Log, open_log, set_bad_rows_aside
from data_prep.engines import Engine, connect, first_line
from data_prep.event_counts import EventCounts, count_events, with_counts, with_counts_schema
from data_prep.impressions import write_impressions
from data_prep.item_lookup import ONLY_SHOWN_ID, ItemLookup
from data_prep.log_filters import check_splits, given_cutoffs, keep_core, quantile_cutoffs
from data_prep.manifest import Cutoffs, Features
from data_prep.misread import count_misread
from data_prep.parquet_files import ROW_GROUP_ROWS, write_parquet
from data_prep.privacy import Privacy
from data_prep.raw_files import RawFiles
from data_prep.records import QUARANTINE_DIR
from data_prep.replaced import say_replaced
from data_prep.settings import ShardConfig, expand_path
from data_prep.sorted_log import ONLY_SHOWN, SortedLog, sort_keys, write_sorted_log
from data_prep.text_lists import with_lists, with_lists_schema
from data_prep.work import TablesReport, WorkFiles, source_fingerprint

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

logger = logging.getLogger(__name__)

MEDIA_ROWS, TEXT_ROWS = 256, 4096
"""Rows of a row group of the raw content: with pictures, sound or vectors, and with texts alone."""
SECONDS_A_LINE = 30.0
"""How often a long stream says how far it is."""


def build_tables(config: ShardConfig) -> TablesReport:
    """Run the relational step, or keep its result where settings and raw files are the same."""
    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    work = WorkFiles(dataset_dir)
    fingerprint = source_fingerprint(config)
    if work.report.is_file() and (kept := TablesReport.load(work)).fingerprint == fingerprint:
        logger.info("tables: kept, nothing changed since they were made")
        return kept
    check_tables(config)
    say_replaced(work, config)
    work.clear_dataset()
    engine = connect(config, work.dir)
    try:
        with _step(f"all, on {engine.name}"):
            report = _Relational(engine, config, work=work, fingerprint=fingerprint).run()
    except engine.errors as error:
        limit = f"; memory_limit is {config.memory_limit}" if config.engine == "duckdb" else ""
        raise ValueError(
            f"{config.name}: {engine.name} could not finish ({first_line(error)}){limit}; correct "
            "the raw tables, give it more memory, or make room on the disk of dataset_dir"
        ) from error
    finally:
        engine.close()
        shutil.rmtree(work.ids, ignore_errors=True)  # raw ids beside their hashes
    report.save(work)
    return report


class _Relational:
    """One run of the step; its methods are in the order they are called."""

    def __init__(
        self, engine: Engine, config: ShardConfig, *, work: WorkFiles, fingerprint: str
    ) -> None:
        self.engine = engine
        self.config = config
        self.work = work
        self.fingerprint = fingerprint
        self.ledger = Ledger()
        self.privacy = Privacy(engine, config.privacy, folder=work.ids, ledger=self.ledger)
        self.num_users = 0

    def run(self) -> TablesReport:
        """Write every table and say what is in them."""
        with _step("items: numbered"):
            catalogue = read_catalogue(
                self.engine,
                self.config.items,
                privacy=self.privacy,
                ledger=self.ledger,
                samples=self.work.dataset_dir / QUARANTINE_DIR / "items.parquet",
            )
        interactions = self._open("interactions", catalogue)
        impressions = self._open("impressions", catalogue) if self.config.impressions else None
        with _step("interactions: cleaned, joined and sorted"):
            events = self._sort(interactions, impressions, catalogue)
        with _step("items: written"):
            self._write_catalogue(catalogue, events)
        path = self.work.seen_users
        with _step("users: written"):
            users = self.engine.read(RawFiles([path], "parquet", "seen_users", str(path), None))
            write_users(
                self.engine,
                self.config.users,
                users=users,
                privacy=self.privacy,
                path=self.work.users,
            )
        counts = dict(events.totals)
        if impressions is not None:
            with _step("impressions: sorted and split"):
                duplicates = self.config.filter.impression_duplicates
                shown, splits = write_impressions(
                    self.engine,
                    impressions,
                    users=users,
                    cutoffs=events.cutoffs,
                    duplicates=duplicates,
                    work=self.work,
                )
                self._set_aside(impressions, catalogue, usable_rows=shown.usable)
                if duplicates != "keep_all":
                    step = f"impressions: duplicates ({duplicates})"
                    kept = shown.usable - shown.repeated
                    self.ledger.passed(step, rows_in=shown.usable, rows_out=kept)
                counts |= splits
        check_splits(self.config, counts, cutoffs=events.cutoffs, newest_event=events.newest)
        counts |= {"items": catalogue.num_items, "users": self.num_users}
        self.privacy.check_found()
        return self._report(catalogue, events, counts)

    def _open(self, setting: str, catalogue: Catalogue) -> Log:
        columns = getattr(self.config, setting)
        log = open_log(
            self.engine,
            columns,
            setting=setting,
            privacy=self.privacy,
            catalogue=catalogue.rows,
        )
        count_misread(self.engine, log.source, log.features, ledger=self.ledger)
        return log

    def _sort(
        self, interactions: Log, impressions: Log | None, catalogue: Catalogue
    ) -> EventCounts:
        """Write every user's events in time order, and the users in order of id."""
        import ibis

        lookup = ItemLookup.of(self.engine, catalogue.rows)
        if lookup is None:
            item, only_shown, rows = "item_row", ONLY_SHOWN, interactions.usable
        else:
            item, only_shown, rows = "item_id", ONLY_SHOWN_ID, interactions.good
            rows = rows.mutate(item_id=rows.item_id.cast("int64"))
        if self.config.interactions.label is None:
            rows = rows.drop("label")
        names = ["user_id", "time", item, *rows.drop("user_id", "time", item).columns]
        rows = rows.select(*names)
        if impressions is not None:
            shown = impressions.usable.select("user_id").distinct()
            _check_same_ids(shown, rows)
            empty = {name: ibis.literal(0, rows[name].type()) for name in names[1:]}
            empty[item] = ibis.literal(only_shown, rows[item].type())
            rows = rows.union(shown.mutate(**empty).select(*names))
        duplicates = self.config.filter.duplicates
        keys = sort_keys(names, item=item, duplicates=duplicates)
        order = [ibis.desc(key) if key in ("label", "weight") else key for key in keys]
        schema = rows.schema().to_pyarrow()
        # Known times let the events be counted as they pass; quantiles and a core do not.
        cutoffs = given_cutoffs(self.config.split)
        core = self.config.filter.min_user_events or self.config.filter.min_item_events
        counts = None if cutoffs is None or core else EventCounts(cutoffs, catalogue.num_items)
        stream = self.engine.stream(rows.order_by(order), rows=ROW_GROUP_ROWS, schema=schema)
        log = write_sorted_log(
            _said(stream if lookup is None else lookup.replace_ids(stream)),
            schema=schema,
            duplicates=duplicates,
            events_path=self.work.events,
            users_path=self.work.seen_users,
            count=counts.add if counts is not None else None,
        )
        self._set_aside(interactions, catalogue, usable_rows=log.usable)
        if duplicates != "keep_all":
            step = f"interactions: duplicates ({duplicates})"
            self.ledger.passed(step, rows_in=log.usable, rows_out=log.kept)
        self.num_users = log.users
        return counts if counts is not None else self._filter(log, cutoffs, catalogue)

    def _set_aside(self, log: Log, catalogue: Catalogue, *, usable_rows: int) -> None:
        set_bad_rows_aside(
            self.engine,
            log,
            usable_rows=usable_rows,
            catalogue=catalogue.rows,
            dataset_dir=self.work.dataset_dir,
            ledger=self.ledger,
        )

    def _filter(self, log: SortedLog, cutoffs: Cutoffs | None, catalogue: Catalogue) -> EventCounts:
        """Find the cut-offs, leave the k-core, then count."""
        settings, events = self.config.filter, self.work.events
        if cutoffs is None:
            cutoffs = quantile_cutoffs(self.config.split, events, num_events=log.kept)
        if settings.min_user_events or settings.min_item_events:
            self.num_users = keep_core(
                self.work,
                settings=settings,
                cutoffs=cutoffs,
                num_users=log.users,
                num_items=catalogue.num_items,
                ledger=self.ledger,
            )
        counts = EventCounts(cutoffs, catalogue.num_items)
        count_events(events, counts)
        return counts

    def _write_catalogue(self, catalogue: Catalogue, events: EventCounts) -> None:
        """Items with popularity before `valid_start`, and arrival; then their raw content."""
        items, features = catalogue.table.order_by("item_row"), self.config.items.features
        schema = items.schema().to_pyarrow()
        tables = self.engine.stream(items, rows=ROW_GROUP_ROWS, schema=schema)
        tables = with_lists(tables, features, source=catalogue.source)
        counted = (with_counts(table, events) for table in tables)
        schema = with_counts_schema(with_lists_schema(schema, features))
        self._write(counted, self.work.items, schema=schema)
        # Small row groups, so that any part finds its items without reading the others'.
        content = catalogue.content.order_by("item_row")
        schema = content.schema().to_pyarrow()
        tables = self.engine.stream(content, rows=_content_rows(schema.names), schema=schema)
        self._write(tables, self.work.content, schema=schema, is_raw=True)

    def _write(
        self,
        tables: Iterable["pa.Table"],
        path: Path,
        *,
        schema: "pa.Schema",
        is_raw: bool = False,
    ) -> int:
        written = write_parquet(tables, path, schema=schema, is_raw=is_raw)
        logger.info("tables: wrote %s (%s rows)", path.name, f"{written:,}")
        return written

    def _report(
        self, catalogue: Catalogue, events: EventCounts, counts: dict[str, int]
    ) -> TablesReport:
        config = self.config
        return TablesReport(
            fingerprint=self.fingerprint,
            cutoffs=events.cutoffs,
            newest_event=events.newest,
            newest_train_event=events.newest_train,
            counts=counts | {"items_per_shard": config.items_per_shard},
            features=Features(
                item=config.items.features,
                user=config.users.features if config.users else {},
                context=config.impressions.features if config.impressions else {},
                label=config.impressions.labels if config.impressions else {},
                exposure=config.impressions.exposure if config.impressions else {},
            ),
            text_fields=config.items.texts,
            vector_widths=catalogue.vector_widths,
            quarantine=self.ledger.quarantine,
            filters=self.ledger.filters,
            privacy=self.privacy.record,
        )


def _content_rows(names: list[str]) -> int:
    """Rows of a row group of the raw content with these columns."""
    texts_alone = all(name.startswith(("item_", "text_")) for name in names)
    return TEXT_ROWS if texts_alone else MEDIA_ROWS


@contextmanager
def _step(what: str) -> Iterator[None]:
    logger.info("tables: %s …", what)
    start = time.perf_counter()
    yield
    logger.info("tables: %s, %.1f s", what, time.perf_counter() - start)


def _said(tables: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    """The same tables; now and then a line says how many rows have passed."""
    rows, said = 0, time.perf_counter()
    for table in tables:
        yield table
        rows += table.num_rows
        if time.perf_counter() - said > SECONDS_A_LINE:
            said = time.perf_counter()
            logger.info("tables: %s sorted rows written …", f"{rows:,}")


def _check_same_ids(shown: "ir.Table", rows: "ir.Table") -> None:
    if shown.user_id.type() != rows.user_id.type():
        raise ValueError(
            f"impressions: user ids are {shown.user_id.type()}, but those of the interactions are "
            f"{rows.user_id.type()}; expected one type, convert a table"
        )
