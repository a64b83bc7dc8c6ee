"""Keep freed memory in the process between segments.

A tape allocates and frees the same hundreds of megabytes again and again. glibc hands large freed blocks back to the
kernel, and touching fresh pages then costs more than the arithmetic on them (measured: 300 us against 30 us for a
vector of 85,000 floats). So on Linux the C allocator is told, once, to keep what it has.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER, _LARGEST = 2**31 - 1, 32 * 2**20  # 32 MiB is the most that glibc accepts


@cache
def keep_freed_memory(*, large: bool = False) -> bool:
    """Tell glibc to serve blocks up to 32 MiB from its heap and not to trim it; False where there is no glibc.

    `large`: blocks of any size, for runs whose single batch is larger than that (a gathered batch of 51 MB took 39 ms
    with fresh pages and 10 ms without).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    if large and not mallopt(_M_MMAP_MAX, 0):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
