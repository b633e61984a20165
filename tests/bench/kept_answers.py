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
    path: Path,
    make: Callable[[], dict[str, Answers]],
    *,
    made_of: Sequence[Path],
    settings: object = None,
) -> dict[str, Answers]:
    """What `make` gives, by system; from `path` if it was made of the same files and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in made_of:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    if path.is_file():
        with safe_open(path, framework="pt") as found:
            if found.metadata()["made_of"] == digest.hexdigest():
                return {
                    system: {part: found.get_tensor(f"{system}/{part}") for part in parts}
                    for system, parts in json.loads(found.metadata()["names"]).items()
                }
    answers = make()
    names = {system: list(parts) for system, parts in answers.items()}
    about = {"made_of": digest.hexdigest(), "names": json.dumps(names)}
    tensors = {
        f"{system}/{part}": values_U.contiguous()
        for system, parts in answers.items()
        for part, values_U in parts.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file(tensors, partial, about)
    return answers
