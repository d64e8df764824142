"""Memory that the C library keeps once it is freed, and Python's search for garbage.

Outputs that stay and tensors that go leave holes between them, 5 MB in a thousand short texts: a job over a million texts would
fill a machine with holes, though what is in use stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Iterator

_TEXTS = 16_384  # after which free blocks go back to the system, which takes 0.04 seconds
_counted = 0
_pausing = threading.Lock()
_pauses, _wanted = 0, True


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector pauses, in all threads; then it is as it was.

    Tokenised texts, groups and outputs are many objects and no garbage. They would be searched again and again, and with them
    all that PyTorch and transformers hold, which takes as long as making them (docs/adr/0018).
    """
    global _pauses, _wanted
    with _pausing:
        if _pauses == 0:
            _wanted = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _pausing:
            _pauses -= 1
            if _pauses == 0 and _wanted:
                gc.enable()


def collect_young() -> None:
    """While the collector pauses, after a model call: a model may leave cycles that hold much memory.

    Only what was made since the last search is searched, a matter of microseconds.
    """
    if _pauses and _wanted:
        gc.collect(0)


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
