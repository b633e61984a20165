"""Slips and malice in JSON: one value of a file replaced, removed or put elsewhere."""

import copy
import random
from typing import Any

ABSURD: list[Any] = [
    *(-1, 0, 1, 2, 7, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *(None, True, False, "", "x", "x" * 5000, "../../etc/passwd", "/etc/passwd", "é\0"),
    *([], {}, [[]], {"": {}}, [1, "a", None], "1", "nan", [0] * 1000),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """The path of every value below this one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for name, one in inner:
        found.append((*at, name))
        if isinstance(one, dict | list):
            found += places(one, (*at, name))
    return found


def altered(document: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one value, or a few, changed."""
    changed = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        found = places(changed)
        if not found:
            break
        *way, last = rng.choice(found)
        holder: Any = changed
        for name in way:
            holder = holder[name]
        match rng.randrange(8):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["other", "", "auto_map", last + "_"])] = holder.pop(last)
            case 2 if isinstance(holder[last], int | float):
                holder[last] = holder[last] * rng.choice([-1, 3, 1000, 10**6, 10**12])
            case 3:
                *other, name = rng.choice(found)
                value: Any = changed
                try:
                    for step in (*other, name):
                        value = value[step]
                except (KeyError, IndexError, TypeError):
                    continue
                holder[last] = copy.deepcopy(value)
            case _:
                holder[last] = copy.deepcopy(rng.choice(ABSURD))
    return changed
