"""Every kind of bad input: records are set aside and counted, the rest is one clear error."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns, ItemColumns, UserColumns
from data_prep.dataset import open_dataset
from data_prep.quarantine_samples import read_samples
from data_prep.settings import SplitConfig

if TYPE_CHECKING:
    from conftest import SmallWorld


@pytest.mark.parametrize(
    ("table", "setting", "message"),
    [
        ("interactions", "time", r"interactions.parquet: found no column 'nope' \(columns: user"),
        ("interactions", "label", "found no column 'nope'.*correct interactions.label"),
        ("items", "image", r"items.parquet: found no column 'nope'.*correct items.image"),
        ("items", "item", "correct items.item"),
    ],
)
def test_a_missing_column_names_file_and_columns(
    small: "SmallWorld", table: str, setting: str, message: str
) -> None:
    columns = dataclasses.replace(getattr(small.config(), table), **{setting: "nope"})
    with pytest.raises(ValueError, match=message):
        small.shard(**{table: columns})


def test_a_missing_file_names_the_setting(small: "SmallWorld") -> None:
    columns = dataclasses.replace(small.config().interactions, path="nowhere/log.parquet")
    with pytest.raises(FileNotFoundError, match=r"no such file.*correct interactions.path"):
        small.shard(interactions=columns)


def test_a_file_of_another_kind_is_one_error(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("no parquet")
    columns = dataclasses.replace(small.config().interactions, path=str(tmp_path / "log.parquet"))
    with pytest.raises(ValueError, match=r"log.parquet: cannot be read as parquet"):
        small.shard(interactions=columns)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("auto", "holds int64 and interactions.time_unit is 'auto'.*set .* to s, ms or us"),
        ("ms", r"40 of 40 values \(such as 1735.* no times of 1980 to 2100 when read as 'ms'"),
    ],
)
def test_a_wrong_time_unit_is_an_error(small: "SmallWorld", unit: str, message: str) -> None:
    columns = dataclasses.replace(small.config().interactions, time_unit=unit)
    with pytest.raises(ValueError, match=message):
        small.shard(interactions=columns)


@pytest.mark.parametrize("kind", ["ordinals", "text"])
def test_timestamps_that_are_no_times_are_an_error(small: "SmallWorld", kind: str) -> None:
    columns = small.config().interactions
    if kind == "ordinals":
        small.interactions["timestamp"] = list(range(40))
    else:
        small.interactions["timestamp"] = ["yesterday"] * 40
        columns = dataclasses.replace(columns, time_unit="auto")
    with pytest.raises(ValueError, match=r"column 'timestamp': 40 of 40 values .* are no times"):
        small.shard(interactions=columns)


def test_iso_text_and_dates_are_times(small: "SmallWorld", tmp_path: Path) -> None:
    expected = open_dataset(small.shard()).events().times.tolist()
    stamps = pa.array(small.interactions["timestamp"], pa.timestamp("s"))
    columns = dataclasses.replace(small.config().interactions, time_unit="auto")
    small.interactions["timestamp"] = [f"{t.as_py().isoformat()}+00:00" for t in stamps]
    text = small.shard(interactions=columns, dataset_dir=str(tmp_path / "text"))
    assert open_dataset(text).events().times.tolist() == expected
    small.interactions["timestamp"] = stamps.cast("date32")
    dates = open_dataset(small.shard(interactions=columns, dataset_dir=str(tmp_path / "date")))
    day = 86_400_000
    assert dates.events().times.tolist() == [t // day * day for t in expected]


def test_bad_rows_are_set_aside_and_counted_by_cause(small: "SmallWorld") -> None:
    for column in small.interactions.values():
        column.append(column[0])
    good = small.interactions["timestamp"][0]
    small.interactions["timestamp"] = [float(t) for t in small.interactions["timestamp"]]
    for user, item, time in [
        (None, 100, good),
        (10, None, good),
        (10, 100, None),
        (10, 100, float("nan")),
        (10, 100, float("inf")),
        (10, 100, -5.0),
        (10, 999, good),
    ]:
        small.add(user, item, time)
    folder = small.shard()
    manifest = open_dataset(folder).manifest
    assert manifest.quarantine == {
        "interactions/not_a_time": 4,
        "interactions/null_id": 2,
        "interactions/unknown_item": 1,
    }
    step = next(one for one in manifest.filters if one.step == "interactions: usable rows")
    assert (step.rows_in, step.rows_out) == (48, 41)
    assert manifest.counts["events"] == 40
    samples = pq.read_table(folder / "quarantine/interactions.parquet").to_pylist()
    assert [row["item_id"] for row in samples if row["cause"] == "unknown_item"] == [999]
    assert len(samples) == 7


def test_bad_labels_are_counted_and_a_misread_column_is_an_error(
    small: "SmallWorld", tmp_path: Path
) -> None:
    small.interactions["rating"] = [float(i % 5) for i in range(39)] + [None]
    columns = dataclasses.replace(small.config().interactions, label="rating")
    with pytest.raises(ValueError, match=r"not 0 or 1; .* interactions.positive_from"):
        small.shard(interactions=columns)
    rated = dataclasses.replace(columns, positive_from=3.0)
    folder = small.shard(interactions=rated, dataset_dir=str(tmp_path / "rated"))
    dataset = open_dataset(folder)
    assert dataset.manifest.quarantine == {"interactions/not_a_label": 1}
    assert dataset.manifest.counts["positives"] == 15
    assert dataset.events().labels.sum() == 15


def test_duplicate_item_ids_are_an_error(small: "SmallWorld") -> None:
    small.items["item_id"][0] = 100
    with pytest.raises(
        ValueError, match=r"items.parquet: found 1 ids more than once .*such as 100"
    ):
        small.shard()


def test_items_set_aside_are_kept_to_look_at(small: "SmallWorld") -> None:
    small.items["item_id"][0] = None
    small.items["since"] = [1, 1_735_689_600, -5, 1_735_689_600, None, 1_735_689_600]
    items = dataclasses.replace(small.config().items, arrival="since", arrival_unit="s")
    folder = small.shard(items=items)
    manifest = open_dataset(folder).manifest
    counts = {name: n for name, n in manifest.quarantine.items() if name.startswith("items/")}
    assert counts == {"items/arrival_not_a_time": 1, "items/null_id": 1}
    late, nameless = pq.read_table(folder / "quarantine/items.parquet").to_pylist()
    assert late == {
        "cause": "arrival_not_a_time",
        "item_id": "103",
        "raw_arrival": "-5",
        "text_title": "three",
    }
    assert list(nameless.values()) == ["null_id", None, "1", "five"]
    samples = read_samples(folder, per_cause=9)
    assert {name: len(samples[name].rows) for name in counts} == counts


def test_a_column_without_arrivals_is_an_error(small: "SmallWorld") -> None:
    small.items["since"] = [1, 2, 3, 4, 1_735_689_600, None]
    items = dataclasses.replace(small.config().items, arrival="since", arrival_unit="s")
    with pytest.raises(ValueError, match=r"'since': 4 of 5 values \(such as 1, 2, 3, 4\) are no t"):
        small.shard(items=items)


def test_item_ids_of_two_types_are_an_error(small: "SmallWorld") -> None:
    small.items["item_id"] = [str(item) for item in small.items["item_id"]]
    with pytest.raises(ValueError, match=r"'item_id' holds int64, but the catalogue's .* string"):
        small.shard()


def test_an_item_without_content_is_kept_and_counted(small: "SmallWorld") -> None:
    dataset = open_dataset(small.shard())
    assert dataset.num_items == 6
    assert dataset.manifest.counts["items_without_content"] == 1
    assert dataset.content().read(2).image is None
    assert dataset.content().read(2).texts == {}


def test_bad_pictures_are_set_aside_and_their_items_stay(
    small: "SmallWorld", make_jpeg: Callable[..., bytes]
) -> None:
    good = make_jpeg()
    bomb = make_jpeg(10_000, 10_000, mode="L")
    images = [good, b"not a picture", good[: len(good) // 2], bomb, b"", None]
    small.items["image"] = pa.array(images, pa.binary())
    folder = small.shard()
    dataset = open_dataset(folder)
    assert dataset.manifest.quarantine == {
        "pictures/not_decodable": 3,
        "pictures/over_pixel_limit": 1,
    }
    assert dataset.items["has_image"].to_pylist() == [False] * 5 + [True]
    listed = pq.read_table(folder / "quarantine/content.parquet").to_pylist()
    assert {"item_row": 2, "cause": "pictures/over_pixel_limit"} in listed


@pytest.mark.parametrize(
    ("split", "missing"),
    [
        (("2030-01-01", "2030-01-02"), "valid_events and test_events"),
        (("2020-01-01", "2020-01-02"), "train_positives and valid_events"),
    ],
)
def test_an_empty_split_is_an_error_with_counts(
    small: "SmallWorld", split: tuple[str, str], missing: str
) -> None:
    with pytest.raises(ValueError, match=rf"found nothing for {missing} \(.*correct `split`"):
        small.shard(split=SplitConfig(valid_start=split[0], test_start=split[1]))


def test_a_split_may_be_empty_where_the_settings_say_so(small: "SmallWorld") -> None:
    split = SplitConfig(
        valid_start="2030-01-01", test_start="2030-01-02", may_be_empty=["valid", "test"]
    )
    assert open_dataset(small.shard(split=split)).manifest.counts["train_events"] == 40


def test_no_known_item_at_all_is_an_error(small: "SmallWorld") -> None:
    small.items["item_id"] = [item + 1000 for item in small.items["item_id"]]
    with pytest.raises(ValueError, match="none of 40 rows has an item of the catalogue"):
        small.shard()


def test_a_feature_of_another_type_is_an_error(small: "SmallWorld") -> None:
    items = dataclasses.replace(small.config().items, features={"title": "numeric"})
    with pytest.raises(ValueError, match=r"'title' holds string, expected something numeric"):
        small.shard(items=items)


@pytest.mark.parametrize("name", ["image", "frames", "sound", "text"])
def test_a_vector_named_as_a_modality_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"items.vectors: found the name '{name}', which is a mod"
    ):
        ItemColumns(path="items.parquet", vectors={name: "emb"})


def test_a_feature_named_as_a_vectors_own_column_is_refused() -> None:
    features = {"hash_emb": "numeric", "has_emb": "numeric"}
    with pytest.raises(ValueError, match=r"items.features: found \['has_emb', 'hash_emb'\]"):
        ItemColumns(path="items.parquet", vectors={"emb": "emb"}, features=features)


def test_unknown_users_have_null_features(small: "SmallWorld", tmp_path: Path) -> None:
    users = pa.table({"user_id": [40, 77], "age": [30, 50]})
    pq.write_table(users, tmp_path / "users.parquet")
    columns = UserColumns(path=str(tmp_path / "users.parquet"), features={"age": "numeric"})
    dataset = open_dataset(small.shard(users=columns))
    assert dataset.users["user_id"].to_pylist() == [10, 20, 30, 40]
    assert dataset.users["age"].to_pylist() == [None, None, None, 30.0]


def test_impressions_without_a_split_are_an_error(small: "SmallWorld") -> None:
    columns = ImpressionColumns(
        path=small.config().interactions.path, time_unit="s", label="user_id", positive_from=20
    )
    dataset = open_dataset(small.shard(impressions=columns))
    assert dataset.impressions("test")["label"].to_pylist().count(1.0) == 6
    plain = open_dataset(small.shard())
    with pytest.raises(FileNotFoundError, match="found no impressions"):
        plain.impressions("test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected both valid_start and test_start, or both"),
        ({"valid_start": "2025-01-01"}, "expected both"),
        ({"valid_start": "soon", "test_start": "later"}, "found 'soon', expected ISO 8601"),
        ({"valid_start": "2025-01-02", "test_start": "2025-01-01"}, "first to be earlier"),
        ({"valid_quantile": 0.9, "test_quantile": 0.8}, "0 < valid_quantile < test_quantile < 1"),
    ],
)
def test_a_bad_split_is_an_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**values)


def test_an_unset_variable_in_a_path_is_an_error(small: "SmallWorld") -> None:
    columns = dataclasses.replace(small.config().items, path="${NOT_SET_ANYWHERE}/items.parquet")
    with pytest.raises(ValueError, match=r"items.path: found .* \$\{NOT_SET_ANYWHERE\} is not set"):
        small.shard(items=columns)


def test_a_categorical_number_that_is_none_is_missing(small: "SmallWorld", tmp_path: Path) -> None:
    users = pa.table({"user_id": [10, 20, 30], "size": [1.5, float("nan"), float("inf")]})
    pq.write_table(users, tmp_path / "users.parquet")
    columns = UserColumns(path=str(tmp_path / "users.parquet"), features={"size": "categorical"})
    dataset = open_dataset(small.shard(users=columns))
    assert dataset.users["size"].to_pylist() == ["1.5", None, None, None]
