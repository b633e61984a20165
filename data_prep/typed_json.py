"""JSON to dataclasses: every value is of the type of its field, or there is a clear error."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], raw: object, *, where: str) -> T:
    """A dataclass from the JSON value that `dataclasses.asdict` made of one.

    Fields with a default may be missing; unknown keys may not be there.

    Raises:
        ValueError: it names the key and what was found; `where` begins the message.
    """
    try:
        made = _read(kind, raw, key="")
    except _OtherTypeError as error:
        raise ValueError(f"{where}: {error}") from None
    assert isinstance(made, kind)
    return made


class _OtherTypeError(Exception):
    """A value is not what its field says."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key.lstrip('.')}: {problem}" if key else problem)


def _read(kind: Any, raw: Any, *, key: str) -> Any:  # noqa: ANN401 - annotations and JSON values
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return raw
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, raw, key=key)
    if origin in (Union, types.UnionType):
        return _read_union(inner, raw, key=key, kind=kind)
    if origin is Literal:
        if raw in inner and any(raw is one or type(raw) is type(one) for one in inner):
            return raw
    elif origin in (list, tuple):
        if isinstance(raw, list | tuple):
            return origin(_read(inner[0], one, key=f"{key}[{n}]") for n, one in enumerate(raw))
    elif origin in (dict, Mapping):
        if isinstance(raw, dict):
            names = {_key(inner[0], name, key=key): name for name in raw}
            return {
                made: _read(inner[1], raw[name], key=f"{key}.{name}")
                for made, name in names.items()
            }
    elif kind is float:
        if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
            return float(raw)
    elif type(raw) is kind:
        return raw
    raise _OtherTypeError(key, f"found {_shown(raw)}, expected {_name(kind)}")


def _read_dataclass(kind: Any, raw: Any, *, key: str) -> Any:  # noqa: ANN401
    if not isinstance(raw, dict):
        raise _OtherTypeError(key, f"found {_shown(raw)}, expected an object")
    hints = get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(raw.keys() - fields.keys()):
        raise _OtherTypeError(
            key, f"found the unknown keys {_shown(unknown)}, expected {', '.join(fields)}"
        )
    missing = dataclasses.MISSING
    needed = {n for n, f in fields.items() if f.default is missing is f.default_factory}
    if absent := sorted(needed - raw.keys()):
        raise _OtherTypeError(key, f"found no {', '.join(absent)}")
    values = {name: _read(hints[name], raw[name], key=f"{key}.{name}") for name in raw}
    try:
        return kind(**values)
    except ValueError as error:  # out of range, by the dataclass's own checks
        raise _OtherTypeError(key, str(error)) from None


def _read_union(kinds: tuple[Any, ...], raw: Any, *, key: str, kind: Any) -> Any:  # noqa: ANN401
    if raw is None and type(None) in kinds:
        return None
    problems = []
    for one in kinds:
        if one is not type(None):
            try:
                return _read(one, raw, key=key)
            except _OtherTypeError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    raise _OtherTypeError(key, f"found {_shown(raw)}, expected {_name(kind)}")


def _key(kind: Any, name: str, *, key: str) -> Any:  # noqa: ANN401
    """JSON's keys are text; a mapping of integers reads them back."""
    if kind is int and name.lstrip("-").isdecimal():
        return int(name)
    if kind is int:
        raise _OtherTypeError(key, f"found the key {name!r}, expected an integer")
    return name


def _name(kind: Any) -> str:  # noqa: ANN401
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _shown(raw: object) -> str:
    text = repr(raw)
    return text if len(text) <= 80 else f"{text[:77]}..."
