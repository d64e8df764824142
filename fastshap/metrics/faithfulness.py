"""The front of the measures that perturb texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.checks import one_of
from fastshap.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.explainer import GradientShap
from fastshap.metrics.explained import Explained, Found, explained, listed
from fastshap.metrics.measures import (
    AOPC_GRID,
    Comprehensiveness,
    Deletion,
    Insertion,
    LogOdds,
    Measure,
    Skip,
    Sufficiency,
)
from fastshap.metrics.perturbed import Replacement
from fastshap.metrics.result import FaithfulnessTable, MetricResult, gathered, over_seeds
from fastshap.metrics.rows import Job, Rows, working
from fastshap.output.progress import Progress, Wanted, checked_progress
from fastshap.types import SCORES, InferenceModes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 64  # texts whose rows run together
DIFFERENT = "the methods' targets or elements differ"
_USUAL: tuple[Measure, ...] = (
    *(Comprehensiveness(), Sufficiency(), LogOdds()),
    *(Comprehensiveness(AOPC_GRID), Sufficiency(AOPC_GRID), Insertion(), Deletion()),
)

# One explanation a text; or several lists of them, one a seed.
Outputs = Any


class Faithfulness:
    """Measures whether explanations are true to the model, by perturbing the explained texts.

    For sequence classifiers, and causal language models whose next tokens are given, where the elements before the first of
    these are perturbed. Rows of all texts, methods and measures share model calls; no gradients are taken; the model stays
    as it was.

    Args:
        model, tokenizer: the model that was explained, or a transformers pipeline.
        replacement: what stands in the place of a replaced element. "delete": nothing, its tokens are left out. "mask", "pad":
            the mask or padding token for each of its tokens. A number, a tensor (D,), "mean", or a token's name: a baseline
            embedding, as for :class:`fastshap.GradientShap`.
        score: f, the target's "probability", "logit" or "log_probability". Of a target of several tokens (a word, a span) it is
            their mean, of a contrast the difference.
        batch_size, device: as for :class:`fastshap.GradientShap`.

    Raises:
        UnsupportedModelError: a model of another task.
        InvalidArgumentError, InvalidTypeError: a parameter that cannot be used.

    Example:
        >>> from fastshap import metrics
        >>> model, tokenizer = fastshap.load_default_model()
        >>> outputs = fastshap.explain(["A gorgeous, witty film.", "not good at all"], n_perturbations=20)
        >>> faithfulness = metrics.Faithfulness(model, tokenizer)
        >>> faithfulness.evaluate(outputs, metrics.Comprehensiveness(k=2)).count
        2
    """

    def __init__(
        self,
        model: PreTrainedModel | Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        replacement: Any = "delete",
        score: str = "probability",
        batch_size: int | str = "auto",
        device: torch.device | str | Sequence[torch.device | str] | None = None,
    ) -> None:
        self._score = one_of(score, "score", SCORES)
        first = GradientShap(model, tokenizer, batch_size, device=device, score=score, on_error="record")
        if not first.task.measurable:
            raise UnsupportedModelError(
                f"The measures are for sequence classifiers and causal language models; this model's task is {first.task.name}."
            )
        self.replacement = Replacement(replacement, first.tokenizer)
        if self.replacement.baseline is not None:
            first = first._for_call({"baseline": self.replacement.baseline})
        self._explainers = {first.settings.inference_mode: first}
        self._explainer = first
        self._rows = Rows(self._explainer_of, self.replacement)

    def evaluate(self, outputs: Outputs, measure: Measure, *, progress: Wanted = None) -> MetricResult:
        """One measure of one method.

        Args:
            outputs: one entry for each text: an :class:`AttributionOutput`, or a tuple (text, words, scores) or (text, words,
                scores, target), see :class:`Scored`. Several lists of such entries are the same texts with several seeds. A
                text of several targets counts once, by their mean.
            measure: :class:`Comprehensiveness` and its like.
            progress: as for :meth:`GradientShap.explain`.

        Raises:
            InvalidArgumentError, InvalidTypeError: entries of another task, or that do not fit their text; the message says
                which. Texts that have no value are skipped and counted instead: those with an error, of fewer than two
                elements, or with NaN or infinite scores.
        """
        return self.compare({"": outputs}, [measure], progress=progress)["", measure]

    def compare(
        self,
        methods: Mapping[str, Outputs],
        measures: Sequence[Measure] | None = None,
        *,
        progress: Wanted = None,
    ) -> FaithfulnessTable:
        """Measures of several methods for the same texts, targets and elements.

        Args:
            methods: for each method's name its outputs, as for :meth:`evaluate`, all in the order of the same texts.
            measures: by default comprehensiveness and sufficiency (top 20 % and AOPC), log-odds, insertion and deletion.
            progress: as for :meth:`GradientShap.explain`.

        Raises:
            InvalidArgumentError, InvalidTypeError: as for :meth:`evaluate`, and where the methods' texts differ.
        """
        wanted = checked_progress(progress)
        chosen = self._measures(measures)
        if not isinstance(methods, Mapping) or not methods:
            raise InvalidTypeError('methods maps names to outputs, as in {"fastshap": outputs}.')
        found = self._found(methods)
        count = len(next(iter(found.values()))[0])
        unfit = [_unfit([of_seed[i] for seeds in found.values() for of_seed in seeds]) for i in range(count)]
        values: dict[tuple[str, Measure], list[list[float | str]]] = {
            (name, measure): [list[float | str]() for _ in seeds] for name, seeds in found.items() for measure in chosen
        }
        with Progress(wanted, count) as shown:
            for start in range(0, count, _WINDOW):
                window = range(start, min(start + _WINDOW, count))
                shown.begin(len(window))
                self._add_window(found, values, [i for i in window if unfit[i] is None], shown)
                shown.end()
        sizes = [_size(found, i) for i in range(count) if unfit[i] is None]
        results: dict[tuple[str, str], MetricResult] = {}
        for measure in chosen:
            own = _results({name: values[name, measure] for name in found}, unfit, sizes, measure)
            results |= {(name, str(measure)): result for name, result in own.items()}
        places = {(name, str(measure)): results[name, str(measure)] for name in found for measure in chosen}
        return FaithfulnessTable(places, {"replacement": str(self.replacement), "score": self._score})

    def _explainer_of(self, mode: Any) -> GradientShap:
        if mode not in self._explainers:
            self._explainers[mode] = self._explainer._for_call({"inference_mode": mode, "score": None})
        return self._explainers[mode]

    def _measures(self, given: Sequence[Measure] | None) -> list[Measure]:
        sure = self._score == "probability"
        if given is None:
            return [one for one in _USUAL if sure or not one.wants_probabilities]
        if isinstance(given, Measure):
            raise InvalidTypeError(f"Put the measures into a list: [{given!r}].")
        chosen = list(given)
        for one in chosen:
            if not isinstance(one, Measure):
                raise InvalidTypeError(f"A measure is metrics.Comprehensiveness(k=0.2), say; got {one!r}.")
            if one.wants_probabilities and not sure:
                raise InvalidArgumentError(f"{one} is of probabilities; leave out score={self._score!r}.")
        labels = [*map(str, chosen)]
        if not chosen or len(set(labels)) < len(labels):
            raise InvalidArgumentError(
                f"measures holds one measure or more, each of another name; got {', '.join(labels) or 'none'}."
            )
        return chosen

    def _found(self, methods: Mapping[str, Outputs]) -> dict[str, list[list[Found]]]:
        """Of each method and seed, the texts with their scores."""
        found: dict[str, list[list[Found]]] = {}
        with working(self._explainer):
            for name, outputs in methods.items():
                try:
                    found[name] = [explained(one, self._explainer) for one in of_seeds(outputs)]
                except (InvalidArgumentError, InvalidTypeError) as error:
                    if not name:
                        raise
                    named = type(error)(f"{name}: {error}")
                    named.text_index = error.text_index
                    raise named from None
        lengths = {name: {len(of_seed) for of_seed in seeds} for name, seeds in found.items()}
        if len(set.union(*lengths.values())) > 1:
            said = ", ".join(
                f"{name or 'outputs'}: {', '.join(map(str, sorted(own)))}" for name, own in lengths.items()
            )
            raise InvalidArgumentError(
                f"All lists hold an entry for each of the same texts; their lengths differ ({said})."
            )
        return found

    def _add_window(
        self,
        found: Mapping[str, list[list[Found]]],
        values: dict[tuple[str, Measure], list[list[float | str]]],
        places: Sequence[int],
        shown: Progress,
    ) -> None:
        """Adds the values of these texts to the methods', measures' and seeds' lists."""
        usual, jobs, of = self._explainer.settings.inference_mode, [], []
        for (name, measure), lists in values.items():
            for its, into in zip(found[name], lists, strict=True):
                for i in places:
                    one: Any = its[i]
                    mode = (one.mode or InferenceModes.LOGITS) if measure.of_explained_score else usual
                    jobs += [Job(one, target, measure, mode) for target in range(len(one.scores))]
                    of.append((into, len(one.scores)))
        share = len(places) / max(1, len(jobs))
        each = iter(self._rows.values(jobs, lambda ended: shown.add(ended * share)))
        for into, targets in of:
            own = [next(each) for _ in range(targets)]
            into.append(next((one for one in own if isinstance(one, str)), None) or float(np.mean(own)))  # type: ignore[arg-type]


def of_seeds(outputs: Outputs) -> list[Any]:
    """The lists of entries, one a seed."""
    entries = listed(outputs)
    several = [isinstance(one, list) for one in entries]
    if any(several) and not all(several):
        raise InvalidTypeError("Pass a list of outputs, or one list of outputs for each seed.")
    return entries if all(several) else [entries]


def _unfit(entries: Sequence[Found]) -> str | None:
    """Why the methods cannot be compared on a text."""
    good = [one for one in entries if isinstance(one, Explained)]
    texts = list(dict.fromkeys(one.encoded.text for one in good))
    if len(texts) > 1:
        raise InvalidArgumentError(f"The methods explain different texts: {texts[0][:40]!r} and {texts[1][:40]!r}.")
    skips = [one.reason for one in entries if isinstance(one, Skip)]
    if skips:
        return skips[0]
    return None if all(one.alike(good[0]) for one in good) else DIFFERENT


def _results(
    of_methods: Mapping[str, Sequence[Sequence[float | str]]],
    unfit: Sequence[str | None],
    sizes: Sequence[int],
    measure: Measure,
) -> dict[str, MetricResult]:
    """Each method's result, from its values for each seed and each text that is not unfit, of G elements each."""
    reasons = _shared([of_seed for seeds in of_methods.values() for of_seed in seeds])
    good = [size for size, reason in zip(sizes, reasons, strict=True) if reason is None]
    notes = Counter(note for size in good if (note := measure.note(size)) is not None)
    results = {}
    for name, seeds in of_methods.items():
        own = [[reason or one for reason, one in zip(reasons, of_seed, strict=True)] for of_seed in seeds]
        means, seed_error = over_seeds(own)
        known = iter(means)
        results[name] = gathered(
            [next(known) if one is None else one for one in unfit],
            name=str(measure),
            higher_is_better=measure.higher_is_better,
            notes=dict(notes),
            seed_standard_error=seed_error,
        )
    return results


def _shared(lists: Sequence[Sequence[float | str]]) -> list[str | None]:
    """For each text, why some method or seed has no value."""
    return [next((one for one in of_text if isinstance(one, str)), None) for of_text in zip(*lists, strict=True)]


def _size(found: Mapping[str, list[list[Found]]], i: int) -> int:
    """G of a text."""
    one: Any = next(iter(found.values()))[0][i]
    return len(one.members)
