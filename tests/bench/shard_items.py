"""`make bench`: CPU time of writing item shards, ours against the peers' writers.

    python tests/bench/shard_items.py [--quick]

`ratio.write2` is against write(2) of the same bytes, the least that any writer pays.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench_arguments import BenchArguments, parse_arguments
from interleaved import Case, Outcome, median, outcome, paired_ratio, run_once, run_rounds
from peer_environments import peer_python
from workload import WorkloadConfig, prepare_workload

PEERS = ("webdataset", "mosaic", "write2")
BESIDE = {"content_step": "ours", "mosaic_xxh128": "mosaic"}
"""Measured, but no peers; mosaic_xxh128 as ours always writes a tar's checksum, MDS if asked."""
SCRIPT = Path(__file__).with_name("shard_cases.py")
REPEATS = 10


def main() -> None:
    """Run every case in turns and print the outcome."""
    args = parse_arguments(__doc__, peers=PEERS)
    print(measure(args).line())


def measure(args: BenchArguments) -> Outcome:
    """All rounds, then ours over ten times the items."""
    workload = prepare_workload(args.bench_dir, WorkloadConfig(num_items=args.num_items))
    given = ("--workload", str(workload.dir), "--out_dir", str(args.bench_dir / "shard_items"))
    cases = [
        Case(
            name=name,
            python=peer_python(BESIDE.get(name, name), bench_dir=args.bench_dir),
            script=SCRIPT,
            arguments=(name, *given),
        )
        for name in ("ours", *args.peers, *BESIDE)
        if BESIDE.get(name, name) in ("ours", *args.peers)
    ]
    found = run_rounds(cases, rounds=args.rounds)
    large = run_once(
        Case(
            name="ours_10x",
            python=Path(sys.executable),
            script=SCRIPT,
            arguments=("ours", *given, "--repeats", str(REPEATS)),
        )
    )
    return outcome("shard_items", found, peers=args.peers, **_sizes(found, large))


def _sizes(found: dict[str, list[dict[str, Any]]], large: dict[str, Any]) -> dict[str, Any]:
    written = {name: measured[0]["bytes"] for name, measured in found.items()}
    peak = median(found["ours"], "peak_bytes")
    return {
        "bytes": written,
        "bytes_ratio": {name: written["ours"] / size for name, size in written.items()},
        "ours_10x": {
            "cpu_us": large["cpu_us"],
            "samples": large["samples"],
            "peak_mb": large["peak_bytes"] / 1e6,
            "peak_ratio": large["peak_bytes"] / peak,
        },
        "content_step_over_ours": paired_ratio(found, "content_step", "ours"),
    }


if __name__ == "__main__":
    main()
