"""What a DeepSpeed engine puts into a checkpoint, and how it gets it back on any number of ranks.

DeepSpeed refuses ZeRO's files on another number of ranks than wrote them. Its universal checkpoint
holds each parameter whole, with both moments of Adam, but neither buffers nor frozen parameters,
and ZeRO-3 gives every group of parameters the settings and the step count of the first: all that is
put right here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor

from pretrain import heartbeat
from pretrain.checkpoint_files import DEEPSPEED_CLASSES, PARTIAL, ZERO_FOLDER, no_code
from pretrain.collectives import rank

log = logging.getLogger(__name__)


class _Holder:
    """In the place of DeepSpeed's writer of files."""

    def __init__(self, writer: Any) -> None:  # noqa: ANN401 - DeepSpeed is not typed
        self.writer, self.files = writer, dict[str, Any]()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing is written yet."""

    def save(self, state_dict: Any, path: str) -> None:  # noqa: ANN401 - DeepSpeed is not typed
        self.files[f"{ZERO_FOLDER}/{Path(path).name}"] = state_dict

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - DeepSpeed is not typed
        return getattr(self.writer, name)


def engine_files(engine: Any, client_state: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Path in the checkpoint → what this rank writes there; a collective."""
    holder = _Holder(engine.checkpoint_engine)
    engine.checkpoint_engine = holder
    engine._copy_recovery_script = lambda folder: None
    try:
        engine.save_checkpoint(
            "held", tag=ZERO_FOLDER, client_state=client_state, save_latest=False
        )
    finally:
        engine.checkpoint_engine = holder.writer
        del engine._copy_recovery_script
    return holder.files


def load_engine(engine: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401
    """Restore what this number of ranks wrote; what Lightning left there."""
    with tensors_only(folder):
        path, client_state = engine.load_checkpoint(
            str(folder), tag=ZERO_FOLDER, load_lr_scheduler_states=False
        )
    assert path is not None, "the files were checked"
    loaded: dict[str, Any] = client_state
    return loaded


def load_engine_elastic(
    engine: Any,  # noqa: ANN401 - DeepSpeed is not typed
    folder: Path,
    *,
    strategy: DeepSpeedStrategy,
) -> dict[str, Any]:
    """Restore what another number of ranks wrote; the engine was told to load a universal one."""
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in engine.optimizer.param_groups
    ]
    with universal(folder, strategy=strategy) as converted:
        client_state = load_engine(engine, converted)
    rates = client_state["lr_schedulers"][0]["_last_lr"]
    for group, before, rate in zip(engine.optimizer.param_groups, settings, rates, strict=True):
        group.update(before | {"lr": rate})
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(step := state.get("step"), Tensor):
            state["step"] = step.clone()  # ZeRO-3's groups would count up one and the same
    with tensors_only(folder):
        _load_apart(engine.module, _apart_from_optimizer(folder / ZERO_FOLDER))
    return client_state


@contextmanager
def universal(folder: Path, *, strategy: DeepSpeedStrategy) -> Iterator[Path]:
    """A universal checkpoint beside `folder`, made by rank 0 and removed afterwards."""
    converted = folder.with_name(f"{folder.name}.universal{PARTIAL}")
    heartbeat.beat(heartbeat.SLOW)
    if strategy.is_global_zero:
        log.info("%s: is of another number of processes, converting it", folder)
        shutil.rmtree(converted, ignore_errors=True)
        _convert(folder / ZERO_FOLDER, converted / ZERO_FOLDER)
    strategy.barrier("universal checkpoint written")
    yield converted
    strategy.barrier("universal checkpoint read")
    if strategy.is_global_zero:
        shutil.rmtree(converted)


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    settings = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # more are processes, forked from one that has started CUDA
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    target.mkdir(parents=True)
    silent = io.StringIO()
    with (
        tensors_only(source),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        main(settings)


def _apart_from_optimizer(folder: Path) -> dict[str, Tensor]:
    """Buffers and frozen parameters, whole."""
    files = sorted(folder.glob("*_model_states.pt"), key=_partition)
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in files]
    first = states[0]
    found: dict[str, Tensor] = {name: first["module"][name] for name in first["buffer_names"]}
    trained = {name for group in first["param_shapes"] for name in group}
    if _partition(files[0]) < 0:
        return found | {name: one for name, one in first["module"].items() if name not in trained}
    for name, shape in (first["frozen_param_shapes"] or {}).items():
        flat = torch.cat([state["frozen_param_fragments"][name] for state in states])
        found[name] = flat[: shape.numel()].view(shape)
    return found


def _partition(path: Path) -> int:
    """The rank whose part of the parameters a file holds, -1 where it holds all of them."""
    match = re.match(r"zero_pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else -1


def _load_apart(module: torch.nn.Module, found: dict[str, Tensor]) -> None:
    import deepspeed

    for name, buffer in module.named_buffers():
        if name in found:
            buffer.copy_(found[name])
    for name, parameter in module.named_parameters():
        if name in found:
            partitioned = hasattr(parameter, "ds_id")
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if rank() == 0 or not partitioned:
                    parameter.copy_(found[name])


@contextmanager
def tensors_only(folder: Path) -> Iterator[None]:
    """Every `torch.load` in it builds tensors and plain data alone, DeepSpeed's own loads too.

    Raises:
        DamagedCheckpoint: a file of `folder` holds more.
    """
    names = [name.rpartition(".") for name in DEEPSPEED_CLASSES]
    classes = [getattr(importlib.import_module(module), name) for module, _, name in names]
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # DeepSpeed asks for the opposite in so many words
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with no_code(folder), torch.serialization.safe_globals(classes):
            yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def whole_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """What `module.state_dict()` holds, also where ZeRO-3 has parted it; then a collective."""
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    found = {}
    for name, value in state.items():
        if hasattr(value, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([value]):
                found[name] = value.detach().clone()
        else:
            found[name] = value.detach()
    return found


def leave_engine(engine: Any, module: torch.nn.Module) -> None:  # noqa: ANN401
    """Make of what an engine has trained a plain module again; a collective under ZeRO-3."""
    state = {name: value.clone() for name, value in whole_state(module).items()}
    engine.destroy()
    for part in module.modules():
        # Parameters of their own, where the engine's are parts of one tensor or empty; and in a
        # plain dict, where ZeRO-3 has put one that looks after all that is read of it.
        part._parameters = {
            name: None
            if one is None
            else torch.nn.Parameter(
                torch.empty(getattr(one, "ds_shape", one.shape), dtype=one.dtype),
                requires_grad=one.requires_grad,
            )
            for name, one in part._parameters.items()
        }
    module.load_state_dict(state)
