"""One writer of item shards over the workload, measured: a case of `shard_items`.

    python tests/bench/shard_cases.py ours --workload DIR --out_dir DIR

Every writer gets the same JPEG and text bytes from a file mapped into memory, warm. Runs in the
peers' environments: a case imports what it needs itself.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mapped_items import MappedItems
from measured_loop import MeasuredLoop
from workload import Workload

SHARD_BYTES = 67_000_000
ITEMS_PER_SHARD = 3_600
"""Ours counts items: this many are 67 MB."""
WRITE_BYTES = 4 << 20


def measure_ours(source: MappedItems, out_dir: Path, *, keep: bool) -> None:
    """Tar, index and checksums as the content step of `python -m data_prep shard` writes them."""
    from data_prep import content  # noqa: F401 (before the loop, as write_index imports it)
    from data_prep.item_shards import write_index
    from data_prep.records import ItemRecord, encode_item, item_index, item_key, item_tar
    from data_prep.tars import TarWriter

    samples = iter(source)
    written = 0
    with MeasuredLoop() as loop:
        for number in range(-(-len(source) // ITEMS_PER_SHARD)):
            with TarWriter(out_dir / item_tar(number)) as tar:
                for row, image, text in itertools.islice(samples, ITEMS_PER_SHARD):
                    record = ItemRecord(image=image, texts={"text": str(text, "utf-8")})
                    tar.add(row, key=item_key(row), members=encode_item(record, item_id=row))
            index = write_index(out_dir / item_index(number), tar.index)
            written += tar.receipt.bytes + index["bytes"]
            if not keep:
                tar.path.unlink()
    loop.report(samples=len(source), bytes=written, versions=("pyarrow", "xxhash"))


def measure_webdataset(source: MappedItems, out_dir: Path, *, keep: bool) -> None:
    """`webdataset.ShardWriter` as its documentation shows it."""
    import webdataset

    pattern = str(out_dir / "items-%06d.tar")
    with (
        MeasuredLoop() as loop,
        webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer,
    ):
        for row, image, text in source:
            sample = {"jpg": bytes(image), "txt": str(text, "utf-8"), "json": {"id": row}}
            writer.write({"__key__": f"{row:010d}", **sample})
    loop.report(samples=len(source), bytes=_bytes_below(out_dir), versions=("webdataset",))


def measure_mosaic(
    source: MappedItems, out_dir: Path, *, keep: bool, hashes: tuple[str, ...] = ()
) -> None:
    """`streaming.MDSWriter` without compression and, as is its default, without hashes."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "txt": "str", "id": "int"}
    with (
        MeasuredLoop() as loop,
        MDSWriter(
            out=str(out_dir), columns=columns, size_limit=SHARD_BYTES, hashes=list(hashes)
        ) as writer,
    ):
        for row, image, text in source:
            writer.write({"jpg": bytes(image), "txt": str(text, "utf-8"), "id": row})
    loop.report(samples=len(source), bytes=_bytes_below(out_dir), versions=("mosaicml-streaming",))


def measure_write2(source: MappedItems, out_dir: Path, *, keep: bool) -> None:
    """write(2) of the same bytes: what any writer pays to the kernel."""
    written = 0
    with MeasuredLoop() as loop:
        for repeat in range(source.repeats):
            for name, column in (("images", source.images), ("texts", source.texts)):
                for start in range(0, len(column.payload), SHARD_BYTES):
                    end = min(start + SHARD_BYTES, len(column.payload))
                    with (out_dir / f"{name}-{repeat}-{start}.bin").open("wb", buffering=0) as file:
                        for place in range(start, end, WRITE_BYTES):
                            chunk = column.payload[place : min(place + WRITE_BYTES, end)]
                            written += os.write(file.fileno(), chunk)
    assert written == _bytes_below(out_dir)
    loop.report(samples=len(source), bytes=written)


def measure_content_step(source: MappedItems, out_dir: Path, *, keep: bool) -> None:
    """The whole content step with validated pictures, users' tars included, from raw tables."""
    from shop_dataset import shard_config

    from data_prep.settings import RunConfig
    from data_prep.shard import shard_dataset

    config = shard_config(source.workload, dataset_dir=out_dir)
    shard_dataset(config, RunConfig(stage="tables"))
    with MeasuredLoop() as loop:
        shard_dataset(config, RunConfig(stage="content"))
    loop.report(samples=len(source), bytes=_bytes_below(out_dir / "items"))


CASES: dict[str, Callable[..., None]] = {
    "ours": measure_ours,
    "webdataset": measure_webdataset,
    "mosaic": measure_mosaic,
    "mosaic_xxh128": functools.partial(measure_mosaic, hashes=("xxh128",)),
    "write2": measure_write2,
    "content_step": measure_content_step,
}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Run one case into an empty folder, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    source = MappedItems(Workload(args.workload), repeats=args.repeats)
    shutil.rmtree(args.out_dir, ignore_errors=True)
    args.out_dir.mkdir(parents=True)
    try:
        CASES[args.case](source, args.out_dir, keep=args.repeats == 1)
    finally:
        shutil.rmtree(args.out_dir)


if __name__ == "__main__":
    main()
