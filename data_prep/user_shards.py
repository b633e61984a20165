"""The content step for users: events in time order, a block of users a sample."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_numpy
from data_prep.event_file import read_users_events
from data_prep.item_shards import is_finished, write_index
from data_prep.records import (
    USER_BLOCK_USERS,
    block_key,
    replace_file,
    user_index,
    user_tar,
)
from data_prep.tars import TarWriter
from data_prep.user_blocks import BLOCK_MEMBER, UserBlock
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
    work = WorkFiles(shard.dataset_dir)
    if is_finished(work.user_receipt(shard.number), shard.dataset_dir):
        return
    first = shard.number * BLOCKS_PER_SHARD * USER_BLOCK_USERS
    last = min(first + BLOCKS_PER_SHARD * USER_BLOCK_USERS, shard.num_users)
    table = read_users_events(work.events, first=first, last=last)
    events = {name: to_numpy(table[name]) for name in table.column_names}
    with TarWriter(shard.dataset_dir / user_tar(shard.number)) as tar:
        for start in range(first, last, USER_BLOCK_USERS):
            block = start // USER_BLOCK_USERS
            users = np.arange(start, min(start + USER_BLOCK_USERS, last))
            payload = block_of(events, users).encode()
            tar.add(block, key=block_key(block), members=[(BLOCK_MEMBER, payload)])
    index = write_index(shard.dataset_dir / user_index(shard.number), tar.index)
    receipt = {
        "files": [
            {"path": user_tar(shard.number), **dataclasses.asdict(tar.receipt)},
            {"path": user_index(shard.number), **index, "samples": len(tar.index.members)},
        ],
        "quarantine": {},
    }
    replace_file(work.user_receipt(shard.number), json.dumps(receipt).encode())


def block_of(events: dict[str, NDArray[Any]], users: NDArray[np.integer]) -> UserBlock:
    """Cut a block out of events ordered by user, time and item; `users` are consecutive rows."""
    bounds = np.searchsorted(events["user_row"], np.append(users, users[-1] + 1))
    inside = slice(bounds[0], bounds[-1])
    columns = {"item_rows": "item_row", "times": "time", "labels": "label", "weights": "weight"}
    return UserBlock(
        users=users.astype(np.uint32),
        offsets=bounds - bounds[0],
        events={name: events[of][inside] for name, of in columns.items() if of in events},
    )
