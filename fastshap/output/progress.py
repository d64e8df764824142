"""How far a call is: a bar, or a function of the user's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fastshap.errors import InvalidTypeError

Wanted = bool | Callable[[float, int | None], object] | None

_QUIET = 1.0  # seconds before a bar that nobody asked for
_SETTLED = 1.0  # seconds after the first text, which may have to warm the model up, before a rate is told
_USUAL = {"ncols": 80, "nrows": 20}  # of a terminal, for tqdm


def checked_progress(progress: Any) -> Wanted:
    """``progress`` as the user gave it."""
    if progress is None or isinstance(progress, bool) or callable(progress):
        return progress  # type: ignore[no-any-return]
    raise InvalidTypeError(
        "progress must be None (a bar after a second, where one can be seen), True (a bar), False, or a function that takes "
        f"the texts done and the texts in total; got {progress!r}."
    )


class Stopped(BaseException):
    """What a user's function raised, on its way out of the call: no error of the model or of a text."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Progress:
    """The texts of one call that are done; those under way count by the share of their work that is done.

    A context: leaving it removes the bar.

    Args:
        wanted: from :func:`checked_progress`.
        total: texts in all, where that is known.
    """

    def __init__(self, wanted: Wanted = False, total: int | None = None) -> None:
        self._tell = wanted if callable(wanted) else None
        self._shown = wanted is True or (wanted is None and (_in_a_notebook() or _on_a_terminal()))
        self._quiet = 0.0 if wanted is True else _QUIET
        self.total = total
        self._bar: Any = None
        self._finished = 0  # texts of the windows before
        self._window = 0  # texts under way
        self._part = self._most = 0.0  # of these, and what it may become in the stage that is on
        self._hidden = False  # while the user's own code runs
        self._start = time.time()
        self._first: tuple[float, float] | None = None  # when the first text was done, and how many were then
        self._guard = threading.RLock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        self._start = time.time()
        if self._shown and not _in_a_notebook():  # where nothing is reported for long, the bar is there all the same
            self._timer = threading.Timer(self._quiet, self._draw)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._guard:
            self._shown = False
            if self._timer is not None:
                self._timer.cancel()
            if self._bar is not None:
                self._bar.close()
        if isinstance(error, Stopped):
            raise error.error

    def begin(self, texts: int) -> None:
        """So many texts are under way."""
        self._window, self._part, self._most = texts, 0.0, texts
        self._hidden = False

    def end(self) -> None:
        """The texts under way are done."""
        with self._guard:
            self._finished += self._window
            self._window, self._part = 0, 0.0
            self._report()

    def add(self, texts: float) -> None:
        """A part of the texts under way is done; from any thread."""
        with self._guard:
            self._part = min(self._part + texts, self._most)
            self._report()

    def stage(self, work: int, share: float) -> Callable[[int], None] | None:
        """What is called with the work done, of so much that makes up a share of all that is left of the texts under way.

        None where nobody wants to know.
        """
        if not work or (self._tell is None and not self._shown):
            return None
        left = (self._window - self._part) * share
        self._most = self._part + left  # work that had to be done twice does not count
        return lambda done: self.add(left * done / work)

    def hide(self) -> None:
        """Until more texts are under way, as the user's own code may print."""
        with self._guard:
            self._hidden = True
            if self._bar is not None:
                self._bar.clear()

    def _report(self) -> None:
        done = self._finished + self._part if self._part else self._finished
        if self.total is not None and done > self.total:
            self.total = None  # a mapping of several rows was one entry
        if self._tell is not None:
            try:
                self._tell(done, self.total)
            except Exception as error:
                raise Stopped(error) from error
        else:
            self._draw()

    def _draw(self) -> None:
        with self._guard:
            if not self._shown or self._hidden or time.time() < self._start + self._quiet - 0.01:
                return
            from tqdm.auto import tqdm

            done = self._finished + self._part
            form = self._form(done, tqdm.format_interval)
            if self._bar is None:
                self._bar = tqdm(total=self.total, leave=False, miniters=0, bar_format=form, **room())
                self._bar.start_t = self._start
            self._bar.total, self._bar.n, self._bar.bar_format = self.total, done, form
            self._bar.update(0)

    def _form(self, done: float, duration: Callable[[float], str]) -> str:
        """The bar's format: whole numbers of texts, and the rate once it is known."""
        count = f"{int(done):,}" + ("" if self.total is None else f"/{self.total:,}")
        now = time.time()
        if self._first is None and done >= 1:
            self._first = now, done
        rest = ""
        if self._first is not None and done > self._first[1] and now - self._first[0] >= _SETTLED:
            rate = (done - self._first[1]) / (now - self._first[0])
            left = "" if self.total is None else f"<{duration((self.total - done) / rate)}"
            rest = f"{left}, " + (f"{rate:,.1f} texts/s" if rate >= 1 else f"{1 / rate:,.1f} s/text")
        bar = "" if self.total is None else "{l_bar}{bar}| "
        return f"{bar}{count} texts [{{elapsed}}{rest}]"


def _on_a_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError):  # no stream, or a closed one
        return bool(sys.stderr.isatty())
    return False


def room() -> dict[str, int]:
    """What a bar is told of a terminal that says it has no columns, where tqdm would show nothing; elsewhere tqdm looks."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no stream, a closed one, or no terminal
        if sys.stderr.isatty() and not os.get_terminal_size(sys.stderr.fileno()).columns and not _in_a_notebook():
            return _USUAL
    return {}


def _in_a_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
