"""Words to one call. Nothing heavy is imported before the words are understood."""

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from data_prep.credentials import hide_in_logs, without_credentials
from data_prep.exit_codes import DONE, FAILED, NOT_FINITE, USER_ERROR, explained
from data_prep.setting_errors import in_one_line
from finetune.command_settings import OffPolicyConfig, PredictConfig, ReportConfig
from finetune.daily_settings import DailyConfig
from finetune.settings import FitConfig, LadderConfig

logger = logging.getLogger(__name__)

_COMMANDS: dict[str, tuple[type[Any], str]] = {
    "fit": (FitConfig, "train one head on one rung of the content ladder, with one seed"),
    "ladder": (LadderConfig, "climb every rung with every seed, and write the report"),
    "predict": (PredictConfig, "score new impressions with a finished run"),
    "daily": (DailyConfig, "train day by day, and test each model on the day after"),
    "off_policy": (OffPolicyConfig, "estimate what a run would have earned on a log's test split"),
    "report": (ReportConfig, "write metrics.json and report.html again from finished runs"),
}


def build_parser() -> ArgumentParser:
    """The parser of every command; a YAML file's keys are the flags' names."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m finetune",
        description="CTR heads on a release.",
        epilog=explained(DONE, FAILED, USER_ERROR, NOT_FINITE),
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command", required=True)
    for name, (settings, text) in _COMMANDS.items():
        command = ArgumentParser(description=f"{text[0].upper()}{text[1:]}.", exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file; later ones win")
        command.add_class_arguments(settings, sub_configs=False)
        commands.add_subcommand(name, command, help=text)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command; after an error that is one line on stderr, 2, or 77 for scores of NaN."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    hide_in_logs()
    parser = build_parser()
    try:
        parsed = parser.parse_args(list(argv))
        settings = _settings(parsed[parsed.command], _COMMANDS[parsed.command][0])
        _run(parsed.command, settings)
    except (ArgumentError, ValueError, FileNotFoundError) as error:
        logger.debug("where it happened", exc_info=True)
        line = in_one_line(error, parser, arguments=argv)
        print(f"error: {without_credentials(line)}", file=sys.stderr)
        return int(getattr(error, "exit_code", USER_ERROR))
    return DONE


def _settings(parsed: Namespace, settings: type[Any]) -> Any:  # noqa: ANN401 - one a command
    """The dataclass behind a command; its checks run here."""
    parser = ArgumentParser()
    parser.add_class_arguments(settings, "settings")
    values = Namespace(parsed.clone())
    values.pop("config", None)
    return parser.instantiate_classes(Namespace(settings=values)).settings


def _run(command: str, settings: Any) -> None:  # noqa: ANN401 - one a command
    """Import what the command needs, and call it."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from rich.console import Console

    from finetune.training import is_first_rank

    console = Console(quiet=not is_first_rank())
    if command == "fit":
        from finetune.fit import fit

        record = fit(settings)
        figures = {k: round(v, 4) for k, v in record["test"].items() if v == v}
        console.print(f"{settings.rung}, seed {settings.seed}: {settings.judged_on} {figures}")
        further = record.get("tasks", {}) | {k: record[k] for k in ("uplift",) if k in record}
        for name, of_task in further.items():
            console.print(f"{name}: { ({k: round(v, 4) for k, v in of_task.items()}) }")
        console.print(f"written: {settings.out_dir}")
    elif command == "ladder":
        from finetune.ladder import ladder

        ladder(settings, console=console)
        console.print(f"written: {settings.out_dir}/metrics.json, {settings.out_dir}/report.html")
    elif command == "predict":
        from finetune.predict import predict

        count = predict(settings)
        console.print(f"{count} scores written: {settings.out}")
    elif command == "daily":
        from finetune.daily import daily

        for mode, figures in daily(settings)["mean"].items():
            console.print(f"{mode}: { ({k: round(v, 4) for k, v in figures.items()}) }")
        console.print(f"written: {settings.out_dir}/metrics.json, {settings.out_dir}/report.html")
    elif command == "off_policy":
        from finetune.policy_value import policy_value

        found = policy_value(settings)
        console.print(f"logged {found['task']}: {_shown(found['logged'])}")
        for temperature, estimates in found["policies"].items():
            for name, one in estimates.items():
                console.print(f"temperature {temperature}, {name}: {_shown(one['reward'])}")
    else:
        from finetune.ladder import table
        from finetune.report import report

        console.print(table(report(settings)))
        console.print(f"written: {settings.run_dir}/report.html")


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"
