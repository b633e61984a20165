"""Impressions to be scored are read as those of the dataset were."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns
from data_prep.dataset import Dataset, open_dataset
from data_prep.settings import ShardConfig
from data_prep.shard import shard_dataset
from finetune.data import CtrData
from finetune.fit import fit
from finetune.predict import predict, unknown_shares
from finetune.settings import FitConfig, PredictConfig

CONTEXT = ("is_app", "slot", "day", "price", "sizes")
KEYS = [("user_id", "ascending"), ("item_id", "ascending"), ("time", "ascending")]


@pytest.fixture(scope="session")
def typed_raw(toy_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy impressions with context of every type whose text engines disagree on."""
    folder = tmp_path_factory.mktemp("typed")
    shown = pq.read_table(toy_raw / "impressions.parquet")
    click, rng = shown["click"].to_numpy() > 0, np.random.default_rng(1)
    noisy = np.where(rng.random(len(click)) < 0.7, click, ~click)
    for name, values in {
        "is_app": pa.array(noisy),
        "slot": pa.array(noisy * 1.0 + rng.integers(2, size=len(click))),
        "day": pa.array(np.datetime64("2025-01-01") + noisy.astype("timedelta64[D]")),
        "price": pa.array(noisy * 150).cast(pa.decimal128(21, 2)),
        "sizes": pa.array([[float(one), 7.0] for one in noisy]),
    }.items():
        shown = shown.append_column(name, values)
    pq.write_table(shown, folder / "impressions.parquet")
    return folder / "impressions.parquet"


@pytest.fixture
def typed_config(
    typed_raw: Path, toy_config: ShardConfig, fit_config: FitConfig, tmp_path: Path
) -> FitConfig:
    impressions = ImpressionColumns(
        path=str(typed_raw),
        label="click",
        features={name: "multi" if name == "sizes" else "categorical" for name in CONTEXT},
    )
    changes = {"impressions": impressions, "dataset_dir": str(tmp_path / "dataset")}
    items = dataclasses.replace(toy_config.items, image=None)
    shard_dataset(dataclasses.replace(toy_config, items=items, extra=None, **changes))
    return dataclasses.replace(fit_config, dataset_dir=tmp_path / "dataset")


def test_values_of_every_type_are_those_that_the_run_was_trained_on(
    typed_config: FitConfig, typed_raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(typed_config)
    test_start = open_dataset(typed_config.dataset_dir).manifest.cutoffs.test_start
    shown = pq.read_table(typed_raw)
    shown = shown.rename_columns({"timestamp": "time"}).filter(
        pa.array(shown["timestamp"].cast(pa.int64()).to_numpy() >= test_start)
    )
    pq.write_table(shown, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    predict(
        PredictConfig(run_dir=typed_config.out_dir, impressions=tmp_path / "new.parquet", out=out)
    )
    assert "unknown to the run" not in caplog.text
    found = pq.read_table(out)
    assert found.select(["user_id", "item_id", "time"]).equals(
        shown.select(["user_id", "item_id", "time"])
    )
    expected = pq.read_table(typed_config.out_dir / "predictions.parquet")
    found = found.set_column(2, "time", found["time"].cast(pa.int64()))
    order = [*KEYS, ("score", "ascending")]
    found, expected = found.sort_by(order), expected.sort_by(order)
    assert found["item_id"].equals(expected["item_id"])
    np.testing.assert_allclose(found["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-6)
    assert len(np.unique(found["score"].to_numpy())) > found.num_rows / 2


def write_impressions(path: Path, dataset: Dataset, **changes: object) -> Path:
    columns = {
        "user_id": dataset.users["user_id"][:4].to_pylist(),
        "item_id": dataset.items["item_id"][:4].to_pylist(),
        "time": pa.array([dataset.manifest.newest_event + 1] * 4),
        "position": [1, 2, 3, 4],
        "device": ["phone"] * 4,
    } | changes
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def one_epoch(fit_config: FitConfig) -> FitConfig:
    train = dataclasses.replace(fit_config.train, max_epochs=1)
    fit(dataclasses.replace(fit_config, train=train))
    return fit_config


def test_a_column_whose_values_are_mostly_unknown_is_warned_of(
    one_epoch: FitConfig, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = dataset.impressions("train")["device"][0].as_py()
    out = tmp_path / "scores.parquet"
    for device, share in (
        (["PHONE", "TV", None, known], 67),
        (["PHONE"] * 4, 100),
        (["PHONE", known, known, None], None),
        ([None] * 4, None),
    ):
        caplog.clear()
        new = write_impressions(tmp_path / "new.parquet", dataset, device=pa.array(device))
        with caplog.at_level(logging.WARNING):
            predict(PredictConfig(run_dir=one_epoch.out_dir, impressions=new, out=out))
        lines = [one.getMessage() for one in caplog.records if "unknown to the run" in one.msg]
        if share is None:
            assert not lines
        else:
            assert len(lines) == 1
            assert f"new.parquet: column device: {share} % of its values are unknown" in lines[0]


def test_unknown_values_are_counted_in_lists_and_in_features_of_users_and_items(
    typed_config: FitConfig,
) -> None:
    dataset = open_dataset(typed_config.dataset_dir)
    data = CtrData.learn(dataset, typed_config)
    shown = dataset.impressions("test")
    assert set(unknown_shares(data, data.encode(shown)).values()) == {0.0}
    fields = [
        dataclasses.replace(one, values=one.values[:1]) for one in data.vocabulary.categorical
    ]
    data = CtrData(dataset, dataclasses.replace(data.vocabulary, categorical=fields), 8, 8)
    found = unknown_shares(data, data.encode(shown))
    assert set(found) == {"category", "age_group", *CONTEXT}
    flags = [size for sizes in shown["sizes"].to_pylist() for size in sizes]
    assert found["sizes"] == pytest.approx(1 - flags.count("0.0") / len(flags))
    apps = shown["is_app"].to_pylist()
    assert found["is_app"] == pytest.approx(1 - apps.count("false") / len(apps))
    known = data.vocabulary.named("category").values[0]
    categories = dataset.items["category"].take(shown["item_row"]).to_pylist()
    assert found["category"] == pytest.approx(1 - categories.count(known) / len(categories))


def test_users_who_are_mostly_unknown_are_warned_of(
    one_epoch: FitConfig, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = ["a stranger", "another", "a third", dataset.users["user_id"][0].as_py()]
    new = write_impressions(tmp_path / "new.parquet", dataset, user_id=users)
    out = tmp_path / "scores.parquet"
    with caplog.at_level(logging.WARNING):
        predict(PredictConfig(run_dir=one_epoch.out_dir, impressions=new, out=out))
    assert "3 of 4 impressions of users that the dataset lacks" in caplog.text


@pytest.mark.parametrize(
    ("per_millisecond", "unit"),
    [(1e-3, "which are seconds"), (1e3, "which are microseconds"), (1e6, "which are nanoseconds"),
     (1e9, "found times from"), (-1, "found times from")],
)  # fmt: skip
def test_times_in_another_unit_are_refused(
    per_millisecond: float, unit: str, one_epoch: FitConfig, dataset: Dataset, tmp_path: Path
) -> None:
    moment = int((dataset.manifest.newest_event // 1000 * 1000) * per_millisecond)
    time = pa.array([moment] * 4, pa.int64()) if abs(moment) < 2**63 else pa.array([2**62] * 4)
    new = write_impressions(tmp_path / "new.parquet", dataset, time=time)
    config = PredictConfig(
        run_dir=one_epoch.out_dir, impressions=new, out=tmp_path / "scores.parquet"
    )
    with pytest.raises(ValueError, match=f"{unit}.*expected unix milliseconds of 1980 to 2100"):
        predict(config)
    assert not config.out.exists()


def test_one_time_that_is_none_is_refused(
    one_epoch: FitConfig, dataset: Dataset, tmp_path: Path
) -> None:
    newest = dataset.manifest.newest_event
    new = write_impressions(tmp_path / "new.parquet", dataset, time=[newest, 0, newest, newest])
    config = PredictConfig(
        run_dir=one_epoch.out_dir, impressions=new, out=tmp_path / "scores.parquet"
    )
    with pytest.raises(ValueError, match=r"found times from 0 to .*, expected unix milliseconds"):
        predict(config)
