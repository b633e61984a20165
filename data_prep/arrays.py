"""Between Arrow and numpy without a copy and without pandas.

pyarrow's own `to_numpy`, `pa.array` and `pa.scalar` import pandas where it is installed, which
costs half a second and 60 MB: as much as sorting a million events.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def to_numpy(column: "pa.Array | pa.ChunkedArray") -> NDArray[Any]:
    """A column of numbers or booleans without nulls."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(array.type):
        return to_numpy(array.cast(pa.int8())).view(bool)
    values: NDArray[Any] = np.from_dlpack(array)
    return values


def to_arrow(values: NDArray[Any], *, valid: NDArray[np.bool_] | None = None) -> "pa.Array":
    """An array of integers, floats or booleans, null where not `valid`."""
    import pyarrow as pa

    if values.dtype == bool:
        packed, kind = np.packbits(values, bitorder="little"), pa.bool_()
    else:
        packed, kind = np.ascontiguousarray(values), pa.from_numpy_dtype(values.dtype)
    given = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [given, pa.py_buffer(packed)])


def words_to_arrow(words: Sequence[str]) -> "pa.DictionaryArray":
    """Few words, many times: 16 bits each and a dictionary in the order of first use."""
    import pyarrow as pa

    places = {word: place for place, word in enumerate(dict.fromkeys(words))}
    ends = np.cumsum([0, *(len(word.encode()) for word in places)], dtype=np.int32)
    letters = "".join(places).encode()
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(letters)]
    dictionary = pa.Array.from_buffers(pa.string(), len(places), buffers)
    indices = np.fromiter(map(places.__getitem__, words), np.int16, len(words))
    return pa.DictionaryArray.from_arrays(to_arrow(indices), dictionary)
