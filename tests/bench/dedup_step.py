"""Training steps a CPU second, each item of a batch encoded once or at every reference.

    python tests/bench/dedup_step.py [--num_items 1024] [--rounds 3]

End to end on the purchases of hm_fashion_mm, pictures and texts through both frozen towers, the
same loss, one thread. `--num_items` is the batch: windows of users' events in a step. `ratio` is
steps a second, ours / without de-duplication. It needs TRIPTYCH_DATA.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench_arguments import BenchArguments, parse_arguments
from interleaved import Case, Outcome, median, run_rounds

from data_prep.__main__ import main as data_prep_main

HERE = Path(__file__).parent
CASES = {"ours": "distinct", "no_dedup": "every_reference"}
STEPS = 1


def main() -> None:
    """Run both cases in turns and print the outcome."""
    args = parse_arguments(__doc__, peers=("no_dedup",), num_items=1024, rounds=3)
    print(measure(args).line())


def measure(args: BenchArguments) -> Outcome:
    """All rounds."""
    dataset_dir = args.bench_dir / "dataset-fashion"
    prepare_dataset(dataset_dir)
    size = ("--batch", str(args.num_items), "--steps", str(STEPS))
    cases = [
        Case(
            name=name,
            python=Path(sys.executable),
            script=HERE / "dedup_cases.py",
            arguments=(case, "--dataset_dir", str(dataset_dir), *size),
        )
        for name, case in CASES.items()
    ]
    found = run_rounds(cases, rounds=args.rounds)
    speed = {name: 1e6 / median(found[name], "cpu_us") for name in CASES}
    pairs = zip(found["ours"], found["no_dedup"], strict=True)
    return Outcome(
        name="dedup_step",
        unit="steps/CPU second",
        ours=speed["ours"],
        peers={"no_dedup": speed["no_dedup"]},
        ratio={"no_dedup": speed["ours"] / speed["no_dedup"]},
        more={
            "paired_ratio": [apart["cpu_us"] / once["cpu_us"] for once, apart in pairs],
            "encoded": {name: found[name][0]["encoded"] for name in CASES},
            "losses": {name: found[name][0]["losses"] for name in CASES},
            "batch": args.num_items,
            "rounds": args.rounds,
        },
    )


def prepare_dataset(dataset_dir: Path) -> None:
    """The purchases as a dataset folder, when it is not there."""
    if (dataset_dir / "manifest.json").is_file():
        return
    words = ["shard", "--config", "configs/fashion/shard.yaml", "--dataset_dir", str(dataset_dir)]
    if data_prep_main(words):
        sys.exit("dedup_step: set TRIPTYCH_DATA to the folder that holds hm_fashion_mm")


if __name__ == "__main__":
    main()
