"""One re-entrant lock for each model or tokenizer, shared by everything that uses it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(owner: Any) -> threading.RLock:
    """The lock of ``owner``, made on first use and gone with it."""
    with _guard:
        return _locks.setdefault(owner, threading.RLock())


def _in_child() -> None:
    """Threads that held locks are not in a forked child, and would never let go."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
