"""A hand-made log of which every row is known."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.columns import InteractionColumns, ItemColumns
from data_prep.settings import ShardConfig, SplitConfig
from data_prep.shard import shard_dataset

DAY_S = 86_400
START_S = 1_735_689_600  # 2025-01-01


def jpeg(width: int = 32, height: int = 32, *, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), "red" if mode == "RGB" else 90).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@dataclasses.dataclass
class SmallWorld:
    """Four users, six items, one event a user and day; columns can be replaced before sharding."""

    dir: Path
    interactions: dict[str, list[Any]]
    items: dict[str, Any]

    def config(self, **changes: object) -> ShardConfig:
        base = ShardConfig(
            name="small",
            dataset_dir=str(self.dir / "dataset"),
            interactions=InteractionColumns(
                path=str(self.dir / "interactions.parquet"), time_unit="s"
            ),
            items=ItemColumns(path=str(self.dir / "items.parquet"), image="image", texts=["title"]),
            split=SplitConfig(valid_start="2025-01-07", test_start="2025-01-09"),
            items_per_shard=4,
        )
        return dataclasses.replace(base, **changes)

    def write(self) -> None:
        pq.write_table(pa.table(self.interactions), self.dir / "interactions.parquet")
        pq.write_table(pa.table(self.items), self.dir / "items.parquet")

    def shard(self, **changes: object) -> Path:
        self.write()
        config = self.config(**changes)
        shard_dataset(config)
        return Path(config.dataset_dir)

    def add(self, user: object, item: object, time: object) -> None:
        for name, value in zip(self.interactions, (user, item, time), strict=True):
            self.interactions[name].append(value)


@pytest.fixture
def small(tmp_path: Path) -> SmallWorld:
    days = range(10)
    return SmallWorld(
        dir=tmp_path,
        interactions={
            "user_id": [user for user in (40, 10, 30, 20) for _ in days],
            "item_id": [100 + (user + day) % 6 for user in range(4) for day in days],
            "timestamp": [START_S + day * DAY_S + user for user in range(4) for day in days],
        },
        items={
            "item_id": [105, 104, 103, 102, 101, 100],
            "title": ["five", "four", "three", None, "one", "zero"],
            "image": pa.array([jpeg(), None, jpeg(), None, jpeg(), jpeg()], pa.binary()),
        },
    )


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    return jpeg
