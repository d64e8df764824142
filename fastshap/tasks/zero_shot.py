"""Zero-shot classification: a model that tells what follows from a text says which of the user's labels fits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Predict, Prediction, Prepared, Riding, Shown
from fastshap.tasks.candidates import rows_of
from fastshap.tasks.classification import ClassificationTask
from fastshap.text.encode import Encoded


class ZeroShotTask(ClassificationTask):
    """A classifier of pairs with an entailment class (NLI): one logit for each label, (R, labels), that of its entailment.

    The labels are the user's: the targets. The model reads the text beside a hypothesis for each of them.
    """

    name = "zero_shot"
    explains = "classifiers of pairs of texts that have a label entailment (NLI)"
    shown = Shown(targets="label", segments=("text", "hypothesis"))
    targets_are_classes = measurable = False
    takes_pairs = takes_words = takes_chats = False
    takes_windows = takes_contrasts = False
    takes_hypotheses = True

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        """It is only chosen by its name."""
        return False

    @classmethod
    def serves(cls, model: Any) -> bool:
        return ClassificationTask.fits(model) and _entailment(model.config) is not None

    def _weighed(self, pairs: Tensor, transformed: Callable[[Tensor], Tensor]) -> Tensor:
        """(R, labels): the labels' scores from the logits of pairs (R, labels, classes)."""
        entailment = _entailment(self.model.config)
        if pairs.shape[1] > 1:
            return transformed(pairs[..., entailment])
        # A label alone is weighed against its contradiction, as the pipeline does.
        against = pairs[:, 0, -1 if entailment == 0 else 0]
        return transformed(torch.stack([against, pairs[:, 0, entailment]], 1))[:, 1:]

    def scores(self, model: Any, call: Call) -> Tensor:
        found = self._weighed(self.logits_of_each(model, call), self.transformed)
        return found.to(call.targets.device).gather(1, call.targets)

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        """A row for each text, with a hypothesis for each of its labels."""
        assert targets is not None
        good = [(text, labels) for text, labels in zip(sources, targets, strict=True) if isinstance(text, str)]
        hypotheses = [[self.settings.hypothesis_template.format(label) for label in labels] for _, labels in good]
        found = iter(rows_of(self, [text for text, _ in good], hypotheses, "hypothesis"))
        return [next(found) if isinstance(source, str) else _refused(source) for source in sources]

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        assert targets is not None
        seen = iter(predict([one for one in tokenised if isinstance(one, Encoded)], self.logits_of_each))
        return [
            self._told(one, labels, next(seen)) if isinstance(one, Encoded) else one
            for one, labels in zip(tokenised, targets, strict=True)
        ]

    def _told(
        self, encoded: Encoded, labels: Sequence[str], logits: Tensor | FastshapError
    ) -> Prepared | FastshapError:
        """``logits`` (labels, classes)."""
        if isinstance(logits, FastshapError):
            return logits
        shares = self._weighed(logits[None].float(), lambda scores: scores.softmax(-1))[0]
        best = int(shares.argmax())
        prediction = Prediction(labels[best], float(shares[best]), shares)
        return Prepared(encoded, torch.arange(len(labels), device="cpu"), [*labels], prediction)

    def riding(self, tokenised: Any, targets: Sequence[Any] | None) -> Riding | None:
        return None

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        return saved

    def names_now(self, targets: Tensor) -> list[str] | None:
        return None

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        return texts, [*texts]

    def serves_all(self, targets: Any) -> bool:
        """A label, or a list of labels."""
        return isinstance(targets, str) or _are_labels(targets)

    def entries(self, targets: Any) -> Iterator[Any]:
        if isinstance(targets, bytes | Mapping) or not isinstance(targets, Iterable):
            raise _unsuited(targets)
        return iter(targets)

    def split_targets(self, targets: Any, count: int) -> list[list[str]]:
        """A list of labels for every text, or a list with a list of labels for each text."""
        if targets is None:
            raise InvalidArgumentError(
                'Zero-shot classification needs labels: pass them as targets, ["politics", "sports"] say. All of them are '
                "explained."
            )
        if self.serves_all(targets):
            return [_checked([targets] if isinstance(targets, str) else [*targets])] * count
        each = [_checked([one] if isinstance(one, str) else one) for one in self.entries(targets)]
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'text')} but {counted(len(each), 'list')} of labels; give one list for each text, or "
                "one for all."
            )
        return each

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """The labels, the same for each text."""
        return self.split_targets([str(word) for word in words] if words else None, count)


def _entailment(config: Any) -> int | None:
    """The class that says that the second text follows from the first."""
    labels = config.id2label or {}
    return next((int(i) for i, label in labels.items() if str(label).lower().startswith("entail")), None)


def _refused(source: Any) -> FastshapError:
    if isinstance(source, FastshapError):
        return source
    return InvalidTypeError(
        f"Zero-shot classification takes texts as strings, which it puts beside its hypotheses; got {type(source).__name__}."
    )


def _are_labels(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)


def _checked(labels: Any) -> list[str]:
    if not _are_labels(labels):
        raise _unsuited(labels)
    if any(not label.strip() for label in labels):
        raise InvalidArgumentError("A label is empty or only white space; name it.")
    return [*labels]


def _unsuited(targets: Any) -> InvalidTypeError:
    return InvalidTypeError(
        "Targets of zero-shot classification are labels: a list of strings for every text, or a list with a list of strings "
        f"for each text; got {targets!r:.60}."
    )
