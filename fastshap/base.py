"""What every explainer shares, whatever its method: texts and targets in, one output for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import Tensor

from fastshap import memory
from fastshap.errors import InvalidArgumentError
from fastshap.inputs import is_one_text, sources
from fastshap.output import AttributionOutput
from fastshap.tasks import Task, task_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Texts that are tokenised, sorted and explained together: bounds the memory of iter_explain, which begins with fewer and
# doubles them, so that its first results are there soon.
_WINDOW = 1024
_FIRST_WINDOW = 32

_T = TypeVar("_T")


class _Window(NamedTuple):
    """Some texts, with their targets, and the number of the first."""

    texts: list[Any]
    targets: list[Any] | None
    start: int


class AttributionExplainer:
    """What every explainer shares: it takes texts and targets and yields one :class:`AttributionOutput` for each text.

    A subclass computes a window of texts in ``_explain_window``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task

    def explain(
        self, model_inputs: Any, targets: Any = None, *, generation_kwargs: Mapping[str, Any] | None = None
    ) -> list[AttributionOutput]:
        """Explains texts.

        Args:
            model_inputs: a string; token ids (a list of integers, or an integer tensor (L,) or (n, L)); a mapping with
                ``input_ids`` and, where there is padding, ``attention_mask``, as a tokenizer returns it, with one or many
                rows; or an iterable of n of these, a column of a data set say. A pair of texts is what the tokenizer
                makes of it, ``tokenizer(first, second)``; strings in a tuple or list within the list are an error.
            targets: classification: None (the predicted class), a class number, a label or "all" for every text, a list
                with one of these (or a list of several) for each text, or an integer tensor (n,) or (n, t). Generation:
                None (the model generates), or a list with what follows each input, as strings or token ids; None among
                these lets the model generate that one.
            generation_kwargs: for ``model.generate`` where a causal language model is given no targets, or None among them.
                By default it decodes greedily, 20 tokens at most; sampling draws from the explainer's seed.

        Returns:
            n outputs, in the order of the texts.

        Raises:
            InvalidArgumentError, InvalidTypeError: a text or target that cannot be used; the message names its index, from 0.
            NonFiniteError: the model gave NaN or infinite scores or gradients.
            UnsupportedModelError: the model, tried on the first text, cannot be explained.
        """
        texts = list(sources(model_inputs))
        if not texts:
            raise InvalidArgumentError("The list of texts is empty; pass at least one text.")
        split = self.task.split_targets(targets, len(texts))
        options = self._options(targets, generation_kwargs)
        each = None if split is None else iter(split)
        return list(self._explain_all(iter(texts), each, targets, options, _WINDOW))

    __call__ = explain

    def iter_explain(
        self, model_inputs: Iterable[Any], targets: Any = None, *, generation_kwargs: Mapping[str, Any] | None = None
    ) -> Iterator[AttributionOutput]:
        """Explains texts from any iterable, yielding outputs in input order; memory does not grow with their number.

        Args:
            model_inputs: texts as for :meth:`explain`, read as they are needed.
            targets: as for :meth:`explain`; a list may be any iterable.
            generation_kwargs: as for :meth:`explain`.
        """
        texts = sources(model_inputs)
        options = self._options(targets, generation_kwargs)
        if targets is None or self.task.serves_all(targets):
            return self._explain_all(texts, None, targets, options, min(_FIRST_WINDOW, _WINDOW))
        if is_one_text(model_inputs):
            targets = self.task.split_targets(targets, 1)
        elif isinstance(targets, list | tuple | Tensor) and _are_strings(model_inputs):
            self.task.split_targets(targets, len(model_inputs))  # type: ignore[arg-type]  # says at once where counts differ
        return self._explain_all(texts, self.task.entries(targets), targets, options, min(_FIRST_WINDOW, _WINDOW))

    def _options(self, targets: Any, generation_kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if targets is None or generation_kwargs:
            if targets is not None and not _may_hold_none(targets):
                raise InvalidArgumentError("generation_kwargs have no use beside targets; pass one of the two.")
            return self.task.check_options(generation_kwargs)
        return {}

    def _explain_all(
        self,
        texts: Iterator[Any],
        each: Iterator[Any] | None,
        targets: Any,
        options: Mapping[str, Any],
        size: int,
    ) -> Iterator[AttributionOutput]:
        """``each`` holds the targets of one text after the other; without it ``targets`` serve every text.

        While the model runs on one window, the next is tokenised.
        """
        seen: dict[Any, Any] = {}
        waiting: list[Future[Any]] = []
        with ThreadPoolExecutor(1, "fastshap-tokeniser") as pool:

            def tokenised(window: _Window) -> tuple[_Window, Callable[[], Any]]:
                arguments = window.texts, window.targets, options
                if window.start == 0:
                    return window, lambda: self.task.tokenised(*arguments)
                waiting[:] = [pool.submit(self.task.tokenised, *arguments)]
                return window, waiting[0].result

            def windows() -> Iterator[_Window]:
                read = self._windows(texts, each, targets, size)
                while True:
                    wait(waiting)  # the caller's code, which may use the tokenizer, comes next
                    for window in read:
                        yield window
                        break
                    else:
                        return

            for window, result in _one_ahead(map(tokenised, windows())):
                outputs = self._explain_window(window.texts, result(), window.targets, window.start, options, seen)
                wait(waiting)  # for the same reason
                memory.explained(len(window.texts))
                yield from outputs

    def _windows(self, texts: Iterator[Any], each: Iterator[Any] | None, targets: Any, size: int) -> Iterator[_Window]:
        start = 0
        while window := list(islice(texts, size)):
            given = targets if each is None else list(islice(each, len(window)))
            if each is not None and len(given) < len(window):
                raise InvalidArgumentError(
                    f"There are only {start + len(given)} targets for more texts; give one for each text, or one class for all."
                )
            yield _Window(window, self.task.split_targets(given, len(window)), start)
            start += len(window)
            size = min(2 * size, _WINDOW)
        if each is not None and not isinstance(targets, repeat | cycle) and next(each, None) is not None:
            raise InvalidArgumentError(f"There are {start} texts but more targets; give one for each text.")

    def _explain_window(
        self,
        texts: Sequence[Any],
        tokenised: Any,
        targets: Sequence[Any] | None,
        first: int,
        options: Mapping[str, Any],
        seen: dict[Any, Any],
    ) -> list[AttributionOutput]:
        """One output a text. ``texts`` are as they came in, ``tokenised`` is the task's.

        ``seen`` is kept between the windows of one call.
        """
        raise NotImplementedError


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
    """Chooses the task (classification or generation) from the model."""

    @staticmethod
    def task_of(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inference_mode: Callable[[Tensor], Tensor],
        seed: int = 0,
    ) -> Task:
        """The task of ``model``, by its class name; UnsupportedModelError names those supported."""
        return task_for(model, tokenizer, inference_mode, seed)
