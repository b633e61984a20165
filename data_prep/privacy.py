"""Users who are to be forgotten, and ids that are written as keyed hashes.

Both happen where a raw table is opened, before anything is counted, sorted or set aside. The engine
never sees the key, which its plans and logs would hold: distinct ids are streamed out of it, hashed
here, and joined to the table again. Rows are then numbered in the order of the hashes.
"""

import csv
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.cleaning import Ledger
from data_prep.engines import Engine, count_rows
from data_prep.parquet_files import ROW_GROUP_ROWS, write_parquet
from data_prep.privacy_settings import IdKind, PrivacyConfig
from data_prep.raw_files import RawFiles
from data_prep.settings import expand_path
from data_prep.sources import GIVEN, Source, refuse_misread_ids

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

logger = logging.getLogger(__name__)

LEAST_KEY_BYTES = 16
HASH_BYTES = 16
TYPED = "id as typed"
"""Column beside a raw table's own, while it is joined."""


def read_key(config: PrivacyConfig) -> bytes:
    """The key, from its file or environment variable.

    Raises:
        ValueError: it is not there, or too short to be a secret; the message does not hold it.
    """
    if config.key_file is not None:
        path = expand_path(config.key_file, setting="privacy.key_file")
        try:
            key, where = path.read_bytes().strip(), str(path)
        except OSError as error:
            raise ValueError(
                f"{path}: found no readable key ({error.strerror}); correct privacy.key_file"
            ) from error
    else:
        where = config.key_variable
        key = os.environ.get(where, "").encode()
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(
            f"privacy.hash_ids: found a key of {len(key)} bytes in {where}, expected at least "
            f"{LEAST_KEY_BYTES}; make one, such as with openssl rand -hex 32, and keep it: without "
            "it no id can be found again"
        )
    return key


def key_fingerprint(key: bytes) -> str:
    """Tells whether two datasets have the same key, and nothing more of it."""
    return hmac.digest(key, b"fingerprint:", "sha256")[:8].hex()


def hash_ids(ids: Iterable[int | str], *, kind: IdKind, key: bytes) -> list[str]:
    """Ids as a dataset with `hash_ids` has them; an integer gives what its digits give."""
    digests = (hmac.digest(key, f"{kind}:{one}".encode(), "sha256") for one in ids)
    return [digest[:HASH_BYTES].hex() for digest in digests]


def privacy_state(config: PrivacyConfig) -> list[object]:
    """What decides the result beside the settings: the list's size and time, and which key."""
    state: list[object] = [sorted(config.hash_ids)]
    if config.forget is not None:
        file = expand_path(config.forget, setting="privacy.forget").stat()
        state += [config.forget_column, file.st_size, file.st_mtime_ns]
    return [*state, key_fingerprint(read_key(config))] if config.hash_ids else state


@dataclass
class Privacy:
    """One run of the relational step's privacy; `folder` holds raw ids while it lasts."""

    engine: Engine
    config: PrivacyConfig
    folder: Path
    ledger: Ledger
    record: dict[str, Any] = field(default_factory=dict)
    """For the manifest: counts and fingerprints, neither ids nor key."""

    def __post_init__(self) -> None:
        self._forgotten: ir.Table | None = None
        if self.config.forget is not None:
            self._forgotten = self._read_forgotten(self.config.forget)
        if self.config.hash_ids:
            self._key = read_key(self.config)
            self.record["hashed_ids"] = sorted(self.config.hash_ids)
            self.record["key_fingerprint"] = key_fingerprint(self._key)

    def users(self, source: Source, column: str) -> Source:
        """A raw table without the users to forget, its ids hashed where that is set."""
        if self._forgotten is not None:
            source = self._without_forgotten(source, column)
        return self._hashed(source, column, kind="user")

    def items(self, source: Source, column: str) -> Source:
        """A raw table with its item ids hashed where that is set."""
        return self._hashed(source, column, kind="item")

    def check_found(self) -> None:
        """Warn of a list of whose users no table had a row: most often its ids are others."""
        forget = self.record.get("forget")
        if forget and forget["ids"] and not any(forget["users_found"].values()):
            logger.warning(
                "%s: found none of its %d users in any table, expected ids as in the raw tables",
                *(self.config.forget, forget["ids"]),
            )

    def _read_forgotten(self, given: str) -> "ir.Table":
        import pyarrow as pa

        path = expand_path(given, setting="privacy.forget")
        schema = pa.schema([("forget_id", pa.string())])
        tables = (
            pa.table({"forget_id": pa.array(ids, pa.string())})
            for ids in _listed(path, column=self.config.forget_column)
        )
        write_parquet(tables, self.folder / "forget.parquet", schema=schema)
        table = self._open("forget").distinct()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        count = count_rows(self.engine, table)
        self.record["forget"] = {"ids": count, "sha256": digest, "users_found": {}}
        return table

    def _without_forgotten(self, source: Source, column: str) -> Source:
        assert self._forgotten is not None
        ids, listed = source.ids(column, setting="user"), self._forgotten
        if ids.type().is_integer():
            # As numbers, since text files may write one with zeros before it.
            listed = listed.select(forget_id=listed.forget_id.try_cast("int64")).distinct()
            listed = listed.filter(listed.forget_id.notnull())
        keyed = source.table.mutate(**{TYPED: ids})
        kept = keyed.anti_join(listed, keyed[TYPED] == listed.forget_id).drop(TYPED)
        gone = keyed.semi_join(listed, keyed[TYPED] == listed.forget_id)
        (found,) = self.engine.rows(gone.aggregate(rows=gone.count(), users=gone[TYPED].nunique()))
        self.record["forget"]["users_found"][source.setting] = int(found["users"])
        rows = count_rows(self.engine, source.table)
        step = f"{source.setting}: users to forget"
        self.ledger.passed(step, rows_in=rows, rows_out=rows - int(found["rows"]))
        return replace(source, table=kept)

    def _hashed(self, source: Source, column: str, *, kind: IdKind) -> Source:
        if kind not in self.config.hash_ids:
            return source
        if source.is_text:  # later nobody could tell
            rows = count_rows(self.engine, source.table)
            refuse_misread_ids(self.engine, source, column, setting=kind, rows=rows)
        ids = source.ids(column, setting=kind)
        distinct = source.table.select(given_id=ids).distinct()
        distinct = distinct.filter(distinct.given_id.notnull())
        schema = distinct.schema().to_pyarrow()
        name = f"{source.setting}_{kind}_ids"
        write_parquet(
            self._with_hashes(
                self.engine.stream(distinct, rows=ROW_GROUP_ROWS, schema=schema), kind
            ),
            self.folder / f"{name}.parquet",
            schema=_with_hash_column(schema),
        )
        hashes = self._open(name)

        def replaced(table: "ir.Table") -> "ir.Table":
            keyed = table.mutate(**{TYPED: replace(source, table=table).ids(column, setting=kind)})
            joined = keyed.left_join(hashes, keyed[TYPED] == hashes.given_id)
            return joined.mutate(**{column: joined.hashed_id}).drop(TYPED, "given_id", "hashed_id")

        given = replaced(source.given)
        if GIVEN + column in given.columns:
            given = given.drop(GIVEN + column)
        return replace(source, table=replaced(source.table), given=given)

    def _with_hashes(self, tables: Iterable["pa.Table"], kind: IdKind) -> Iterator["pa.Table"]:
        import pyarrow as pa

        for table in tables:
            hashes = hash_ids(table["given_id"].to_pylist(), kind=kind, key=self._key)
            yield table.append_column("hashed_id", pa.array(hashes, pa.string()))

    def _open(self, name: str) -> "ir.Table":
        path = self.folder / f"{name}.parquet"
        return self.engine.read(RawFiles([path], "parquet", name, str(path), None))


def _with_hash_column(schema: "pa.Schema") -> "pa.Schema":
    import pyarrow as pa

    return schema.append(pa.field("hashed_id", pa.string()))


def _listed(path: Path, *, column: str) -> Iterator[list[str]]:
    """The ids of a list, as text, some at a time.

    Raises:
        ValueError: no such file or column, or one that is no list.
    """
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected a list; correct privacy.forget")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        yield from _listed_in_parquet(path, column=column)
    elif suffix in (".txt", ".csv", ".tsv"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = file if suffix == ".txt" else _cells(file, path, column=column)
            yield from _some_at_a_time(one.strip() for one in lines)
    else:
        raise ValueError(
            f"{path}: found the suffix {path.suffix!r}, expected .parquet, .csv, .tsv or .txt; "
            "convert the list of privacy.forget"
        )


def _cells(file: Iterable[str], path: Path, *, column: str) -> Iterator[str]:
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    _check_column(path, list(reader.fieldnames or ()), column=column)
    for row in reader:
        yield row[column] or ""


def _some_at_a_time(ids: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for one in ids:
        if one:
            held.append(one)
        if len(held) == ROW_GROUP_ROWS:
            yield held
            held = []
    yield held


def _listed_in_parquet(path: Path, *, column: str) -> Iterator[list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as Parquet ({error}); correct privacy.forget"
        ) from error
    _check_column(path, file.schema_arrow.names, column=column)
    kind = file.schema_arrow.field(column).type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ValueError(
            f"{path}: column {column!r} holds {kind}, expected integers or text; convert the ids"
        )
    for batch in file.iter_batches(ROW_GROUP_ROWS, columns=[column]):
        yield [str(one) for one in batch.column(0).to_pylist() if one is not None]


def _check_column(path: Path, found: list[str], *, column: str) -> None:
    if column not in found:
        raise ValueError(
            f"{path}: found no column {column!r} (columns: {', '.join(found)}); correct "
            "privacy.forget_column"
        )
