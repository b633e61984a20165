"""The workload in a peer's own container, for `load_items`; runs in the peer's environment.

python tests/bench/load_sources.py litdata --workload DIR --out_dir DIR
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mapped_items import MappedItems
from workload import Workload

SHARD_BYTES = 67_000_000
TOKENIZER_FILE = "tokenizer.json"
CONTEXT_LENGTH = 77


def write_webdataset(workload_dir: Path, out_dir: Path) -> None:
    """Tars of jpg, txt and json."""
    import webdataset

    with webdataset.ShardWriter(
        str(out_dir / "items-%06d.tar"), maxsize=SHARD_BYTES, verbose=0
    ) as writer:
        for row, image, text in MappedItems(Workload(workload_dir)):
            sample = {"jpg": bytes(image), "txt": str(text, "utf-8"), "json": {"id": row}}
            writer.write({"__key__": f"{row:010d}", **sample})


def write_mosaic(workload_dir: Path, out_dir: Path) -> None:
    """MDS shards."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "txt": "str", "id": "int"}
    with MDSWriter(out=str(out_dir), columns=columns, size_limit=SHARD_BYTES) as writer:
        for row, image, text in MappedItems(Workload(workload_dir)):
            writer.write({"jpg": bytes(image), "txt": str(text, "utf-8"), "id": row})


def write_litdata(workload_dir: Path, out_dir: Path) -> None:
    """litdata's chunks."""
    import litdata

    litdata.optimize(
        fn=functools.partial(_litdata_samples, workload_dir=workload_dir),
        inputs=[0],
        output_dir=str(out_dir),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def _litdata_samples(_: int, *, workload_dir: Path) -> Iterator[dict[str, object]]:
    for row, image, text in MappedItems(Workload(workload_dir)):
        yield {"jpg": bytes(image), "txt": str(text, "utf-8"), "id": row}


def write_tokenizer(workload_dir: Path, out_dir: Path) -> None:
    """Not a container: the Rust tokenizer of our dataset, padded as open_clip pads, for peers."""
    from data_prep.settings import TokenConfig
    from data_prep.tokens import open_tokenizer

    tokenizer = open_tokenizer(TokenConfig(tokenizer="open_clip", max_tokens=CONTEXT_LENGTH))
    tokenizer.enable_padding(length=CONTEXT_LENGTH, pad_id=0, pad_token="!")
    tokenizer.save(str(out_dir / TOKENIZER_FILE))


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "webdataset": write_webdataset,
    "mosaic": write_mosaic,
    "litdata": write_litdata,
    "tokenizer": write_tokenizer,
}


def main() -> None:
    """Write the container whole, or leave the one that an earlier run wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=WRITERS)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args()
    if not args.out_dir.is_dir():
        unfinished = args.out_dir.with_name(args.out_dir.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        WRITERS[args.source](args.workload, unfinished)
        unfinished.rename(args.out_dir)
    print("{}")


if __name__ == "__main__":
    main()
