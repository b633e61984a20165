"""Columns that set more rows aside than a run accepts."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.columns import ImpressionColumns
from data_prep.dataset import open_dataset
from data_prep.settings import RunConfig, ShardConfig
from data_prep.shard import shard_dataset

if TYPE_CHECKING:
    from conftest import SmallWorld

ROOT = Path(__file__).parents[2]
ROWS = 1000


def config(small: "SmallWorld", **bad: list[Any]) -> ShardConfig:
    """The world with 1,000 impressions, of which the first have these values."""
    rows = range(ROWS)
    shown: dict[str, list[Any]] = {
        name: [values[row % 40] for row in rows] for name, values in small.interactions.items()
    }
    shown |= {"click": [row % 2 for row in rows], "order": [0.0] * ROWS, "like": [1] * ROWS}
    for name, values in bad.items():
        shown[name] = values + shown[name][len(values) :]
    small.write()
    pq.write_table(pa.table(shown), small.dir / "shown.parquet")
    columns = ImpressionColumns(
        path=str(small.dir / "shown.parquet"), time_unit="s", label="click",
        labels={"like": "binary"}, position="order",
    )  # fmt: skip
    return small.config(impressions=columns)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("like", [3, None] * 10, r"'like': 20 of 1,000 rows \(2.0%\) hold 3, nothing, expected "
         r"0 or 1 in all but a share of 0.01; correct impressions.labels, or .* --max_bad_value"),
        ("order", [9.5, 12.25] * 10, r"'order': 20 .* hold 12.25, 9.5, expected whole numbers from "
         r"0 to 1,000,000 in .* correct impressions.position"),
        ("click", [2] * 20, r"'click': 20 .* hold 2, expected 0 or 1 .* correct impressions.label "
         "or positive_from"),
    ],
)  # fmt: skip
def test_a_column_with_too_many_bad_values_is_an_error_that_keeps_the_tables(
    small: "SmallWorld",
    caplog: pytest.LogCaptureFixture,
    column: str,
    values: list[Any],
    message: str,
) -> None:
    settings = config(small, **{column: values})
    for run in (RunConfig(), RunConfig(stage="tables")):
        with pytest.raises(ValueError, match=message):
            shard_dataset(settings, run)
    with caplog.at_level(logging.INFO):
        manifest = shard_dataset(settings, RunConfig(max_bad_value_share=0.02))
    assert "tables: kept" in caplog.text
    assert manifest is not None
    assert sum(manifest.quarantine.values()) == 20


def test_the_last_stage_refuses_what_the_first_did(small: "SmallWorld") -> None:
    settings = config(small, like=[3] * 20)
    shard_dataset(settings, RunConfig(stage="tables", max_bad_value_share=1))
    shard_dataset(settings, RunConfig(stage="content"))
    with pytest.raises(ValueError, match=r"'like': 20 of 1,000"):
        shard_dataset(settings, RunConfig(stage="manifest"))
    assert shard_dataset(settings, RunConfig(stage="manifest", max_bad_value_share=1)) is not None


@pytest.mark.parametrize("count", [9, 10])
def test_a_share_that_is_accepted_or_a_few_rows_are_warned_of(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture, count: int
) -> None:
    settings = config(small, like=[3] * count)
    with caplog.at_level(logging.WARNING):
        folder = Path(settings.dataset_dir)
        shard_dataset(settings, RunConfig(max_bad_value_share=0 if count == 9 else 0.01))
    said = f"impressions/not_a_label_like: {count} of 1,000 rows, {count / 10:.2g} %"
    assert said in caplog.text
    assert open_dataset(folder).manifest.quarantine == {"impressions/not_a_label_like": count}


def test_labels_and_weights_of_the_interactions_are_judged_too(small: "SmallWorld") -> None:
    small.interactions["rating"] = [2.0] * 10 + [1.0] * 30
    small.interactions["amount"] = [1.0] * 30 + [-1.0] * 10
    log = dataclasses.replace(small.config().interactions, label="rating", weight="amount")
    with pytest.raises(ValueError, match=r"'rating': 10 of 40 .* hold 2(.0)?, expected 0 or 1"):
        small.shard(interactions=log)
    rated = dataclasses.replace(log, positive_from=2.0)
    with pytest.raises(ValueError, match=r"'amount': 10 of 40 .* expected numbers of 0 or more"):
        small.shard(interactions=rated)


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_outside_0_to_1_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "shard",
        "--config",
        str(ROOT / "configs/toy/shard.yaml"),
        "--max_bad_value_share",
        share,
    ]
    assert main(arguments) == 2
    assert "max_bad_value_share: found" in capsys.readouterr().err
