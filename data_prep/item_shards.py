"""The content step for items: pictures, texts and vectors to tars with a sidecar index.

Tar k holds rows `k * items_per_shard` onwards, whoever writes it, so the bytes do not depend on
the number of parts or workers.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.pictures import prepare_picture
from data_prep.records import (
    ItemRecord,
    encode_item,
    item_index,
    item_key,
    item_tar,
    replace_file,
)
from data_prep.settings import PictureConfig, ShardConfig, expand_path
from data_prep.tars import MemberIndex, TarBuffer
from data_prep.work import TablesReport, WorkFiles

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class ItemShard:
    """What one tar's writer needs to know; it travels to worker processes."""

    number: int
    dataset_dir: Path
    image_dir: Path | None
    pictures: PictureConfig
    text_fields: list[str]
    vector_widths: dict[str, int]


def plan_item_shards(config: ShardConfig, report: TablesReport) -> list[ItemShard]:
    """Every item tar of the dataset."""
    num_shards = -(-report.counts["items"] // report.counts["items_per_shard"])
    image_dir = config.items.image_dir
    return [
        ItemShard(
            number=number,
            dataset_dir=expand_path(config.dataset_dir, setting="dataset_dir"),
            image_dir=expand_path(image_dir, setting="items.image_dir") if image_dir else None,
            pictures=config.pictures,
            text_fields=report.text_fields,
            vector_widths=report.vector_widths,
        )
        for number in range(num_shards)
    ]


def write_item_shard(shard: ItemShard) -> None:
    """Write a tar, its index and its receipt; a tar with a receipt is kept."""
    import pyarrow.parquet as pq

    work = WorkFiles(shard.dataset_dir)
    if is_finished(work.item_receipt(shard.number), shard.dataset_dir):
        return
    rows = pq.ParquetFile(work.content).read_row_group(shard.number).to_pylist()
    buffer = TarBuffer()
    causes: Counter[str] = Counter()
    presence: dict[str, list[Any]] = {"item_row": [], "has_image": [], "has_text": []}
    presence |= {f"has_{name}": [] for name in shard.vector_widths}
    presence["cause"] = []
    for row in rows:
        record, found = _prepare(row, shard)
        causes.update(found)
        key = item_key(row["item_row"])
        buffer.add(row["item_row"], key=key, members=encode_item(record, item_id=row["item_id"]))
        presence["item_row"].append(row["item_row"])
        presence["has_image"].append(record.image is not None)
        presence["has_text"].append(bool(record.texts))
        for name in shard.vector_widths:
            presence[f"has_{name}"].append(name in record.vectors)
        presence["cause"].append(", ".join(found) or None)
    tar = buffer.write(shard.dataset_dir / item_tar(shard.number))
    index = write_index(shard.dataset_dir / item_index(shard.number), buffer.index)
    _write_presence(work.item_presence(shard.number), presence)
    receipt = {
        "files": [
            {"path": item_tar(shard.number), **dataclasses.asdict(tar)},
            {"path": item_index(shard.number), **index, "samples": len(buffer.index.members)},
        ],
        "quarantine": dict(sorted(causes.items())),
    }
    replace_file(work.item_receipt(shard.number), json.dumps(receipt).encode())


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
    import hashlib

    import pyarrow as pa

    from data_prep.content import INDEX_SCHEMA

    columns = [index.samples, index.members, index.offsets, index.sizes, index.crc32s]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=INDEX_SCHEMA))
    payload = sink.getvalue().to_pybytes()
    replace_file(path, payload)
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def _prepare(row: dict[str, Any], shard: ItemShard) -> tuple[ItemRecord, list[str]]:
    """One item's content, and the causes for which parts of it were set aside."""
    causes: list[str] = []
    image: bytes | None = None
    if (payload := row.get("image")) is not None:
        prepared = _picture(payload, shard)
        if isinstance(prepared, bytes):
            image = prepared
        else:
            causes.append(f"pictures/{prepared}")
    texts = {
        name: text
        for name in shard.text_fields
        if (text := row[f"text_{name}"]) is not None and text.strip()
    }
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, width in shard.vector_widths.items():
        if (numbers := row[f"vector_{name}"]) is None:
            continue
        vector = np.array(numbers, dtype=np.float32)
        if len(vector) != width:
            causes.append(f"vectors/{name}_of_another_width")
        elif not np.isfinite(vector).all():
            causes.append(f"vectors/{name}_not_finite")
        else:
            vectors[name] = vector
    return ItemRecord(image=image, texts=texts, vectors=vectors), causes


def _picture(payload: bytes | str, shard: ItemShard) -> bytes | str:
    """JPEG bytes, or a cause."""
    if isinstance(payload, bytes):
        return prepare_picture(payload, shard.pictures)
    assert shard.image_dir is not None
    path = shard.image_dir / payload
    if not path.is_file():
        return "file_missing"
    return prepare_picture(path.read_bytes(), shard.pictures)


def _write_presence(path: Path, presence: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    from data_prep.parquet_files import write_parquet

    schema = pa.schema(
        [
            pa.field(name, {"item_row": pa.int32(), "cause": pa.string()}.get(name, pa.bool_()))
            for name in presence
        ]
    )
    table: pa.Table = pa.Table.from_pydict(presence, schema=schema)
    write_parquet([table], path, schema=schema)
