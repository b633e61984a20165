"""`make bench`: CPU time of reading, decoding and tokenising a sample, ours against the peers.

    python tests/bench/load_items.py [--quick]

`ratio.decode_floor` is against decoding alone. `deduplication.gain` is samples a CPU second with
each item of a batch of 4,096 read once, over reading it each time it is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench_arguments import BenchArguments, parse_arguments
from interleaved import Case, Outcome, outcome, paired_ratio, run_once, run_rounds
from load_sources import TOKENIZER_FILE
from peer_environments import peer_python
from workload import Workload, WorkloadConfig, prepare_workload

PEERS = ("decode_floor", "webdataset", "litdata", "mosaic", "open_clip")
OURS = ("ours", "ours_distinct", "ours_repeated")
"""Shuffled batches; batches drawn from the log, each item once or each time it is named."""
CONTAINERS = {"open_clip": "webdataset", "decode_floor": "ours"}
"""Cases that read another case's container, or none."""
HERE = Path(__file__).parent


def main() -> None:
    """Write every container, run every case in turns and print the outcome."""
    args = parse_arguments(__doc__, peers=PEERS)
    print(measure(args).line())


def measure(args: BenchArguments) -> Outcome:
    """All rounds."""
    workload = prepare_workload(args.bench_dir, WorkloadConfig(num_items=args.num_items))
    tokenizer = _write_source("tokenizer", workload, bench_dir=args.bench_dir) / TOKENIZER_FILE
    sources = {"ours": prepare_dataset(workload, bench_dir=args.bench_dir)}
    cases = []
    for name in (OURS[0], *args.peers, *OURS[1:]):
        container = "ours" if name in OURS else CONTAINERS.get(name, name)
        if container not in sources:
            sources[container] = _write_source(container, workload, bench_dir=args.bench_dir)
        cases.append(
            Case(
                name=name,
                python=peer_python(name, bench_dir=args.bench_dir),
                script=HERE / "load_cases.py",
                arguments=(
                    *(name, "--workload", str(workload.dir), "--tokenizer", str(tokenizer)),
                    *("--source", str(sources[container])),
                ),
            )
        )
    found = run_rounds(cases, rounds=args.rounds)
    once = found["ours_distinct"][0]
    deduplication = {
        "gain": paired_ratio(found, "ours_repeated", "ours_distinct"),
        "distinct_share": once["loaded"] / once["samples"],
    }
    return outcome("load_items", found, peers=args.peers, deduplication=deduplication)


def prepare_dataset(workload: Workload, *, bench_dir: Path) -> Path:
    """The dataset folder that the code of today makes of the workload."""
    dataset_dir = bench_dir / f"dataset-{workload.dir.name}"
    given = ("--workload", str(workload.dir), "--dataset_dir", str(dataset_dir))
    script = HERE / "shop_dataset.py"
    run_once(Case(name="shard", python=Path(sys.executable), script=script, arguments=given))
    return dataset_dir


def _write_source(container: str, workload: Workload, *, bench_dir: Path) -> Path:
    folder = bench_dir / f"{container}-{workload.dir.name}"
    given = (container, "--workload", str(workload.dir), "--out_dir", str(folder))
    python = peer_python(container, bench_dir=bench_dir)
    script = HERE / "load_sources.py"
    run_once(Case(name=f"{container}, writing", python=python, script=script, arguments=given))
    return folder


if __name__ == "__main__":
    main()
