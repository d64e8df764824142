"""Explanations for many callers at once: their texts share model calls."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from fastshap.engine import memory
from fastshap.engine.stream import Text, advance
from fastshap.errors import (
    ClosedError,
    DeadlineExceededError,
    FastshapError,
    InvalidArgumentError,
    ModelFailedError,
    OverloadedError,
)
from fastshap.output.output import AttributionOutput
from fastshap.service.lanes import Lanes
from fastshap.service.variants import Request, Variant, isolated, key_of

if TYPE_CHECKING:
    from fastshap.explainer import GradientShap

_TURN = 0.2  # seconds of work between two looks at what has come
_TURNS_AHEAD = 16  # of work that is read before it runs
_FIRST = 512.0  # work of the first turn, when the speed is not known
_VARIANTS = 256  # settings that are remembered
_WEIGHT = 0.3  # of the last turn, in the speed


class Load(NamedTuple):
    """What waits or is under way."""

    requests: int
    tokens: int  # of all rows that have yet to run


class Batcher:
    """A queue in front of an explainer. Many threads put texts into it, and the texts share model calls.

    One thread of its own runs the model. Each text may have its own target and settings, such as ``n_perturbations``, ``seed``,
    ``rtol`` and ``granularity``. Texts share calls if they agree on the baseline, ``noise_std``, ``reduction`` and the score.
    The numbers do not depend on which texts share a call: they are those of :meth:`fastshap.GradientShap.explain`, to float
    accuracy. A text that takes long does not hold up short ones: they run between its rows.

    Args:
        explainer: its settings are the defaults. Do not change its model meanwhile.
        max_queued_tokens: tokens of all rows (a text's tokens times its samples) that may wait. A text that would go beyond
            this is refused, unless nothing waits. Long texts do not count where a short one comes.
        watch: called as ``watch(name, value)`` from the batcher's thread: "call_tokens" (a turn's rows times tokens),
            "wait_seconds" and "compute_seconds" (of a text, until its turn and from then on), "samples" (of a text).

    Example:
        >>> batcher = fastshap.Batcher(fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto"))
        >>> first = batcher.submit("A gorgeous film.")
        >>> second = batcher.submit("Dull.", "negative", n_perturbations=50, deadline=10)
        >>> first.result().predicted_label, second.result().n_perturbations
        ('positive', 50)
        >>> batcher.close()
    """

    def __init__(
        self,
        explainer: GradientShap,
        *,
        max_queued_tokens: int = 262_144,
        watch: Callable[[str, float], None] | None = None,
    ) -> None:
        if isinstance(max_queued_tokens, bool) or not isinstance(max_queued_tokens, int) or max_queued_tokens < 1:
            raise InvalidArgumentError(f"max_queued_tokens must be a positive whole number; got {max_queued_tokens!r}.")
        self.explainer = explainer
        self._most, self._watch = max_queued_tokens, watch
        self._guard = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._queued = [0.0, 0.0]  # their estimated work: of short texts, of long ones
        self._closed = self._given_up = False
        self._variants: OrderedDict[Hashable, Variant] = OrderedDict()
        # The thread's own
        self._under_way: dict[Text, Request] = {}
        self._new: list[Request] = []  # of this turn
        self._lanes = Lanes()
        self._speed = _FIRST / _TURN  # work a second
        self._reading: dict[Request, None] = {}  # taken from the queue, and not under way yet
        self._left = 0.0, 0.0  # the work of what is under way, of short texts and of long ones
        self._thread = threading.Thread(target=self._run, name="fastshap-batcher", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def submit(
        self, text: Any, target: Any = None, *, deadline: float | None = None, **options: Any
    ) -> Future[AttributionOutput]:
        """Puts a text into the queue, from any thread.

        Args:
            text: a text as :meth:`fastshap.GradientShap.explain` takes it in a list: a string, a pair, token ids.
            target: its target: None (what the model predicts), a class or another target of the task, or several in a list.
            deadline: seconds from now. Work that is left then is dropped.
            options: parameters for this text, as a call of the explainer takes them; ``generation_kwargs`` too.

        Returns:
            The future output. Its error is one of fastshap's: a :class:`DeadlineExceededError`, or what is wrong with the text.
            ``cancel()`` drops what is left of its work, at any time.

        Raises:
            InvalidArgumentError, InvalidTypeError: an option or target that cannot be used.
            OverloadedError: the queue is full; ``retry_after`` says when there may be room.
            ClosedError: the batcher was closed.
        """
        if deadline is not None and (not isinstance(deadline, int | float) or not deadline > 0):
            raise InvalidArgumentError(f"deadline must be a positive number of seconds from now; got {deadline!r}.")
        now = time.monotonic()
        request = self._variant(options).request(text, target, now, None if deadline is None else now + deadline)
        with self._guard:
            if self._closed:
                raise ClosedError("This batcher was closed; it takes no more texts.")
            # Long texts do not hold up short ones, so these are counted apart.
            request.is_long = request.work > self._speed * _TURN
            short, long = self._to_do()
            queued = short + long if request.is_long else short
            if queued and queued + request.work > self._most:
                after = max(0.1, queued / self._speed / 2)
                raise OverloadedError(
                    f"The queue is full: {queued:,.0f} tokens wait, and {self._most:,} may. Try again in {after:.1f} s, or "
                    "with fewer samples.",
                    retry_after=after,
                )
            self._waiting.append(request)
            self._queued[request.is_long] += request.work
            self._guard.notify()
        return request.future

    @property
    def load(self) -> Load:
        """What waits or is under way now."""
        with self._guard:
            requests = len(self._waiting) + len(self._reading) + len(self._under_way)
            return Load(requests, int(sum(self._to_do())))

    @property
    def is_alive(self) -> bool:
        """Whether texts are explained: it was not closed, and its thread runs."""
        return self._thread.is_alive()

    def close(self, timeout: float | None = None) -> None:
        """Takes no more texts, finishes what was accepted, and ends the thread.

        Args:
            timeout: seconds; what is not finished by then ends with a :class:`ClosedError`.
        """
        with self._guard:
            self._closed = True
            self._guard.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._given_up = True
            self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _variant(self, options: dict[str, Any]) -> Variant:
        key = key_of(options)
        with self._guard:
            if key in self._variants:
                self._variants.move_to_end(key)
                return self._variants[key]
        variant = Variant(self.explainer, options)
        with self._guard:
            self._variants[key] = variant
            if len(self._variants) > _VARIANTS:
                self._variants.popitem(last=False)
        return variant

    def _to_do(self) -> tuple[float, float]:
        """The work of all that was accepted and is not done, of short texts and of long ones."""
        found = [queued + left for queued, left in zip(self._queued, self._left, strict=True)]
        for request in self._reading:
            found[request.is_long] += request.work
        return found[0], found[1]

    # The thread's own

    def _run(self) -> None:
        while self._wait():
            try:
                with memory.no_collection():
                    self._turn()
            except BaseException as error:  # nobody waits for ever for what went wrong here
                for request in [*self._under_way.values(), *self._new]:
                    self._end(request, ModelFailedError.caused_by(error))
                self._reading, self._left = {}, (0.0, 0.0)

    def _wait(self) -> bool:
        """Until there is something to do; False once all is done and nothing more will come."""
        with self._guard:
            while not self._waiting and not self._under_way:
                if self._closed:
                    return False
                self._guard.wait()
        if self._given_up:
            for request in [*self._under_way.values(), *self._taken(float("inf"))]:
                self._end(request, ClosedError("The batcher was closed before this text was explained."))
            self._reading = {}
        return True

    def _turn(self) -> None:
        """Reads what has come, runs some rows, and hands out what is done."""
        room = self._speed * _TURN
        self._drop_ended()
        new = self._new = self._taken(room)
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(self.explainer._desk.at_work())
            for variant in {id(one.variant): one.variant for one in (*self._under_way.values(), *new)}.values():
                stack.enter_context(variant.at_work(model))
            self._begin(new)
            if len(self._lanes):
                self._advance(self._lanes.next(room))

    def _taken(self, room: float) -> list[Request]:
        """What has come, as long as short texts under way are some turns' work, so that there is a choice among them."""
        left = _TURNS_AHEAD * room - self._lanes.work(room)[0]
        taken: list[Request] = []
        with self._guard:
            while self._waiting and (left > 0 or (not self._under_way and not taken)):
                request = self._waiting.popleft()
                self._queued[request.is_long] -= request.work
                left -= 0 if request.is_long else request.work
                taken.append(request)
            self._reading = dict.fromkeys(taken)
        return taken

    def _begin(self, new: Sequence[Request]) -> None:
        alone = len(new) == 1 and not self._under_way
        for some in _alike(new):
            now = time.monotonic()
            for request in some:
                request.begun = now
                self._tell("wait_seconds", now - request.came)
            for request, result in zip(some, isolated(some[0].variant, some, alone), strict=True):
                with self._guard:
                    del self._reading[request]
                if result is None:
                    self._under_way[request.under_way] = request  # type: ignore[index]
                    self._lanes.add(request.under_way)  # type: ignore[arg-type]
                else:
                    self._end(request, result)
            self._left = self._lanes.work(self._speed * _TURN)

    def _advance(self, chosen: list[tuple[Text, int]]) -> None:
        before = sum(text.ran for text, _ in chosen)
        tokens = sum(rows * len(text.item.input_ids) for text, rows in chosen)
        walked = sum(text.walked for text, _ in chosen)
        began = time.perf_counter()
        done = advance(self._under_way[chosen[0][0]].variant.models(tokens), chosen)
        took = time.perf_counter() - began
        if work := sum(text.ran for text, _ in chosen) - before:  # none where the model failed
            self._speed = (1 - _WEIGHT) * self._speed + _WEIGHT * work / took
        self._tell("call_tokens", sum(text.walked for text, _ in chosen) - walked)
        self._lanes.remove(set(done))
        self._left = self._lanes.work(self._speed * _TURN)
        for some in _alike([self._under_way[text] for text in done]):
            for request, result in zip(some, some[0].variant.outputs(some), strict=True):
                self._end(request, result)

    def _drop_ended(self) -> None:
        """Of what is under way or waits, what nobody waits for any more."""
        for request in [*self._under_way.values()]:
            self._has_ended(request)
        self._left = self._lanes.work(self._speed * _TURN)
        with self._guard:
            now = time.monotonic()
            ended = [one for one in self._waiting if one.is_over(now)]
            if ended:
                self._waiting = deque(one for one in self._waiting if not one.is_over(now))
                for request in ended:
                    self._queued[request.is_long] -= request.work
        for request in ended:
            self._has_ended(request)

    def _has_ended(self, request: Request) -> bool:
        """Whether nobody waits for it any more."""
        if not request.is_over(time.monotonic()):
            return False
        self._end(request, DeadlineExceededError("The deadline passed before the text was explained."))
        return True

    def _forget(self, request: Request) -> None:
        if request.under_way is not None and request.under_way in self._under_way:
            del self._under_way[request.under_way]
            self._lanes.remove({request.under_way})

    def _end(self, request: Request, result: AttributionOutput | FastshapError) -> None:
        self._forget(request)
        if isinstance(result, AttributionOutput) and request.begun:
            self._tell("compute_seconds", time.monotonic() - request.begun)
            self._tell("samples", result.n_perturbations)
        with contextlib.suppress(Exception):  # cancelled meanwhile
            if isinstance(result, FastshapError):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)

    def _tell(self, name: str, value: float) -> None:
        if self._watch is not None:
            self._watch(name, value)


_OPEN: weakref.WeakSet[Batcher] = weakref.WeakSet()  # each as long as its thread runs, and maybe longer


@atexit.register
def _close_all() -> None:
    """A thread that is in native code when the interpreter goes away would abort the process."""
    for one in list(_OPEN):
        one.close(0)


def _alike(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Those of one variant together, with and without a target apart."""
    found: dict[Hashable, list[Request]] = {}
    for request in requests:
        found.setdefault((id(request.variant), request.target is None), []).append(request)
    yield from found.values()
