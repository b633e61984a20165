"""Answers of a system that were computed before, from the same files by the same settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.records import whole_file

Answers = dict[str, Tensor]
"""Part of the targets → Recall of each user."""


def kept_answers(
    path: Path, make: Callable[[], Answers], *, made_of: Sequence[Path], settings: object = None
) -> Answers:
    """What `make` gives, from `path` if it was made of the same files and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in made_of:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    if path.is_file():
        with safe_open(path, framework="pt") as found:
            if found.metadata()["made_of"] == digest.hexdigest():
                names = json.loads(found.metadata()["names"])
                return {name: found.get_tensor(name) for name in names}
    answers = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"made_of": digest.hexdigest(), "names": json.dumps(list(answers))}
    with whole_file(path) as partial:
        save_file({name: one.contiguous() for name, one in answers.items()}, partial, about)
    return answers
