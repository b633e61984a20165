"""Training checkpoints damaged at random: refused, or loaded as they were written."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pretrain.checkpoint_choice import choose_checkpoint
from pretrain.checkpoint_files import MANIFEST_FILE, read_manifest, step_folders
from pretrain.export import read_weights

KINDS = ("flip", "cut", "grow", "zero", "empty", "remove", "folder", "add", "swap", "other", "json")
WEIGHTS = (2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4)
RAN = "code-ran"
"""A file of the working folder that is there once code was run."""


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (f"touch {RAN}",)


def mutate(folder: Path, other: Path, rng: random.Random) -> str:
    """Damage a checkpoint in one way; what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    payload = bytearray(path.read_bytes())
    (kind,) = rng.choices(KINDS, WEIGHTS)
    if kind == "flip":
        for _ in range(rng.choice([1, 8, 64])):
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del payload[rng.randrange(len(payload)) :]
    elif kind == "grow":
        payload += bytes(rng.randrange(1, 99))
    elif kind == "zero":
        start = rng.randrange(len(payload))
        payload[start : start + 512] = bytes(len(payload[start : start + 512]))
    elif kind == "empty":
        payload = bytearray()
    path.write_bytes(payload)
    if kind == "remove":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "add":
        (folder / "more.pt").write_bytes(pickle.dumps(Evil()))
    elif kind == "swap":  # two files of this checkpoint
        second = rng.choice([one for one in files if one != path])
        path.rename(folder / "held")
        second.rename(path)
        (folder / "held").rename(second)
    elif kind == "other":  # a file of another checkpoint
        shutil.copy(other / path.relative_to(folder), path)
    elif kind == "json":
        kind = mutate_json(folder / MANIFEST_FILE, rng)
    return f"{kind} {path.name}"


def mutate_json(path: Path, rng: random.Random) -> str:
    """Another value in the place of one, at any depth."""
    content = json.loads(path.read_text())
    inside = content
    while True:
        key = rng.choice(list(inside))
        if isinstance(inside[key], dict) and inside[key] and rng.random() < 0.8:
            inside = inside[key]
            continue
        break
    values = [None, -1, 10**30, 0.5, "", "../../x", [], {}, True, [[]], {"a": 1}, "NaN"]
    if rng.random() < 0.2:
        del inside[key]
    else:
        inside[key] = rng.choice(values)
    path.write_text(json.dumps(content))
    return f"json {key}"


def run_mutations(checkpoints: Path, *, count: int, seed: int) -> dict[str, int]:
    """Damage the newest of two checkpoints again and again, each time a whole one.

    Returns:
        How often the one before was taken, and how often the newest came out as it was written.

    Raises:
        AssertionError: a damaged one was taken.
    """
    rng = random.Random(seed)
    newest, before = step_folders(checkpoints)[:2]
    layout, weights = read_manifest(newest).layout, read_weights(newest)
    outcome = {"fallen_back": 0, "loaded_right": 0}
    logging.disable(logging.ERROR)
    try:
        for number in range(count):
            with tempfile.TemporaryDirectory() as temporary:
                trial = Path(temporary)
                for folder in (newest, before):
                    shutil.copytree(folder, trial / folder.name)
                what = mutate(trial / newest.name, before, rng)
                chosen = choose_checkpoint(trial, layout=layout)
                assert chosen is not None, (number, what)
                if chosen.name == before.name:
                    outcome["fallen_back"] += 1
                    continue
                outcome["loaded_right"] += 1
                found = read_weights(chosen)
                assert found.keys() == weights.keys(), (number, what)
                assert all(found[name].equal(weights[name]) for name in weights), (number, what)
    finally:
        logging.disable(logging.NOTSET)
    return outcome
