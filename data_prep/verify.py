"""`python -m data_prep verify`: a dataset folder against its manifest, down to the damaged item."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.checksums import checksum, content_hash, file_checksum
from data_prep.content import read_index
from data_prep.manifest import FileEntry, Manifest
from data_prep.records import (
    FRAME_SUFFIX,
    IMAGE_MEMBER,
    JSON_MEMBER,
    MANIFEST_FILE,
    VECTOR_SUFFIX,
    block_key,
    decode_npy,
)
from data_prep.records import item_key as make_item_key
from data_prep.tar_reading import list_members
from data_prep.tars import BLOCK, tar_headers
from data_prep.user_blocks import BLOCK_MEMBER, UserBlock, decode_block

logger = logging.getLogger(__name__)


def find_damage(dataset_dir: Path) -> Iterator[str]:
    """One line for each thing that is wrong, naming the file and, in a tar, the key."""
    from rich.console import Console
    from rich.progress import track

    manifest = Manifest.load(dataset_dir)
    entries = {entry.path: entry for entry in manifest.files}
    for entry in track(manifest.files, "files", console=Console(stderr=True)):
        path = dataset_dir / entry.path
        if not path.is_file():
            yield f"{entry.path}: missing; re-run python -m data_prep shard"
            continue
        payload = path.read_bytes()
        damaged = checksum(payload) != entry.xxh128
        if damaged:
            size = f"{len(payload):,} bytes" if len(payload) != entry.bytes else "as many bytes"
            yield (
                f"{entry.path}: found {size} of other content, expected {entry.bytes:,} bytes "
                f"with checksum {entry.xxh128[:12]}…; delete {MANIFEST_FILE} and re-run "
                "python -m data_prep shard"
            )
        if not entry.path.endswith(".tar"):
            continue
        index = entries.get(entry.path.removesuffix(".tar") + ".index.arrow")
        if index is None:
            yield f"{entry.path}: no index in the manifest; re-run python -m data_prep shard"
            continue
        yield from _check_members(dataset_dir, entry, index=index, payload=payload)
        if damaged:
            continue
        try:
            for _ in list_members(path):
                pass
        except ValueError as error:  # a checksum can be made to fit; no other reader is to see it
            yield str(error)
        else:
            yield from _read_with_webdataset(path, entry)
    listed = {(dataset_dir / entry.path).resolve() for entry in manifest.files}
    for found in sorted([*dataset_dir.glob("items/*.tar"), *dataset_dir.glob("users/*.tar")]):
        if found.resolve() not in listed:
            yield f"{found.relative_to(dataset_dir)}: found, but not in the manifest; remove it"


def _check_members(
    dataset_dir: Path, entry: FileEntry, *, index: FileEntry, payload: bytes
) -> Iterator[str]:
    """The tar's headers and payloads against the sidecar index."""
    path = dataset_dir / index.path
    if not path.is_file():
        return  # reported where the index itself is checked
    if file_checksum(path) != index.xxh128:
        return
    table = read_index(path)
    key_of = block_key if entry.path.startswith("users/") else make_item_key
    rows, members, offsets, sizes, digests = (
        table[name].to_pylist() for name in table.column_names
    )
    names = [f"{key_of(row)}.{member}".encode() for row, member in zip(rows, members, strict=True)]
    headers = tar_headers(names, np.array(sizes, np.int64))
    for row, member, offset, size, digest, expected in zip(
        rows, members, offsets, sizes, digests, headers, strict=True
    ):
        header = payload[offset - BLOCK : offset]
        body = payload[offset : offset + size]
        if len(body) < size:
            problem = "cut off"
        elif header != expected.tobytes():
            problem = "damaged in its tar header"
        elif content_hash(body) != digest:
            problem = "damaged"
        else:
            continue
        yield f"{entry.path}: key {key_of(row)}, member {member} is {problem}"


def _read_with_webdataset(path: Path, entry: FileEntry) -> Iterator[str]:
    """Every sample through plain webdataset, and every member through its decoder."""
    import simplejpeg
    import webdataset as wds

    samples = 0
    for sample in wds.WebDataset(str(path), shardshuffle=False):
        samples += 1
        try:
            for member, payload in sample.items():
                if member == IMAGE_MEMBER or member.endswith(FRAME_SUFFIX):
                    simplejpeg.decode_jpeg_header(payload)
                elif member == JSON_MEMBER:
                    json.loads(payload)
                elif member.endswith(VECTOR_SUFFIX):
                    decode_npy(payload)
            if BLOCK_MEMBER in sample:
                _check_block(decode_block(sample[BLOCK_MEMBER]))
        except ValueError as error:
            yield f"{entry.path}: key {sample['__key__']} cannot be read ({error})"
    if samples != entry.samples:
        yield (
            f"{entry.path}: found {samples} samples with webdataset, expected {entry.samples}; "
            "re-run python -m data_prep shard"
        )


def _check_block(block: UserBlock) -> None:
    """Every user's events are in time order."""
    backwards = np.flatnonzero(np.diff(block.events["times"]) < 0) + 1
    if not np.isin(backwards, block.offsets).all():
        raise ValueError("a user's events are not in time order")
