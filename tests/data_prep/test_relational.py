"""The pass over the sorted log against slow twins, and what an error leaves behind."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dataset import open_dataset
from data_prep.engines import STREAM_BYTES, DuckDBEngine
from data_prep.event_file import read_events, read_users_events, write_events
from data_prep.log_filters import time_of_rank
from data_prep.parquet_files import write_parquet
from data_prep.settings import FilterConfig
from data_prep.sorted_log import ONLY_SHOWN, Duplicates, sort_keys, write_sorted_log

if TYPE_CHECKING:
    from conftest import SmallWorld

Row = tuple[str, int, int, int]


def random_rows(seed: int, *, num_rows: int = 400) -> list[Row]:
    rng = np.random.default_rng(seed)
    columns = [rng.integers(high, size=num_rows) for high in (9, 12, 5, 2)]
    rows = [(f"u{u}", int(t), int(i), int(y)) for u, t, i, y in zip(*columns, strict=True)]
    return [*rows, ("a new user", 0, ONLY_SHOWN, 0), ("u3", 0, ONLY_SHOWN, 0)]


def slow_twin(rows: list[Row], duplicates: Duplicates) -> list[Row]:
    """One dictionary for what counts as one, filled in order of time and label."""
    kept: dict[object, Row] = {}
    for place, (user, time, item, label) in enumerate(sorted(rows, key=lambda r: (r[1], -r[3]))):
        key = {
            "keep_all": place,
            "keep_exact_once": (user, time, item),
            "keep_first": (user, item),
        }
        if item != ONLY_SHOWN:
            kept.setdefault(key[duplicates], (user, time, item, label))
    return sorted(kept.values(), key=lambda row: (row[0], row[1], row[2], -row[3]))


@pytest.mark.parametrize("duplicates", ["keep_exact_once", "keep_first", "keep_all"])
@pytest.mark.parametrize("rows_a_table", [1, 7, 1000])
def test_the_pass_over_the_sorted_log_is_its_slow_twin(
    tmp_path: Path, duplicates: Duplicates, rows_a_table: int
) -> None:
    rows = random_rows(0)
    names = ["user_id", "time", "item_row", "label"]
    kinds = [pa.string(), pa.int64(), pa.int32(), pa.int8()]
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    keys = sort_keys(names, item="item_row", duplicates=duplicates)
    order = [(key, "descending" if key == "label" else "ascending") for key in keys]
    table = pa.table(columns, schema=schema).sort_by(order)
    tables = [table.slice(s, rows_a_table) for s in range(0, len(table), rows_a_table)]
    log = write_sorted_log(
        tables,
        schema=schema,
        duplicates=duplicates,
        events_path=tmp_path / "events.arrow",
        users_path=tmp_path / "users.parquet",
    )
    users = pq.read_table(tmp_path / "users.parquet").to_pydict()
    ids = sorted({row[0] for row in rows})
    assert users["user_id"] == ids
    assert users["user_row"] == list(range(len(ids)))
    assert [name for name, shown in zip(ids, users["shown"], strict=True) if shown] == [
        "a new user",
        "u3",
    ]
    batches = read_events(tmp_path / "events.arrow")
    events = [row for batch in batches for row in batch.to_pylist()]
    found = [(ids[e["user_row"]], e["time"], e["item_row"], e["label"]) for e in events]
    assert found == slow_twin(rows, duplicates)
    assert (log.usable, log.kept, log.users) == (400, len(found), len(ids))


def test_a_rank_of_the_times_is_numpys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.concatenate([rng.integers(10**12, size=5000), np.full(3000, 77)])
    table = pa.table({"user_row": np.zeros(8000, np.int32), "time": times})
    parts = [table.slice(start, 1000) for start in range(0, 8000, 1000)]
    write_events(parts, tmp_path / "events.arrow", schema=table.schema)
    for rank in (0, 1, 2999, 3000, 3001, 7777, 7999):
        assert time_of_rank(tmp_path / "events.arrow", rank) == np.sort(times)[rank]


def test_any_users_events_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(40, size=500)).astype(np.int32)
    table = pa.table({"user_row": users, "time": np.arange(500)})
    parts = [table.slice(start, 7) for start in range(0, 500, 7)]
    write_events(parts, tmp_path / "events.arrow", schema=table.schema)
    for first, last in ((0, 40), (0, 1), (13, 29), (39, 40), (5, 5), (40, 50)):
        found = read_users_events(tmp_path / "events.arrow", first=first, last=last)
        inside = (users >= first) & (users < last)
        assert found["time"].to_pylist() == np.flatnonzero(inside).tolist()


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield pa.table({"a": [1]})
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_parquet(tables(), tmp_path / "a.parquet", schema=pa.schema([("a", pa.int64())]))
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_log_is_one_error_and_no_table(small: "SmallWorld", tmp_path: Path) -> None:
    small.interactions = {
        name: np.random.default_rng(0).permutation(np.repeat(values, 2000))
        for name, values in small.interactions.items()
    }
    small.shard()
    whole = (tmp_path / "interactions.parquet").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 4 : len(whole) // 2] = b"\xff" * (len(whole) // 2 - len(whole) // 4)
    (tmp_path / "log.parquet").write_bytes(damaged)
    columns = dataclasses.replace(small.config().interactions, path=str(tmp_path / "log.parquet"))
    with pytest.raises(ValueError, match=r"DuckDB could not finish \(.*; memory_limit is auto"):
        small.shard(interactions=columns, dataset_dir=str(tmp_path / "broken"))
    assert list((tmp_path / "broken").rglob("*.parquet*")) == []


def test_a_core_numbers_the_users_who_are_left(small: "SmallWorld") -> None:
    small.add(5, 100, small.interactions["timestamp"][0])  # one training event: dropped
    folder = small.shard(filter=FilterConfig(min_user_events=2))
    dataset = open_dataset(folder)
    assert dataset.users["user_id"].to_pylist() == [10, 20, 30, 40]
    assert dataset.events().user_rows().max() == 3
    assert dataset.manifest.counts["users"] == 4


@pytest.mark.parametrize(("limit", "expected"), [("auto", 4 << 30), ("3GB", 3_000_000_000)])
def test_duckdb_gets_half_of_the_memory_that_is_left_unless_told_otherwise(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.engines.available_bytes", lambda: 8 << 30)
    monkeypatch.setattr("data_prep.engines._resident", lambda: 100 << 20)
    engine = DuckDBEngine(tmp_path, memory_limit=limit, threads=1)
    query = "SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'"
    ((found,),) = engine.con.con.execute(query).fetchall()
    engine.close()
    tenths = (expected - (100 << 20) - STREAM_BYTES) * 10 >> 30  # DuckDB cuts, it does not round
    assert found == f"{tenths / 10} GiB"
