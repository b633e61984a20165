"""The figures of `python -m pretrain evaluate`, read back from one or several JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.system_names import Kind, kind_of

_BESIDE = ("se", "low", "high", "n_users")
"""Keys of a system that are no metrics: they say how sure its recall is."""


@dataclass(frozen=True)
class System:
    """One system under one protocol."""

    name: str
    metrics: dict[str, float]
    """`recall@k` first, then what else was computed."""

    low: float | None = None
    """95 % interval of recall over users."""

    high: float | None = None
    num_users: int | None = None
    source: str = ""
    """Which file it is from, where several files have the name with other figures."""

    @property
    def recall(self) -> float:
        """What systems are ordered by."""
        return next(iter(self.metrics.values()))

    @property
    def label(self) -> str:
        """The name, and where it is from if that must be told."""
        return f"{self.name} ({self.source})" if self.source else self.name

    @property
    def kind(self) -> Kind:
        """Ours, a knock-out of it, or a competitor."""
        return kind_of(self.name)


@dataclass(frozen=True)
class Protocol:
    """All systems that answered the same questions."""

    name: str
    systems: list[System]
    slices: dict[str, list[System]] = field(default_factory=dict)
    num_cases: int | None = None
    num_candidates: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """Name of the metric that systems are ordered by."""
        return next(iter(self.systems[0].metrics))


def read_protocols(files: Sequence[Path]) -> list[Protocol]:
    """Each protocol of the files once; a system in several files once for each of its figures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not of `evaluate`, or one protocol with other cases, candidates or cut-off.
    """
    read = {path: _read(path) for path in dict.fromkeys(files)}
    labels = _labels(list(read))
    names = dict.fromkeys(n for one in read.values() for n in one if n not in ("about", "slices"))
    return [
        _protocol(name, {labels[path]: (path, one) for path, one in read.items() if name in one})
        for name in names
    ]


def _protocol(name: str, found: Mapping[str, tuple[Path, dict[str, Any]]]) -> Protocol:
    """Join what the files, by their labels, say of one protocol."""
    about = [one.get("about", {}).get(name, {}) for _, one in found.values()]
    for key in ("n_cases", "n_candidates"):
        if len(values := {entry[key] for entry in about if key in entry}) > 1:
            raise ValueError(
                f"metrics: found {name!r} with {key} {sorted(values)} in "
                f"{[str(path) for path, _ in found.values()]}, expected the same questions; "
                "evaluate again, or give protocols of their own names"
            )
    systems = _systems({label: one[name] for label, (_, one) in found.items()})
    if len(metrics := {next(iter(system.metrics)) for system in systems}) > 1:
        raise ValueError(f"metrics: found {sorted(metrics)} under {name!r}, expected one cut-off")
    parts = {label: one.get("slices", {}).get(name, {}) for label, (_, one) in found.items()}
    slices = {
        part: _systems({label: cut[part] for label, cut in parts.items() if part in cut})
        for part in dict.fromkeys(part for cut in parts.values() for part in cut)
    }
    return Protocol(
        name=name,
        systems=systems,
        slices=slices,
        num_cases=next((entry["n_cases"] for entry in about if "n_cases" in entry), None),
        num_candidates=next((e["n_candidates"] for e in about if "n_candidates" in e), None),
        notes=list(dict.fromkeys(note for entry in about for note in _notes(entry))),
    )


def _notes(about: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a file's figures."""
    look_ahead = about.get("times", {}).get("look_ahead")
    allowed = (
        f"Look-ahead, allowed by allow_look_ahead: {', '.join(look_ahead)} had seen the time that "
        "is asked about."
        if look_ahead
        else None
    )
    return [note for note in (about.get("note"), allowed) if note]


def _systems(found: Mapping[str, dict[str, dict[str, float]]]) -> list[System]:
    """Label of a file → name → figures, as systems; equal ones are one, e.g. a baseline's."""
    systems = []
    for name in dict.fromkeys(name for one in found.values() for name in one):
        own = {label: one[name] for label, one in found.items() if name in one}
        first = next(iter(own.values()))
        if all(json.dumps(values) == json.dumps(first) for values in own.values()):
            own = {"": first}
        systems += [_system(name, values, source=label) for label, values in own.items()]
    return systems


def _system(name: str, values: Mapping[str, float], *, source: str) -> System:
    metrics = {key: value for key, value in values.items() if key not in _BESIDE}
    metrics = dict(sorted(metrics.items(), key=lambda entry: not entry[0].startswith("recall@")))
    low, high = values.get("low"), values.get("high")
    if low is None and values.get("se") is not None:
        mean, half = next(iter(metrics.values())), 1.96 * values["se"]
        low, high = mean - half, mean + half
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        low = high = None  # one user has no interval
    num_users = values.get("n_users")
    return System(name, metrics, low, high, None if num_users is None else int(num_users), source)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected the JSON of python -m pretrain evaluate"
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: found no valid JSON ({error}); run python -m pretrain evaluate again"
        ) from error
    protocols = content if isinstance(content, dict) else {}
    protocols = {name: one for name, one in protocols.items() if name not in ("about", "slices")}
    systems = [one for p in protocols.values() if isinstance(p, dict) for one in p.values()]
    if not systems or not all(
        isinstance(one, dict) and any(key.startswith("recall@") for key in one) for one in systems
    ):
        raise ValueError(
            f"{path}: found no figures such as recall@20 under each system, expected the JSON of "
            "python -m pretrain evaluate"
        )
    return dict(content)


def _labels(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path without the parts that all paths share."""
    parts = {path: path.resolve().with_suffix("").parts for path in paths}
    shared = set.intersection(*(set(one) for one in parts.values())) if len(paths) > 1 else set()
    return {
        path: "/".join(part for part in one if part not in shared) or path.stem
        for path, one in parts.items()
    }
