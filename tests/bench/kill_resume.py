"""Training killed at random moments and started again: the weights must come out bit for bit.

A small model with dropout, ids and a queue of past vectors trains under ZeRO-2 on two processes.
A trial kills it (SIGKILL) a few times, at moments drawn over the whole run or in the middle of a
save, then lets it end and compares its weights and the samples of every epoch with those of a run
nobody disturbed; every other trial writes its checkpoints beside training. Elastic runs, without
dropout, go from two processes to one and back under each strategy. Stopped runs get SIGUSR1, as
from Slurm. Mutations damage a checkpoint of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

BEGIN = time.monotonic()
from checkpoint_mutations import RAN, run_mutations  # noqa: E402
from resume_lives import History, history, start_life  # noqa: E402

from data_prep.exit_codes import STOPPED  # noqa: E402
from pretrain.checkpoint_choice import find_checkpoint  # noqa: E402
from pretrain.export import read_weights  # noqa: E402

IMPORT_S = time.monotonic() - BEGIN
"""What a start costs before the first line of ours: lives here are forks, and do not pay it."""

log = logging.getLogger("kill_resume")

ROOT = Path(__file__).parents[2]
KILLS_A_TRIAL = 5
SAVE_STEPS = 3
WORLD = ("--num_users", "150", "--num_items", "160", "--num_events", "4000")
DATA = """
name: kills
dataset_dir: {folder}/dataset
interactions: {{path: {folder}/raw/interactions.parquet}}
items: {{path: {folder}/raw/items.parquet, texts: [title], features: {{category: categorical}}}}
users: {{path: {folder}/raw/users.parquet}}
split: {{valid_quantile: 0.8, test_quantile: 0.9}}
items_per_shard: 64
"""
TOWERS = {"text": {"library": "transformers", "name": "configs/toy/bert_tiny", "max_tokens": 16}}
SETTINGS = f"""
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
--data.config.global_batch_size 16 --data.config.targets_per_sample 4
--data.config.valid_queries 50 --trainer.max_epochs 3 --trainer.log_every_n_steps 1
--trainer.accelerator cpu --model.loss.queue_size 100 --model.encoders.ids both
--run.checkpoint_steps {SAVE_STEPS} --run.keep.last 2
""".split()
WITHOUT_DROPOUT = "--model.encoders.dropout 0 --model.encoders.user.dropout 0".split()
STRATEGIES = ("zero3", "ddp", "zero1", "zero2")


@dataclass
class Outcome:
    """What was counted over every trial."""

    kills: int = 0
    kills_in_saves: int = 0
    trials: int = 0
    equal: int = 0
    exact: int = 0
    steps_lost: dict[bool, list[int]] = field(default_factory=lambda: {False: [], True: []})
    """By whether checkpoints were written beside training."""
    save_s: list[float] = field(default_factory=list)
    first_step_s: list[float] = field(default_factory=list)


class World:
    """Data, settings, and a folder for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = folder / "shard.yaml"
        data.write_text(DATA.format(folder=folder))
        for words in (
            ("toy", "--out_dir", str(folder / "raw"), *WORLD),
            ("shard", "--config", str(data)),
        ):
            command = [sys.executable, "-m", "data_prep", *words]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

    def words(self, strategy: str, *more: str) -> list[str]:
        """The command line of a run."""
        dataset = ("--data.config.dataset_dir", str(self.folder / "dataset"))
        towers = ("--model.encoders.towers", json.dumps(TOWERS))
        first, *others = SETTINGS[1:]
        overlay = ("--config", f"configs/{strategy}.yaml")
        return ["--config", first, *overlay, *others, *dataset, *towers, *more]

    def whole(self, name: str, words: list[str]) -> tuple[Path, float]:
        """A run that nobody disturbs, and how long it took."""
        run_dir, begin = self.folder / name, time.monotonic()
        start_life(words, run_dir, ranks=2).finish()
        return run_dir, time.monotonic() - begin


def saving(run_dir: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any((run_dir / "checkpoints").glob("step-*.partial/*"))


def kill_once(words: list[str], run_dir: Path, rng: random.Random, *, whole_s: float) -> str:
    """Start and kill; `in_save`, `anywhere`, or `ended` where it was not there any more."""
    life = start_life(words, run_dir, ranks=2)
    aimed, moment = rng.random() < 0.5, time.monotonic() + rng.uniform(0.0, 1.1) * whole_s
    saves, seen = rng.randrange(1, 6), 0
    was_saving = False

    def due() -> bool:
        nonlocal seen, was_saving
        if not aimed:
            return time.monotonic() > moment
        now = saving(run_dir)
        seen, was_saving = seen + (now and not was_saving), now
        return now and seen >= saves

    if life.wait(until=due):
        if any(life.codes.values()):
            raise RuntimeError(f"{run_dir}: a life ended with {life.codes}")
        return "ended"
    if aimed:
        time.sleep(rng.choice([0, 0, 0.002, 0.005, 0.01]))
    caught = saving(run_dir)
    first = rng.choice([None, *life.running()])
    life.send(signal.SIGKILL, first=first, gap_s=rng.choice([0, 0.05, 0.3]))
    life.wait()
    return "in_save" if caught else "anywhere"


def same_weights(left: Path, right: Path) -> bool:
    """Whether two runs ended with the same bits."""
    first, second = (read_weights(find_checkpoint(one, which="last")) for one in (left, right))
    return first.keys() == second.keys() and all(
        first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first
    )


def killed_runs(world: World, *, kills: int, rng: random.Random) -> Outcome:
    """Trials of a few kills each."""
    found = Outcome()
    whole, whole_s = world.whole("whole", world.words("zero2"))
    expected = history(whole)
    log.info("undisturbed: %.1f s, %d steps", whole_s, len(expected.losses))
    while found.kills < kills:
        run_dir, beside = world.folder / f"killed-{found.trials}", bool(found.trials % 2)
        words = world.words("zero2", "--run.async_checkpoints", str(beside).lower())
        for _ in range(min(KILLS_A_TRIAL, kills - found.kills)):
            how = kill_once(words, run_dir, rng, whole_s=whole_s)
            if how == "ended":
                break
            found.kills += 1
            found.kills_in_saves += how == "in_save"
        start_life(words, run_dir, ranks=2).finish()
        seen = history(run_dir)
        found.trials += 1
        found.equal += same_weights(whole, run_dir) and seen.losses == expected.losses
        found.exact += seen.windows == expected.windows
        found.steps_lost[beside] += seen.steps_lost
        found.save_s += seen.save_s
        found.first_step_s += seen.first_step_s
        log.info("%d kills (%d in a save), %d of %d trials equal, %d exact, lost %s", found.kills,
                 found.kills_in_saves, found.equal, found.trials, found.exact,
                 seen.steps_lost)  # fmt: skip
        shutil.rmtree(run_dir)
    return found


def elastic_runs(world: World, *, count: int, rng: random.Random) -> tuple[int, float]:
    """Runs on 2, 1 and 2 processes: how many saw exactly the same samples, the largest gap."""
    exact, gap = 0, 0.0
    expected: dict[str, History] = {}
    for number in range(count):
        strategy = STRATEGIES[number % len(STRATEGIES)]
        words = world.words(strategy, *WITHOUT_DROPOUT)
        if strategy not in expected:
            expected[strategy] = history(world.whole(f"whole-{strategy}", words)[0])
        losses, run_dir = expected[strategy].losses, world.folder / f"elastic-{number}"
        first = rng.randrange(1, len(losses) // SAVE_STEPS // 2)
        for ranks, saves in ((2, first), (1, first + rng.randrange(1, first + 2))):
            life = start_life(words, run_dir, ranks=ranks)
            wanted = run_dir / "checkpoints" / f"step-{saves * SAVE_STEPS}"
            life.wait(until=wanted.exists)
            life.send(rng.choice([signal.SIGKILL, signal.SIGUSR1]))
            life.wait()
        start_life(words, run_dir, ranks=2).finish()
        seen = history(run_dir)
        apart = max(abs(seen.losses[step] - losses[step]) for step in losses)
        gap = max(gap, apart)
        exact += seen.windows == expected[strategy].windows and apart <= 1e-4
        log.info("elastic %d, %s: gap %.2g, %d exact", number, strategy, apart, exact)
        shutil.rmtree(run_dir)
    return exact, gap


def stopped_runs(world: World, *, count: int, rng: random.Random) -> list[int]:
    """Steps that runs lose which are asked to stop."""
    lost, words = [], world.words("zero2")
    for number in range(count):
        run_dir = world.folder / f"stopped-{number}"
        life = start_life(words, run_dir, ranks=2)
        life.wait(until=(run_dir / "checkpoints" / f"step-{SAVE_STEPS}").exists)
        time.sleep(rng.uniform(0, 1.5))
        life.send(signal.SIGUSR1)
        life.finish(STOPPED)
        start_life(words, run_dir, ranks=2).finish()
        lost += history(run_dir).steps_lost
        shutil.rmtree(run_dir)
    return lost


def main() -> int:
    """Print one JSON object; the exit code is 1 where anything came out otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--elastic", type=int, default=10)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few of each: does it run?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    kills, elastic, stops, mutations = (
        (3, 1, 1, 50) if args.quick else (args.kills, args.elastic, args.stops, args.mutations)
    )
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        world = World(Path(temporary))
        found = killed_runs(world, kills=kills, rng=rng)
        exact, gap = elastic_runs(world, count=elastic, rng=rng)
        lost = stopped_runs(world, count=stops, rng=rng)
        mutated = run_mutations(world.folder / "whole/checkpoints", count=mutations, seed=args.seed)
    outcome = {
        "name": "kill_resume",
        "kills": found.kills,
        "kills_in_saves": found.kills_in_saves,
        "trials": found.trials,
        "bitwise_equal": found.equal,
        "multiset_exact": found.exact,
        "elastic_runs": elastic,
        "elastic_exact": exact,
        "elastic_loss_gap": gap,
        "save_seconds": spread(found.save_s),
        "first_step_seconds": spread(found.first_step_s),
        "import_seconds": round(IMPORT_S, 2),
        "save_interval_steps": SAVE_STEPS,
        "steps_lost": spread(found.steps_lost[False]),
        "steps_lost_beside": spread(found.steps_lost[True]),
        "steps_lost_on_signals": lost,
        "mutations": mutated | {"code_ran": Path(RAN).exists()},
    }
    print(json.dumps(outcome))
    lost_most = max(found.steps_lost[False], default=0) <= SAVE_STEPS and not any(lost)
    whole = found.equal == found.exact == found.trials and exact == elastic
    return 0 if whole and lost_most else 1


def spread(values: list[float] | list[int]) -> dict[str, float]:
    """Median and largest."""
    if not values:
        return {}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    sys.exit(main())
