"""Whether an event costs as much at 100 M events as at 1 M, and an item at 200 k as at 20 k.

Costs are CPU seconds (user + system) of the stages of `python -m data_prep shard`, as in the other
benchmarks without Python's start and imports. What an event costs is what a log costs more than one
of a thousand events with the same catalogue; `with_start` subtracts nothing. `--quick` takes a
hundredth of the events and a tenth of the items.
"""

import argparse
import io
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from relational_10m import START_MS, Cost, make_log, measure, ours

ROUNDS = 5
"""Of the small runs; a large one is long enough to be measured once."""
PICTURES = 512
BARE_ITEMS = 20_000
"""Items of every log, without content."""
NO_EVENTS = 1_000


def make_items(folder: Path, *, num_items: int) -> None:
    """A catalogue with small pictures and titles, and a log of a few events."""
    if (folder / "log.parquet").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        pixels = np.kron(rng.integers(256, size=(8, 8, 3)), np.ones((12, 12, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=87)
        pictures.append(buffer.getvalue())
    with pq.ParquetWriter(
        folder / "items.parquet",
        pa.schema([("item_id", pa.int64()), ("image", pa.binary()), ("title", pa.string())]),
    ) as writer:
        for start in range(0, num_items, 10_000):
            ids = np.arange(start, min(start + 10_000, num_items))
            images = [pictures[i] for i in rng.integers(PICTURES, size=len(ids))]
            titles = [f"a title of item {i}" for i in ids]
            writer.write_table(pa.table({"item_id": ids, "image": images, "title": titles}))
    days = np.arange(60)
    log = {"user_id": days % 3, "item_id": days % 10, "timestamp": START_MS + days * 86_400_000}
    pq.write_table(pa.table(log), folder / "log.parquet")


def event_costs(folder: Path, out: Path, *, num_events: int, limit: str) -> dict[str, Cost]:
    """The relational step, and the content step, which is the user tars but for bare items."""
    log = folder / f"log_{num_events}"
    users = max(num_events // 100, 10)
    make_log(log, num_events=num_events, num_users=users, num_items=BARE_ITEMS)
    tables, content = ours(log, out, memory_limit=limit, stages=("tables", "content"))
    return {"tables": tables, "content": content}


def item_cost(folder: Path, out: Path, *, num_items: int) -> Cost:
    """The content step of a catalogue with pictures and texts."""
    raw = folder / f"items_{num_items}"
    make_items(raw, num_items=num_items)
    shutil.rmtree(out, ignore_errors=True)
    command = ["shard", "--name", "bench"]
    command += ["--dataset_dir", str(out), "--interactions.path", str(raw / "log.parquet")]
    command += ["--interactions.time_unit", "ms", "--items.path", str(raw / "items.parquet")]
    command += ["--items.image", "image", "--items.texts", "[title]"]
    command += ["--split.valid_start", "2025-02-15", "--split.test_start", "2025-02-21"]
    measure(*command, "--stage", "tables")
    return measure(*command, "--stage", "content")


def total(costs: dict[str, Cost]) -> float:
    """CPU seconds of all steps."""
    return sum(cost.cpu_s for cost in costs.values())


def main() -> None:
    """Print a line a size and the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "scaling")
    parser.add_argument("--memory_limit", default="auto", help="of DuckDB, as data_prep takes it")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["events", "items"])
    options = parser.parse_args()
    few_events, many_events = (10_000, 1_000_000) if options.quick else (10**6, 10**8)
    few_items, many_items = (2_000, 20_000) if options.quick else (20_000, 200_000)
    out = options.folder / "dataset"
    result: dict[str, object] = {"name": "scaling", "unit": "CPU microseconds"}
    ours_us, peers, ratio, measured = {}, {}, {}, {}
    if options.only != "items":
        limit = options.memory_limit
        runs: dict[int, list[float]] = {NO_EVENTS: [], few_events: []}
        for _ in range(ROUNDS):
            for size, found in runs.items():
                found.append(total(event_costs(options.folder, out, num_events=size, limit=limit)))
        start, small = (statistics.median(found) for found in runs.values())
        large = event_costs(options.folder, out, num_events=many_events, limit=limit)
        per_event = {few_events: small, many_events: total(large)}
        peers["per_event_1m"], ours_us["per_event_1m"] = (
            (cost - start) / size * 1e6 for size, cost in per_event.items()
        )
        measured["with_start"] = {
            f"{size}_events": cost / size * 1e6 for size, cost in per_event.items()
        } | {"start_cpu_s": start}
        measured["events"] = {name: cost.__dict__ for name, cost in large.items()}
    if options.only != "events":
        few = [item_cost(options.folder, out, num_items=few_items) for _ in range(ROUNDS)]
        peers["per_item_20k"] = statistics.median(run.cpu_s for run in few) / few_items * 1e6
        many = item_cost(options.folder, out, num_items=many_items)
        ours_us["per_item_20k"] = many.cpu_s / many_items * 1e6
        measured["items"] = many.__dict__
    for name, value in ours_us.items():
        ratio[name] = round(value / peers[name], 3)
    shutil.rmtree(out, ignore_errors=True)
    print(json.dumps(result | {"ours": ours_us, "peers": peers, "ratio": ratio, **measured}))


if __name__ == "__main__":
    main()
