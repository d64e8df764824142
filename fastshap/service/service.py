"""What an app serves: one explainer, with its queue, its limits and its state."""

from __future__ import annotations

import re
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from fastshap.errors import InvalidArgumentError, InvalidTypeError, NoiseWarning, TruncationWarning
from fastshap.explainer import GradientShap
from fastshap.one_call import warm_up
from fastshap.service.batcher import Batcher
from fastshap.service.instances import Reader
from fastshap.service.limits import Limits
from fastshap.service.logs import Log
from fastshap.service.metrics import Metrics
from fastshap.service.problems import ProblemError

if TYPE_CHECKING:
    from fastshap.output.output import AttributionOutput
    from fastshap.service.audit import Audit

STARTING, READY, STOPPING, FAILED = "starting", "ready", "stopping", "failed"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WARM_WORDS = (3, 30, 200)  # texts of so many words, beside those of fastshap.warm_up
_WORD = "a "


class Service:
    """One model's explanations, for an app that :func:`fastshap.service.app.make_app` makes.

    Args:
        explainer: what explains. With ``return_convergence_delta=True`` answers hold the delta and the values.
        name: what the model is called in addresses; by default after the model.
        limits: what it takes at most.
        token: what requests have to bring as ``Authorization: Bearer``; None lets everybody in.
        audit: where each explanation is written down.
        log: where events are told; by default standard error.

    Attributes:
        state: "starting" until the model has been tried, then "ready"; "stopping" at the end, "failed" if the trial failed.
        active: requests at work.
        failure: why the trial failed.
        waiting: what requests wait for.

    Raises:
        InvalidArgumentError: no model can be called so, or the explainer's own settings pass a limit.
    """

    def __init__(
        self,
        explainer: GradientShap,
        *,
        name: str | None = None,
        limits: Limits | None = None,
        token: str | None = None,
        audit: Audit | None = None,
        log: Log | None = None,
    ) -> None:
        self.explainer, self.limits, self.audit = explainer, limits or Limits(), audit
        its = explainer.settings
        self.limits.check_samples(its.n_perturbations, its.changes().get("max_perturbations"))
        self.name = named(explainer) if name is None else name
        if not _NAME.fullmatch(self.name):
            raise InvalidArgumentError(
                f"A model's name is part of addresses: letters, digits, '.', '_' and '-'; got {self.name!r}."
            )
        if token is not None and not token.strip():
            raise InvalidArgumentError("The token is empty; leave it out, or give one.")
        self.token = None if token is None else token.strip().encode()
        self.log = log or Log()
        self.metrics = Metrics()
        self.state, self.active = STARTING, 0
        self.batcher = Batcher(explainer, max_queued_tokens=self.limits.max_queued_tokens, watch=self._watch)
        self.metrics.watch_queue(lambda: self.batcher.load)
        self.explaining, self.predicting = Reader(explainer, self.limits), Reader(explainer, self.limits, False)
        self.failure: Exception | None = None
        self.waiting: set[Future[AttributionOutput]] = set()
        self._trial: threading.Thread | None = None
        self._begun = threading.Lock()

    def start(self) -> None:
        """Tries the model in a thread; :attr:`state` says when it is done. Only the first call does something."""
        if self._begun.acquire(blocking=False):
            self._trial = threading.Thread(target=self._try, name="fastshap-warm-up", daemon=True)
            self._trial.start()

    def warm_up(self) -> None:
        """Tries the model: the kernels that it needs, and texts of several lengths.

        Raises:
            FastshapError: no text can be explained.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoiseWarning)
            warnings.simplefilter("ignore", TruncationWarning)
            try:
                warm_up(self.explainer)
                self._warm_lengths()
            except (InvalidArgumentError, InvalidTypeError) as error:  # a task whose texts hold more than words
                self.log.error("warm-up", error)
        if self.state == STARTING:
            self.state = READY

    def _warm_lengths(self) -> None:
        task = self.explainer.task
        texts, targets = task.examples([_WORD * count for count in _WARM_WORDS])
        alike = targets is None or task.serves_all(targets)
        for i, text in enumerate(texts):
            future = self.batcher.submit(text, targets if alike else targets[i])
            self.waiting.add(future)
            if self.state != STARTING:
                future.cancel()
            try:
                future.exception()  # some models take no such text
            finally:
                self.waiting.discard(future)

    def _watch(self, name: str, value: float) -> None:
        if self.state != STARTING:  # the trial of the model is nobody's request
            self.metrics.watch(name, value)

    def _try(self) -> None:
        try:
            self.warm_up()
        except Exception as error:
            if self.state == STARTING:  # not told to stop meanwhile
                self.failure, self.state = error, FAILED
                self.log.error("warm-up", error)
        else:
            self.log.event("ready", name=self.name)

    def stop(self) -> None:
        """No more requests are taken; those that were are still answered."""
        self.state = STOPPING

    def give_up(self) -> None:
        """What is waited for still is dropped."""
        for one in list(self.waiting):
            one.cancel()

    def close(self) -> None:
        """Answers what was accepted, as far as there is time, then stops."""
        self.stop()
        self.batcher.close(self.limits.grace)
        if self.audit is not None:
            self.audit.close()

    def is_tried(self, seconds: float) -> bool:
        """Whether no thread tries the model any more, or none does after so many seconds."""
        if self._trial is not None:
            self._trial.join(seconds)
        return self._trial is None or not self._trial.is_alive()

    def check_ready(self) -> None:
        """Nothing, if requests are taken.

        Raises:
            ProblemError: 503, while the service starts or stops.
        """
        if self.state != READY:
            what = {STARTING: "is starting", STOPPING: "is stopping", FAILED: "could not start"}[self.state]
            raise ProblemError(503, "NotReady", f"The service {what}.", headers={"retry-after": "1"})


def named(explainer: GradientShap) -> str:
    """A name for addresses, after the model's own."""
    own = str(getattr(explainer.model.config, "_name_or_path", "") or "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(own).name).strip("-._")[:100] or "model"
