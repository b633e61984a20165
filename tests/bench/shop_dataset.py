"""The dataset folder that `python -m data_prep shard` makes of the benchmarks' shop.

python tests/bench/shop_dataset.py --workload DIR --dataset_dir DIR
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from workload import Workload

from data_prep.columns import InteractionColumns, ItemColumns
from data_prep.settings import FilterConfig, PictureConfig, ShardConfig, SplitConfig, TokenConfig
from data_prep.shard import shard_dataset


def shard_config(workload: Workload, *, dataset_dir: Path) -> ShardConfig:
    """Settings under which every picture passes through and every event stays."""
    return ShardConfig(
        name="bench-shop",
        dataset_dir=str(dataset_dir),
        interactions=InteractionColumns(
            path=str(workload.interactions), time="time", time_unit="ms"
        ),
        items=ItemColumns(path=str(workload.items), image="image", texts=["text"]),
        split=SplitConfig(valid_quantile=0.8, test_quantile=0.9),
        filter=FilterConfig(duplicates="keep_all"),
        pictures=PictureConfig(short_side=224),
        tokens=TokenConfig(tokenizer="open_clip", max_tokens=77),
    )


def main() -> None:
    """Make the dataset anew, as the code may have changed since; print its counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.dataset_dir, ignore_errors=True)
    manifest = shard_dataset(shard_config(Workload(args.workload), dataset_dir=args.dataset_dir))
    assert manifest is not None
    if manifest.quarantine:
        raise ValueError(
            f"{args.dataset_dir}: found {manifest.quarantine} set aside, expected none"
        )
    print(json.dumps(manifest.counts))


if __name__ == "__main__":
    main()
