"""Settings of a training run → module, datamodule, trainer, by Lightning's own CLI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)

from data_prep.credentials import without_credentials
from data_prep.records import replace_file
from data_prep.setting_errors import in_one_line
from pretrain import third_party_noise
from pretrain.data import PretrainData
from pretrain.module import PretrainModule
from pretrain.run import RunConfig

CONFIG_FILE = "config.yaml"
"""Every setting of a run, in its folder."""
SEED = 0
"""Of everything random, where no other is set."""
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data knows which rank reads what
}
"""Where ours are not Lightning's."""
RUN_SETS = {
    "default_root_dir": "run.dir",
    "logger": "run.wandb",
    "enable_progress_bar": "run.progress_bar",
}
"""Settings of the trainer → what sets them."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml of a run, without credentials in URLs."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace that of the life before."""
        text = settings_text(self.parser, self.config)
        replace_file(Path(trainer.default_root_dir) / self.config_filename, text.encode())


def settings_text(parser: LightningArgumentParser, config: Namespace) -> str:
    """Every setting as config.yaml of a run holds it."""
    return without_credentials(parser.dump(config, skip_none=False))


class PretrainCLI(LightningCLI):
    """Adds the section `run` and fits the trainer to it and to the launcher."""

    def __init__(self, args: list[str], *, command: str) -> None:
        third_party_noise.silence()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        super().__init__(
            PretrainModule,
            PretrainData,
            args=args,
            run=False,
            seed_everything_default=SEED,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": CONFIG_FILE},
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": f"python -m pretrain {command}",
                "allow_abbrev": False,
                "exit_on_error": False,
            },
            trainer_defaults={**launched_processes(), **TRAINER_DEFAULTS},
        )

    @property
    def run_config(self) -> RunConfig:
        """The section `run`."""
        config: RunConfig = self._get(self.config_init, "run")
        return config

    def settings(self) -> dict[str, Any]:
        """Every setting, as config.yaml of the run will hold it."""
        found: dict[str, Any] = yaml.safe_load(settings_text(self.parser, self.config))
        return found

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a setting that is wrong is one line instead of every flag there is."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise ValueError(in_one_line(error, parser)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section `run`."""
        parser.add_class_arguments(RunConfig, "run")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 - Lightning's own
        """A trainer whose folder, loggers and callbacks are the run's."""
        run = self.run_config
        for name, ours in RUN_SETS.items():
            if (found := self._get(self.config_init, f"trainer.{name}")) is not None:
                raise ValueError(f"trainer.{name}: found {found}, expected null; set {ours}")
        if SLURMEnvironment.detect():
            # Lightning's own requeue saves inside the signal handler, and hung in 4 of 8 trials.
            plugins = self._get(self.config_init, "trainer.plugins") or []
            kwargs["plugins"] = [*plugins, SLURMEnvironment(auto_requeue=False)]
        given = self._get(self.config_init, "trainer.callbacks") or []
        return super().instantiate_trainer(
            default_root_dir=run.dir,
            logger=run.loggers(),
            callbacks=[*given, *run.callbacks()],
            enable_progress_bar=run.progress_bar,
            **kwargs,
        )


def launched_processes() -> dict[str, int]:
    """Processes a node and nodes, as torchrun or srun started them; a config may say otherwise.

    Lightning's own `auto` counts GPUs, and takes one process on a CPU however many were started.
    """
    found = os.environ
    if "LOCAL_WORLD_SIZE" in found:  # torchrun
        local = int(found["LOCAL_WORLD_SIZE"])
        return {"devices": local, "num_nodes": int(found["WORLD_SIZE"]) // local}
    if "SLURM_PROCID" in found and "SLURM_NTASKS_PER_NODE" in found:  # srun, one task a GPU
        return {
            "devices": int(found["SLURM_NTASKS_PER_NODE"]),
            "num_nodes": int(found["SLURM_NNODES"]),
        }
    return {}
