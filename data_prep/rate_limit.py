"""Requests a second, counted over all threads of a process."""

import threading
import time
from functools import cache


class RateLimit:
    """Lets so many requests a second begin, at even distances."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._turn = threading.Lock()
        self._next_time = 0.0

    def wait(self, *, requests: int) -> None:
        """Return when these may begin; at once where the rate is 0, which is no limit."""
        if not self.per_second:
            return
        with self._turn:
            now = time.monotonic()
            wait = max(0.0, self._next_time - now)
            self._next_time = max(now, self._next_time) + requests / self.per_second
        time.sleep(wait)


@cache
def rate_limit(per_second: float) -> RateLimit:
    """This process's limit, the same one for whoever reads at this rate."""
    return RateLimit(per_second)
