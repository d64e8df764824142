"""A child forked from a process that has explained: PyTorch's threads are not there, and who waits for them waits for ever."""

from __future__ import annotations

import os
import warnings

import torch

_used_threads = False  # in this process
_orphaned = False  # of threads that the parent had


def prepare_threads() -> None:
    """Before PyTorch is at work: a forked child whose parent used several threads goes on with one, and is told so once."""
    global _used_threads, _orphaned
    if _orphaned and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "This process was forked from one that has explained with several threads, which do not survive a fork: it "
            "explains with one thread. To use more, start processes with multiprocessing's 'spawn', or fork before the first "
            "explanation.",
            RuntimeWarning,
            stacklevel=2,
        )
    _orphaned = False
    _used_threads = _used_threads or torch.get_num_threads() > 1


def _in_child() -> None:
    global _used_threads, _orphaned
    _orphaned, _used_threads = _orphaned or _used_threads, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
