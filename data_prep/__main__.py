"""Command lines of data_prep: toy, shard, verify, report."""

import logging
import os
import sys
from dataclasses import is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from data_prep.credentials import hide_in_logs, without_credentials
from data_prep.exit_codes import DONE, FAILED, USER_ERROR, explained
from data_prep.report_settings import ReportConfig
from data_prep.setting_errors import in_one_line
from data_prep.settings import RunConfig, ShardConfig, VerifyConfig
from data_prep.toy_settings import ToyConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from data_prep.manifest import Manifest

logger = logging.getLogger(__name__)

COMMANDS: dict[str, tuple[list[type], str]] = {
    "toy": ([ToyConfig], "a made-up world whose best reachable AUC is known"),
    "shard": ([ShardConfig, RunConfig], "raw tables to a dataset folder"),
    "verify": ([VerifyConfig], "a dataset folder against its manifest"),
    "report": ([ReportConfig], "a dataset folder as an HTML page to look at"),
}
"""Each command's settings, and what it does."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; what the user can put right is said in one line, with exit code 2."""
    from jsonargparse import ArgumentError

    level = os.environ.get("TRIPTYCH_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(levelname).1s %(message)s", stream=sys.stderr)
    hide_in_logs()
    parser = build_parser()
    try:
        settings = parser.parse_args(arguments)
        return _run(parser, settings)
    except (ArgumentError, ValueError, OSError) as error:
        logger.debug("where it happened", exc_info=True)
        words = sys.argv[1:] if arguments is None else arguments
        line = in_one_line(error, parser, arguments=words)
        print(f"error: {without_credentials(line)}", file=sys.stderr)
        return USER_ERROR


def build_parser() -> "ArgumentParser":
    """The parser of all commands; every setting is a flag and a key of the --config YAML."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m data_prep",
        description="Raw tables to a dataset folder: items/*.tar, users/*.tar and CTR splits.",
        epilog=explained(DONE, FAILED, USER_ERROR),
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, (parts, text) in COMMANDS.items():
        command = ArgumentParser(description=text, exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file with these settings.")
        for part in parts:
            command.add_class_arguments(part, as_group=False)
        commands.add_subcommand(name, command, help=text)
    return parser


def _run(parser: "ArgumentParser", settings: "Namespace") -> int:
    command = settings.command
    _refuse_missing_values(settings)
    values = parser.instantiate(settings)[command].as_dict()
    values.pop("config")
    match command:
        case "toy":
            from data_prep.toy import make_toy

            truth = make_toy(ToyConfig(**values))
            print(
                f"{truth.num_events:,} events, {truth.num_impressions:,} impressions; of the "
                f"{truth.num_test_impressions:,} in the test period {truth.click_rate:.1%} are "
                f"clicks and {truth.cold_share:.1%} of cold items"
            )
            print(
                f"best reachable AUC on the test period: {_auc(truth.best_reachable_auc)}, "
                f"over its cold items: {_auc(truth.best_reachable_auc_cold)}"
            )
        case "shard":
            from data_prep.shard import shard_dataset

            run_fields = RunConfig.__dataclass_fields__
            run = RunConfig(**{name: values.pop(name) for name in run_fields})
            manifest = shard_dataset(ShardConfig(**values), run)
            if manifest is not None:
                _print_report(manifest)
        case "verify":
            from data_prep.verify import find_damage

            damage = list(find_damage(VerifyConfig(**values).dataset_dir))
            for line in damage:
                print(line)
            print(f"{len(damage)} problems" if damage else "intact")
            return FAILED if damage else DONE
        case "report":
            from data_prep.report import write_report

            config = ReportConfig(**values)
            print(*write_report(config), f"written to {config.file}", sep="\n")
    return DONE


def _refuse_missing_values(settings: "Namespace") -> None:
    """Null where it means nothing, and values in the place of a section.

    jsonargparse lets both through, and they would fail somewhere else.
    """
    from jsonargparse import Namespace

    for name, value in settings[settings.command].items():
        for part in COMMANDS[settings.command][0]:
            kind = _type_of(name.split("."), part)
            is_section = is_dataclass(kind) and not isinstance(value, Namespace)
            is_null = value is None and kind is not None and NoneType not in get_args(kind)
            if is_section or is_null:
                wanted = "a mapping of its keys" if is_section else "a value"
                raise ValueError(
                    f"{name}: found {value!r}, expected {wanted}; give it, or leave the key out "
                    "where it has a default"
                )


def _type_of(path: list[str], part: type) -> Any:  # noqa: ANN401 - annotations are of any type
    """The annotation of a setting, None where `part` has no such setting."""
    kind = get_type_hints(part).get(path[0])
    if len(path) == 1:
        return kind
    nested = [one for one in (kind, *get_args(kind)) if is_dataclass(one)]
    return _type_of(path[1:], nested[0]) if nested and isinstance(nested[0], type) else None


def _print_report(manifest: "Manifest") -> None:
    from rich.console import Console
    from rich.table import Table

    filters = Table("step", "rows in", "rows out", title=f"{manifest.name}: rows")
    for step in manifest.filters:
        filters.add_row(step.step, f"{step.rows_in:,}", f"{step.rows_out:,}")
    causes = Table("cause", "records", title="quarantine")
    for cause, count in manifest.quarantine.items():
        causes.add_row(cause, f"{count:,}")
    counts = Table("what", "count", title="dataset")
    for name, count in manifest.counts.items():
        counts.add_row(name, f"{count:,}")
    console = Console()
    console.print(filters)
    console.print(causes if manifest.quarantine else "quarantine: empty")
    console.print(counts)


def _auc(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
