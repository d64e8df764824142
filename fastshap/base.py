"""What every explainer shares, whatever its method: texts and targets in, one output for each text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine import memory
from fastshap.engine.seen import Seen
from fastshap.errors import InvalidArgumentError
from fastshap.output.noise import Known, Noise
from fastshap.output.output import AttributionOutput, AttributionOutputs
from fastshap.output.progress import Progress, Wanted, checked_progress
from fastshap.output.record import Record
from fastshap.settings import HasSettings, Settings
from fastshap.tasks import Task, task_for
from fastshap.text.inputs import is_one_text, sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Texts that are tokenised, sorted and explained together: bounds the memory of iter_explain, which begins with one and doubles
# them, so that the first results are there soon, and no result waits for many more texts than came before it.
_WINDOW = 1024
_FIRST_WINDOW = 1
_PER_TOKEN = 4  # characters, about
_NO_MORE = object()  # a target may be None

_T = TypeVar("_T")


class _Window(NamedTuple):
    """Some texts, with their targets, and the number of the first."""

    texts: list[Any]
    targets: list[Any] | None
    start: int


class AttributionExplainer(HasSettings):
    """What every explainer shares: it takes texts and targets and yields one :class:`AttributionOutput` for each text.

    A subclass computes a window of texts in ``_explain_window``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    _known_help: Known

    def explain(
        self,
        model_inputs: Any,
        targets: Any = None,
        *,
        generation_kwargs: Mapping[str, Any] | None = None,
        progress: Wanted = None,
        **options: Any,
    ) -> AttributionOutputs:
        """Explains texts.

        Args:
            model_inputs: a string; token ids (a list of integers, or an integer tensor (L,) or (n, L)); a mapping with
                ``input_ids`` and, where there is padding, ``attention_mask``, as a tokenizer returns it, with one or many
                rows; or an iterable of n of these, a column of a data set say. A pair of texts, for tasks that take one, is a
                tuple of two strings in the list, a mapping with text and text_pair, or ``tokenizer(first, second)``. Words that
                are already split are :class:`fastshap.Words`.
            targets: classification: None (the predicted class), a class number, a label or "all" for every text, a list
                with one of these (or a list of several) for each text, or an integer tensor (n,) or (n, t). Generation:
                None (the model generates), or a list with what follows each input, as strings or token ids; None among
                these lets the model generate that one.
            generation_kwargs: for ``model.generate`` where a causal language model is given no targets, or None among them.
                By default it decodes greedily, 20 tokens at most; sampling draws from the explainer's seed.
            progress: None shows a bar after one second on a terminal and in a notebook. True shows it at once and anywhere.
                False shows none. A function is called as ``progress(done, total)``: ``done`` texts, where a text that is
                half finished counts 0.5; ``total`` texts, or None if their number is not known. The call may come from
                another thread, never from two at a time. If the function raises an error, the call ends with it.
            options: parameters of the explainer for this call alone: all but model, tokenizer and device. The model is not
                tried again, unless ``inference_mode`` changes. ``both=True`` explains the targets too, where these are texts
                that are compared with the inputs (similarity): each text and its target become a pair.

        Returns:
            n outputs, in the order of the texts.

        Warns:
            NoiseWarning: once, where the ``reliability`` of a target is below 0.5. What would help is measured on one text.

        Raises:
            InvalidArgumentError, InvalidTypeError: a text, target or option that cannot be used; the message names a text's
                index, from 0.
            NonFiniteError: the model gave NaN or infinite scores or gradients.
            UnsupportedModelError: the model was tried and cannot be explained.
        """
        if options.pop("both", False):
            model_inputs, targets = self.task.paired(model_inputs, targets), None
        if options:
            own = self._for_call(options)
            return own.explain(model_inputs, targets, generation_kwargs=generation_kwargs, progress=progress)
        wanted = checked_progress(progress)
        texts = list(_read(sources(model_inputs), "texts"))
        if not texts:
            raise InvalidArgumentError("The list of texts is empty; pass at least one text.")
        split = self.task.split_targets(targets, len(texts))
        generation = self._options(targets, generation_kwargs)
        each = None if split is None else iter(split)
        shown = Progress(wanted, len(texts))
        windows = self._windows(_cut(iter(texts), _WINDOW), each, targets)
        return AttributionOutputs(self._explain_all(windows, generation, shown, Noise()))

    __call__ = explain

    def iter_explain(
        self,
        model_inputs: Iterable[Any],
        targets: Any = None,
        *,
        generation_kwargs: Mapping[str, Any] | None = None,
        progress: Wanted = None,
        **options: Any,
    ) -> Iterator[AttributionOutput]:
        """Explains texts from any iterable, yielding outputs in input order; memory does not grow with their number.

        You get the first output when the first text is done. Later texts are explained a few at a time, some seconds' work.
        While you look at an output, the model is as it was.

        Args:
            model_inputs: texts as for :meth:`explain`, read as they are needed.
            targets: as for :meth:`explain`; a list may be any iterable.
            generation_kwargs, progress, options: as for :meth:`explain`.
        """
        if options.pop("both", False):
            model_inputs, targets = self.task.paired(model_inputs, targets), None
        if options:
            own = self._for_call(options)
            return own.iter_explain(model_inputs, targets, generation_kwargs=generation_kwargs, progress=progress)
        wanted = checked_progress(progress)
        texts = _read(sources(model_inputs), "texts")
        generation = self._options(targets, generation_kwargs)
        each = None
        if not (targets is None or self.task.serves_all(targets)):
            if is_one_text(model_inputs):
                targets = self.task.split_targets(targets, 1)
            elif isinstance(targets, list | tuple | Tensor) and _are_strings(model_inputs):
                self.task.split_targets(targets, len(model_inputs))  # type: ignore[arg-type]  # says at once where counts differ
            each = _read(self.task.entries(targets), "targets")
        cut = _cut(texts, min(_FIRST_WINDOW, _WINDOW), self._tokens_together(generation))
        windows = self._windows(cut, each, targets)
        return self._explain_all(windows, generation, Progress(wanted, _count(model_inputs)), Noise(early=True))

    def _options(self, targets: Any, generation_kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if targets is None or generation_kwargs:
            if targets is not None and not _may_hold_none(targets):
                raise InvalidArgumentError("generation_kwargs have no use beside targets; pass one of the two.")
            return self.task.check_options(generation_kwargs)
        return {}

    def _explain_all(
        self, read: Iterator[_Window], options: Mapping[str, Any], progress: Progress, noise: Noise
    ) -> Iterator[AttributionOutput]:
        """While the model runs on one window, the next is tokenised."""
        seen = Seen()
        waiting: list[Future[Any]] = []
        with progress, ThreadPoolExecutor(1, "fastshap-tokeniser") as pool:

            def tokenise(*arguments: Any) -> Any:
                with memory.no_collection():
                    return self.task.tokenised(*arguments)

            def tokenised(window: _Window) -> tuple[_Window, Callable[[], Any]]:
                arguments = window.texts, window.targets, options
                if window.start == 0:
                    return window, lambda: tokenise(*arguments)
                waiting[:] = [pool.submit(tokenise, *arguments)]
                return window, waiting[0].result

            def windows() -> Iterator[_Window]:
                while True:
                    wait(waiting)  # the caller's code, which may use the tokenizer, comes next
                    for window in read:
                        yield window
                        break
                    else:
                        return

            for window, result in _one_ahead(map(tokenised, windows())):
                progress.begin(len(window.texts))
                with memory.no_collection():
                    outputs = self._explain_window(
                        window.texts, result, window.targets, window.start, options, seen, progress
                    )
                wait(waiting)  # for the same reason
                memory.trim(len(window.texts))
                progress.end()
                progress.hide()
                noise.add(outputs)
                if noise.early:
                    noise.tell(self._known_help, self._again)
                yield from outputs
        noise.tell(self._known_help, self._again)

    def _windows(self, read: Iterator[list[Any]], each: Iterator[Any] | None, targets: Any) -> Iterator[_Window]:
        """``each`` holds the targets of one text after the other; without it ``targets`` serve every text.

        Texts whose targets were there come out before the error that says that there are no more.
        """
        start = 0
        for window in read:
            given, failed = (targets, None) if each is None else _up_to(each, len(window))
            texts = window if each is None else window[: len(given)]
            if texts:
                yield _Window(texts, self.task.split_targets(given, len(texts)), start)
            start += len(texts)
            if failed is not None:
                raise failed
            if len(texts) < len(window):
                raise InvalidArgumentError(
                    f"There {'is' if start == 1 else 'are'} only {counted(start, 'target')} for more texts; give one for each "
                    "text, or one class for all."
                )
        if each is not None and not isinstance(targets, repeat | cycle) and next(each, _NO_MORE) is not _NO_MORE:
            raise InvalidArgumentError(f"{there_are(start, 'text')} but more targets; give one for each text.")

    def _for_call(self, options: Mapping[str, Any]) -> AttributionExplainer:
        """An explainer with other parameters, which shares the model and what is known of it."""
        raise NotImplementedError

    def _again(self, record: Record, options: Mapping[str, Any]) -> AttributionOutput:
        """An output computed again, in one round, with other parameters. Nothing else changes by that."""
        raise NotImplementedError

    def _tokens_together(self, options: Mapping[str, Any]) -> float:
        """Tokens of texts that are worth a window: some seconds' work."""
        raise NotImplementedError

    def _explain_window(
        self,
        texts: Sequence[Any],
        tokenise: Callable[[], Any],
        targets: Sequence[Any] | None,
        first: int,
        options: Mapping[str, Any],
        seen: Seen,
        progress: Progress,
    ) -> list[AttributionOutput]:
        """One output a text. ``texts`` are as they came in, ``tokenise`` gives what the task makes of them.

        ``seen`` is kept between the windows of one call. ``progress`` may be told of a part of the texts.
        """
        raise NotImplementedError


def _read(entries: Iterator[Any], what: str) -> Iterator[Any]:
    """The user's entries. A StopIteration that their own code let escape is named, as a bare RuntimeError says nothing."""
    count = 0
    try:
        for entry in entries:
            yield entry
            count += 1
    except RuntimeError as error:
        if not isinstance(error.__cause__, StopIteration):
            raise
        raise InvalidArgumentError(
            f"The iterable of {what} ended early, after {count}: a StopIteration was raised inside it, most likely by next() "
            "on something that had ended. Catch it there, or give next() a default."
        ) from error


def _up_to(entries: Iterator[Any], count: int) -> tuple[list[Any], Exception | None]:
    """The next ``count`` entries, or as many as there were before the end or an error, with the error."""
    found: list[Any] = []
    try:
        for entry in islice(entries, count):
            found.append(entry)
    except Exception as error:
        return found, error
    return found, None


def _cut(texts: Iterator[Any], size: int, tokens: float = float("inf")) -> Iterator[list[Any]]:
    """Texts in lists of ``size``, twice as many each time, or fewer with so many tokens.

    Those that were read before an error of the iterable's own come out before it.
    """
    window: list[Any] = []
    failed, characters = None, 0
    try:
        for text in texts:
            window.append(text)
            characters += len(text) if isinstance(text, str) else _PER_TOKEN * len(getattr(text, "ids", ()))
            if len(window) >= size or characters >= _PER_TOKEN * tokens:
                yield window
                window, characters, size = [], 0, min(2 * size, _WINDOW)
    except Exception as error:
        failed = error
    if window:
        yield window
    if failed is not None:
        raise failed


def _count(model_inputs: Any) -> int | None:
    """How many texts there are, where that shows without reading them."""
    if is_one_text(model_inputs):
        return 1
    if isinstance(model_inputs, Sized) and not isinstance(model_inputs, Mapping):
        with contextlib.suppress(TypeError):
            return len(model_inputs)
    return None


def _one_ahead(entries: Iterator[_T]) -> Iterator[_T]:
    """The same entries, each of them taken before the one ahead of it is handed out, but for the first two.

    So the first results wait for nothing more. An error in taking one waits until those before it were handed out.
    """
    failed: list[Exception] = []

    def taken() -> list[_T]:
        try:
            return list(islice(entries, 1))
        except Exception as error:
            failed.append(error)
            return []

    yield from taken()
    current = taken()
    while current:
        following = taken()
        yield from current
        current = following
    if failed:
        raise failed[0]


def _are_strings(model_inputs: Any) -> bool:
    return isinstance(model_inputs, list | tuple) and all(isinstance(text, str) for text in model_inputs)


def _may_hold_none(targets: Any) -> bool:
    """Whether the model may have to choose the target of some text; of an iterator nobody knows before it is read."""
    if isinstance(targets, list | tuple):
        return any(target is None for target in targets)
    return isinstance(targets, Iterable) and not isinstance(targets, str | bytes | Mapping | Tensor)


class MultitaskExplainerMixin:
    """Chooses the task from the model."""

    @staticmethod
    def task_of(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        named: str | type[Task] | None = None,
    ) -> Task:
        """The task of ``model``: the ``named`` one, or by its class name; UnsupportedModelError names those supported."""
        return task_for(model, tokenizer, settings, named)
