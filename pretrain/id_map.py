"""Which items of one catalogue are which of another, by item id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def rows_of_ids(ids: pa.Array, *, known: pa.Array) -> NDArray[np.int64]:
    """Place of each id among `known`, -1 where it is not there; types that differ meet as text."""
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    rows = pc.index_in(ids, value_set=known).fill_null(-1)
    return np.asarray(rows.to_numpy(zero_copy_only=False), np.int64)
