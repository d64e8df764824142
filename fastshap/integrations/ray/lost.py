"""How Ray's own errors become fastshap's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fastshap.errors import FastshapError, JobError, WorkerDiedError

# Of a worker, and of a batch: finite, since a text that kills its process would be tried for ever.
RESTARTS = RETRIES = 20


@contextlib.contextmanager
def translated(ray: Any) -> Iterator[None]:
    """Errors of fastshap's come out of Ray as themselves, and lost workers as :class:`WorkerDiedError`."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while (below := getattr(chain[-1], "cause", None) or chain[-1].__cause__) and below not in chain:
            chain.append(below)
        for one in reversed(chain):
            # Ray makes classes that are its own and the cause's at once, with a traceback for a message.
            if isinstance(one, FastshapError) and not isinstance(one, ray.exceptions.RayError):
                one.args = (str(one).split("\nFailed to ")[0],)  # what Ray Data adds about retries
                raise one from None
        lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
        if any(isinstance(one, lost) for one in chain):
            raise WorkerDiedError(often(f"more often than {RESTARTS} times ({first_line(chain[-1])})")) from error
        raise JobError(f"Ray could not continue: {type(chain[-1]).__name__}: {first_line(chain[-1])}") from error


def often(how: str) -> str:
    return (
        f"Workers died {how}. Memory that runs out, or a library that crashes, are the usual reasons; Ray's logs are in "
        "/tmp/ray/session_latest/logs. Fewer rows at a time (--rows-per-batch) or a smaller --batch-size need less memory."
    )


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
