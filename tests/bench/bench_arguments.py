"""Arguments that the data-plane benchmarks share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

QUICK_ITEMS = 2_000
QUICK_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    """How large a benchmark is, and where its files lie."""

    bench_dir: Path
    num_items: int
    rounds: int
    peers: tuple[str, ...]


def parse_arguments(
    description: str | None, *, peers: Sequence[str], num_items: int = 20_000, rounds: int = 5
) -> BenchArguments:
    """Read the command line; log to stderr, as stdout is for the outcome."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--bench_dir", type=Path, default=Path("build/bench"))
    parser.add_argument("--num_items", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", nargs="*", choices=peers, default=list(peers))
    parser.add_argument("--quick", action="store_true", help="few items and rounds: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    return BenchArguments(
        bench_dir=args.bench_dir.resolve(),
        num_items=args.num_items or (QUICK_ITEMS if args.quick else num_items),
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else rounds),
        peers=tuple(args.peers),
    )
