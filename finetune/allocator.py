"""Memory that a step frees is kept for the next one.

A step of a large batch makes and frees the same few megabytes again and again. glibc hands such
blocks back to the kernel, which clears each page anew when it comes again: up to a tenth of a step.
"""

import ctypes
import logging
from functools import cache

logger = logging.getLogger(__name__)

# malloc.h; a number of mallopt is an option, not a size.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES = 32 << 20  # glibc takes no more; embedding tables stay outside


@cache
def keep_freed_memory() -> bool:
    """Tell glibc once; False where there is no glibc. The process's peak stays its peak."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    kept &= mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if not kept:
        logger.info("mallopt: refused; training is a little slower")
    return bool(kept)
