"""Which settings of a run differ from the defaults of this version."""

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

from pretrain.data_config import DataConfig
from pretrain.lightning_cli import SEED, TRAINER_DEFAULTS
from pretrain.model import ModelConfig
from pretrain.objective import LossConfig
from pretrain.optim import OptimConfig
from pretrain.run import RunConfig
from pretrain.towers import TowerConfig
from pretrain.zero import ZeroStrategy

UNKNOWN = "(no setting of this version)"
NO_DEFAULT = "(must be given)"


@dataclass(frozen=True)
class Changed:
    """One setting."""

    name: str
    """As on the command line."""

    value: str
    default: str


def changed_settings(config: Mapping[str, Any]) -> list[Changed]:
    """Settings of a run's config.yaml that are not as they would be if left out."""
    towers = config.get("model", {}).get("encoders", {}).get("towers", {})
    encoders = _defaults(ModelConfig) | {"towers": dict.fromkeys(towers, _defaults(TowerConfig))}
    defaults = {
        "seed_everything": SEED,
        "trainer": _arguments(pl.Trainer) | TRAINER_DEFAULTS,
        "model": {
            "encoders": encoders,
            "loss": _defaults(LossConfig),
            "optim": _defaults(OptimConfig),
        },
        "data": {"config": _defaults(DataConfig)},
        "run": _defaults(RunConfig),
    }
    return list(_differences(config, defaults, name=""))


def _differences(found: Any, default: Any, *, name: str) -> Iterator[Changed]:  # noqa: ANN401
    """Leaves that differ; a choice of a class is its name and what differs of its arguments."""
    if isinstance(found, dict) and "class_path" in found:
        kind = found["class_path"].rpartition(".")[2]
        yield Changed(name, kind, _text(default))
        known = (
            _arguments(DeepSpeedStrategy) | {"stage": 2} if kind == ZeroStrategy.__name__ else {}
        )
        yield from _differences(found.get("init_args", {}), known, name=name)
    elif isinstance(found, dict) and isinstance(default, dict):
        for key, value in found.items():
            below = default.get(key, UNKNOWN)
            yield from _differences(value, below, name=f"{name}.{key}" if name else key)
    elif found != default:
        yield Changed(name, _text(found), _text(default))


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


def _text(value: Any) -> str:  # noqa: ANN401 - any setting
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, default=str, ensure_ascii=False)
    )
