"""Memory that the C library keeps once it is freed.

Outputs that stay and tensors that go leave holes between them, 5 MB in a thousand short texts: a job over a million texts would
fill a machine with holes, though what is in use stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable

_TEXTS = 16_384  # after which free blocks go back to the system, which takes 0.04 seconds
_counted = 0


def trim(texts: int) -> None:
    """Counts texts of this process; after many, what is free is given back, where the C library can."""
    global _counted
    _counted += texts
    if _counted >= _TEXTS:
        _counted = 0
        malloc_trim = _malloc_trim()
        if malloc_trim is not None:
            malloc_trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; other libraries have none."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return found
    return None
