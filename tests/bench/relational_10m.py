"""The relational step against DuckDB's bare ORDER BY of the same log: CPU and peak memory.

Both run as children of this process, in turn. As in the other benchmarks, CPU is that of the work,
user and system time of all threads, without Python's start and imports; `whole_process` has them
too. `python tests/bench/relational_10m.py --help`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
START_MS, SPAN_MS = 1_735_689_600_000, 60 * 86_400_000
CHUNK_EVENTS = 1_000_000
DUPLICATE_SHARE = 0.01

CASES = Path(__file__).with_name("table_cases.py")


@dataclass(frozen=True)
class Cost:
    """What a child process used."""

    cpu_s: float
    """User and system time of the work."""
    process_cpu_s: float
    """The same with Python's start and imports."""
    peak_mb: float
    wall_s: float


def make_log(folder: Path, *, num_events: int, num_users: int, num_items: int) -> None:
    """A log in order of time, one event in a hundred twice; popularity falls as rank^-0.8."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "made.json"
    sizes = {"num_events": num_events, "num_users": num_users, "num_items": num_items}
    if done.is_file() and json.loads(done.read_text()) == sizes:
        return
    rng = np.random.default_rng(0)
    share = np.arange(1, num_items + 1) ** -0.8
    bounds = np.cumsum(share / share.sum())
    item_ids = 1_000 + 7 * rng.permutation(num_items)
    pq.write_table(pa.table({"item_id": item_ids}), folder / "items.parquet")
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")])
    with pq.ParquetWriter(folder / "log.parquet", schema, compression="zstd") as writer:
        for start in range(0, num_events, CHUNK_EVENTS):
            rows = min(CHUNK_EVENTS, num_events - start)
            place = (start + np.sort(rng.random(rows)) * rows) / num_events
            columns = {
                "user_id": rng.permutation(num_users)[rng.integers(num_users, size=rows)] + 10**6,
                "item_id": item_ids[np.searchsorted(bounds, rng.random(rows))],
                "timestamp": START_MS + (place * SPAN_MS).astype(np.int64),
            }
            again = 1 + np.flatnonzero(rng.random(rows - 1) < DUPLICATE_SHARE)
            for values in columns.values():
                values[again] = values[again - 1]
            writer.write_table(pa.table(columns, schema=schema))
    done.write_text(json.dumps(sizes))


def measure(*arguments: str) -> Cost:
    """Run a case of `table_cases` to its end."""
    start = time.perf_counter()
    command = [sys.executable, str(CASES), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{command[:4]}: exit {child.returncode}: {errors.read().decode()}")
        output.seek(0)
        found = json.loads(output.read().splitlines()[-1])
    return Cost(
        cpu_s=found["cpu_s"],
        process_cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=found["peak_mb"],
        wall_s=time.perf_counter() - start,
    )


def ours(folder: Path, out: Path, *, memory_limit: str, stages: tuple[str, ...]) -> list[Cost]:
    """Each stage of `python -m data_prep shard` with the default settings."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["shard", "--name", "bench"]
    command += ["--dataset_dir", str(out), "--memory_limit", memory_limit]
    command += ["--interactions.path", str(folder / "log.parquet")]
    command += ["--interactions.time_unit", "ms", "--items.path", str(folder / "items.parquet")]
    command += ["--split.valid_start", "2025-02-15", "--split.test_start", "2025-02-21"]
    return [measure(*command, "--stage", stage) for stage in stages]


def bare(folder: Path, out: Path, *, memory_limit: str) -> Cost:
    """DuckDB alone, from Parquet to sorted Parquet."""
    spill = str(folder / "spill")
    return measure("bare", str(folder / "log.parquet"), str(out), memory_limit, spill)


def main() -> None:
    """Print a line a round and the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "relational")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--large_events", type=int, default=100_000_000, help="once; 0: not at all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.events, options.large_events = 1, options.events // 10, 0
    folder, out = options.folder / f"log_{options.events}", options.folder / "dataset"
    users, items = max(options.events // 100, 1), min(200_000, max(options.events // 50, 10))
    make_log(folder, num_events=options.events, num_users=users, num_items=items)
    costs: dict[str, list[Cost]] = {name: [] for name in ("ours", "bare", "ours_400", "bare_400")}
    for turn in range(options.rounds):
        for suffix, limit in (("", "2GB"), ("_400", "400MB")):
            out.mkdir(parents=True, exist_ok=True)
            costs["bare" + suffix].append(bare(folder, out / "bare.parquet", memory_limit=limit))
            costs["ours" + suffix] += ours(folder, out, memory_limit=limit, stages=("tables",))
            out.mkdir(parents=True, exist_ok=True)
        print(turn, {name: f"{cost[-1].cpu_s:.2f} s" for name, cost in costs.items()}, flush=True)
    cpu = {name: statistics.median(cost.cpu_s for cost in runs) for name, runs in costs.items()}
    process = {
        name: statistics.median(cost.process_cpu_s for cost in runs) for name, runs in costs.items()
    }
    peak = {name: max(cost.peak_mb for cost in runs) for name, runs in costs.items()}
    result: dict[str, object] = {
        "name": "relational_10m",
        "unit": "CPU seconds",
        "ours": cpu["ours"],
        "peers": {"duckdb_sort": cpu["bare"]},
        "ratio": {"duckdb_sort": round(cpu["ours"] / cpu["bare"], 3)},
        "whole_process": {
            "ours": process["ours"],
            "duckdb_sort": process["bare"],
            "ratio": round(process["ours"] / process["bare"], 3),
        },
        "limited_to_400mb": {
            "ours": cpu["ours_400"],
            "duckdb_sort": cpu["bare_400"],
            "ratio": round(cpu["ours_400"] / cpu["bare_400"], 3),
            "peak_mb": round(peak["ours_400"], 1),
            "duckdb_sort_peak_mb": round(peak["bare_400"], 1),
        },
        "events": options.events,
        "rounds": options.rounds,
    }
    if options.large_events:
        large = options.folder / f"log_{options.large_events}"
        sizes = {"num_users": options.large_events // 100, "num_items": items}
        make_log(large, num_events=options.large_events, **sizes)
        (cost,) = ours(large, out, memory_limit="400MB", stages=("tables",))
        result["large"] = {"events": options.large_events, **cost.__dict__}
    shutil.rmtree(out, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
