"""`python -m pretrain COMMAND`: words into one call."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data_prep.credentials import hide_in_logs, without_credentials
from data_prep.exit_codes import MEANINGS, NOT_FINITE, STOPPED, SUPERSEDED, USER_ERROR
from data_prep.setting_errors import in_one_line

if TYPE_CHECKING:
    from pretrain.lightning_cli import PretrainCLI

log = logging.getLogger(__name__)

COMMANDS = {
    "fit": "train both encoders; under torchrun or srun on many processes",
    "check_ranks": "do all processes reach each other, on devices that compute; before a long fit",
    "features": "compute and cache the features of frozen towers",
    "export": "write a released checkpoint from a run folder",
    "embed": "write item and user vectors of a dataset",
    "semantic_ids": "write a few codes an item, learnt from released vectors",
    "mixed_retrieval": "rank with new users against old items, old against new, and both",
    "evaluate": "rank whole catalogues with a release and with baselines",
    "blend": "learn how much behaviour, content, age and the release each weigh in a ranking",
    "report": "one page on a run: systems side by side, curves, a map of the space",
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's mistake is one line on stderr and exit code 2.

    `data_prep/exit_codes.py` lists the others.
    """
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print("usage: python -m pretrain COMMAND [--config FILE] [--key value …]\n\ncommands:")
        print("\n".join(f"  {name:15} {text}" for name, text in COMMANDS.items()))
        print("\npython -m pretrain COMMAND --help explains every key.\n\nexit codes:")
        print("\n".join(f"  {code:<15} {text}" for code, text in MEANINGS.items()))
        return
    if args[0] not in COMMANDS:
        sys.exit(f"pretrain: no command {args[0]!r}; there are {', '.join(COMMANDS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    hide_in_logs()
    try:
        if args[0] in ("fit", "features"):
            {"fit": fit, "features": features}[args[0]](args[1:])
        else:
            run_command(args[0], args[1:])
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("TRIPTYCH_TRACEBACK"):
            raise
        print(f"pretrain {args[0]}: {without_credentials(str(error))}", file=sys.stderr)
        sys.exit(USER_ERROR)


def parse_run(args: list[str], *, command: str) -> PretrainCLI:
    """Module, datamodule and trainer from the run's settings; nothing is started yet."""
    from jsonargparse import set_parsing_settings

    # Field docstrings become --help; it must be set before anything is parsed.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    from pretrain.lightning_cli import PretrainCLI

    return PretrainCLI(args, command=command)


def fit(args: list[str]) -> None:
    """Train, from the newest checkpoint of the run folder that is whole, where there is one."""
    cli = parse_run(args, command="fit")
    from pretrain.life import Superseded
    from pretrain.nonfinite import NotFiniteError
    from pretrain.same_run import check_same_data, check_same_settings
    from pretrain.stop import finished, was_stopped

    # Whatever is wrong with settings or data is said here, before any process group starts.
    run_dir, checkpoints = cli.run_config.dir, cli.run_config.resume_from()
    if checkpoints is not None:
        check_same_settings(run_dir, cli.settings())
    reused = cli.model.prepare(cli.datamodule)
    if checkpoints is not None:
        check_same_data(run_dir, cli.datamodule.dataset, reused)
        if said := finished(cli.trainer, checkpoints):
            if cli.trainer.is_global_zero:
                log.info("%s: %s", run_dir, said)
            return
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoints)
    except (NotFiniteError, Superseded) as error:
        if cli.trainer.is_global_zero:
            print(f"pretrain fit: {error}", file=sys.stderr)
        sys.exit(NOT_FINITE if isinstance(error, NotFiniteError) else SUPERSEDED)
    # Of rank 0 alone, which has written what there is to write: srun and torchrun end all ranks as
    # soon as one ends with another code than 0.
    if was_stopped(cli.trainer) and cli.trainer.is_global_zero:
        sys.exit(STOPPED)


def features(args: list[str]) -> None:
    """Cache features by the settings of the run that will use them."""
    cli = parse_run(args, command="features")
    from pretrain.features import compute_features

    reused = cli.model.reuse.open(cli.datamodule.dataset, model=cli.model.encoders)
    compute_features(cli.model.encoders, config=cli.datamodule.config, earlier=reused.earlier)


def run_command(name: str, args: list[str]) -> None:
    """Run a command that is a function with keyword arguments."""
    from jsonargparse import ArgumentError, ArgumentParser, auto_cli, set_parsing_settings

    class Parser(ArgumentParser):  # type: ignore[misc]
        """Says in one line which setting is wrong, instead of listing every flag."""

        def parse_args(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as its own
            try:
                return super().parse_args(*args, **kwargs)
            except ArgumentError as error:
                raise ValueError(in_one_line(error, self)) from error

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    auto_cli(
        _function(name),
        args=args,
        prog=f"python -m pretrain {name}",
        as_positional=False,
        parser_class=Parser,
        exit_on_error=False,
    )


def _function(name: str) -> Callable[..., None]:
    """Import a command; `pretrain/NAME.py` holds a function of that name."""
    function: Callable[..., None] = getattr(importlib.import_module(f"pretrain.{name}"), name)
    return function
