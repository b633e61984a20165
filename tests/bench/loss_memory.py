"""`make bench`: memory and CPU time of the contrastive loss, tiled, against open_clip's ClipLoss.

    python tests/bench/loss_memory.py [--quick]

Forward and backward at batch 8,192 and width 256 on one thread, float32, both directions. `ours`
and `peers` are CPU microseconds a pair; `ratio.clip_loss_memory` is peak memory beyond the inputs.
`max_abs_difference` is over loss and gradients, on one and on two ranks: of the symmetric loss
from ClipLoss, and of the user→item loss with corrected logQ and every mask from whole matrices.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed.run
from bench_arguments import BenchArguments, parse_arguments
from interleaved import Case, Outcome, median, outcome, run_once, run_rounds

HERE = Path(__file__).parent
WIDTH = 256
CASES = ("ours", "clip_loss", "ours_masked", "dense_masked")


def main() -> None:
    """Run every case in turns and print the outcome."""
    args = parse_arguments(__doc__, peers=("clip_loss",), num_items=8192, rounds=5)
    print(measure(args).line())


def measure(args: BenchArguments) -> Outcome:
    """All rounds, then the differences."""
    size = ("--batch", str(args.num_items), "--width", str(WIDTH))
    script, python = HERE / "loss_cases.py", Path(sys.executable)
    cases = [Case(name=n, python=python, script=script, arguments=(n, *size)) for n in CASES]
    found = run_rounds(cases, rounds=args.rounds)
    apart = {}
    for ranks in (1, 2):
        launch = ("--standalone", "--nproc_per_node", str(ranks), str(script), "difference", *size)
        launcher = Path(torch.distributed.run.__file__)
        case = Case(name=f"{ranks} ranks", python=python, script=launcher, arguments=launch)
        told = run_once(case)
        apart[f"{ranks}_ranks"] = {name: told[name] for name in ("ours", "ours_masked")}
    extra = {name: median(found[name], "extra_bytes") for name in CASES}
    timed = outcome("loss_memory", found, peers=("clip_loss",))
    ratio = {
        "clip_loss_memory": extra["ours"] / extra["clip_loss"],
        "clip_loss_time": timed.ratio["clip_loss"],
    }
    worst = max(one["max_abs"] for told in apart.values() for one in told.values())
    return Outcome(
        name=timed.name,
        unit="CPU us/pair",
        ours=timed.ours,
        peers=timed.peers,
        ratio=ratio,
        more=timed.more
        | {
            "extra_mb": {name: value / 1e6 for name, value in extra.items()},
            "max_abs_difference": worst,
            "differences": apart,
            "batch": args.num_items,
            "width": WIDTH,
        },
    )


if __name__ == "__main__":
    main()
