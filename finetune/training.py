"""Lightning's Trainer on a CTR model: in with settings, out with a plain model."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from finetune.module import CtrModule
from finetune.trainer_settings import TrainerConfig
from pretrain.checkpoint_state import layout_of
from pretrain.zero import ZeroStrategy
from pretrain.zero_state import leave_engine


def trainer_of(config: TrainerConfig, **arguments: Any) -> pl.Trainer:  # noqa: ANN401
    """A Trainer by the settings and these arguments; `config.extra` has the last word."""
    given = {
        **config.arguments(),
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "logger": False,
    }
    return pl.Trainer(**(given | arguments | config.extra))


def train(trainer: pl.Trainer, module: CtrModule) -> None:
    """Train in place.

    Afterwards the model is whole on every rank, on the CPU and in 32 bits, whatever strategy and
    precision it was trained in.
    """
    _check_strategy(trainer, module)
    constants = list(_constants(module))
    is_zero = isinstance(trainer.strategy, ZeroStrategy)
    module.autocasts = is_zero and trainer.precision == "bf16-mixed"
    trainer.fit(module)
    if isinstance(trainer.strategy, ZeroStrategy):
        leave_engine(trainer.strategy.deepspeed_engine, module)
    module.float()
    for part, name, value in constants:
        setattr(part, name, value)


def _check_strategy(trainer: pl.Trainer, module: CtrModule) -> None:
    """Refuse what the strategy cannot do, before any process group starts."""
    layout = layout_of(trainer)
    if not isinstance(trainer.strategy, ZeroStrategy):
        return
    if module.model.fields.table.sparse_gradient:
        raise ValueError(
            f"train.id_optimizer: found sparse with {layout}, expected dense, as DeepSpeed takes "
            "no sparse gradients; set train.id_optimizer: dense, or trainer.strategy: ddp"
        )
    if module.config.id_reset != "never":
        raise ValueError(
            f"train.id_reset: found {module.config.id_reset} with {layout}, expected never, as "
            "DeepSpeed holds weights and moments of its own; set trainer.strategy: ddp"
        )


def is_first_rank() -> bool:
    """Whether this process is the one that writes; its launcher says so before they ever meet."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _constants(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Buffers that are given and not learnt, such as items' frozen vectors: bf16 rounds them."""
    for part in module.modules():
        for name in part._non_persistent_buffers_set:
            yield part, name, getattr(part, name)
