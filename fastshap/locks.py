"""One re-entrant lock for each model or tokenizer, shared by everything that uses it."""

from __future__ import annotations

import threading
import weakref
from typing import Any

_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(owner: Any) -> threading.RLock:
    """The lock of ``owner``, made on first use and gone with it."""
    with _guard:
        return _locks.setdefault(owner, threading.RLock())
