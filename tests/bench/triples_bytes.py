"""`make bench`: bytes of a dataset folder against those of one self-contained sample a triple.

    python tests/bench/triples_bytes.py [--quick]

A triple's sample holds its picture (jpg), its text (txt), and who, what, when and the 50 items
before (json). `ratio.content_per_triple` is against a plain ustar file of them.
`content_per_triple_otherwise` says what they take as webdataset's writer writes them, and at their
leanest: text and json in one member, and no history. `ratio.content_plus_16B` is against the
content once and 16 bytes an event; the goal is `bound`, 1.15 times the content and 16 bytes an
event.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from bench_arguments import BenchArguments, parse_arguments
from interleaved import Outcome
from load_items import prepare_dataset
from mapped_items import MappedItems
from numpy.typing import NDArray
from workload import Workload, WorkloadConfig, prepare_workload

PEERS = ("content_per_triple", "content_plus_16B")
BLOCK = 512
HISTORY = 50
EVENT_BYTES = 16
CONTENT_SHARE = 1.15
NUM_WRITTEN = 2_000
"""Triples that are really written, to check the sum."""


def main() -> None:
    """Shard the workload, weigh the folder and print the outcome."""
    args = parse_arguments(__doc__, peers=PEERS)
    print(measure(args).line())


def measure(args: BenchArguments) -> Outcome:
    """Weigh the dataset and what it is compared with."""
    config = WorkloadConfig(num_items=args.num_items)
    workload = prepare_workload(args.bench_dir, config)
    dataset_dir = prepare_dataset(workload, bench_dir=args.bench_dir)
    source = MappedItems(workload)
    content = len(source.images.payload) + len(source.texts.payload)
    events = config.num_interactions
    triples = Triples(workload)
    written = verify_sum(triples, args.bench_dir / "triples")
    ours = bytes_below(dataset_dir)
    peers = {
        "content_per_triple": float(triples.sample_bytes().sum()),
        "content_plus_16B": float(content + EVENT_BYTES * events),
    }
    bound = CONTENT_SHARE * content + EVENT_BYTES * events
    return Outcome(
        name="triples_bytes",
        unit="bytes",
        ours=float(ours),
        peers=peers,
        ratio={name: ours / value for name, value in peers.items()},
        more={
            "content_bytes": content,
            "events": events,
            "bound": {"bytes": bound, "ratio": ours / bound},
            "parts": _parts(dataset_dir),
            "content_per_triple_otherwise": {
                "webdataset": peers["content_per_triple"]
                * written["webdataset"]
                / written["ustar"],
                "leanest": float(triples.leanest_bytes().sum()),
            },
            "written": written,
        },
    )


class Triples:
    """One self-contained sample an interaction, in order of user and time."""

    def __init__(self, workload: Workload) -> None:
        self.items = MappedItems(workload)
        log = pq.read_table(workload.interactions)
        by_user = np.argsort(log["user_id"].to_numpy(), kind="stable")
        self.users, self.rows, self.times = (
            log[name].to_numpy()[by_user] for name in ("user_id", "item_id", "time")
        )
        first = np.searchsorted(self.users, self.users)
        self.oldest = np.maximum(first, np.arange(len(self.users)) - HISTORY)

    def __len__(self) -> int:
        return len(self.rows)

    def sample_bytes(self) -> NDArray[np.int64]:
        """Bytes of each sample in a ustar file, by sum."""
        place = np.arange(len(self))
        digits = _digits(self.rows)
        ends = np.concatenate([[0], np.cumsum(digits)])
        commas = 2 * np.maximum(place - self.oldest - 1, 0)
        facts = _facts(0, 0, 0, [])
        body = len(facts) - 3 + _digits(self.users) + digits + _digits(self.times)
        body += ends[place] - ends[self.oldest] + commas
        return _in_tar(self._image_bytes()) + _in_tar(self._text_bytes()) + _in_tar(body)

    def leanest_bytes(self) -> NDArray[np.int64]:
        """The same without history, and with the text beside the other facts."""
        facts = len(_facts(0, 0, 0, [])) - 3 + len(', "text": ""') - len(', "history": []')
        body = facts + _digits(self.users) + _digits(self.rows) + _digits(self.times)
        return _in_tar(self._image_bytes()) + _in_tar(body + self._text_bytes())

    def first(self, count: int) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
        """Members of the first samples."""
        for place in range(min(count, len(self))):
            user, row, time = (int(part[place]) for part in (self.users, self.rows, self.times))
            facts = _facts(user, row, time, self.rows[self.oldest[place] : place].tolist())
            image, text = bytes(self.items.images[row]), bytes(self.items.texts[row])
            yield place, [("jpg", image), ("txt", text), ("json", facts.encode())]

    def _image_bytes(self) -> NDArray[np.int64]:
        return np.diff(self.items.images.offsets)[self.rows]

    def _text_bytes(self) -> NDArray[np.int64]:
        return np.diff(self.items.texts.offsets)[self.rows]


def verify_sum(triples: Triples, folder: Path) -> dict[str, int]:
    """Bytes of the first triples, written by our writer and by webdataset's.

    Raises:
        ValueError: the sum is not what our writer wrote.
    """
    import webdataset

    from data_prep.tars import END, TarWriter

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ours, theirs = folder / "ours.tar", folder / "webdataset.tar"
    with TarWriter(ours) as tar, webdataset.TarWriter(str(theirs)) as writer:
        for place, members in triples.first(NUM_WRITTEN):
            tar.add(place, key=f"{place:010d}", members=members)
            writer.write({"__key__": f"{place:010d}", **dict(members)})
    written = {"ustar": ours.stat().st_size - len(END), "webdataset": theirs.stat().st_size}
    shutil.rmtree(folder)
    expected = int(triples.sample_bytes()[:NUM_WRITTEN].sum())
    if written["ustar"] != expected:
        raise ValueError(f"{folder}: found {written} bytes of triples, expected {expected}")
    return {"triples": tar.receipt.samples, **written}


def _facts(user: int, row: int, time: int, history: list[int]) -> str:
    return json.dumps({"user": user, "item": row, "time": time, "history": history})


def _digits(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.char.str_len(numbers.astype(str))


def _in_tar(payload: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of members: a header, and the payload in whole blocks."""
    return BLOCK + -(-payload // BLOCK) * BLOCK


def bytes_below(folder: Path) -> int:
    """Bytes of every file of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _parts(dataset_dir: Path) -> dict[str, int]:
    """Bytes by what they are for."""
    items, users = dataset_dir / "items", dataset_dir / "users"
    parts = {
        "item_tars": sum(path.stat().st_size for path in items.glob("*.tar")),
        "item_indexes_and_tokens": sum(path.stat().st_size for path in items.glob("*.arrow")),
        "users": bytes_below(users),
    }
    return parts | {"tables": bytes_below(dataset_dir) - sum(parts.values())}


if __name__ == "__main__":
    main()
