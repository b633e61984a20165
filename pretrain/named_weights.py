"""Weights by name into a module that must have just these names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def load_exactly(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: object,
    prefix: str = "",
    rows: Mapping[str, Tensor] | None = None,
    left_out: str | None = None,
) -> None:
    """Copy weights into a module.

    Args:
        module: takes them.
        weights: by full name.
        source: where they are from, for the message.
        prefix: of the module's names in `weights`; others are not looked at.
        rows: tables whose rows are matched one by one: name → for each row of the module's table
            the row of the weights' one, -1 where it keeps what it has.
        left_out: names with this beginning are not looked at.

    Raises:
        ValueError: a name that only one side has, or two shapes; it names the key and both shapes.
    """
    rows = rows or {}
    ours = {prefix + name: value for name, value in module.state_dict().items()}
    theirs = {name: value for name, value in weights.items() if name.startswith(prefix)}
    if left_out is not None:
        ours, theirs = (
            {name: value for name, value in side.items() if not name.startswith(left_out)}
            for side in (ours, theirs)
        )

    def shape(side: Mapping[str, Tensor], name: str) -> str:
        return str(list(side[name].shape)) if name in side else "nothing of that name"

    def differs(name: str) -> bool:
        if name not in ours or name not in theirs:
            return True
        first = 1 if name in rows else 0
        return list(ours[name].shape[first:]) != list(theirs[name].shape[first:])

    wrong = [name for name in [*ours, *sorted(set(theirs) - set(ours))] if differs(name)]
    if wrong:
        others = f" (and {len(wrong) - 1} other keys differ)" if len(wrong) > 1 else ""
        raise ValueError(
            f"{source}: {wrong[0]}: found {shape(theirs, wrong[0])} there, expected "
            f"{shape(ours, wrong[0])} as in this run{others}; set model.encoders to the "
            "architecture of its config.json, or take model.reuse.warm_start out"
        )
    for name, value in ours.items():
        if name in rows:
            known = rows[name] >= 0
            value[known] = theirs[name][rows[name][known]].to(value)
        else:
            value.copy_(theirs[name])
