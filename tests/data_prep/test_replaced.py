"""A dataset folder that is made anew says what makes way, and why."""

import dataclasses
import json
import logging
import re
from typing import TYPE_CHECKING

import pytest

from data_prep.dataset import open_dataset
from data_prep.settings import FilterConfig, RunConfig
from data_prep.shard import shard_dataset

if TYPE_CHECKING:
    from conftest import SmallWorld

MADE = r"replaces the dataset 'small' \(made 20\d\d-\d\d-\d\d \d\d:\d\d UTC, fingerprint "


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "replaces" in record.getMessage()]
    caplog.clear()
    return found


def test_other_settings_and_other_tables_are_named(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = small.shard()
        shard_dataset(small.config())
        assert lines(caplog) == []
        was = open_dataset(folder).manifest.source_fingerprint[:12]
        items = dataclasses.replace(small.config().items, texts=[])
        filters = FilterConfig(min_item_events=1)
        shard_dataset(small.config(items=items, filter=filters))
        (line,) = lines(caplog)
        assert re.search(MADE + was, line)
        assert line.endswith(
            'as settings differ: items.texts ["title"] → [], filter.min_item_events 0 → 1'
        )
        small.add(10, 100, 1_735_689_601)
        small.write()
        shard_dataset(small.config(items=items, filter=filters))
        (line,) = lines(caplog)
        assert line.endswith("as raw files have changed since (size, time or name)")


def test_a_key_that_the_dataset_of_before_lacks_is_no_difference(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    folder = small.shard()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["config"]["filter"]["impression_duplicates"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.INFO):
        shard_dataset(small.config())
        assert lines(caplog) == []  # its fingerprint is of before too
        shard_dataset(small.config(items_per_shard=3))
    (line,) = lines(caplog)
    assert line.endswith("as settings differ: items_per_shard 4 → 3")


def test_unfinished_tables_of_other_settings_are_named(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    small.write()
    shard_dataset(small.config(items_per_shard=3), RunConfig(stage="tables"))
    with caplog.at_level(logging.INFO):
        shard_dataset(small.config(), RunConfig(stage="tables"))
        (line,) = lines(caplog)
        shard_dataset(small.config())
        assert lines(caplog) == []
    assert "replaces unfinished tables" in line


def test_a_manifest_that_cannot_be_read_is_named(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    folder = small.shard()
    (folder / "manifest.json").write_text("{}")
    with caplog.at_level(logging.INFO):
        shard_dataset(small.config())
    (line,) = lines(caplog)
    assert "replaces a dataset that cannot be read" in line
