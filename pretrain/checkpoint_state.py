"""What the ranks put into a checkpoint, taken from Lightning before anything is written."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from pretrain.checkpoint_files import STATE_FILE, FileSum, no_code, save_state
from pretrain.zero import ZeroStrategy

Name = str | Path
Files = dict[str, Any]
"""Path in the checkpoint → what `torch.save` writes there."""


class HeldState(TorchCheckpointIO):
    """Keeps what Lightning would write, and reads the checkpoint that was chosen."""

    def __init__(self) -> None:
        self.held: Files | None = None
        self.chosen: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Name, storage_options: object = None
    ) -> None:
        """Hold it, where `held_files` asked; else write."""
        if self.held is None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            self.held[STATE_FILE] = checkpoint

    def load_checkpoint(self, path: Name, *given: Any, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read the chosen one, tensors and plain data only."""
        if self.chosen is None:
            loaded: dict[str, Any] = super().load_checkpoint(path, *given, **settings)
            return loaded
        file = self.chosen / STATE_FILE
        with no_code(file):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        return loaded


def layout_of(trainer: pl.Trainer) -> str:
    """How the state of a run is spread over ranks.

    Raises:
        ValueError: by a strategy whose checkpoints this cannot vouch for.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ZeroStrategy):
        return f"zero-{strategy.stage}"
    if isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        return "whole"
    raise ValueError(
        f"trainer.strategy: found {type(strategy).__name__}, expected one process, ddp or "
        "pretrain.zero.ZeroStrategy (configs/zero1.yaml to zero3.yaml)"
    )


def read_from(trainer: pl.Trainer, chosen: Path | None) -> None:
    """Let the trainer restore this checkpoint, whatever path it was started with."""
    if isinstance(trainer.strategy, ZeroStrategy):
        trainer.strategy.choose(chosen)
    else:
        held = HeldState()
        held.chosen = chosen
        trainer.strategy.checkpoint_io = held


def held_files(trainer: pl.Trainer) -> Files:
    """What this rank has to write; a collective. The tensors are the live ones."""
    strategy = trainer.strategy
    holder = strategy if isinstance(strategy, ZeroStrategy) else strategy.checkpoint_io
    assert isinstance(holder, ZeroStrategy | HeldState)
    holder.held = {}
    try:
        trainer.save_checkpoint("held", weights_only=False)
        return holder.held
    finally:
        holder.held = None


def nothing_pending(trainer: pl.Trainer, *, stepped: bool) -> bool:
    """Whether no gradients are summed up that a checkpoint would lose.

    Args:
        trainer: at the end of a batch.
        stepped: whether the optimizer stepped in that batch.
    """
    if not isinstance(trainer.strategy, ZeroStrategy):
        return stepped
    engine = trainer.strategy.deepspeed_engine  # counts on from epoch to epoch, Lightning does not
    return bool(engine.micro_steps % engine.gradient_accumulation_steps() == 0)


def in_memory(state: Any) -> Any:  # noqa: ANN401 - whatever torch.save takes
    """A copy that training does not touch, tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # of its own class, such as OrderedDict
        for key, value in state.items():
            copied[key] = in_memory(value)
        return copied
    if type(state) in (list, tuple):
        return type(state)(in_memory(value) for value in state)
    return copy.deepcopy(state)


@dataclass(frozen=True)
class Written:
    """What one rank wrote."""

    sums: dict[str, FileSum]
    error: str | None


def write_files(files: Files, partial: Path) -> Written:
    """Write this rank's files; other ranks do the same in the same folder."""
    sums: dict[str, FileSum] = {}
    try:
        for name, state in files.items():
            sums[name] = save_state(state, partial / name)
    except OSError as error:
        free = shutil.disk_usage(partial.parent).free
        return Written(
            sums,
            f"{error}; one process needs {tensor_bytes(files) / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free (a quota may allow less)",
        )
    except (ValueError, RuntimeError) as error:  # raised here, it would leave the others waiting
        return Written(sums, str(error))
    return Written(sums, None)


def tensor_bytes(state: Any) -> int:  # noqa: ANN401 - whatever torch.save takes
    """Bytes that the tensors in it take at most."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if type(state) in (list, tuple) else 0
