"""Impressions that repeat another, and places that do not begin at 0."""

import dataclasses
import hashlib
import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns
from data_prep.dataset import Dataset, open_dataset
from data_prep.records import SPLITS
from data_prep.report_facts import collect_facts, open_columns
from data_prep.report_settings import ReportConfig
from data_prep.report_summary import summary
from data_prep.settings import FilterConfig
from data_prep.shown_rows import ShownRows
from data_prep.work import NOT_IN_RESULT, source_fingerprint

if TYPE_CHECKING:
    from conftest import SmallWorld

NAN = float("nan")
KEYS = ["time", "place", "price", "device"]


def sorted_rows(seed: int) -> pa.Table:
    """Rows of few values, nan, missing ones and lists among them."""
    rng = np.random.default_rng(seed)

    def drawn(values: list[object]) -> list[object]:
        return [values[one] for one in rng.integers(len(values), size=300)]

    table = pa.table(
        {
            "time": pa.array(drawn([1, 2, 3, 4, 5])),
            "place": pa.array(drawn([0, 1, None]), pa.int32()),
            "price": pa.array(drawn([1.5, NAN, None, 0.0])),
            "device": pa.array(drawn(["a", None])),
        }
    )
    table = table.sort_by([(name, "ascending") for name in KEYS])
    lists = [[["x"], ["x"], ["x", "y"], None][row % 4] for row in range(300)]
    return table.append_column("tags", pa.array(lists, pa.list_(pa.string())))


@pytest.mark.parametrize("rows_a_table", [1, 7, 1000])
@pytest.mark.parametrize("has_lists", [True, False])
def test_repeated_rows_are_those_of_the_slow_twin(rows_a_table: int, has_lists: bool) -> None:
    table = sorted_rows(0) if has_lists else sorted_rows(0).drop_columns("tags")
    tables = [table.slice(start, rows_a_table) for start in range(0, 300, rows_a_table)]
    tables.insert(1, table.slice(0, 0))
    told = [str(row) for row in table.to_pylist()]  # nan is nan in words
    expected = [told[0], *(b for a, b in pairwise(told) if a != b)]
    assert 1 < len(expected) < 300
    for duplicates, kept in (("keep_exact_once", expected), ("keep_all", told)):
        shown = ShownRows(duplicates)
        found = [str(row) for one in shown.count(tables) for row in one.to_pylist()]
        assert found == kept
        assert (shown.usable, shown.repeated) == (300, 300 - len(expected))


def write(small: "SmallWorld", *, first_place: int = 0) -> ImpressionColumns:
    """Forty impressions, of which three are there again; and one more that differs in a feature."""
    shown = pa.table(small.interactions | {"label": [1, 0] * 20})
    shown = shown.append_column("place", [[first_place + row % 3 for row in range(40)]])
    shown = shown.append_column("device", [["a", None] * 20])
    other = shown.slice(9, 1).set_column(5, "device", [["b"]])
    table = pa.concat_tables([shown.slice(38), shown, shown.slice(0, 1), other])
    pq.write_table(table, small.dir / "shown.parquet")
    return ImpressionColumns(
        path=str(small.dir / "shown.parquet"),
        time_unit="s",
        position="place",
        features={"device": "categorical"},
    )


def num_shown(dataset: Dataset) -> int:
    return sum(dataset.impressions(split).num_rows for split in SPLITS)


def sentences(folder: Path) -> str:
    return " ".join(summary(collect_facts(open_columns(folder), ReportConfig(dataset_dir=folder))))


def test_repeated_impressions_stay_and_are_counted(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = small.shard(impressions=write(small))
    dataset = open_dataset(folder)
    assert num_shown(dataset) == 44
    assert dataset.manifest.counts["duplicate_impressions"] == 3
    assert "3 of 44 rows repeat another in every column that is used, and stay" in caplog.text
    said = "3 impressions repeat another in every column that is used, and are kept."
    assert said in sentences(folder)


def test_repeated_impressions_are_dropped_on_request(small: "SmallWorld") -> None:
    columns = write(small)
    folder = small.shard(
        impressions=columns, filter=FilterConfig(impression_duplicates="keep_exact_once")
    )
    dataset = open_dataset(folder)
    assert num_shown(dataset) == 41
    assert dataset.manifest.counts["duplicate_impressions"] == 3
    step = dataset.manifest.filters[-1]
    assert (step.step, step.rows_in, step.rows_out) == (
        "impressions: duplicates (keep_exact_once)",
        44,
        41,
    )
    assert "and were left out." in sentences(folder)


def test_by_default_the_fingerprint_is_that_of_datasets_of_before(small: "SmallWorld") -> None:
    small.write()
    config = small.config()
    settings = dataclasses.asdict(config)
    del settings["filter"]["impression_duplicates"]
    states = []
    for name in ("interactions", "items"):
        state = (small.dir / f"{name}.parquet").stat()
        states.append([name, f"{name}.parquet", state.st_size, state.st_mtime_ns])
        del settings[name]["path"]
    settings = {name: settings[name] for name in settings.keys() - {*NOT_IN_RESULT, "privacy"}}
    text = json.dumps([settings, states], sort_keys=True)
    assert source_fingerprint(config) == hashlib.sha256(text.encode()).hexdigest()
    dropped = FilterConfig(impression_duplicates="keep_exact_once")
    assert source_fingerprint(small.config(filter=dropped)) != source_fingerprint(config)


@pytest.mark.parametrize(("first_place", "is_warned"), [(0, False), (1, True), (2, True)])
def test_places_that_do_not_begin_at_0_are_warned_of(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture, first_place: int, is_warned: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(small.shard(impressions=write(small, first_place=first_place)))
    found = f"places of column 'place' begin at {first_place} and stay as they are"
    assert (found in caplog.text) == is_warned
    places = [dataset.impressions(split)["position"].to_pylist() for split in SPLITS]
    assert min(min(one) for one in places) == first_place
