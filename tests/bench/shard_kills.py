"""`shard` killed at random moments and started again: the dataset must come out byte for byte.

Each trial starts `python -m data_prep shard` on a small toy world, kills it (SIGKILL, its workers
too) at a moment drawn over the whole run, and goes on so with the same folder for a few lives
before a last one is left alone. The files are then compared with those of a run nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

log = logging.getLogger("shard_kills")

LIVES_A_TRIAL = 4
WORLD = ("--num_users", "200", "--num_items", "160", "--num_events", "4000")
SETTINGS = """
name: kills
dataset_dir: {dataset_dir}
interactions: {{path: {raw}/interactions.parquet}}
items:
  path: {raw}/items.parquet
  image: image
  texts: [title, description]
  arrival: arrival
users: {{path: {raw}/users.parquet}}
impressions: {{path: {raw}/impressions.parquet, label: click}}
split: {{valid_quantile: 0.8, test_quantile: 0.9}}
tokens: {{tokenizer: open_clip, max_tokens: 16}}
items_per_shard: 8
"""


def start(config: Path, *, num_workers: int) -> subprocess.Popen[bytes]:
    """`shard` in a process group of its own, so that a kill takes its workers along."""
    command = [sys.executable, "-m", "data_prep", "shard", "--config", str(config)]
    return subprocess.Popen(
        [*command, "--num_workers", str(num_workers)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finish(config: Path, *, num_workers: int) -> None:
    """Run to the end.

    Raises:
        RuntimeError: it failed.
    """
    process = start(config, num_workers=num_workers)
    _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(f"shard ended with {process.returncode}: {stderr.decode()[-2000:]}")


def kill_once(config: Path, *, after_s: float, num_workers: int) -> bool:
    """Whether it was still running when it was killed."""
    process = start(config, num_workers=num_workers)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    process.communicate()
    return False


def main() -> int:
    """Print one JSON object; the exit code is 1 where a folder came out otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="eight kills: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    wanted = 8 if args.quick else args.kills
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        raw, dataset_dir = Path(temporary, "raw"), Path(temporary, "dataset")
        toy = [sys.executable, "-m", "data_prep", "toy", "--out_dir", str(raw), *WORLD]
        subprocess.run(toy, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        config = Path(temporary, "shard.yaml")
        config.write_text(SETTINGS.format(dataset_dir=dataset_dir, raw=raw))
        begin = time.monotonic()
        finish(config, num_workers=1)
        whole_s = time.monotonic() - begin
        expected = digests(dataset_dir)
        kills = trials = identical = 0
        while kills < wanted:
            shutil.rmtree(dataset_dir)
            workers = rng.choice([1, 1, 2])
            killed_before = kills
            for _ in range(min(LIVES_A_TRIAL, wanted - kills)):
                moment = rng.uniform(0.15, 1.0) * whole_s
                kills += kill_once(config, after_s=moment, num_workers=workers)
            finish(config, num_workers=workers)
            trials += 1
            same = digests(dataset_dir) == expected
            # A trial counts for every kill it survived.
            identical += (kills - killed_before) if same else 0
            log.info("%d kills, %d survived, last trial %s", kills, identical, same)
    outcome = {
        "name": "shard_kills",
        "unit": "kills that left no trace",
        "ours": identical,
        "peers": {"kills": kills},
        "ratio": {"kills": identical / kills},
        "trials": trials,
        "run_seconds": round(whole_s, 2),
        "files": len(expected),
    }
    print(json.dumps(outcome))
    return 0 if identical == kills else 1


if __name__ == "__main__":
    sys.exit(main())
