#!/usr/bin/env python3
"""Stands in for the interpreter: notes how it was called, and ends as the test asks.

So the batch files' own part (launch, signals, requeue, exit codes) is tested in seconds. Called as
`stand_in.py -m PACKAGE COMMAND FLAGS...`. `STAND_IN_LOG` is the file of calls, one line of JSON
each; `STAND_IN` is one of
  done       pretrain: rank 0 writes DONE
  wait       pretrain: as `done`, but the first life waits for a signal and rank 0 writes REQUEUE
  hang       as `done`, but the first life's ranks write HANG and end with 76, one after the other
  forget     ends with 0 and writes nothing
  die        rank 1 fails at once while the others stay
  misparse   --print_config fails
  apart      check_ranks fails
  fail-N     part N fails
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

signals: list[str] = []


def note(number: int, _: FrameType | None) -> None:
    """Only remember it, as the real program does."""
    signals.append(signal.Signals(number).name)


def value(flag: str) -> str | None:
    """What follows a flag on the command line."""
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else None


def main() -> int:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, note)
    behaviour = os.environ.get("STAND_IN", "done")
    rank, life = int(os.environ.get("SLURM_PROCID", 0)), os.environ.get("SLURM_RESTART_COUNT", "0")
    keys = ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURMD_NODENAME", "PATH")
    call = {"argv": sys.argv[1:], "rank": rank, "life": int(life), "time": time.time()}
    call |= {"env": {key: os.environ.get(key) for key in keys}}
    with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
        log.write(json.dumps(call) + "\n")

    if "--print_config" in sys.argv:
        return 1 if behaviour == "misparse" else 0
    if "check_ranks" in sys.argv:
        return 1 if behaviour == "apart" else 0
    if behaviour.startswith("fail-"):
        return 1 if value("--part") == behaviour.removeprefix("fail-") else 0
    if behaviour == "die":
        time.sleep(0 if rank == 1 else 60)
        return 1
    if behaviour == "wait" and life == "0":
        for _ in range(1500):
            if signals:
                break
            time.sleep(0.1)
    run_dir = value("--run.dir")
    if behaviour == "hang" and life == "0":
        (Path(str(run_dir)) / "HANG").touch()
        time.sleep(rank)
        return 76
    if run_dir and rank == 0 and behaviour != "forget":
        (Path(run_dir) / ("REQUEUE" if signals else "DONE")).touch()
    return 0


sys.exit(main())
