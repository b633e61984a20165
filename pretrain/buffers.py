"""Large arrays that are used again, since the kernel clears every new page before it is written."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Hands out byte arrays; one whose last user is gone is handed out again."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape with arbitrary content.

        It may be wrapped by `torch.from_numpy`, which keeps it in use; a numpy view of it does not.
        """
        size = int(np.prod(shape))
        whole = self._free.pop() if self._free else np.empty(size, np.uint8)
        if whole.size < size:
            whole = np.empty(size, np.uint8)
        lent = whole[:size].reshape(shape)
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return lent
