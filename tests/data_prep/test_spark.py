"""The relational step on Spark and on DuckDB: the same dataset, byte for byte.

Skipped without pyspark (`pip install triptych[spark]`) or Java, unless TRIPTYCH_SPARK=1 asks for
them, as `make test-slow` does: then Spark's own error says what is missing.
"""

import csv
import dataclasses
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns, UserColumns
from data_prep.manifest import Manifest
from data_prep.privacy_settings import PrivacyConfig
from data_prep.settings import FilterConfig, RunConfig, ShardConfig, SplitConfig
from data_prep.shard import shard_dataset
from data_prep.sources import ROWS_SNIFFED

if TYPE_CHECKING:
    from conftest import SmallWorld

if os.environ.get("TRIPTYCH_SPARK") != "1":
    pytest.importorskip("pyspark", reason="pip install triptych[spark]")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Java is not installed", allow_module_level=True)
pytestmark = pytest.mark.slow

CONF = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": "3",
}


def both(config: ShardConfig, tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Shard on each engine and compare every file."""
    manifests, files = [], []
    for engine in ("duckdb", "spark"):
        folder = tmp_path / engine
        conf = CONF if engine == "spark" else {}
        changed = dataclasses.replace(
            config, dataset_dir=str(folder), engine=engine, spark_conf=conf
        )
        manifest = shard_dataset(changed, RunConfig(max_bad_value_share=1))
        assert manifest is not None
        manifests.append(manifest)
        files.append(
            {
                str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        )
    assert files[0] == files[1]
    return manifests[0], manifests[1]


def test_spark_gives_the_toy_dataset_of_duckdb(toy_config: ShardConfig, tmp_path: Path) -> None:
    manifest, _ = both(toy_config, tmp_path)
    assert manifest.counts["events"] > 4000
    assert manifest.counts["impressions_test"] > 0


def test_spark_forgets_and_hashes_as_duckdb(
    small: "SmallWorld", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_ID_KEY", "0123456789abcdef")
    small.write()
    log = pa.table(small.interactions)
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(log.column_names)
        writer.writerows([row.values() for row in log.to_pylist()])
    (tmp_path / "forget.txt").write_text("030\n99\nno number\n")
    config = dataclasses.replace(
        small.config(),
        interactions=InteractionColumns(path=str(tmp_path / "log.csv"), time_unit="s"),
        privacy=PrivacyConfig(forget=str(tmp_path / "forget.txt"), hash_ids=["user", "item"]),
    )
    manifest, _ = both(config, tmp_path)
    assert manifest.counts["users"] == 3
    assert manifest.privacy["forget"]["users_found"] == {"interactions": 1}


def test_spark_filters_and_quarantines_as_duckdb(small: "SmallWorld", tmp_path: Path) -> None:
    """Repeated rows, a k-core, ids of text, ISO times, weights, quantiles and every bad row."""
    log = small.interactions
    log["user_id"] = [f"ü{user}" for user in log["user_id"]]
    log["item_id"] = [f"i{item}" for item in log["item_id"]]
    stamps = pa.array(log["timestamp"], pa.timestamp("s"))
    log["timestamp"] = [f"{t.as_py().isoformat()}.250+02:00" for t in stamps]
    small.items["item_id"] = [f"i{item}" for item in small.items["item_id"]]
    small.items["item_id"][0] = None
    small.items["since"] = ["2024-12-31", "2024-12-31", "soon", "2024-12-31T01:02:03", None, None]
    good = log["timestamp"][0]
    small.add("ü10", "i103", log["timestamp"][12])
    small.add("ü10", "i103", log["timestamp"][12])
    for user, item, time in [
        ("lonely", "i100", good),
        (None, "i100", good),
        ("ü10", None, good),
        ("ü10", "i100", "10:00"),
        ("ü10", "i100", None),
        ("ü10", "i100", "1969-12-31"),
        ("ü10", "i999", good),
    ]:
        small.add(user, item, time)
    rows = len(log["user_id"])
    log["amount"] = [float(i % 7) for i in range(rows)]
    log["amount"][5] = float("nan")
    log["rating"] = [float(i % 5) for i in range(rows)]
    small.shard(
        dataset_dir=str(tmp_path / "first"),
        interactions=InteractionColumns(path=str(tmp_path / "interactions.parquet")),
    )
    for duplicates in ("keep_exact_once", "keep_first", "keep_all"):
        config = small.config(
            interactions=InteractionColumns(
                path=str(tmp_path / "interactions.parquet"),
                weight="amount",
                label="rating",
                positive_from=2.0,
            ),
            items=dataclasses.replace(small.config().items, arrival="since"),
            filter=FilterConfig(duplicates=duplicates, min_user_events=2, min_item_events=2),
            split=SplitConfig(valid_quantile=0.5, test_quantile=0.8),
        )
        manifest, _ = both(config, tmp_path / duplicates)
    assert manifest.quarantine == {
        "interactions/not_a_time": 3,
        "interactions/not_a_weight": 1,
        "interactions/null_id": 2,
        "interactions/unknown_item": 6,
        "items/arrival_not_a_time": 1,
        "items/null_id": 1,
    }


Write = Callable[[pa.Table, Path], None]


def write_csv(table: pa.Table, path: Path, *, sep: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=sep)
        writer.writerow(table.column_names)
        writer.writerows([row.values() for row in table.to_pylist()])


def write_jsonl_gz(table: pa.Table, path: Path) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def test_spark_reads_text_files_and_partitions_as_duckdb(
    small: "SmallWorld", tmp_path: Path
) -> None:
    table = pa.table(small.interactions)
    for day, rows in (("01", table.slice(0, 20)), ("02", table.slice(20))):
        (tmp_path / f"log/day={day}/kind=a%20b").mkdir(parents=True)
        pq.write_table(rows, tmp_path / f"log/day={day}/kind=a%20b/part.parquet")
    (tmp_path / "log/_SUCCESS").touch()
    items: dict[str, Any] = {"item_id": [*range(100, 106), None]}
    items |= {"title": ['a "quoted", title', "two\nlines", None, "ümlaut", "", "x", "no id"]}
    items |= {"price": [1.5, None, 3.0, 1e-3, 2.0, 7.25, 1.0]}
    items |= {
        "tags": ['["a", "ü\\"b"]', "[]", None, "[1, 2.5, true, 1e3]", '["x"]', "[null]", "[]"]
    }
    write_csv(pa.table(items), tmp_path / "items.tsv", sep="\t")
    users = pa.table({"user_id": [10, 20], "tags": [["a", "b"], []], "age": [3, None]})
    write_jsonl_gz(users, tmp_path / "users.jsonl.gz")
    shown = table.append_column("label", [[1, 0] * 20]).append_column("seen", [["[1]", None] * 20])
    order = ["label", "seen", *table.column_names]
    write_csv(shown.slice(0, 20), tmp_path / "shown0.csv", sep=";")
    write_csv(shown.slice(20).select(order), tmp_path / "shown1.csv", sep=";")
    config = small.config(
        interactions=InteractionColumns(path=str(tmp_path / "log"), time_unit="s"),
        items=ItemColumns(
            path=str(tmp_path / "items.tsv"),
            texts=["title"],
            features={"price": "numeric", "tags": "multi"},
        ),
        users=UserColumns(
            path=str(tmp_path / "users.jsonl.gz"), features={"tags": "multi", "age": "numeric"}
        ),
        impressions=ImpressionColumns(
            path=str(tmp_path / "shown*.csv"), time_unit="s", features={"seen": "multi"}
        ),
    )
    manifest, _ = both(config, tmp_path / "out")
    tags = pq.read_table(tmp_path / "out/spark/items.parquet")["tags"].to_pylist()
    assert tags == [["a", 'ü"b'], [], None, ["1", "2.5", "true", "1000.0"], ["x"], [None]]
    assert manifest.counts["events"] == 40
    assert manifest.quarantine == {"items/null_id": 1}


def test_spark_types_outcomes_and_sets_bad_ones_aside_as_duckdb(
    small: "SmallWorld", tmp_path: Path
) -> None:
    shown = small.interactions | {
        "click": [1, 0] * 20,
        "like": [1, 0, 2, None] * 10,
        "seconds": [-0.0, 2.5, float("nan"), float("inf"), None, *(0.1 * n for n in range(35))],
        "place": [0.0, 1.5, -1.0, 3.0, 1e12, *(float(n % 7) for n in range(35))],
        "chance": [0.0, 1.5, -0.1, float("nan"), 1e-40, *((1 + n) / 36 for n in range(35))],
        "arm": [n % 2 for n in range(40)],
        "price": [float("nan"), None] * 20,
    }
    small.write()
    table = pa.table(shown)
    pq.write_table(pa.concat_tables([table.slice(36, 2), table]), tmp_path / "shown.parquet")
    columns = ImpressionColumns(
        path=str(tmp_path / "shown.parquet"), time_unit="s", label="click",
        labels={"like": "binary", "seconds": "numeric"},
        position="place", propensity="chance", treatment="arm", features={"price": "numeric"},
    )  # fmt: skip
    for duplicates in ("keep_all", "keep_exact_once"):
        config = small.config(
            impressions=columns, filter=FilterConfig(impression_duplicates=duplicates)
        )
        manifest, _ = both(config, tmp_path / duplicates)
        assert manifest.quarantine["impressions/not_a_label_like"] == 20
        assert sum(manifest.quarantine.values()) > 20
        assert manifest.counts["duplicate_impressions"] == 2


def test_spark_reads_what_comes_after_integers_as_duckdb(
    small: "SmallWorld", tmp_path: Path
) -> None:
    late = ["10,3.5,A12", "20,n/a, 2 ", "30,,", "40,1e1,3.50", "0x1F,7,nan", "50.5,7,1"]
    rows = [*(f"{1000 + row},{row % 70},{row % 3}" for row in range(ROWS_SNIFFED)), *late]
    (tmp_path / "users/year=26").mkdir(parents=True)
    (tmp_path / "users/year=26/part.csv").write_text("\n".join(["user_id,age,plan", *rows]))
    users = UserColumns(
        path=str(tmp_path / "users"),
        features={"age": "numeric", "plan": "categorical", "year": "numeric"},
    )
    small.write()
    manifest, _ = both(small.config(users=users), tmp_path)
    assert manifest.quarantine == {"users/age_not_a_number": 1}
