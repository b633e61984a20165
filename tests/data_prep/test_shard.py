import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from data_prep.dataset import open_dataset
from data_prep.manifest import Manifest
from data_prep.records import temporary_file
from data_prep.settings import FilterConfig, RunConfig, ShardConfig, SplitConfig
from data_prep.shard import shard_dataset
from data_prep.work import WorkFiles

if TYPE_CHECKING:
    from conftest import SmallWorld


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def in_parts(config: ShardConfig, *, num_parts: int, num_workers: int = 1) -> None:
    shard_dataset(config, RunConfig(stage="tables"))
    for part in reversed(range(num_parts)):
        run = RunConfig(stage="content", part=part, num_parts=num_parts, num_workers=num_workers)
        shard_dataset(config, run)
    shard_dataset(config, RunConfig(stage="manifest"))


def test_three_parts_and_two_workers_give_the_bytes_of_one(
    toy_dataset: Path, toy_config: ShardConfig, tmp_path: Path
) -> None:
    in_parts(dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "parts")), num_parts=3)
    run = RunConfig(num_workers=2)
    shard_dataset(dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "workers")), run)
    assert digests(tmp_path / "parts") == digests(toy_dataset)
    assert digests(tmp_path / "workers") == digests(toy_dataset)


def test_plain_webdataset_and_tarfile_read_the_tars(toy_dataset: Path) -> None:
    wds = pytest.importorskip("webdataset")
    dataset = open_dataset(toy_dataset)
    tars = [str(path) for path in sorted(toy_dataset.glob("items/*.tar"))]
    assert len(tars) == 4
    samples = list(wds.WebDataset(tars, shardshuffle=False).decode())
    assert [int(sample["__key__"]) for sample in samples] == list(range(dataset.num_items))
    assert [sample["json"]["item_id"] for sample in samples] == dataset.items["item_id"].to_pylist()
    (users,) = wds.WebDataset(
        str(toy_dataset / "users/users-000000.tar"), shardshuffle=False
    ).decode()
    events = pa.ipc.open_file(users["events.arrow"]).read_all()
    assert sum(map(len, events["times"])) == dataset.manifest.counts["events"]
    with tarfile.open(tars[0]) as tar:
        assert {(member.mtime, member.uid, member.type) for member in tar} == {(0, 0, b"0")}


def test_finished_tars_are_kept_and_a_killed_part_is_made_up(
    toy_dataset: Path, toy_config: ShardConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    shard_dataset(config, RunConfig(stage="tables"))
    shard_dataset(config, RunConfig(stage="content"))
    tars = sorted((tmp_path / "dataset/items").glob("*.tar"))
    # A kill between writing and renaming leaves a temporary file and no receipt.
    WorkFiles(tmp_path / "dataset").item_receipt(1).unlink()
    tars[1].rename(temporary_file(tars[1]))
    with pytest.raises(FileNotFoundError, match="missing items-000001"):
        shard_dataset(config, RunConfig(stage="manifest"))
    before = tars[0].stat().st_mtime_ns
    shard_dataset(config)
    assert tars[0].stat().st_mtime_ns == before
    assert digests(tmp_path / "dataset") == digests(toy_dataset)


def test_a_finished_dataset_is_left_alone_until_the_settings_change(
    toy_config: ShardConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    shard_dataset(config)
    manifest = tmp_path / "dataset/manifest.json"
    before = manifest.stat().st_mtime_ns
    temporary_file(manifest).touch()  # as after a kill at the very end
    shard_dataset(config)
    assert manifest.stat().st_mtime_ns == before
    assert not manifest.with_name("manifest.json.tmp").exists()
    shard_dataset(dataclasses.replace(config, items_per_shard=200))
    assert len(list((tmp_path / "dataset/items").glob("*.tar"))) == 2
    assert Manifest.load(tmp_path / "dataset").config["items_per_shard"] == 200


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_finished_dataset_that_lost_a_file_is_made_again(
    fault: str, toy_dataset: Path, toy_config: ShardConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "lossy"))
    shard_dataset(config)
    tar = tmp_path / "lossy" / "items" / "items-000001.tar"
    if fault == "missing":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(FileNotFoundError, match="--stage tables first"):
        shard_dataset(config, RunConfig(stage="content"))
    shard_dataset(config)
    assert digests(tmp_path / "lossy") == digests(toy_dataset)


def test_content_before_tables_is_an_error(toy_config: ShardConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    with pytest.raises(FileNotFoundError, match="--stage tables first"):
        shard_dataset(config, RunConfig(stage="content"))


def test_tables_of_other_settings_are_not_mixed(toy_config: ShardConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    shard_dataset(config, RunConfig(stage="tables"))
    other = dataclasses.replace(config, items_per_shard=32)
    with pytest.raises(ValueError, match="other settings"):
        shard_dataset(other, RunConfig(stage="content"))


def test_a_folder_with_other_files_is_never_cleared(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "dataset/items").mkdir(parents=True)
    precious = tmp_path / "dataset/items/precious.txt"
    precious.write_text("mine")
    with pytest.raises(ValueError, match="no dataset"):
        small.shard()
    assert precious.read_text() == "mine"


def test_quantiles_are_numpys(small: "SmallWorld") -> None:
    folder = small.shard(split=SplitConfig(valid_quantile=0.6, test_quantile=0.8))
    times = np.array(small.interactions["timestamp"]) * 1000
    cutoffs = Manifest.load(folder).cutoffs
    assert cutoffs.valid_start == np.ceil(np.quantile(times, 0.6))
    assert cutoffs.test_start == np.ceil(np.quantile(times, 0.8))


def test_duplicates_are_kept_once_or_all(small: "SmallWorld", tmp_path: Path) -> None:
    small.add(10, 103, small.interactions["timestamp"][12])  # day 2 of user 10: item 103 again
    assert small.interactions["item_id"][12] == 103
    exact = small.shard(dataset_dir=str(tmp_path / "exact"))
    every = small.shard(
        dataset_dir=str(tmp_path / "all"), filter=FilterConfig(duplicates="keep_all")
    )
    first = small.shard(
        dataset_dir=str(tmp_path / "first"),
        filter=FilterConfig(duplicates="keep_first"),
        split=SplitConfig(valid_start="2025-01-04", test_start="2025-01-05"),
    )
    counts = [Manifest.load(folder).counts["events"] for folder in (exact, every)]
    assert counts == [40, 41]
    log = open_dataset(first).events()
    pairs = set(zip(log.user_rows().tolist(), log.item_rows.tolist(), strict=True))
    assert len(pairs) == len(log) == 24


def test_the_k_core_counts_and_drops_training_events_only(
    small: "SmallWorld", tmp_path: Path
) -> None:
    small.add(99, 100, small.interactions["timestamp"][0])  # one training event
    small.add(99, 101, small.interactions["timestamp"][9])  # one test event
    folder = small.shard(filter=FilterConfig(min_user_events=2, min_item_events=2))
    dataset = open_dataset(folder)
    row = dataset.users["user_id"].to_pylist().index(99)
    log = dataset.events()
    mine = log.item_rows[log.offsets[row] : log.offsets[row + 1]]
    assert mine.tolist() == [1]
    step = dataset.manifest.filters[-1]
    assert (step.rows_in, step.rows_out) == (25, 24)


def test_the_k_core_is_iterated_until_nothing_changes(small: "SmallWorld") -> None:
    # Item 200 has two events, one by a user who goes: it must follow.
    small.items["item_id"].append(200)
    small.items["title"].append("extra")
    small.items["image"] = pa.array([*small.items["image"].to_pylist(), None], pa.binary())
    small.add(99, 200, small.interactions["timestamp"][0])
    small.add(10, 200, small.interactions["timestamp"][0])
    folder = small.shard(filter=FilterConfig(min_user_events=2, min_item_events=2))
    dataset = open_dataset(folder)
    assert 6 not in dataset.events().item_rows
    assert 99 not in dataset.users["user_id"].to_pylist()


def test_vectors_and_weights_are_carried(small: "SmallWorld") -> None:
    vectors = [[float(i), 0.5, 1.0] for i in range(6)]
    vectors[1], vectors[2], vectors[3] = None, [1.0], [float("nan"), 0.0, 0.0]
    small.items["sound"] = pa.array(vectors, pa.list_(pa.float64()))
    small.interactions["amount"] = [float(i) for i in range(40)]
    config = small.config()
    folder = small.shard(
        items=dataclasses.replace(config.items, vectors={"audio": "sound"}),
        interactions=dataclasses.replace(config.interactions, weight="amount"),
    )
    dataset = open_dataset(folder)
    assert dataset.manifest.modalities["audio"] == {"width": 3}
    assert dataset.items["has_audio"].to_pylist() == [True, True, False, False, False, True]
    assert dataset.manifest.quarantine == {
        "vectors/audio_not_finite": 1,
        "vectors/audio_of_another_width": 1,
    }
    assert dataset.content().read(0).vectors["audio"].tolist() == [5.0, 0.5, 1.0]
    log = dataset.events()
    assert log.weights is not None
    assert sorted(log.weights.tolist()) == [float(i) for i in range(40)]


def test_csv_and_jsonl_give_the_events_of_parquet(small: "SmallWorld", tmp_path: Path) -> None:

    first = open_dataset(small.shard()).events()
    table = pa.table(small.interactions)
    pyarrow.csv.write_csv(table, tmp_path / "log.csv")
    lines = "\n".join(json.dumps(row) for row in table.to_pylist())
    (tmp_path / "log.jsonl").write_text(lines)
    for name in ("log.csv", "log.jsonl"):
        columns = dataclasses.replace(small.config().interactions, path=str(tmp_path / name))
        folder = tmp_path / f"from_{name}"
        log = open_dataset(small.shard(interactions=columns, dataset_dir=str(folder))).events()
        assert log.times.tolist() == first.times.tolist()
        assert log.item_rows.tolist() == first.item_rows.tolist()


def test_picture_files_are_read_from_their_folder(
    small: "SmallWorld", tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(make_jpeg())
    names = ["a.jpg", "b.jpg", None, None, None, None]
    small.items["image"] = pa.array(names, pa.string())
    items = dataclasses.replace(small.config().items, image_dir=str(tmp_path / "pictures"))
    dataset = open_dataset(small.shard(items=items))
    assert dataset.items["has_image"].to_pylist() == [False] * 5 + [True]
    assert dataset.manifest.quarantine == {"pictures/file_missing": 1}


@pytest.mark.parametrize("name", ["movielens_mm_tiny"])
def test_real_films_are_sharded(real_data: Path, tmp_path: Path, name: str) -> None:
    from PIL import Image

    from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns

    source = real_data / name
    if not source.is_dir():
        pytest.skip(f"{name} is not at $TRIPTYCH_DATA ({real_data})")
    log = {"path": str(source / "interactions.parquet"), "time_unit": "s"}
    config = ShardConfig(
        name=name,
        dataset_dir=str(tmp_path / "dataset"),
        interactions=InteractionColumns(**log, label="rating", positive_from=4.0),
        impressions=ImpressionColumns(**log, label="label"),
        items=ItemColumns(
            path=str(source / "items.parquet"),
            image="image",
            texts=["title", "description", "plot"],
            features={"year": "numeric", "genres": "multi"},
        ),
        split=SplitConfig(valid_quantile=0.81, test_quantile=0.9),
    )
    shard_dataset(config)
    dataset = open_dataset(tmp_path / "dataset")
    counts = dataset.manifest.counts
    assert (counts["events"], counts["items"], counts["users"]) == (3919, 219, 80)
    assert (counts["items_with_image"], counts["items_with_text"]) == (214, 219)
    assert dataset.manifest.quarantine == {}
    record = dataset.content().read(0)
    assert record.image is not None
    with Image.open(io.BytesIO(record.image)) as picture:
        assert min(picture.size) == 96
    assert dataset.items.schema.field("genres").type == pa.list_(pa.string())
    shutil.rmtree(tmp_path / "dataset")
