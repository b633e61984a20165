"""The relational step, in Ibis on DuckDB and out of core: raw tables to rows, cut-offs and splits.

It writes a hidden work folder inside the dataset folder, from which the content step of any part
can be run: items, users, events, and the items' raw content in the order of the rows.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, read_catalogue, read_users
from data_prep.cleaning import Ledger, clean_log, count_rows
from data_prep.log_filters import check_splits, drop_duplicates, find_cutoffs, keep_core
from data_prep.manifest import Cutoffs, Features
from data_prep.parquet_files import write_parquet
from data_prep.records import SPLITS, impressions_file
from data_prep.settings import ShardConfig, expand_path
from data_prep.sources import stream
from data_prep.work import CONTENT_ROWS, TablesReport, WorkFiles, source_fingerprint

if TYPE_CHECKING:
    import ibis
    import ibis.expr.types as ir

logger = logging.getLogger(__name__)

ROW_GROUP_ROWS = 131_072


def build_tables(config: ShardConfig) -> TablesReport:
    """Run the relational step, or keep its result where settings and raw files are the same."""
    import duckdb
    import ibis

    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    work = WorkFiles(dataset_dir)
    fingerprint = source_fingerprint(config)
    if work.report.is_file() and (kept := TablesReport.load(work)).fingerprint == fingerprint:
        logger.info("tables: kept, nothing changed since they were made")
        return kept
    work.clear_dataset()
    work.dir.mkdir(parents=True)
    con = ibis.duckdb.connect(
        work.dir / "relational.duckdb",
        memory_limit=config.memory_limit,
        threads=config.duckdb_threads,
        temp_directory=str(work.dir / "spill"),
    )
    try:
        report = _Relational(con, config, work=work, fingerprint=fingerprint).run()
    except duckdb.Error as error:
        raise ValueError(
            f"{config.name}: DuckDB could not finish ({str(error).splitlines()[0]}); "
            f"memory_limit is {config.memory_limit}, correct the raw tables or raise it"
        ) from error
    finally:
        con.disconnect()
        (work.dir / "relational.duckdb").unlink(missing_ok=True)
        shutil.rmtree(work.dir / "spill", ignore_errors=True)
    report.save(work)
    return report


class _Relational:
    """One run of the step; its methods are in the order they are called."""

    def __init__(
        self,
        con: "ibis.BaseBackend",
        config: ShardConfig,
        *,
        work: WorkFiles,
        fingerprint: str,
    ) -> None:
        self.con = con
        self.config = config
        self.work = work
        self.fingerprint = fingerprint
        self.ledger = Ledger()

    def run(self) -> TablesReport:
        """Write every table and say what is in them."""
        catalogue = read_catalogue(self.con, self.config.items, ledger=self.ledger)
        interactions = self._clean("interactions", catalogue)
        impressions = self._clean("impressions", catalogue) if self.config.impressions else None
        interactions = self.con.create_table(
            "deduplicated",
            drop_duplicates(interactions, self.config.filter, ledger=self.ledger),
        )
        cutoffs = find_cutoffs(self.config.split, interactions)
        interactions = keep_core(
            self.con,
            interactions,
            settings=self.config.filter,
            cutoffs=cutoffs,
            ledger=self.ledger,
        )
        users = self._number_users(interactions, impressions)
        events = self._write_events(interactions, users)
        counts, newest, newest_train = self._count_events(events, cutoffs)
        self._write_catalogue(catalogue, events, cutoffs)
        read_users(
            self.con, self.config.users, users=users, path=self.work.users, rows=ROW_GROUP_ROWS
        )
        if impressions is not None:
            counts |= self._write_impressions(impressions, users, cutoffs)
        check_splits(self.config, counts, cutoffs=cutoffs, newest_event=newest)
        counts |= {"items": catalogue.num_items, "users": count_rows(users)}
        context = self.config.impressions.features if self.config.impressions else {}
        return TablesReport(
            fingerprint=self.fingerprint,
            cutoffs=cutoffs,
            newest_event=newest,
            newest_train_event=newest_train,
            counts=counts | {"items_per_shard": self.config.items_per_shard},
            features=Features(
                item=self.config.items.features,
                user=self.config.users.features if self.config.users else {},
                context=context,
            ),
            text_fields=self.config.items.texts,
            vector_widths=catalogue.vector_widths,
            quarantine=self.ledger.quarantine,
            filters=self.ledger.filters,
        )

    def _clean(self, setting: str, catalogue: Catalogue) -> "ir.Table":
        return clean_log(
            self.con,
            getattr(self.config, setting),
            setting=setting,
            catalogue=catalogue.rows,
            dataset_dir=self.work.dataset_dir,
            ledger=self.ledger,
        )

    def _number_users(self, interactions: "ir.Table", impressions: "ir.Table | None") -> "ir.Table":
        """user_id to user_row: everyone with an event or an impression, in order of id."""
        import ibis

        ids = interactions.select("user_id")
        if impressions is not None:
            if impressions.user_id.type() != ids.user_id.type():
                raise ValueError(
                    f"impressions: user ids are {impressions.user_id.type()}, but those of the "
                    f"interactions are {ids.user_id.type()}; expected one type, convert a table"
                )
            ids = ids.union(impressions.select("user_id"))
        ids = ids.distinct()
        row = ibis.row_number().over(order_by=ids.user_id).cast("int32")
        return self.con.create_table("users_numbered", ids.mutate(user_row=row))

    def _write_events(self, interactions: "ir.Table", users: "ir.Table") -> "ir.Table":
        """Every user's events in time order."""
        names = ["user_row", "time", "item_row", "label"]
        names += ["weight"] if "weight" in interactions.columns else []
        events = self.con.create_table(
            "events", interactions.inner_join(users, "user_id").select(*names)
        )
        self._write(events.order_by(names), self.work.events)
        return events

    def _count_events(
        self, events: "ir.Table", cutoffs: Cutoffs
    ) -> tuple[dict[str, int], int, int]:
        train = events.time < cutoffs.valid_start
        test = events.time >= cutoffs.test_start
        (totals,) = (
            events.aggregate(
                events=events.count(),
                train_events=train.sum(),
                valid_events=(~train & ~test).sum(),
                test_events=test.sum(),
                positives=(events.label == 1).sum(),
                train_positives=(train & (events.label == 1)).sum(),
                newest=events.time.max(),
                newest_train=events.time.max(where=train),
            )
            .to_pyarrow()
            .to_pylist()
        )
        counts = {name: int(value or 0) for name, value in totals.items()}
        return counts, counts.pop("newest"), counts.pop("newest_train")

    def _write_catalogue(self, catalogue: Catalogue, events: "ir.Table", cutoffs: Cutoffs) -> None:
        """Items with popularity before `valid_start`, and arrival; then their raw content."""
        trained = (events.label == 1) & (events.time < cutoffs.valid_start)
        seen = events.group_by("item_row").aggregate(
            train_count=trained.sum(), first_event=events.time.min()
        )
        items = catalogue.table.left_join(seen, "item_row")
        items = items.select(
            "item_row",
            "item_id",
            train_count=items.train_count.fill_null(0).cast("int64"),
            first_time=items.arrival.fill_null(items.first_event).cast("int64"),
            **{name: items[name] for name in self.config.items.features},
        )
        self._write(items.order_by("item_row"), self.work.items)
        # Small row groups, so that any part finds its items without reading the others'.
        content = catalogue.content.order_by("item_row")
        self._write(content, self.work.content, rows=CONTENT_ROWS, compression="none")

    def _write_impressions(
        self, impressions: "ir.Table", users: "ir.Table", cutoffs: Cutoffs
    ) -> dict[str, int]:
        assert self.config.impressions is not None
        joined = impressions.inner_join(users, "user_id")
        shown = joined.select(
            "user_row",
            "item_row",
            "time",
            label=joined.label.cast("float32"),
            **{name: joined[name] for name in self.config.impressions.features},
        )
        inside = {
            "train": shown.time < cutoffs.valid_start,
            "valid": (shown.time >= cutoffs.valid_start) & (shown.time < cutoffs.test_start),
            "test": shown.time >= cutoffs.test_start,
        }
        counts = {}
        for split in SPLITS:
            part = shown.filter(inside[split]).order_by(["time", "user_row", "item_row", "label"])
            path = self.work.dataset_dir / impressions_file(split)
            counts[f"impressions_{split}"] = self._write(part, path)
        return counts

    def _write(
        self,
        table: "ir.Table",
        path: Path,
        *,
        rows: int = ROW_GROUP_ROWS,
        compression: str = "zstd",
    ) -> int:
        schema = table.schema().to_pyarrow()
        tables = stream(self.con, table, rows=rows)
        written = write_parquet(tables, path, schema=schema, compression=compression)
        logger.info("tables: wrote %s (%s rows)", path.name, f"{written:,}")
        return written
