"""Columns of CSV and JSON, whose types are guessed from their first rows, and what comes later."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from data_prep.columns import ItemColumns, UserColumns
from data_prep.dataset import open_dataset
from data_prep.sources import ROWS_SNIFFED

if TYPE_CHECKING:
    from conftest import SmallWorld

LATE: list[tuple[object, str, str]] = [
    (10, "3.5", "A12"),
    (20, "n/a", " 2 "),
    (30, "", ""),
    (40, "7", "nan"),
]
"""User, age and plan behind rows of integers."""


def write_users(path: Path, *, late: list[tuple[object, str, str]]) -> UserColumns:
    early = [(1000 + row, row % 70, row % 3) for row in range(ROWS_SNIFFED)]
    if path.suffix == ".csv":
        text = "".join(f"{user},{age},{plan}\n" for user, age, plan in [*early, *late])
        path.write_text("user_id,age,plan\n" + text)
    else:
        lines = [dict(zip(("user_id", "age", "plan"), row, strict=True)) for row in [*early, *late]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return UserColumns(path=str(path), features={"age": "numeric", "plan": "categorical"})


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_what_comes_after_integers_is_read_as_what_it_is(
    small: "SmallWorld", tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    users = write_users(tmp_path / f"users.{suffix}", late=LATE)
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(small.shard(users=users))
    assert dataset.users["user_id"].to_pylist() == [10, 20, 30, 40]
    assert dataset.users["age"].to_pylist() == [3.5, None, None, 7.0]
    assert dataset.users["plan"].to_pylist() == ["A12", "2", None, "nan"]
    assert dataset.manifest.quarantine == {"users/age_not_a_number": 1}
    line = ROWS_SNIFFED + (3 if suffix == "csv" else 2)
    assert f"column 'age': line {line} has 'n/a', expected a number" in caplog.text
    assert "users/age_not_a_number: 1 of 20,484 rows" in caplog.text


def test_a_numeric_feature_of_words_behind_numbers_is_an_error(
    small: "SmallWorld", tmp_path: Path
) -> None:
    late = [(50_000 + row, "old", "1") for row in range(ROWS_SNIFFED + 1)]
    users = write_users(tmp_path / "users.csv", late=late)
    message = (
        r"users\.csv: column 'age': 20,481 of 40,961 values \(the first: line 20482 has 'old'\) "
        "are no numbers; correct users.features, or choose categorical"
    )
    with pytest.raises(ValueError, match=message):
        small.shard(users=users)


def test_half_a_star_behind_whole_ones_is_not_rounded(small: "SmallWorld", tmp_path: Path) -> None:
    second = small.interactions["timestamp"][0] + 1234
    names = ("user_id", "item_id", "timestamp")
    rows = list(zip(*(small.interactions[name] for name in names), [5] * 40, strict=True)) * 512
    rows += [(10, 100, second, 3.5), (20, 101, second, 4.5), (30, 102.5, second, 5)]
    text = "".join(f"{user},{item},{time},{stars}\n" for user, item, time, stars in rows)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,stars\n" + text)
    columns = small.config().interactions
    log = dataclasses.replace(
        columns, path=str(tmp_path / "log.csv"), label="stars", positive_from=4
    )
    dataset = open_dataset(small.shard(interactions=log))
    assert dataset.manifest.quarantine == {"interactions/null_id": 1}
    events = dataset.events()
    new = events.times == second * 1000
    assert sorted(events.labels[new].tolist()) == [0, 1]


def test_a_word_among_the_numbers_of_a_csv_is_set_aside(
    small: "SmallWorld", tmp_path: Path
) -> None:
    rows = "".join(
        f"{10 * (i % 4 + 1)},{100 + i % 6},{1735689600 + i * 21600}\n" for i in range(40)
    )
    lines = "user_id,item_id,timestamp\n" + rows * 600  # the types are guessed from 20,480 rows
    (tmp_path / "log.csv").write_text(lines + "ten,100,1735689600\n10,100,noon\n")
    columns = dataclasses.replace(small.config().interactions, path=str(tmp_path / "log.csv"))
    dataset = open_dataset(small.shard(interactions=columns))
    assert dataset.manifest.counts["events"] == 40
    assert dataset.manifest.quarantine == {"interactions/not_a_time": 1, "interactions/null_id": 1}


@pytest.mark.parametrize(("share", "is_refused"), [(1.1, True), (0.01, False)])
def test_ids_of_text_behind_ids_of_integers_are_an_error(
    small: "SmallWorld", tmp_path: Path, share: float, is_refused: bool
) -> None:
    numbers = range(100, 100 + ROWS_SNIFFED)
    words = [f"B{number}X" for number in range(int(ROWS_SNIFFED * share))]
    rows = "".join(f"{item},a title\n" for item in [*numbers, *words])
    (tmp_path / "items.csv").write_text("item_id,title\n" + rows)
    items = ItemColumns(path=str(tmp_path / "items.csv"), texts=["title"])
    if is_refused:
        message = r"items\.csv: column 'item_id': 22,528 of 43,008 values \(such as B0X, B10000X, "
        with pytest.raises(ValueError, match=message):
            small.shard(items=items)
        return
    folder = small.shard(items=items, items_per_shard=1 << 20)
    assert open_dataset(folder).manifest.quarantine == {"items/null_id": 204}
    samples = pq.read_table(folder / "quarantine/items.parquet").to_pylist()
    assert samples[0] == {"cause": "null_id", "item_id": "B0X", "text_title": "a title"}


def test_user_ids_of_text_behind_ids_of_integers_are_an_error(
    small: "SmallWorld", tmp_path: Path
) -> None:
    rows = [f"{10 + i % 4},{100 + i % 6},{1_735_689_600 + i * 60}\n" for i in range(ROWS_SNIFFED)]
    text = "".join([*rows, *(f"u{row}" for row in rows), "u1,100,1\n"])
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + text)
    log = dataclasses.replace(small.config().interactions, path=str(tmp_path / "log.csv"))
    with pytest.raises(ValueError, match=r"'user_id': 20,481 of 40,961 values \(such as u1, u10, "):
        small.shard(interactions=log)
    numbers, words = range(ROWS_SNIFFED), [f"u{user}" for user in range(ROWS_SNIFFED + 1)]
    ids = "\n".join(map(str, [*numbers, *words]))
    (tmp_path / "users.csv").write_text(f"user_id\n{ids}\n")
    users = UserColumns(path=str(tmp_path / "users.csv"))
    with pytest.raises(ValueError, match=r"users\.csv: column 'user_id': 20,481 of 40,961 values"):
        small.shard(users=users, dataset_dir=str(tmp_path / "second"))
