"""What is known of users beside their behaviour, as numbers and as one vector.

Letters: see `batch.py`; U users, C columns. A table of users becomes [U, C] float32: the code of a
category (0: none, or not seen before `valid_start`), or a standardised number (nan: none).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_CATEGORIES = 1 << 24
"""Codes above this are not exact in float32."""


@dataclass(frozen=True, kw_only=True)
class UserColumn:
    """One feature column and what was learnt of it from users with training events."""

    name: str
    kind: Literal["categorical", "numeric"]
    values: tuple[str, ...] = ()
    """Categories; the first has code 1."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))  # a list where JSON was read


def fit_user_columns(
    users: pa.Table,
    *,
    types: Mapping[str, str],
    names: Sequence[str],
    train_U: NDArray[np.bool_],
) -> tuple[UserColumn, ...]:
    """Vocabularies and scales of these columns, from the users marked in `train_U` only.

    Raises:
        ValueError: no such column, or one of lists.
    """
    columns = []
    for name in names:
        if types.get(name) not in ("categorical", "numeric"):
            usable = sorted(one for one, kind in types.items() if kind != "multi")
            raise ValueError(
                f"model.encoders.user.features: found {name!r} ({types.get(name, 'no such')} "
                f"feature), expected some of {usable}; map the column under users.features in the "
                "settings of python -m data_prep shard, or leave it out"
            )
        seen = users[name].filter(pa.array(train_U)).drop_null()
        if types[name] == "numeric":
            values = seen.to_numpy().astype(np.float64)
            values = values[np.isfinite(values)]
            mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
            columns.append(UserColumn(name=name, kind="numeric", mean=mean, std=std or 1.0))
        else:
            vocabulary = sorted(pc.unique(seen).to_pylist())[: MAX_CATEGORIES - 1]
            columns.append(UserColumn(name=name, kind="categorical", values=tuple(vocabulary)))
    return tuple(columns)


def keep_earlier(
    fresh: Sequence[UserColumn], earlier: Sequence[UserColumn]
) -> tuple[UserColumn, ...]:
    """Columns for a model that goes on from an earlier one: its codes and scales stay valid.

    Categories known before keep their codes and new ones follow; numbers keep their scale.
    """
    before = {column.name: column for column in earlier}
    kept = []
    for column in fresh:
        old = before.get(column.name)
        if old is None or old.kind != column.kind:
            kept.append(column)
        elif column.kind == "numeric":
            kept.append(old)
        else:
            new = tuple(value for value in column.values if value not in set(old.values))
            kept.append(dataclasses.replace(old, values=(*old.values, *new)))
    return tuple(kept)


def encode_users(users: pa.Table, columns: Sequence[UserColumn]) -> Tensor:
    """[U, C] of a table that has these columns.

    Raises:
        ValueError: it lacks one.
    """
    encoded = []
    for column in columns:
        if column.name not in users.column_names:
            raise ValueError(
                f"users: found columns {users.column_names}, expected {column.name!r}, which the "
                "model was trained with; map it under users.features"
            )
        cells = users[column.name]
        if column.kind == "categorical":
            known = pa.array(column.values, pa.string())
            codes = pc.index_in(cells.cast(pa.string()), value_set=known)
            encoded.append(pc.fill_null(pc.add(codes, 1), 0).to_numpy().astype(np.float32))
        else:
            numbers = pc.fill_null(cells.cast(pa.float64()), float("nan")).to_numpy()
            numbers = np.where(np.isfinite(numbers), numbers, np.nan)
            encoded.append(((numbers - column.mean) / column.std).astype(np.float32))
    blank = np.zeros((len(users), 0), np.float32)
    return torch.from_numpy(np.stack(encoded, axis=1) if encoded else blank)


def unknown_users(count: int, columns: Sequence[UserColumn]) -> Tensor:
    """[count, C] of users of whom nothing is known."""
    row = [0.0 if column.kind == "categorical" else float("nan") for column in columns]
    return torch.tensor(row).expand(count, -1)


class UserFeatures(nn.Module):
    """[B, C] → the sum of one vector a column, [B, D]."""

    def __init__(self, columns: Sequence[UserColumn], *, width: int) -> None:
        super().__init__()
        self.kinds = [column.kind for column in columns]
        self.columns = nn.ModuleList(
            nn.Embedding(len(column.values) + 1, width)
            if column.kind == "categorical"
            else nn.Linear(2, width, bias=False)
            for column in columns
        )
        for column in self.columns:
            assert isinstance(column, nn.Embedding | nn.Linear)
            nn.init.normal_(column.weight, std=0.02)

    def forward(self, users_BC: Tensor) -> Tensor:
        """Codes, standardised numbers and nan, as `encode_users` gives them."""
        parts = []
        for kind, column, value_B in zip(self.kinds, self.columns, users_BC.T, strict=True):
            if kind == "categorical":
                parts.append(column(value_B.long()))
            else:
                number_B2 = torch.stack([value_B.nan_to_num(), value_B.isnan().float()], dim=1)
                parts.append(column(number_B2))
        return torch.stack(parts).sum(0)
