"""`make bench`: CPU time of training DeepFM, ours against FuxiCTR and against the bare MLP.

    python tests/bench/ctr_speed.py [--quick] [--large_factor 0]

One thread, batches of 4,096, twenty categorical fields, every case a process of its own, in turns.
`ratio.fuxictr` and `ratio.fuxictr_10m` are rows a CPU second, ours / theirs, at 240 thousand and 10
million ids; `ratio.mlp_floor` is CPU time a row, ours / the dense part alone on a given embedding
output whose gradient is wanted; `ratio.loader` rows a CPU second of batches alone.
`auc_difference_ours_dense` is with dense Adam, the peer's arithmetic. At 10 million
ids both train a few dozen steps, and ours hashes. `large` is one epoch of twenty times the rows
under the same memory limit.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interleaved import Case, Outcome, median, run_once, run_rounds
from peer_environments import peer_python

HERE = Path(__file__).parent
VALUES, MANY_VALUES = 12_000, 500_000
"""Of each of the twenty fields: 240 thousand and 10 million ids."""
MEMORY_MB = 256


@dataclass(frozen=True, kw_only=True)
class SpeedArguments:
    """How large the benchmark is."""

    bench_dir: Path
    num_rows: int
    rounds: int
    steps_10m: int
    steps_floor: int
    with_peer: bool
    large_factor: int


def main() -> None:
    """Make the logs, run every case in turns and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench_dir", type=Path, default=Path("build/bench"))
    parser.add_argument("--num_rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=["fuxictr"], default=["fuxictr"])
    parser.add_argument("--large_factor", type=int, default=20, help="0: no larger log")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    settings = SpeedArguments(
        bench_dir=args.bench_dir.resolve(),
        num_rows=100_000 if args.quick else args.num_rows,
        rounds=1 if args.quick else args.rounds,
        steps_10m=4 if args.quick else 25,
        steps_floor=10 if args.quick else 100,
        with_peer=bool(args.peers),
        large_factor=min(args.large_factor, 2) if args.quick else args.large_factor,
    )
    print(measure(settings).line())


def measure(args: SpeedArguments) -> Outcome:
    """All rounds at 240 thousand ids, then those at 10 million, then the large log."""
    found = run_rounds(_cases(args), rounds=args.rounds)
    found |= run_rounds(_cases_10m(args), rounds=args.rounds)
    per_second = {name: 1e6 / median(runs, "cpu_us") for name, runs in found.items()}
    ratio = {"mlp_floor": _paired(found, "ours", "mlp_floor")}
    if args.with_peer:
        ratio |= {
            "fuxictr": _paired(found, "fuxictr", "ours"),
            "fuxictr_10m": _paired(found, "fuxictr_10m", "ours_10m"),
            "loader": _paired(found, "fuxictr_loader", "ours_loader"),
        }
    more: dict[str, Any] = {
        "mlp_floor_no_input_gradient": _paired(found, "ours", "mlp_floor_no_input_gradient"),
        "lightning_overhead": _paired(found, "ours", "ours_bare"),
        "cpu_us": {name: median(runs, "cpu_us") for name, runs in found.items()},
        "rounds_cpu_us": {name: [one["cpu_us"] for one in runs] for name, runs in found.items()},
        "peak_mb": {name: median(runs, "peak_bytes") / 1e6 for name, runs in found.items()},
        "auc": {name: [one["auc"] for one in runs] for name, runs in found.items() if _has(runs)},
        "versions": {k: v for runs in found.values() for k, v in runs[0]["versions"].items()},
        "rows": args.num_rows,
        "rounds": args.rounds,
    }
    if args.with_peer:
        for name in ("ours", "ours_dense"):
            pairs = zip(found[name], found["fuxictr"], strict=True)
            apart = statistics.median(a["auc"] - b["auc"] for a, b in pairs)
            more[f"auc_difference_{name}"] = apart
    if args.large_factor:
        more["large"] = _large(args, found["ours"])
    return Outcome(
        name="ctr_speed",
        unit="rows/CPU second",
        ours=per_second["ours"],
        peers={"fuxictr": per_second["fuxictr"]} if args.with_peer else {},
        ratio=ratio,
        more=more,
    )


def _cases(args: SpeedArguments) -> list[Case]:
    folder = _world(args, num_rows=args.num_rows, values=VALUES)
    ours = [
        _ours(name, folder, args) for name in ("ours", "ours_dense", "ours_bare", "ours_loader")
    ]
    floors = [_ours(name, folder, args) for name in ("mlp_floor", "mlp_floor_no_input_gradient")]
    theirs = [_theirs(name, folder, args) for name in ("fuxictr", "fuxictr_loader")]
    return (
        [ours[0], *theirs[:1], *floors, *ours[1:], *theirs[1:]]
        if args.with_peer
        else [
            *ours,
            *floors,
        ]
    )


def _cases_10m(args: SpeedArguments) -> list[Case]:
    # Both read only the first steps, so a tenth of the rows is enough to draw them from.
    folder = _world(args, num_rows=max(args.num_rows // 5, 50_000), values=MANY_VALUES)
    more = ("--hash_buckets", str(MANY_VALUES))
    cases = [_ours("ours_bare", folder, args, *more, name="ours_10m", steps=args.steps_10m)]
    if args.with_peer:
        limited = ("--steps", str(args.steps_10m))
        cases.append(
            _theirs("fuxictr", folder, args, *limited, name="fuxictr_10m", values=MANY_VALUES)
        )
    return cases


def _large(args: SpeedArguments, small: list[dict[str, Any]]) -> dict[str, float]:
    """One epoch over many more rows: what a row costs, and the most memory held."""
    folder = _world(args, num_rows=args.num_rows * args.large_factor, values=VALUES, npz=False)
    told = run_once(_ours("ours", folder, args))
    shutil.rmtree(folder / "encoded", ignore_errors=True)
    return {
        "rows": args.num_rows * args.large_factor,
        "memory_mb": MEMORY_MB,
        "cpu_us": told["cpu_us"],
        "cpu_ratio": told["cpu_us"] / median(small, "cpu_us"),
        "peak_mb": told["peak_bytes"] / 1e6,
        "peak_mb_small": median(small, "peak_bytes") / 1e6,
    }


def _world(args: SpeedArguments, *, num_rows: int, values: int, npz: bool = True) -> Path:
    given = ["--bench_dir", str(args.bench_dir), "--num_rows", str(num_rows)]
    given += ["--values", str(values), *(["--npz"] if npz and args.with_peer else [])]
    script = HERE / "ctr_world.py"
    run_once(Case(name="world", python=Path(sys.executable), script=script, arguments=tuple(given)))
    return args.bench_dir / f"ctr-{num_rows}-{values}"


def _ours(
    case: str,
    folder: Path,
    args: SpeedArguments,
    *more: str,
    name: str | None = None,
    steps: int | None = None,
) -> Case:
    given = (case, "--dataset_dir", str(folder / "dataset"), "--memory_mb", str(MEMORY_MB))
    given += ("--steps", str(steps or args.steps_floor), *more)
    return Case(
        name=name or case,
        python=Path(sys.executable),
        script=HERE / "ctr_speed_cases.py",
        arguments=given,
    )


def _theirs(
    case: str,
    folder: Path,
    args: SpeedArguments,
    *more: str,
    name: str | None = None,
    values: int = VALUES,
) -> Case:
    given = (case, "--npz_dir", str(folder / "npz"), "--values", str(values), *more)
    return Case(
        name=name or case,
        python=peer_python("fuxictr", bench_dir=args.bench_dir),
        script=HERE / "ctr_fuxictr.py",
        arguments=given,
    )


def _paired(found: dict[str, list[dict[str, Any]]], above: str, below: str) -> float:
    """Median over the rounds of the ratio of CPU time a row."""
    pairs = zip(found[above], found[below], strict=True)
    return statistics.median(one["cpu_us"] / other["cpu_us"] for one, other in pairs)


def _has(runs: list[dict[str, Any]]) -> bool:
    return all("auc" in one for one in runs)


if __name__ == "__main__":
    main()
