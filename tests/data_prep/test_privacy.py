"""Forgotten users are in no file; hashed ids lead back to nobody without the key."""

import csv
import dataclasses
import json
import logging
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns, InteractionColumns, UserColumns
from data_prep.dataset import Dataset, open_dataset
from data_prep.privacy import hash_ids, key_fingerprint
from data_prep.privacy_settings import PrivacyConfig
from data_prep.settings import ShardConfig
from data_prep.shard import shard_dataset
from data_prep.work import source_fingerprint

if TYPE_CHECKING:
    from conftest import SmallWorld

KEY = "0123456789abcdef-a-secret-key"
BOTH = PrivacyConfig(hash_ids=["user", "item"])


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("TRIPTYCH_ID_KEY", KEY)
    return KEY.encode()


def events_by_user(dataset: Dataset) -> dict[object, list[tuple[object, int]]]:
    """User id → (item id, time) of each event, whatever the rows are numbered by."""
    log, items = dataset.events(), dataset.items["item_id"].to_pylist()
    users = dataset.users["user_id"].to_pylist()
    return {
        users[user]: sorted(
            (items[row], int(time))
            for row, time in zip(log.item_rows[begin:end], log.times[begin:end], strict=True)
        )
        for user, (begin, end) in enumerate(zip(log.offsets, log.offsets[1:], strict=False))
    }


def whole_folder(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def with_impressions(small: "SmallWorld", **features: list[object]) -> ImpressionColumns:
    """The log's own rows as impressions, every second one clicked."""
    table = small.interactions | {
        "label": [n % 2 for n in range(len(small.interactions["user_id"]))]
    }
    pq.write_table(pa.table(table), small.dir / "impressions.parquet")
    return ImpressionColumns(path=str(small.dir / "impressions.parquet"), time_unit="s")


def test_hashed_ids_are_the_same_data_under_other_names(small: "SmallWorld", key: bytes) -> None:
    impressions = with_impressions(small)
    plain = open_dataset(small.shard(impressions=impressions))
    folder = small.dir / "hashed"
    hashed = open_dataset(
        small.shard(impressions=impressions, privacy=BOTH, dataset_dir=str(folder))
    )

    def user(one: object) -> str:
        return hash_ids([one], kind="user", key=key)[0]  # type: ignore[list-item]

    def item(one: object) -> str:
        return hash_ids([one], kind="item", key=key)[0]  # type: ignore[list-item]

    expected = {
        user(one): sorted((item(row), time) for row, time in events)
        for one, events in events_by_user(plain).items()
    }
    assert events_by_user(hashed) == expected
    # In the order of the hashes: that of the ids would give them away.
    assert hashed.users["user_id"].to_pylist() == sorted(expected)
    row = hashed.items["item_id"].to_pylist().index(item(104))
    assert hashed.content().read(row).texts == {"title": "four"}
    clicks = [set(one.impressions("test").column("label").to_pylist()) for one in (plain, hashed)]
    assert clicks[0] == clicks[1]
    assert hashed.impressions("test").num_rows == plain.impressions("test").num_rows > 0
    about = json.loads((folder / "manifest.json").read_text())["privacy"]
    assert about == {"hashed_ids": ["item", "user"], "key_fingerprint": key_fingerprint(key)}
    assert KEY.encode() not in whole_folder(folder)


def test_numbers_in_text_hash_as_numbers_and_kinds_hash_apart(key: bytes) -> None:
    assert hash_ids([7, "7"], kind="user", key=key) == [hash_ids([7], kind="user", key=key)[0]] * 2
    assert hash_ids([7], kind="user", key=key) != hash_ids([7], kind="item", key=key)
    assert hash_ids([7], kind="user", key=key) != hash_ids([7], kind="user", key=key + b"2")


def test_the_hash_is_the_hmac_that_openssl_makes(key: bytes) -> None:
    """So that another program can find an id."""
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"key:{KEY}"]
    done = subprocess.run(command, input=b"user:40", capture_output=True, check=True)
    digest = done.stdout.decode().split()[-1]
    assert hash_ids([40], kind="user", key=key) == [digest[:32]]


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_forgotten_users_are_in_no_table_and_counted(
    small: "SmallWorld", key: bytes, kind: str, *, hashed: bool
) -> None:
    """30 has events and impressions; 77 is known to the users' table alone; 99 to nobody."""
    path = small.dir / f"forget.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"user_id": [30, 99, 77, 30]}), path)
    else:
        path.write_text("user_id\n" * (kind == "csv") + "30\n99\r\n\n0077\n30\nno number")
    small.add(30, 999, 1_735_689_600)  # would be set aside: its item is unknown
    small.add(30, 100, -5)
    users = {"user_id": [40, 10, 30, 77], "age": ["a", "b", "secret", "d"]}
    pq.write_table(pa.table(users), small.dir / "users.parquet")
    folder = small.shard(
        impressions=with_impressions(small),
        users=UserColumns(path=str(small.dir / "users.parquet"), features={"age": "categorical"}),
        privacy=PrivacyConfig(forget=str(path), hash_ids=["user"] if hashed else []),
    )
    dataset = open_dataset(folder)
    names = [40, 10, 20]
    expected = hash_ids(names, kind="user", key=key) if hashed else names
    assert set(dataset.users["user_id"].to_pylist()) == set(expected)
    assert dataset.num_users == 3
    assert len(dataset.events().times) == 30
    assert sum(dataset.impressions(split).num_rows for split in ("train", "valid", "test")) == 30
    assert b"secret" not in whole_folder(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quarantine"] == {}
    forget = manifest["privacy"]["forget"]
    found = {"interactions": 1, "impressions": 1, "users": 2}
    listed = 3 if kind == "parquet" else 4
    assert (forget["ids"], forget["users_found"]) == (listed, found)
    assert len(forget["sha256"]) == 64
    steps = {one["step"]: one for one in manifest["filters"]}
    assert steps["interactions: users to forget"]["rows_in"] == 42
    assert steps["interactions: users to forget"]["rows_out"] == 30
    assert steps["users: users to forget"]["rows_out"] == 2


def test_ids_of_text_are_forgotten_as_they_are(small: "SmallWorld") -> None:
    log = small.interactions
    log["user_id"] = [f"0{user}" for user in log["user_id"]]
    path = small.dir / "forget.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=",").writerows([["x", "who"], ["1", "030"], ["2", "40"]])
    privacy = PrivacyConfig(forget=str(path), forget_column="who")
    dataset = open_dataset(small.shard(privacy=privacy))
    assert dataset.users["user_id"].to_pylist() == ["010", "020", "040"]


def test_text_files_are_hashed_and_forgotten_from_as_parquet(
    small: "SmallWorld", key: bytes
) -> None:
    (small.dir / "forget.txt").write_text("30\n")
    privacy = dataclasses.replace(BOTH, forget=str(small.dir / "forget.txt"))
    first = events_by_user(open_dataset(small.shard(privacy=privacy)))
    table = pa.table(small.interactions)
    with (small.dir / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        writer.writerows([row.values() for row in table.to_pylist()])
    columns = InteractionColumns(path=str(small.dir / "log.csv"), time_unit="s")
    second = small.shard(
        interactions=columns, privacy=privacy, dataset_dir=str(small.dir / "of_text")
    )
    assert events_by_user(open_dataset(second)) == first
    assert len(first) == 3


def test_rows_set_aside_show_hashes(small: "SmallWorld", key: bytes) -> None:
    small.add(4711, 999, 1_735_689_600)
    folder = small.shard(privacy=BOTH)
    samples = pq.read_table(folder / "quarantine" / "interactions.parquet").to_pylist()
    (unknown,) = [row for row in samples if row["cause"] == "unknown_item"]
    assert unknown["user_id"] == hash_ids([4711], kind="user", key=key)[0]
    assert unknown["item_id"] == hash_ids([999], kind="item", key=key)[0]


def test_raw_ids_do_not_stay_in_the_work_folder(small: "SmallWorld", key: bytes) -> None:
    from data_prep.settings import RunConfig

    small.interactions["user_id"] = [f"raw-{user}" for user in small.interactions["user_id"]]
    small.write()
    config = small.config(privacy=PrivacyConfig(hash_ids=["user"]))
    shard_dataset(config, RunConfig(keep_work=True))
    folder = Path(config.dataset_dir)
    assert (folder / ".work").is_dir()
    assert not (folder / ".work" / "ids").exists()
    tables = [pq.read_table(path) for path in folder.rglob("*.parquet")]
    assert not any("raw-" in str(table.to_pydict()) for table in tables)


def test_a_list_that_finds_nobody_is_warned_of(
    small: "SmallWorld", caplog: pytest.LogCaptureFixture
) -> None:
    (small.dir / "forget.txt").write_text("1\n2\n")
    with caplog.at_level(logging.WARNING):
        small.shard(privacy=PrivacyConfig(forget=str(small.dir / "forget.txt")))
    assert "found none of its 2 users in any table" in caplog.text


def test_another_key_or_list_is_another_dataset_and_no_privacy_is_as_before(
    small: "SmallWorld", monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write()
    (small.dir / "forget.txt").write_text("30\n")
    forget = str(small.dir / "forget.txt")
    monkeypatch.setenv("TRIPTYCH_ID_KEY", KEY)
    monkeypatch.setenv("OTHER", KEY + "2")

    def made(**privacy: object) -> str:
        config: ShardConfig = small.config(privacy=PrivacyConfig(**privacy))  # type: ignore[arg-type]
        return source_fingerprint(config)

    assert made() == source_fingerprint(small.config())
    found = {made(), made(forget=forget), made(hash_ids=["user"]), made(hash_ids=["item"])}
    found.add(made(hash_ids=["user"], key_variable="OTHER"))
    assert len(found) == 5
    (small.dir / "key").write_text(KEY + "\n")
    same = made(hash_ids=["user"], key_file=str(small.dir / "key"))
    assert same == made(hash_ids=["user"])  # wherever the key lies


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hash_ids": ["user"], "key_variable": "NOT_SET"}, "key of 0 bytes in NOT_SET"),
        ({"hash_ids": ["user"], "key_file": "missing.key"}, "correct privacy.key_file"),
        ({"hash_ids": ["user", "user"]}, "expected each kind once"),
        ({"forget": "missing.txt"}, "missing.txt"),
        ({"forget": "list.json"}, "expected .parquet"),
        ({"forget": "list.csv", "forget_column": "who"}, "found no column 'who'"),
        ({"forget": "list.parquet"}, "cannot be read as Parquet"),
    ],
)
def test_a_mistake_is_one_clear_error(
    small: "SmallWorld",
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    expected: str,
) -> None:
    monkeypatch.chdir(small.dir)
    Path("list.csv").write_text("user_id\n3\n")
    for name in ("list.json", "list.parquet"):
        Path(name).write_text("[]")
    with pytest.raises((ValueError, OSError), match=expected):
        small.shard(privacy=PrivacyConfig(**settings))  # type: ignore[arg-type]


def test_a_short_key_is_refused_and_not_shown(
    small: "SmallWorld", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_ID_KEY", "hunter2")
    with pytest.raises(ValueError, match="key of 7 bytes") as caught:
        small.shard(privacy=BOTH)
    assert "hunter2" not in str(caught.value)
