"""The content step for items: pictures, sound, texts and vectors to tars with a sidecar index.

Tar k holds rows `k * items_per_shard` onwards, whoever writes it, so the bytes do not depend on
the number of parts or workers.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.item_content import ContentReader
from data_prep.media_losses import MediaCount, is_refused
from data_prep.records import (
    encode_item,
    item_index,
    item_key,
    item_tar,
    replace_file,
    token_file,
)
from data_prep.settings import RunConfig, ShardConfig, expand_path
from data_prep.tars import MemberIndex, TarWriter
from data_prep.tokens import Tokens
from data_prep.work import TablesReport, WorkFiles

GROUP_BYTES = 64 << 20
"""A larger row group of raw content, as of photographs in cells, is read row by row: in memory it
would take this much three times."""
READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ItemShard:
    """What one tar's writer needs to know; it travels to worker processes."""

    number: int
    first_row: int
    num_rows: int
    dataset_dir: Path
    content: ContentReader
    tokens: Tokens | None


def plan_item_shards(config: ShardConfig, report: TablesReport) -> list[ItemShard]:
    """Every item tar of the dataset."""
    num_items, size = report.counts["items"], report.counts["items_per_shard"]
    content = ContentReader(
        items=config.items,
        pictures=config.pictures,
        sounds=config.sounds,
        fetch=config.fetch,
        text_fields=tuple(report.text_fields),
        vector_widths=report.vector_widths,
    )
    tokens = Tokens.of(config.tokens, text_fields=report.text_fields) if config.tokens else None
    dataset_dir = expand_path(config.dataset_dir, setting="dataset_dir")
    return [
        ItemShard(
            number=number,
            first_row=first,
            num_rows=min(size, num_items - first),
            dataset_dir=dataset_dir,
            content=content,
            tokens=tokens,
        )
        for number, first in enumerate(range(0, num_items, size))
    ]


def write_item_shard(shard: ItemShard, run: RunConfig) -> None:
    """Write a tar, its index, its token ids and its receipt.

    A tar with a receipt is kept, but for one whose lost pictures or clips had a run refused.
    """
    work = WorkFiles(shard.dataset_dir)
    path = work.item_receipt(shard.number)
    if is_finished(path, shard.dataset_dir) and not is_refused(path, run):
        return
    path.unlink(missing_ok=True)  # it would vouch for the tar that is about to replace its own
    counts: dict[str, MediaCount] = {}
    causes: Counter[str] = Counter()
    facts: dict[str, list[Any]] = {}
    joined: list[str] = []
    with TarWriter(shard.dataset_dir / item_tar(shard.number)) as tar:
        for row, prepared in shard.content.read_all(_raw_rows(work, shard), counts):
            item_row, record = row["item_row"], prepared.record
            members = encode_item(record, item_id=row["item_id"])
            tar.add(item_row, key=item_key(item_row), members=members)
            causes.update(prepared.causes)
            for name, value in ({"item_row": item_row} | prepared.facts()).items():
                facts.setdefault(name, []).append(value)
            if shard.tokens is not None:
                joined.append(shard.tokens.join(record))
    _write_presence(work.item_presence(shard.number), facts)
    name = item_index(shard.number)
    index = write_index(shard.dataset_dir / name, tar.index)
    files = [
        {"path": item_tar(shard.number), **dataclasses.asdict(tar.receipt)},
        {"path": name, **index, "samples": len(tar.index.members)},
    ]
    if shard.tokens is not None:
        name = token_file(shard.number)
        written = shard.tokens.write(shard.dataset_dir / name, joined)
        files.append({"path": name, **written, "samples": len(joined)})
    receipt = {
        "files": files,
        "quarantine": dict(sorted(causes.items())),
        "media": {column: dataclasses.asdict(count) for column, count in counts.items()},
    }
    replace_file(path, json.dumps(receipt).encode())


def is_finished(receipt: Path, dataset_dir: Path) -> bool:
    """Whether a tar was written whole, and is still there at its size."""
    if not receipt.is_file():
        return False
    files = [
        (dataset_dir / file["path"], file["bytes"])
        for file in json.loads(receipt.read_bytes())["files"]
    ]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def write_index(path: Path, index: MemberIndex) -> dict[str, Any]:
    """Write a sidecar index as an Arrow IPC file, to be mapped into memory."""
    import numpy as np
    import pyarrow as pa

    from data_prep.arrays import to_arrow, words_to_arrow
    from data_prep.arrow_files import write_arrow
    from data_prep.content import INDEX_SCHEMA

    arrays = [
        to_arrow(np.array(index.samples, np.int32)),
        words_to_arrow(index.members),
        to_arrow(np.array(index.offsets, np.int64)),
        to_arrow(np.array(index.sizes, np.int64)),
        to_arrow(np.array(index.hashes, np.uint64)),
    ]
    return write_arrow(path, pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))


def _raw_rows(work: WorkFiles, shard: ItemShard) -> Iterator[dict[str, Any]]:
    """The shard's rows of the raw content; a row group is in memory, of a large one a row."""
    import pyarrow.parquet as pq

    last_row = shard.first_row + shard.num_rows
    with pq.ParquetFile(work.content, buffer_size=READ_BYTES, pre_buffer=False) as file:
        size = file.metadata.row_group(0).num_rows
        for group in range(shard.first_row // size, -(-last_row // size)):
            is_large = file.metadata.row_group(group).total_byte_size > GROUP_BYTES
            for batch in file.iter_batches(1 if is_large else size, row_groups=[group]):
                for row in batch.to_pylist():
                    if shard.first_row <= row["item_row"] < last_row:
                        yield row


def _write_presence(path: Path, facts: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    from data_prep.parquet_files import write_parquet

    kinds = {"item_row": pa.int32(), "cause": pa.string()}
    by_prefix = {"has": pa.bool_(), "hash": pa.uint64(), "phash": pa.uint64()}
    schema = pa.schema(
        [
            pa.field(name, kinds[name] if name in kinds else by_prefix[name.partition("_")[0]])
            for name in facts
        ]
    )
    write_parquet([pa.Table.from_pydict(facts, schema=schema)], path, schema=schema)
