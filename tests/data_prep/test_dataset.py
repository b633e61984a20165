import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dataset import open_dataset
from data_prep.manifest import Manifest


def test_the_catalogue_is_dense_and_in_order_of_id(toy_dataset: Path, toy_raw: Path) -> None:
    dataset = open_dataset(toy_dataset)
    raw = pq.read_table(toy_raw / "items.parquet")
    assert dataset.items["item_row"].to_pylist() == list(range(dataset.num_items))
    assert dataset.items["item_id"].to_pylist() == sorted(raw["item_id"].to_pylist())
    assert dataset.users["user_row"].to_pylist() == list(range(dataset.num_users))
    assert dataset.users["user_id"].to_pylist() == sorted(dataset.users["user_id"].to_pylist())


def test_events_are_the_raw_log_in_time_order(toy_dataset: Path, toy_raw: Path) -> None:
    dataset = open_dataset(toy_dataset)
    log = dataset.events()
    raw = pq.read_table(toy_raw / "interactions.parquet")
    user_ids = np.array(dataset.users["user_id"].to_pylist())
    item_ids = dataset.items["item_id"].to_numpy()
    expected = sorted(
        zip(
            raw["user_id"].to_pylist(),
            raw["timestamp"].cast("int64").to_pylist(),
            raw["item_id"].to_pylist(),
            strict=True,
        )
    )
    found = list(
        zip(
            user_ids[log.user_rows()].tolist(),
            log.times.tolist(),
            item_ids[log.item_rows].tolist(),
            strict=True,
        )
    )
    assert found == expected
    assert log.labels.all()


def test_content_is_what_the_raw_table_held(toy_dataset: Path, toy_raw: Path) -> None:
    dataset = open_dataset(toy_dataset)
    content = pickle.loads(pickle.dumps(dataset.content()))
    raw = {row["item_id"]: row for row in pq.read_table(toy_raw / "items.parquet").to_pylist()}
    assert len(content) == dataset.num_items
    for item in dataset.items.to_pylist():
        record, source = content.read(item["item_row"]), raw[item["item_id"]]
        assert record.image == source["image"]
        assert record.texts == {
            name: source[name] for name in ("title", "description") if source[name] is not None
        }
        assert item["has_image"] == (record.image is not None)
        assert item["has_text"] == bool(record.texts)
    with pytest.raises(IndexError):
        content.read(dataset.num_items)


def test_popularity_counts_events_before_valid_start_only(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    train = dataset.events().before(dataset.manifest.cutoffs.valid_start)
    counts = np.bincount(train.item_rows, minlength=dataset.num_items)
    assert dataset.items["train_count"].to_pylist() == counts.tolist()
    assert dataset.manifest.newest_train_event == train.times.max()


def test_impressions_lie_on_their_side_of_the_cutoffs(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    cutoffs = dataset.manifest.cutoffs
    bounds = {
        "train": (0, cutoffs.valid_start),
        "valid": (cutoffs.valid_start, cutoffs.test_start),
        "test": (cutoffs.test_start, 2**62),
    }
    for split, (first, last) in bounds.items():
        table = dataset.impressions(split)
        times = table["time"].to_numpy()
        assert times.min() >= first
        assert times.max() < last
        assert (np.diff(times) >= 0).all()
        assert table.num_rows == dataset.manifest.counts[f"impressions_{split}"]
        assert set(table.column_names) == {
            *("user_row", "item_row", "time", "label", "position", "device")
        }


def test_a_folder_without_its_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"incomplete.*re-run python -m data_prep shard"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"format": "other"}])
def test_another_schema_is_refused(toy_dataset: Path, tmp_path: Path, change: dict) -> None:
    raw = json.loads((toy_dataset / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(raw | change))
    with pytest.raises(ValueError, match=r"this code reads .*re-run"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {"items": 1, "users": 1, "events": 1}}, "values of counts.items_per_shard"),
        ({"counts": {"items_per_shard": 0}}, "counts.items_per_shard, counts.items, counts.users"),
        ({"cutoffs": {"valid_start": 5, "test_start": 5}}, "values of cutoffs, newest_train_event"),
        ({"modalities": {"vector": {"width": 10**12}}}, "values of modalities.vector that no"),
        ({"modalities": {"text": {"fields": "title"}}}, "values of modalities.text that no"),
        ({"modalities": {"text": {"tokens": {"tokenizer": 3}}}}, "values of modalities.text that"),
        ({"modalities": []}, r"modalities: found \[\], expected dict"),
        ({"files": [{"path": "/etc/passwd", "bytes": 1, "xxh128": "", "samples": 1}]}, "inside"),
        ({"files": [{"path": "x", "bytes": -1, "xxh128": "", "samples": 1}]}, "what a file can"),
        ({"newest_event": "today"}, "newest_event: found 'today', expected int"),
    ],
)
def test_values_that_no_dataset_has_are_refused(
    toy_dataset: Path, tmp_path: Path, change: dict, message: str
) -> None:
    raw = json.loads((toy_dataset / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(raw | change))
    with pytest.raises(ValueError, match=message):
        Manifest.load(tmp_path)


def test_a_manifest_is_read_as_it_was_written(toy_dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_dataset)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert 0.5 < manifest.extra["best_reachable_auc"] < 1
