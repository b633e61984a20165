"""What jsonargparse says of a wrong setting, in one line that names it and what was expected.

Its own texts list everything that was tried, and print whole sections; the useful words lie inside.
"""

import argparse
import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

KEY = re.compile(r'Parser key "([^"]+)"')
UNKNOWN_FLAG = re.compile(r"unrecognized arguments: --([\w.]+)")
UNKNOWN_KEY = re.compile(r"does not accept (?:option|nested key|key) '([\w.]+)'")
IN_CLASS = re.compile(r"given class_path '([\w.]+)':\s+")
UNKNOWN_IN_CLASS = re.compile(r"Option '([\w.]+)' is not accepted")
NEEDED_IN_CLASS = re.compile(r"the following arguments are required: ([\w., ]+)")
CHOICES = re.compile(r"Expected a typing\.Literal(\[.*?\])")
TYPE = re.compile(r"Expected an? <class '([\w.]+)'>")
VALUE = re.compile(r"(?:Got value|Given value): (.*)")
SECTION = re.compile(r"Expected a dot import path string: (.*)")
ALIKE = 0.7
"""Least likeness of a name that may have been meant, of 1."""
MOST_LISTED = 24
NO_SETTINGS = ("help", "config", "print_config", "print_shtab")


def in_one_line(
    error: BaseException, parser: "ArgumentParser | None" = None, *, arguments: Sequence[str] = ()
) -> str:
    """The error in one line, shorter where its text is jsonargparse's.

    Args:
        error: of parsing, or any other.
        parser: whose settings may have been meant; None: unknown.
        arguments: the words that were parsed, which name the parser's command.
    """
    from jsonargparse import ArgumentError

    text = str(error)
    found = None
    if isinstance(error, ArgumentError):
        settings = list(_settings(parser, arguments)) if parser is not None else []
        found = _unknown(text, settings) or _in_class(text) or _wrong_value(text)
    return " ".join((found or text).split())


def _settings(parser: "ArgumentParser", arguments: Sequence[str]) -> Iterator[str]:
    """The dotted names of all settings, of the command that the arguments name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if name in arguments:
                    yield from _settings(command, ())
        else:
            yield from (one[2:] for one in action.option_strings if one.startswith("--"))


def _unknown(text: str, settings: list[str]) -> str | None:
    match = UNKNOWN_FLAG.search(text) or UNKNOWN_KEY.search(text)
    if match is None:
        return None
    # The first part that is wrong, beside those that there are in its place.
    parts, section = match[1].split("."), ""
    for part in parts:
        inside = (one.removeprefix(section) for one in settings if one.startswith(section))
        there = list(dict.fromkeys(one.partition(".")[0] for one in inside))
        if part not in there:
            break
        section += f"{part}."
    else:
        return None  # it is one, and something else is wrong with it
    return _no_such(part, there, section=section)


def _no_such(name: str, there: list[str], *, section: str) -> str:
    names = [one for one in there if one not in NO_SETTINGS]
    said = f"{section}{name}: found a setting that does not exist"
    if close := difflib.get_close_matches(name, names, 1, ALIKE):
        return f"{said}; did you mean {section}{close[0]}?"
    if not names or len(names) > MOST_LISTED:
        return f"{said}; --help lists those that do"
    return f"{said}, expected one of {', '.join(names)}"


def _in_class(text: str) -> str | None:
    """What is wrong inside a section that may also be something else, such as null."""
    match = IN_CLASS.search(text)
    if match is None:
        return None
    section = ".".join(KEY.findall(text[: match.start()]))
    inside = text[match.end() :]
    if unknown := UNKNOWN_IN_CLASS.match(inside):
        return _no_such(unknown[1], _parameters(match[1]), section=f"{section}.")
    if needed := NEEDED_IN_CLASS.match(inside):
        names = ", ".join(f"{section}.{name}" for name in needed[1].strip().split(", "))
        return f"{names}: found nothing, expected a value; give it"
    return None


def _parameters(class_path: str) -> list[str]:
    """The names of a class's settings; none where it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _wrong_value(text: str) -> str | None:
    """A value that is none of the choices, or not of the type."""
    last = [*KEY.finditer(text)]
    if not last or "class_path" in text[last[-1].end() :].split("Expected a <class 'NoneType'>")[0]:
        return None
    section = ".".join(key[1] for key in last)
    inside = text[last[-1].end() :]
    if no_section := SECTION.search(inside):
        return f"{section}: found {no_section[1]!r}, expected a mapping of its keys"
    value = VALUE.search(inside)
    choices = [one for found in CHOICES.findall(inside) for one in ast.literal_eval(found)]
    types = [one for one in TYPE.findall(inside) if one != "NoneType"]
    if value is None or not (choices or types):
        return None
    given = value[1].strip()
    close = difflib.get_close_matches(given, [str(one) for one in choices], 1, ALIKE)
    expected = [", ".join(map(str, choices))] if choices else []
    expected += [f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in types]
    listed = f"{'one of ' if choices else ''}{' or '.join(expected)}"
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{section}: found {given!r}, expected {listed}{hint}"
