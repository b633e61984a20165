"""DeepSpeed ZeRO under Lightning, on CUDA as Lightning has it and on CPU with gloo.

Lightning's strategy refuses everything but CUDA, though DeepSpeed itself runs on CPU. With these
overrides a laptop and CI exercise the same engine, partitioning and checkpoints as a GPU node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.seed import reset_seed
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DeepSpeedStrategy

from pretrain.checkpoint_files import read_manifest

# DeepSpeed picks its accelerator when it is first imported; without this it warns of missing CUDA.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO (Rajbhandari et al., SC 2020): optimizer state, gradients and parameters partitioned."""

    def __init__(self, stage: int = 2, **settings: Any) -> None:  # noqa: ANN401 - Lightning's own
        """Partition over the ranks.

        Args:
            stage: 1 optimizer state; 2 gradients too; 3 parameters too.
            settings: passed on to Lightning's DeepSpeedStrategy.
        """
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO stage must be 1, 2 or 3, got {stage}")
        super().__init__(stage=stage, zero_allow_untested_optimizer=True, **settings)
        # For DeepSpeed's own throughput log alone; Lightning would ask the train dataloader for
        # its batch sampler, and ours has none.
        if isinstance(self.config, dict):
            self.config.setdefault("train_micro_batch_size_per_gpu", 1)
        self.stage = stage
        self.held: dict[str, Any] | None = None
        """Where a save puts its files instead of writing them."""
        self.chosen: Path | None = None

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        """This process's device; DeepSpeed wants an index on a CPU too."""
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Start the process group."""
        if not self._on_cpu:
            super().setup_environment()
            return
        assert self.accelerator is not None
        self.accelerator.setup_device(torch.device("cpu"))
        self.setup_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Build the model whole on every rank; ZeRO-3 partitions it when the engine starts.

        Under Lightning's `deepspeed.zero.Init` a parameter is empty as soon as it is made, and
        neither towers that initialise themselves nor loaded weights can be written into it.
        """
        self._init_config_if_needed()
        yield

    def _format_config(self) -> None:
        """Keep float32 parameters under `bf16-mixed`; the module runs under autocast instead.

        DeepSpeed's own bf16 casts every parameter, which towers that mix types do not survive.
        """
        super()._format_config()
        if self.precision_plugin.precision == "bf16-mixed" and isinstance(self.config, dict):
            self.config["bf16"] = {"enabled": False}

    def setup_distributed(self) -> None:
        """Start the process group; on CPU without Lightning's look at CUDA device indices."""
        if not self._on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    # ------------------------------------------------------------------ checkpoints
    def choose(self, checkpoint: Path | None) -> None:
        """Restore this one, whatever path the trainer was given; before the engine starts."""
        self.chosen = checkpoint
        if checkpoint is not None and read_manifest(checkpoint).ranks != self.world_size:
            assert isinstance(self.config, dict)
            self.config.setdefault("checkpoint", {})["load_universal"] = True

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,  # noqa: ANN401 - Lightning's own
        storage_options: Any = None,  # noqa: ANN401 - Lightning's own
    ) -> None:
        """Hold what this rank has to write, where `held` asks for it; else write it."""
        if self.held is None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        from pretrain.zero_state import engine_files

        apart = ("state_dict", "optimizer_states")  # the engine has its own
        client_state = {key: value for key, value in checkpoint.items() if key not in apart}
        self.held.update(engine_files(self.deepspeed_engine, client_state))

    def load_checkpoint(
        self,
        checkpoint_path: Any,  # noqa: ANN401 - Lightning's own
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Restore the chosen checkpoint, converted where it is of another number of ranks."""
        if self.chosen is None:
            loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
            return loaded
        from pretrain.zero_state import load_engine, load_engine_elastic

        ranks = read_manifest(self.chosen).ranks
        if ranks == self.world_size:
            return load_engine(self.deepspeed_engine, self.chosen)
        return load_engine_elastic(self.deepspeed_engine, self.chosen, strategy=self)
