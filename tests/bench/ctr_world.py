"""A made-up CTR log of twenty categorical fields, as a dataset folder and as FuxiCTR's npz.

A field's values are drawn by Zipf's law; a click's logit is a sum of weights of the values and of
products of their vectors (a factorisation machine), so that every model here can learn it.

Shapes: n impressions of a chunk, F fields, V values of a field, D width of the planted vectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_FIELDS = 20
FIELDS = ("user_id", "item_id", *(f"c{place:02d}" for place in range(2, NUM_FIELDS)))
CHUNK_ROWS = 131_072
VALID_MS, TEST_MS = 2_000_000_000_000, 3_000_000_000_000
_DRAWS = 1 << 22  # entries of the table that inverts Zipf's law


@dataclass(frozen=True, kw_only=True)
class CtrWorld:
    """How large a log is, and what made it."""

    num_rows: int
    values: int
    """Of each field."""
    valid_rows: int = 200_000
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"ctr-{self.num_rows}-{self.values}"

    def chunks(self, split: str) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Values [n, F] and clicks [n] of a split."""
        rng = np.random.default_rng([self.seed, 1])
        weight_FV = rng.normal(0, 0.3, (NUM_FIELDS, self.values)).astype(np.float32)
        vector_FVD = rng.normal(0, 0.22, (NUM_FIELDS, self.values, 4)).astype(np.float32)
        share = np.cumsum(np.arange(1, self.values + 1) ** -1.0)
        drawn = np.searchsorted(share / share[-1], (np.arange(_DRAWS) + 0.5) / _DRAWS)
        drawn = drawn.clip(max=self.values - 1).astype(np.int32)
        left = {"train": self.num_rows, "valid": self.valid_rows, "test": 1_000}[split]
        rng = np.random.default_rng([self.seed, 2, ("train", "valid", "test").index(split)])
        while left > 0:
            n = min(CHUNK_ROWS, left)
            value_nF = drawn[rng.integers(_DRAWS, size=(n, NUM_FIELDS), dtype=np.uint32)]
            logit_n = np.full(n, -1.5, np.float32)
            sum_nD = np.zeros((n, 4), np.float32)
            for field in range(NUM_FIELDS):
                vector_nD = vector_FVD[field, value_nF[:, field]]
                logit_n += weight_FV[field, value_nF[:, field]] - (vector_nD**2).sum(1) / 2
                sum_nD += vector_nD
            logit_n += (sum_nD**2).sum(1) / 2
            label_n = rng.random(n) < 1 / (1 + np.exp(-logit_n))
            yield value_nF, label_n.astype(np.float32)
            left -= n


def write_dataset(world: CtrWorld, dataset_dir: Path) -> None:
    """`shard` writes a folder of catalogue and log; its CTR splits are then the world's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns
    from data_prep.manifest import Features
    from data_prep.records import impressions_file
    from data_prep.settings import ShardConfig, SplitConfig
    from data_prep.shard import shard_dataset

    raw = dataset_dir.with_name(dataset_dir.name + "-raw")
    shutil.rmtree(dataset_dir, ignore_errors=True)
    raw.mkdir(parents=True, exist_ok=True)
    ids = np.arange(world.values)
    log = {"user_id": ids, "item_id": ids, "timestamp": ids * 1_000 + 1_000_000_000_000}
    pq.write_table(pa.table(log), raw / "log.parquet")
    pq.write_table(pa.table({"item_id": ids}), raw / "items.parquet")
    times = np.array([1_500_000_000_000, VALID_MS, TEST_MS])
    shown = {"user_id": ids[:3], "item_id": ids[:3], "timestamp": times, "label": [0, 1, 0]}
    pq.write_table(pa.table(shown), raw / "impressions.parquet")
    manifest = shard_dataset(
        ShardConfig(
            name=world.name,
            dataset_dir=str(dataset_dir),
            interactions=InteractionColumns(path=str(raw / "log.parquet"), time_unit="ms"),
            items=ItemColumns(path=str(raw / "items.parquet")),
            impressions=ImpressionColumns(
                path=str(raw / "impressions.parquet"), label="label", time_unit="ms"
            ),
            split=SplitConfig(
                valid_start=str(VALID_MS // 1_000),
                test_start=str(TEST_MS // 1_000),
                may_be_empty=["valid", "test"],
            ),
        )
    )
    assert manifest is not None
    counts = dict(manifest.counts)
    starts = {"train": 1_500_000_000_000, "valid": VALID_MS, "test": TEST_MS}
    for split, start in starts.items():
        path, done, writer = dataset_dir / impressions_file(split), 0, None
        for value_nF, label_n in world.chunks(split):
            columns = {"user_row": value_nF[:, 0], "item_row": value_nF[:, 1]}
            columns["time"] = start + np.arange(done, done + len(label_n))
            columns["label"] = label_n
            columns |= {FIELDS[f]: value_nF[:, f] for f in range(2, NUM_FIELDS)}
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            done += len(label_n)
        assert writer is not None
        writer.close()
        counts[f"impressions_{split}"] = done
    features = Features(item={}, user={}, context=dict.fromkeys(FIELDS[2:], "categorical"))
    dataclasses.replace(manifest, counts=counts, features=features).save(dataset_dir)
    shutil.rmtree(raw)


def write_npz(world: CtrWorld, folder: Path) -> None:
    """A npz a split, an int64 array a column; ids start at 1, as FuxiCTR's 0 is padding."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        chunks = list(world.chunks(split))
        value_NF = np.concatenate([values for values, _ in chunks])
        columns = {name: value_NF[:, f].astype(np.int64) + 1 for f, name in enumerate(FIELDS)}
        columns["label"] = np.concatenate([labels for _, labels in chunks])
        np.savez(folder / f"{split}.npz", **columns)


def main() -> None:
    """Write both forms of a world, unless they are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench_dir", type=Path, required=True)
    parser.add_argument("--num_rows", type=int, required=True)
    parser.add_argument("--values", type=int, required=True)
    parser.add_argument("--npz", action="store_true")
    args = parser.parse_args()
    world = CtrWorld(num_rows=args.num_rows, values=args.values)
    folder = args.bench_dir / world.name
    if not (folder / "dataset" / "manifest.json").is_file():
        write_dataset(world, folder / "dataset")
    if args.npz and not (folder / "npz" / "valid.npz").is_file():
        write_npz(world, folder / "npz")
    print(json.dumps(dataclasses.asdict(world)))


if __name__ == "__main__":
    main()
