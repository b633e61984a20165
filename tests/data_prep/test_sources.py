"""Where raw tables may lie and how they may be written."""

import csv
import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns, UserColumns
from data_prep.dataset import open_dataset
from data_prep.raw_files import find_files
from data_prep.records import FeatureType
from data_prep.work import source_fingerprint

if TYPE_CHECKING:
    from conftest import SmallWorld


START_S = 1_735_689_600  # 2025-01-01


def write_csv(table: pa.Table, path: Path, *, sep: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=sep)
        writer.writerow(table.column_names)
        writer.writerows([row.values() for row in table.to_pylist()])


def write_lines(table: pa.Table, path: Path) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("log.tsv", lambda table, path: write_csv(table, path, sep="\t")),
        ("log.csv", lambda table, path: write_csv(table, path, sep=";")),
        ("log.jsonl.gz", write_lines),
        ("log.json", lambda table, path: path.write_text(json.dumps(table.to_pylist()))),
    ],
)
def test_text_files_give_the_events_of_parquet(
    small: "SmallWorld", tmp_path: Path, name: str, write: Callable[[pa.Table, Path], None]
) -> None:
    first = open_dataset(small.shard()).events()
    write(pa.table(small.interactions), tmp_path / name)
    columns = dataclasses.replace(small.config().interactions, path=str(tmp_path / name))
    folder = small.shard(interactions=columns, dataset_dir=str(tmp_path / "text"))
    log = open_dataset(folder).events()
    assert log.times.tolist() == first.times.tolist()
    assert log.item_rows.tolist() == first.item_rows.tolist()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("part.parquet", pq.write_table),
        ("part.csv", lambda table, path: write_csv(table, path, sep=",")),
        ("part.jsonl.gz", write_lines),
    ],
)
def test_a_partitioned_folder_gives_its_names_as_columns(
    small: "SmallWorld", tmp_path: Path, name: str, write: Callable[[pa.Table, Path], None]
) -> None:
    expected = open_dataset(small.shard()).events()
    table = pa.table(small.interactions)
    for user in (10, 20, 30, 40):
        part = tmp_path / f"log/user={user}/_temporary"
        part.mkdir(parents=True)
        (part / "half.parquet").write_text("left by a writer that died")
        rows = [row for row in table.to_pylist() if row["user_id"] == user]
        kept = pa.Table.from_pylist(rows).drop_columns("user_id")
        write(kept, part.parent / name)
    columns = InteractionColumns(path=str(tmp_path / "log"), user="user", time_unit="s")
    config = {"interactions": columns, "dataset_dir": str(tmp_path / "hive")}
    dataset = open_dataset(small.shard(**config))
    assert dataset.users["user_id"].to_pylist() == [10, 20, 30, 40]
    assert dataset.events().item_rows.tolist() == expected.item_rows.tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found a folder without files, expected items; correct items.path"),
        (["_SUCCESS"], "found a folder without files"),
        (["a.csv", "b.parquet"], "found the suffix 'csv' and 'parquet', expected one of parquet"),
        (["a.xlsx"], "found the suffix 'xlsx', expected one of parquet, csv"),
        (["a=1/x.csv", "b=1/x.csv"], r"b=1/x.csv: found the partition columns \['b'\]"),
    ],
)
def test_a_folder_of_mixed_or_no_files_is_an_error(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_files(str(tmp_path), setting="items").partitions()


def test_a_log_whose_users_are_mostly_unknown_is_no_error(small: "SmallWorld") -> None:
    small.interactions["user_id"][9:] = [None] * 31
    small.interactions["timestamp"][:9] = [START_S + day * 86_400 + 1 for day in range(1, 10)]
    manifest = open_dataset(small.shard()).manifest
    assert manifest.quarantine == {"interactions/null_id": 31}


def csv_log(small: "SmallWorld", folder: Path, *, second: list[str]) -> InteractionColumns:
    """The log in two files, of which the second has its columns in another order, or others."""
    folder.mkdir()
    table = pa.table(small.interactions)
    write_csv(table.slice(0, 20), folder / "a.csv", sep=",")
    rest = table.slice(20).append_column("device", [["7"] * 20])
    write_csv(rest.select(second), folder / "b.csv", sep=",")
    return InteractionColumns(path=str(folder), time_unit="s")


@pytest.mark.parametrize(
    "second",
    [["item_id", "user_id", "timestamp"], ["user_id", "device", "item_id", "timestamp"]],
)
def test_columns_of_csv_files_go_by_name(
    small: "SmallWorld", tmp_path: Path, second: list[str]
) -> None:
    # Ids that both columns may hold, so that a swap would find known items.
    small.interactions["user_id"] = [user // 10 + 99 for user in small.interactions["user_id"]]
    expected = open_dataset(small.shard())
    columns = csv_log(small, tmp_path / "log", second=second)
    found = open_dataset(small.shard(interactions=columns, dataset_dir=str(tmp_path / "two")))
    assert found.users["user_id"].to_pylist() == expected.users["user_id"].to_pylist()
    assert found.events().item_rows.tolist() == expected.events().item_rows.tolist()
    assert found.events().times.tolist() == expected.events().times.tolist()


def test_a_csv_file_without_a_column_of_the_first_is_named(
    small: "SmallWorld", tmp_path: Path
) -> None:
    columns = csv_log(small, tmp_path / "log", second=["user_id", "timestamp"])
    with pytest.raises(ValueError, match=r"b\.csv: found no column 'item_id' \(columns: user_id, "):
        small.shard(interactions=columns)


def test_a_csv_file_with_a_row_too_long_is_named(small: "SmallWorld", tmp_path: Path) -> None:
    columns = csv_log(small, tmp_path / "log", second=["user_id", "item_id", "timestamp"])
    rows = (tmp_path / "log/b.csv").read_text() + "10,100,1735689600\n" * 30_000
    (tmp_path / "log/b.csv").write_text(rows + "10,100,1735689600,7\n")
    message = r"could not finish \(\S*b\.csv: .*on Line: 30022: Expected .* Columns: 3 Found: 4"
    with pytest.raises(ValueError, match=message):
        small.shard(interactions=columns)


@pytest.mark.parametrize(("sep", "files"), [(",", 1), (";", 1), (",", 2), ("\t", 1)])
def test_a_row_too_short_is_named_by_its_line(
    small: "SmallWorld", tmp_path: Path, sep: str, files: int
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    kind = "tsv" if sep == "\t" else "csv"
    for number in range(files):
        write_csv(pa.table(small.interactions), folder / f"{number}.{kind}", sep=sep)
    lines = (folder / f"0.{kind}").read_text().splitlines()
    lines[17] = lines[17].rpartition(sep)[0]
    (folder / f"0.{kind}").write_text("\n".join(lines))
    columns = InteractionColumns(path=str(folder), time_unit="s")
    where = "" if files == 1 else r".*0\.csv: "
    with pytest.raises(
        ValueError, match=rf"read as {kind} \({where}line 18 has 2 cells, expected 3"
    ):
        small.shard(interactions=columns)


def test_a_log_of_a_header_alone_has_no_rows(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "shown.csv").write_text("user_id,item_id,timestamp,label\n")
    shown = ImpressionColumns(path=str(tmp_path / "shown.csv"), time_unit="s")
    with pytest.raises(ValueError, match=r"shown\.csv: found no rows, expected impressions"):
        small.shard(impressions=shown)


TAGS = [["red", "new"], [], None, ['a "b", ü', "a"], [None, "x"], ["1", "2.5"]]


def tagged(small: "SmallWorld", tmp_path: Path) -> dict[str, Any]:
    """Items, users and impressions with lists, as settings whose `{}` is a suffix."""
    small.items |= {"tags": TAGS}
    small.write()
    table = pa.table({name: small.items[name] for name in ("item_id", "title", "tags")})
    users = pa.table({"user_id": [10, 20, 30], "groups": TAGS[:3]})
    tags = [TAGS[row % 6] for row in range(40)]
    shown = pa.table(small.interactions | {"label": [1, 0] * 20, "tags": tags})
    for name, one in (("items", table), ("users", users), ("shown", shown)):
        pq.write_table(one, tmp_path / f"{name}.parquet")
        rows = one.to_pylist()
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for row in rows:
            for column in ("tags", "groups"):
                if row.get(column) is not None:
                    row[column] = json.dumps(row[column], ensure_ascii=row.get("item_id") is None)
        write_csv(pa.Table.from_pylist(rows), tmp_path / f"{name}.csv", sep=",")
    multi: dict[str, FeatureType] = {"tags": "multi"}
    return {
        "items": ItemColumns(path=f"{tmp_path}/items.{{}}", texts=["title"], features=multi),
        "users": UserColumns(path=f"{tmp_path}/users.{{}}", features={"groups": "multi"}),
        "impressions": ImpressionColumns(
            path=f"{tmp_path}/shown.{{}}", time_unit="s", features=multi
        ),
    }


def test_lists_as_json_in_csv_give_the_bytes_of_lists(small: "SmallWorld", tmp_path: Path) -> None:
    settings = tagged(small, tmp_path)
    files = []
    for suffix in ("parquet", "jsonl", "csv"):
        here = {k: dataclasses.replace(v, path=v.path.format(suffix)) for k, v in settings.items()}
        dataset = open_dataset(small.shard(dataset_dir=str(tmp_path / f"d-{suffix}"), **here))
        files.append({file.path: file.xxh128 for file in dataset.manifest.files})
        tags = dict(zip(dataset.items["item_id"].to_pylist(), dataset.items["tags"], strict=True))
        assert [tags[105 - place].as_py() for place in range(6)] == TAGS
        assert dataset.users["groups"].to_pylist() == [*TAGS[:3], None]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("text", ["red|new", '{"a": 1}', '["a"', '[["a"]]', "['a']", "[NaN]"])
@pytest.mark.parametrize("line", [3, 1500])
def test_text_that_is_no_list_is_named_by_its_line(
    small: "SmallWorld", tmp_path: Path, text: str, line: int
) -> None:
    rows = [[str(100 + row), "a\nb" if row == 0 else "x", '["a"]'] for row in range(2000)]
    rows[line - 3 if line > 2 else 0][2] = text  # the first row has two lines
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["item_id", "title", "tags"], *rows])
    items = ItemColumns(path=str(tmp_path / "items.csv"), features={"tags": "multi"})
    found = re.escape(repr(text))
    place = line if line > 3 else 2
    message = rf"items\.csv: column 'tags': line {place} has {found}, expected a JSON list"
    with pytest.raises(ValueError, match=message):
        small.shard(items=items)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_word_in_a_numeric_feature_is_named_by_its_line(
    small: "SmallWorld", tmp_path: Path, kind: str
) -> None:
    ages = ["31", "", "n/a", "4e1"]
    table = pa.table({"user_id": [10, 20, 30, 40], "age": ages})
    if kind == "csv":
        write_csv(table, tmp_path / "users.csv", sep=",")
    else:
        rows = [row | ({} if row["age"] else {"age": None}) for row in table.to_pylist()]
        (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    users = UserColumns(path=str(tmp_path / f"users.{kind}"), features={"age": "numeric"})
    line = 4 if kind == "csv" else 3
    message = (
        rf"'age' holds string, expected something numeric for users.features, but line {line} has "
        r"'n/a'; correct the cells that hold no number, or empty them, or choose categorical"
    )
    with pytest.raises(ValueError, match=message):
        small.shard(users=users)


def test_the_zone_of_a_time_of_text_counts(small: "SmallWorld") -> None:
    stamps = pa.array(small.interactions["timestamp"], pa.timestamp("s"))
    columns = dataclasses.replace(small.config().interactions, time_unit="auto")
    small.interactions["timestamp"] = [f"{t.as_py().isoformat()}.5+02:00" for t in stamps]
    times = open_dataset(small.shard(interactions=columns)).events().times.tolist()
    assert times == sorted(times[:10]) + times[10:]
    assert min(times) == (1_735_689_600 - 7200) * 1000 + 500


def test_nan_is_no_weight_though_statistics_leave_it_out(small: "SmallWorld") -> None:
    small.interactions["amount"] = [float(i % 7) for i in range(39)] + [float("nan")]
    small.interactions["rating"] = [float("nan")] + [float(i % 2) for i in range(39)]
    columns = dataclasses.replace(
        small.config().interactions, weight="amount", label="rating", positive_from=0.5
    )
    manifest = open_dataset(small.shard(interactions=columns)).manifest
    assert manifest.quarantine == {
        "interactions/not_a_label": 1,
        "interactions/not_a_weight": 1,
    }


def test_the_fingerprint_is_of_what_decides_the_result(small: "SmallWorld", tmp_path: Path) -> None:
    small.shard()
    config = small.config()
    same = small.config(memory_limit="1GB", duckdb_threads=1, engine="spark", spark_conf={"a": "b"})
    assert source_fingerprint(same) == source_fingerprint(config)
    assert source_fingerprint(small.config(items_per_shard=5)) != source_fingerprint(config)
    before = source_fingerprint(config)
    small.add(10, 100, 1_735_689_601)
    pq.write_table(pa.table(small.interactions), tmp_path / "interactions.parquet")
    assert source_fingerprint(config) != before
