"""The toy world in seconds, once a session, and where the real data would be."""

import os
from pathlib import Path

import pytest

from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns, UserColumns
from data_prep.settings import ShardConfig, SplitConfig
from data_prep.shard import shard_dataset
from data_prep.toy import make_toy
from data_prep.toy_settings import ToyConfig


@pytest.fixture(scope="session")
def toy_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("toy") / "raw"
    make_toy(
        ToyConfig(out_dir=raw, num_users=150, num_items=240, num_events=6000, num_impressions=4000)
    )
    return raw


@pytest.fixture(scope="session")
def toy_config(toy_raw: Path) -> ShardConfig:
    return ShardConfig(
        name="toy",
        dataset_dir=str(toy_raw.parent / "dataset"),
        interactions=InteractionColumns(path=str(toy_raw / "interactions.parquet")),
        items=ItemColumns(
            path=str(toy_raw / "items.parquet"),
            image="image",
            texts=["title", "description"],
            arrival="arrival",
            features={"category": "categorical", "price": "numeric"},
        ),
        users=UserColumns(
            path=str(toy_raw / "users.parquet"), features={"age_group": "categorical"}
        ),
        impressions=ImpressionColumns(
            path=str(toy_raw / "impressions.parquet"),
            label="click",
            features={"position": "numeric", "device": "categorical"},
        ),
        split=SplitConfig(valid_start="2025-02-15", test_start="2025-02-21"),
        items_per_shard=64,
        extra=str(toy_raw / "truth.json"),
    )


@pytest.fixture(scope="session")
def toy_dataset(toy_config: ShardConfig) -> Path:
    shard_dataset(toy_config)
    return Path(toy_config.dataset_dir)


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = Path(__file__).parents[1]
    return Path(os.environ.get("TRIPTYCH_DATA", root.parent / "shared" / "data"))
