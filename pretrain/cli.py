"""`python -m pretrain COMMAND`: words into one call."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningCLI

COMMANDS = {
    "fit": "train both encoders; under torchrun or srun on many processes",
    "features": "compute and cache the features of frozen towers",
    "export": "write a released checkpoint from a run folder",
    "embed": "write item and user vectors of a dataset",
    "evaluate": "rank whole catalogues with a release and with baselines",
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's mistake is one line on stderr and exit code 2."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print("usage: python -m pretrain COMMAND [--config FILE] [--key value …]\n\ncommands:")
        print("\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items()))
        print("\npython -m pretrain COMMAND --help explains every key.")
        return
    if args[0] not in COMMANDS:
        sys.exit(f"pretrain: no command {args[0]!r}; there are {', '.join(COMMANDS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        if args[0] in ("fit", "features"):
            {"fit": fit, "features": features}[args[0]](args[1:])
        else:
            run_command(args[0], args[1:])
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("TRIPTYCH_TRACEBACK"):
            raise
        print(f"pretrain {args[0]}: {error}", file=sys.stderr)
        sys.exit(2)


def parse_run(args: list[str], *, command: str) -> LightningCLI:
    """Module, datamodule and trainer from the run's settings; nothing is started yet."""
    from jsonargparse import set_parsing_settings

    # Field docstrings become --help; it must be set before anything is parsed.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    import torch
    from pytorch_lightning.cli import LightningCLI

    from pretrain.data import PretrainData
    from pretrain.module import PretrainModule
    from pretrain.stop import StopOnSignal

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    cli = LightningCLI(
        PretrainModule,
        PretrainData,
        args=args,
        run=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": f"python -m pretrain {command}"},
        trainer_defaults={"callbacks": [StopOnSignal()]},
    )
    cli.datamodule.dataset  # noqa: B018 - opening it reports a bad folder before anything starts
    return cli


def fit(args: list[str]) -> None:
    """Train, from `checkpoints/last` of the run folder where there is one."""
    cli = parse_run(args, command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=newest_checkpoint(cli.trainer))


def features(args: list[str]) -> None:
    """Cache features by the settings of the run that will use them."""
    cli = parse_run(args, command="features")
    from pretrain.features import compute_features

    compute_features(cli.model.encoders, config=cli.datamodule.config)


def newest_checkpoint(trainer: Any) -> str | None:  # noqa: ANN401 - keeps Lightning out of --help
    """`last` of this run, if the run is being continued."""
    folder = Path(trainer.default_root_dir) / "checkpoints"
    found = sorted(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    return str(found[-1]) if found else None


def run_command(name: str, args: list[str]) -> None:
    """Run a command that is a function with keyword arguments."""
    from jsonargparse import auto_cli, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    auto_cli(_function(name), args=args, prog=f"python -m pretrain {name}", as_positional=False)


def _function(name: str) -> Callable[..., None]:
    """Import a command; `pretrain/NAME.py` holds a function of that name."""
    function: Callable[..., None] = getattr(importlib.import_module(f"pretrain.{name}"), name)
    return function
