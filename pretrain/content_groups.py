"""Which items have the same content, by the hashes that the dataset's catalogue holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def modality_groups(items: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Modality → for each item the first row with the same content of it, [N].

    An item without it is a group of its own; a modality without hashes is left out.
    """
    found = {}
    for name in _hash_columns(items):
        column = items[name].combine_chunks()
        (rows,) = column.is_valid().to_numpy(zero_copy_only=False).nonzero()
        hashes = column.drop_null().to_numpy()
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        groups_N = np.arange(items.num_rows)
        groups_N[rows] = rows[first[inverse]]
        found[name.removeprefix("hash_")] = groups_N
    return found


def content_groups(items: pa.Table) -> NDArray[np.int64]:
    """For each item the first row with the same content, [N].

    The same is: equal hashes of every modality, or both without it. An item without any content,
    and every item of a dataset without hashes, is a group of its own.
    """
    own_N = np.arange(items.num_rows)
    names = _hash_columns(items)
    if not names:
        return own_N
    columns = []
    for name in names:
        column = items[name].combine_chunks()
        columns += [
            column.fill_null(0).to_numpy(),
            column.is_valid().to_numpy(zero_copy_only=False),
        ]
    table_NC = np.stack([column.astype(np.uint64) for column in columns], axis=1)
    _, first, inverse = np.unique(table_NC, axis=0, return_index=True, return_inverse=True)
    has_content_N = table_NC[:, 1::2].any(axis=1)
    return np.where(has_content_N, first[inverse.ravel()], own_N)


def _hash_columns(items: pa.Table) -> list[str]:
    return [name for name in items.column_names if name.startswith("hash_")]
