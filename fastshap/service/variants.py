"""An explainer with the settings of one request, and texts made ready by it. What reaches into the explainer is here."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastshap.engine.rounds import Rounds
from fastshap.engine.stream import Text
from fastshap.engine.work import finite
from fastshap.errors import FastshapError, InvalidTypeError, ModelFailedError
from fastshap.output.output import AttributionOutput
from fastshap.output.progress import Progress
from fastshap.settings import PARAMETERS
from fastshap.tasks import Prepared
from fastshap.text.inputs import sources

if TYPE_CHECKING:
    from fastshap.explainer import GradientShap

# What may differ between the rows of one model call.
_OF_A_TEXT = {name for name, its in PARAMETERS.items() if its.of_a_text} | {"return_convergence_delta"}


@dataclass(eq=False)
class Request:
    """One text that somebody waits for."""

    text: Any
    target: Any  # as the task splits targets; None: the task chooses
    variant: Variant
    future: Future[AttributionOutput]
    work: float  # estimated, until the text is read
    came: float  # when, on the monotonic clock
    until: float | None  # its deadline, on the same
    is_long: bool = False
    begun: float = 0.0
    prepared: Prepared | None = None
    grouping: Any = None
    under_way: Text | None = field(default=None, repr=False)

    def is_over(self, now: float) -> bool:
        """Whether nobody waits for it any more: it was cancelled, or its deadline has passed."""
        return self.future.done() or (self.until is not None and now >= self.until)


class Variant:
    """The explainer with the options of a call, as :meth:`fastshap.GradientShap.explain` takes them."""

    def __init__(self, explainer: GradientShap, options: Mapping[str, Any]) -> None:
        options = dict(options)
        generation = options.pop("generation_kwargs", None)
        shared = {name: value for name, value in options.items() if name not in _OF_A_TEXT}
        self.alike = key_of(shared)
        self._kept = options  # so that no other object gets an id that a key holds
        self.explainer = explainer._for_call(options | {"on_error": "record"})
        self.explainer._quiet = True
        self._generation = generation

    def request(self, text: Any, target: Any, came: float, until: float | None) -> Request:
        """A text to explain, checked as far as that needs no model.

        Raises:
            InvalidArgumentError, InvalidTypeError: a target that the task does not take.
        """
        own = self.explainer
        split = None if target is None else own.task.split_targets([target], 1)
        entry = None if split is None else split[0]
        n = own.settings.n_perturbations
        return Request(text, entry, self, Future(), n * _expected_tokens(text), came, until)

    @contextlib.contextmanager
    def at_work(self, model: Any) -> Any:
        """While a turn runs on a view of the model."""
        with self.explainer.task.running_on(model):
            yield

    def ready(self, requests: Sequence[Request], alone: bool) -> list[AttributionOutput | FastshapError | None]:
        """Reads texts and finds their targets. None where the text is now under way; otherwise what came of it.

        ``requests``: all with a target of their own, or all without. ``alone``: nothing else runs, so that one text may be
        explained at once, where that is faster.
        """
        own = self.explainer
        given = None if requests[0].target is None else [request.target for request in requests]
        options = own.task.check_options(self._generation) if given is None or self._generation else {}
        tokenised = own.task.tokenised([_source(request.text) for request in requests], given, options)
        own._try_model(own.task.readable(tokenised))
        own._tell_origin()
        if alone and len(requests) == 1:
            rode = own._with_riding_text(tokenised, given, Progress(False, 1))
            if rode is not None:
                return [rode]
        prepared = own.task.prepare(tokenised, given, own._predict, options, lambda: None)
        prepared = [own._checked(one) for one in prepared]
        own._tell_origin()
        for request, one in zip(requests, prepared, strict=True):
            if isinstance(one, Prepared):
                self._begin(request, one)
        return [one if isinstance(one, FastshapError) else None for one in prepared]

    def _begin(self, request: Request, prepared: Prepared) -> None:
        own = self.explainer
        request.prepared, request.grouping = prepared, own._grouping(prepared)
        rounds = Rounds(own._execution, own.task.scores)
        item = prepared.item(request.grouping.joined)
        alike = self.alike, own._layout
        text = Text(item, request.grouping, rounds, alike, own.return_convergence_delta)
        request.under_way = text

    def models(self, tokens: float) -> Sequence[Any]:
        """Those that share so many tokens: the model and its copies."""
        return self.explainer._work().shared_by(int(tokens))

    def outputs(self, requests: Sequence[Request]) -> list[AttributionOutput | FastshapError]:
        """Those of texts that are done."""
        own = self.explainer
        own._describe_model()
        each: list[Any] = [request.under_way.found for request in requests]  # type: ignore[union-attr]
        found = [one if isinstance(one, FastshapError) else finite(*one) for one in each]
        return own._maker().outputs(found, [r.prepared for r in requests], [r.grouping for r in requests])  # type: ignore[misc]


def isolated(
    variant: Variant, requests: Sequence[Request], alone: bool
) -> list[AttributionOutput | FastshapError | None]:
    """:meth:`Variant.ready`; halving finds a text on which it fails as a whole."""
    try:
        return variant.ready(requests, alone)
    except Exception as error:
        if len(requests) == 1:
            return [error if isinstance(error, FastshapError) else ModelFailedError.caused_by(error)]
    middle = len(requests) // 2
    return [*isolated(variant, requests[:middle], False), *isolated(variant, requests[middle:], False)]


def _source(text: Any) -> Any:
    found = list(sources([text]))
    if len(found) != 1:
        raise InvalidTypeError("submit takes one text; this is several.")
    return found[0]


def _expected_tokens(text: Any) -> float:
    return 2 + len(text) / 4 if isinstance(text, str) else 2 + len(str(text)) / 4


def key_of(options: Mapping[str, Any]) -> Hashable:
    """What is equal for equal options; an object that is no string or number equals itself alone."""
    return tuple(sorted((name, *_same(value)) for name, value in options.items()))


def _same(value: Any) -> tuple[str, str]:
    plain = isinstance(value, str | int | float | bool | None)
    return type(value).__name__, repr(value) if plain else str(id(value))
