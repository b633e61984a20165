"""Every setting of a run's config.yaml, and which differ from the defaults of this version."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DeepSpeedStrategy

from pretrain.collaborative import CollaborativeConfig
from pretrain.data_config import DataConfig
from pretrain.lightning_cli import SEED, TRAINER_DEFAULTS
from pretrain.model import ModelConfig
from pretrain.objective import LossConfig
from pretrain.optim import OptimConfig
from pretrain.reuse import ReuseConfig
from pretrain.run import RunConfig
from pretrain.towers import TowerConfig
from pretrain.zero import ZeroStrategy

UNKNOWN = "(no setting of this version)"
NO_DEFAULT = "(must be given)"
OF_THE_CLASS = "(the class's own)"


@dataclass(frozen=True)
class Setting:
    """One of them, as YAML has it."""

    value: Any
    default: Any


@dataclass(frozen=True)
class Changed:
    """One setting."""

    name: str
    """As on the command line."""

    value: str
    default: str


def changed_settings(config: Mapping[str, Any]) -> list[Changed]:
    """Settings of a run's config.yaml that are not as they would be if left out."""
    return [
        Changed(name, as_text(one.value), as_text(one.default))
        for name, one in all_settings(config).items()
        if one.value != one.default
    ]


def all_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Every setting of a run's config.yaml, by its name on the command line."""
    model = config.get("model", {})
    towers = model.get("encoders", {}).get("towers", {})
    encoders = _defaults(ModelConfig) | {"towers": dict.fromkeys(towers, _defaults(TowerConfig))}
    reuse = _defaults(ReuseConfig)
    if model.get("reuse", {}).get("collaborative") is not None:
        reuse["collaborative"] = _defaults(CollaborativeConfig)
    defaults = {
        "seed_everything": SEED,
        "trainer": _arguments(pl.Trainer) | TRAINER_DEFAULTS,
        "model": {
            "encoders": encoders,
            "loss": _defaults(LossConfig),
            "optim": _defaults(OptimConfig),
            "reuse": reuse,
        },
        "data": {"config": _defaults(DataConfig)},
        "run": _defaults(RunConfig),
    }
    return dict(_leaves(config, defaults, name=""))


def _leaves(found: Any, default: Any, *, name: str) -> Iterator[tuple[str, Setting]]:  # noqa: ANN401
    """Leaves by name; a choice of a class is its name and its arguments.

    A mapping that is empty by default is one setting, whose keys are the user's.
    """
    if isinstance(found, dict) and "class_path" in found:
        kind = found["class_path"].rpartition(".")[2]
        yield name, Setting(kind, default)
        ours = kind == ZeroStrategy.__name__
        known = _arguments(DeepSpeedStrategy) | {"stage": 2} if ours else {}
        for key, value in (found.get("init_args") or {}).items():
            yield f"{name}.{key}", Setting(value, known.get(key, OF_THE_CLASS))
    elif isinstance(found, dict) and isinstance(default, dict) and default:
        for key, value in found.items():
            below = default.get(key, UNKNOWN)
            yield from _leaves(value, below, name=f"{name}.{key}" if name else key)
    else:
        yield name, Setting(found, default)


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults of a dataclass's fields as YAML has them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(field.default_factory())
        else:
            found[field.name] = NO_DEFAULT
    return found


def _arguments(kind: type) -> dict[str, Any]:
    """Defaults of a class's arguments as YAML has them."""
    parameters = inspect.signature(kind).parameters.values()
    return {
        one.name: _plain(one.default) for one in parameters if one.default is not inspect._empty
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - any setting
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Path | timedelta):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def as_text(value: Any) -> str:  # noqa: ANN401 - any setting
    """As a page or a message shows it."""
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, default=str, ensure_ascii=False)
    )
