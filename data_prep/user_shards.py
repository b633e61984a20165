"""The content step for users: events in time order, a block of users a sample."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_numpy
from data_prep.item_shards import is_finished, write_index
from data_prep.records import (
    USER_BLOCK_USERS,
    USER_MEMBERS,
    WEIGHTS_DTYPE,
    WEIGHTS_MEMBER,
    block_key,
    encode_npy,
    replace_file,
    user_index,
    user_tar,
)
from data_prep.tars import TarWriter
from data_prep.work import TablesReport, WorkFiles

BLOCKS_PER_SHARD = 64


@dataclass(frozen=True)
class UserShard:
    """What one tar's writer needs to know; it travels to worker processes."""

    number: int
    dataset_dir: Path
    num_users: int


def plan_user_shards(dataset_dir: Path, report: TablesReport) -> list[UserShard]:
    """Every user tar of the dataset."""
    num_users = report.counts["users"]
    num_shards = -(-num_users // (BLOCKS_PER_SHARD * USER_BLOCK_USERS))
    return [UserShard(number, dataset_dir, num_users) for number in range(num_shards)]


def write_user_shard(shard: UserShard) -> None:
    """Write a tar, its index and its receipt; a tar with a receipt is kept."""
    import pyarrow.parquet as pq

    work = WorkFiles(shard.dataset_dir)
    if is_finished(work.user_receipt(shard.number), shard.dataset_dir):
        return
    first = shard.number * BLOCKS_PER_SHARD * USER_BLOCK_USERS
    last = min(first + BLOCKS_PER_SHARD * USER_BLOCK_USERS, shard.num_users)
    table = pq.read_table(work.events, filters=[("user_row", ">=", first), ("user_row", "<", last)])
    events = {name: to_numpy(table[name]) for name in table.column_names}
    with TarWriter(shard.dataset_dir / user_tar(shard.number)) as tar:
        for start in range(first, last, USER_BLOCK_USERS):
            block = start // USER_BLOCK_USERS
            users = np.arange(start, min(start + USER_BLOCK_USERS, last))
            tar.add(block, key=block_key(block), members=encode_block(events, users))
    index = write_index(shard.dataset_dir / user_index(shard.number), tar.index)
    receipt = {
        "files": [
            {"path": user_tar(shard.number), **dataclasses.asdict(tar.receipt)},
            {"path": user_index(shard.number), **index, "samples": len(tar.index.members)},
        ],
        "quarantine": {},
    }
    replace_file(work.user_receipt(shard.number), json.dumps(receipt).encode())


def encode_block(
    events: dict[str, NDArray[Any]], users: NDArray[np.integer]
) -> list[tuple[str, bytes]]:
    """Tar members of a block; `events` is ordered by user, time and item, `users` by row."""
    bounds = np.searchsorted(events["user_row"], np.append(users, users[-1] + 1))
    inside = slice(bounds[0], bounds[-1])
    arrays = {
        "users.npy": users,
        "offsets.npy": bounds - bounds[0],
        "items.npy": events["item_row"][inside],
        "times.npy": events["time"][inside],
        "labels.npy": events["label"][inside],
    }
    members = [
        (name, encode_npy(array.astype(USER_MEMBERS[name]))) for name, array in arrays.items()
    ]
    if "weight" in events:
        weights = events["weight"][inside].astype(WEIGHTS_DTYPE)
        members.append((WEIGHTS_MEMBER, encode_npy(weights)))
    return members
