"""What is read of a file to be scored must be what `shard` would have made of it."""

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns
from data_prep.dataset import open_dataset
from data_prep.new_impressions import read_new_impressions
from data_prep.records import SPLITS, FeatureType

if TYPE_CHECKING:
    from conftest import SmallWorld

NOON = dt.datetime(2025, 1, 1, 12, 30, 0, 250_000)
MINUTE = NOON.replace(microsecond=0)
VALUES: dict[str, tuple[FeatureType, pa.Array]] = {
    "boolean": ("categorical", pa.array([True, False, None])),
    "double": ("categorical", pa.array([1.0, 1e20, float("nan")])),
    "single": ("categorical", pa.array([0.1, 3.0, float("inf")], pa.float32())),
    "integer": ("categorical", pa.array([5, 0, -1], pa.int8())),
    "large": ("categorical", pa.array([2**63, 1, None], pa.uint64())),
    "text": ("categorical", pa.array(["true", "", None])),
    "words": ("categorical", pa.array(["a", "b", None]).dictionary_encode()),
    "decimal": ("categorical", pa.array([Decimal("1.50"), Decimal("2.00"), None])),
    "day": ("categorical", pa.array([dt.date(2025, 1, 1), None, dt.date(1999, 12, 31)])),
    "hour": ("categorical", pa.array([dt.time(8), dt.time(8, 0, 1, 5000), None])),
    "when": (
        "categorical",
        pa.array([NOON, MINUTE, None], pa.timestamp("us")),
    ),
    "when_ms": ("categorical", pa.array([NOON, None, None], pa.timestamp("ms"))),
    "when_ns": ("categorical", pa.array([NOON, None, None], pa.timestamp("ns"))),
    "there": ("categorical", pa.array([NOON, None, None], pa.timestamp("ms", tz="Asia/Tokyo"))),
    "price": ("numeric", pa.array([Decimal("1.50"), Decimal("2.25"), None])),
    "seen": ("numeric", pa.array([True, False, None])),
    "numbers": ("multi", pa.array([[1.0, None, 2.5], [], None])),
    "flags": ("multi", pa.array([[True, False], [None], None])),
    "json": ("multi", pa.array(['["a", 1.5, true]', "[]", None])),
}


def test_every_type_gets_the_values_that_a_dataset_of_it_holds(
    small: "SmallWorld", monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: kind for name, (kind, _) in VALUES.items()}
    monkeypatch.setenv("TZ", "America/New_York")
    rows = small.dir / "impressions.parquet"
    columns = small.interactions | {"label": np.zeros(len(small.interactions["user_id"]), np.int8)}
    given = pa.table(columns)
    take = pa.array(np.arange(given.num_rows) % 3)
    for name, (_, values) in VALUES.items():
        given = given.append_column(name, values.take(take))
    pq.write_table(given, rows)
    impressions = ImpressionColumns(path=str(rows), time_unit="s", features=kinds)
    dataset = open_dataset(small.shard(impressions=impressions))
    held = pa.concat_tables([dataset.impressions(split) for split in SPLITS])
    typed = read_new_impressions(rows, kinds)
    assert typed.num_rows == held.num_rows
    for name in kinds:
        assert typed.schema.field(name).type == held.schema.field(name).type
        assert sorted(map(str, typed[name].to_pylist())) == sorted(map(str, held[name].to_pylist()))
    assert typed["boolean"].to_pylist()[:2] == ["true", "false"]
    assert typed["double"].to_pylist()[:3] == ["1.0", "1e+20", None]
    assert typed["when"].to_pylist()[:2] == ["2025-01-01 12:30:00.25", "2025-01-01 12:30:00"]


def test_rows_stay_in_order_and_ids_become_integers_or_text(tmp_path: Path) -> None:
    path = tmp_path / "new [1].parquet"
    users = [uuid.UUID(int=row).hex for row in range(300_000)]
    table = pa.table({"user_id": users, "item_id": pa.array(range(300_000), pa.int32())})
    pq.write_table(table, path, row_group_size=10_000)
    typed = read_new_impressions(path, {})
    assert typed.schema.types == [pa.string(), pa.int64()]
    assert typed["user_id"].to_pylist() == users
    assert typed["item_id"].to_pylist() == list(range(300_000))


def test_a_column_without_any_value_fits_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    names = ("user_id", "item_id", "a", "b", "c")
    pq.write_table(pa.table({name: pa.nulls(2) for name in names}), path)
    typed = read_new_impressions(path, {"a": "numeric", "b": "categorical", "c": "multi"})
    assert [str(one) for one in typed.schema.types[2:4]] == ["double", "string"]
    assert pa.types.is_list(typed.schema.field("c").type)
    assert all(typed[name].null_count == 2 for name in names)


@pytest.mark.parametrize(
    ("changes", "features", "message"),
    [
        ({"x": ["one"]}, {"x": "numeric"}, "column x of type string, expected numbers"),
        ({"x": [[1]]}, {"x": "categorical"}, "column x of type array.*expected single values"),
        ({"x": [1]}, {"x": "multi"}, "column x of type int64, expected lists"),
        ({"x": ["a|b"]}, {"x": "multi"}, r"column 'x': row 1 has 'a\|b', expected a JSON list"),
        ({"user_id": [1.0]}, {}, "'user_id' holds float64, expected integers or text"),
        ({"user_id": pa.array([2**63], pa.uint64())}, {}, "cannot be read as impressions"),
    ],
)
def test_a_column_of_another_kind_is_named(
    changes: dict[str, object], features: dict[str, FeatureType], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "new.parquet"
    pq.write_table(pa.table({"user_id": [1], "item_id": [2]} | changes), path)
    with pytest.raises(ValueError, match=message):
        read_new_impressions(path, features)
