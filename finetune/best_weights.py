"""The weights of the best epoch of a run, on any number of ranks and by any strategy."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from finetune.module import MONITOR, CtrModule
from pretrain.zero_state import whole_state


class BestWeights(Callback):
    """Keeps the weights of the epoch with the highest `MONITOR`, whole, in a file of rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epoch = 0
        """The best so far, counted from 1."""
        self._value = -torch.inf

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All ranks read rank 0's folder."""
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the weights where this epoch is better; of equal ones the first stays."""
        assert isinstance(pl_module, CtrModule)
        if trainer.sanity_checking:
            return
        # Rank 0 decides, as all take part in gathering what ZeRO-3 has parted.
        value = trainer.strategy.broadcast(pl_module.history[-1][MONITOR])
        if value <= self._value:
            return
        self._value, self.epoch = value, len(pl_module.history)
        state = whole_state(pl_module)
        if trainer.is_global_zero:
            torch.save(state, self._file)

    def restore(self, trainer: pl.Trainer, module: CtrModule) -> None:
        """Put the best weights into a module that has left its strategy, on every rank."""
        trainer.strategy.barrier()  # the file is rank 0's, which may still be writing it
        module.load_state_dict(torch.load(self._file, weights_only=True, map_location="cpu"))
        trainer.strategy.barrier()  # rank 0 removes the folder next

    @property
    def _file(self) -> Path:
        return self.folder / "best.pt"
