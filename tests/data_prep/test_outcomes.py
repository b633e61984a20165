"""Further labels and facts of the exposure: kept as they are, or the row set aside."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns
from data_prep.dataset import open_dataset
from data_prep.records import SPLITS

if TYPE_CHECKING:
    from conftest import SmallWorld

OUTCOMES: dict[str, list[Any]] = {
    "like": [1, 0] * 20,
    "play": [0.5 * row for row in range(40)],
    "place": [row % 3 for row in range(40)],
    "chance": [0.25] * 40,
    "arm": [row % 2 for row in range(40)],
}
COLUMNS = {
    "labels": {"like": "binary", "play": "numeric"},
    "position": "place",
    "propensity": "chance",
    "treatment": "arm",
}


def write(small: "SmallWorld", **changes: object) -> ImpressionColumns:
    """Impressions: the log itself with a click and more."""
    path = small.dir / "shown.parquet"
    table = small.interactions | {"click": [1, 1, 0, 0] * 10} | OUTCOMES | changes
    pq.write_table(pa.table(table), path)
    return ImpressionColumns(path=str(path), time_unit="s", label="click", **COLUMNS)


def rows(folder: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(folder)
    return [row for split in SPLITS for row in dataset.impressions(split).to_pylist()]


def test_outcomes_stand_beside_the_click_with_their_types(small: "SmallWorld") -> None:
    folder = small.shard(impressions=write(small))
    dataset = open_dataset(folder)
    assert dataset.manifest.features.label == {"like": "binary", "play": "numeric"}
    assert dataset.manifest.features.exposure == {
        "position": "place",
        "propensity": "chance",
        "treatment": "arm",
    }
    schema = dataset.impressions("train").schema
    found = {name: str(schema.field(name).type) for name in schema.names}
    assert found == {
        "user_row": "int32",
        "item_row": "int32",
        "time": "int64",
        "label": "float",
        "like": "int8",
        "play": "float",
        "position": "int32",
        "propensity": "float",
        "treatment": "int8",
    }
    by_time = {row["time"]: row for row in rows(folder)}
    assert len(by_time) == 40
    for place, second in enumerate(small.interactions["timestamp"]):
        row = by_time[second * 1000]
        assert row["like"] == OUTCOMES["like"][place]
        assert row["play"] == OUTCOMES["play"][place]
        assert row["position"] == OUTCOMES["place"][place]


def test_the_other_columns_and_every_other_file_are_as_without_outcomes(
    small: "SmallWorld", tmp_path: Path
) -> None:
    columns = write(small)
    plain = ImpressionColumns(path=columns.path, time_unit="s", label="click")
    with_them = open_dataset(small.shard(impressions=columns))
    without = open_dataset(small.shard(impressions=plain, dataset_dir=str(tmp_path / "plain")))
    for split in SPLITS:
        table = without.impressions(split)
        assert table.column_names == ["user_row", "item_row", "time", "label"]
        assert with_them.impressions(split).select(table.column_names).equals(table)
    sums = [
        {file.path: file.xxh128 for file in one.manifest.files if "ctr" not in file.path}
        for one in (with_them, without)
    ]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("column", "bad", "cause"),
    [
        ("like", [2, None, -1], "not_a_label_like"),
        ("play", [float("nan"), None, float("inf")], "not_a_label_play"),
        ("place", [-1, None, 2_000_000_000_000], "not_a_position"),
        ("chance", [0.0, -0.5, 1.5], "not_a_propensity"),
        ("chance", [float("nan"), None, 1e-40], "not_a_propensity"),
        ("arm", [2, None, -1], "not_a_treatment"),
    ],
)
def test_a_bad_value_sets_its_row_aside_by_cause(
    small: "SmallWorld", column: str, bad: list[Any], cause: str
) -> None:
    columns = write(small, **{column: bad + OUTCOMES[column][3:]})
    folder = small.shard(impressions=columns)
    dataset = open_dataset(folder)
    assert dataset.manifest.quarantine == {f"impressions/{cause}": 3}
    assert len(rows(folder)) == 37
    samples = pq.read_table(folder / "quarantine/impressions.parquet").to_pylist()
    raw = {"place": "position", "chance": "propensity", "arm": "treatment"}.get(column, column)
    assert [row["cause"] for row in samples] == [cause] * 3
    assert {row[f"raw_{raw}"] for row in samples} == {
        None if value is None else value for value in pa.array(bad).cast("string").to_pylist()
    }


def test_a_position_that_is_not_whole_is_none(small: "SmallWorld") -> None:
    folder = small.shard(impressions=write(small, place=[0.5] + [1.0] * 39))
    assert open_dataset(folder).manifest.quarantine == {"impressions/not_a_position": 1}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("like", [3] * 40, r"'like': 40 of 40 values \(such as 3\) are no 0 or 1; correct imp"),
        ("chance", [50.0] * 40, "'chance': 40 of 40 .* are no probabilities above 0 and up to 1"),
        ("place", ["top"] * 40, "'place' holds string, expected numbers for impressions.position"),
        ("play", ["long"] * 40, "'play' holds string, expected numbers for impressions.labels"),
    ],
)
def test_a_column_that_is_something_else_is_an_error(
    small: "SmallWorld", column: str, values: list[Any], message: str
) -> None:
    columns = write(small, **{column: values})
    with pytest.raises(ValueError, match=message):
        small.shard(impressions=columns)


def test_a_missing_column_names_its_setting(small: "SmallWorld") -> None:
    columns = dataclasses.replace(write(small), labels={"liked": "binary"})
    with pytest.raises(ValueError, match=r"no column 'liked'.*correct impressions.labels"):
        small.shard(impressions=columns)
    columns = dataclasses.replace(write(small), treatment="group")
    with pytest.raises(ValueError, match=r"no column 'group'.*correct impressions.treatment"):
        small.shard(impressions=columns)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"like": "binary"}, "features": {"like": "categorical"}},
        {"labels": {"like": "binary"}, "features": {"raw_like": "numeric"}},
        {"position": "place", "features": {"position": "numeric"}},
    ],
)
def test_an_outcome_is_no_feature(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"impressions.features: found \["):
        ImpressionColumns(path="shown.parquet", **changes)


@pytest.mark.parametrize("name", ["label", "position", "user_row"])
def test_a_label_with_a_name_of_the_dataset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"impressions.labels: found"):
        ImpressionColumns(path="shown.parquet", labels={name: "binary"})
