"""Multiple choice: a text with several choices, of which the model scores each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Predict, Prediction, Prepared, Shown, Task
from fastshap.tasks.candidates import rows_of
from fastshap.tasks.classes import is_number, row_of
from fastshap.tasks.sequences import of_each
from fastshap.text.encode import Encoded
from fastshap.text.inputs import Choices
from fastshap.types import InferenceModes


class MultipleChoiceTask(Task):
    """``*ForMultipleChoice``: one logit for each pair of the text and a choice, (R, choices).

    A text is a mapping ``{"text": ..., "choices": [..., ...]}``. A target is the number of a choice, or its text.
    """

    name = "multiple_choice"
    class_endings = ("ForMultipleChoice",)
    auto_class = "AutoModelForMultipleChoice"
    explains = "models that choose among texts (*ForMultipleChoice)"
    shown = Shown(targets="choice", segments=("text", "choice"))
    takes_choices = True

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(R, 1): of each pair. The model takes several pairs for each row, and gets one."""
        logits: Tensor = model(**{name: tensor[:, None] for name, tensor in inputs.items()}).logits
        return logits

    def logits(self, model: Any, call: Call) -> Tensor:
        """(R, choices)."""
        return of_each(lambda inputs: self.logits_of(model, inputs), call).squeeze(2)

    def scores(self, model: Any, call: Call) -> Tensor:
        return self.transformed(self.logits(model, call)).to(call.targets.device).gather(1, call.targets)

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        """Each text's choices with its row."""
        rows = [source for source in sources if isinstance(source, Choices)]
        found = iter(rows_of(self, [row.text for row in rows], [row.choices for row in rows], "choice"))
        return [
            (source.choices, next(found)) if isinstance(source, Choices) else _refused(source) for source in sources
        ]

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        return (one[1] for one in tokenised if isinstance(one, tuple) and isinstance(one[1], Encoded))

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        *_: Any,
    ) -> list[Prepared | FastshapError]:
        wanted = [[None]] * len(tokenised) if targets is None else targets
        logits = iter(predict([*self.readable(tokenised)], self.logits))
        found: list[Prepared | FastshapError] = []
        for one, given in zip(tokenised, wanted, strict=True):
            choices, row = one if isinstance(one, tuple) else ((), one)
            if isinstance(row, Encoded):
                seen = next(logits)
                row = self._constant(choices) or _prepared(row, choices, given, seen)
            found.append(row)
        return found

    def _constant(self, choices: Sequence[str]) -> FastshapError | None:
        """What is wrong with probabilities of one choice."""
        mode: Any = self.inference_mode
        if len(choices) > 1 or mode not in (InferenceModes.SOFTMAX, InferenceModes.LOG_SOFTMAX):
            return None
        return InvalidArgumentError(
            f"inference_mode={mode.name} of a single choice is constant, so every score would be zero; give more choices, or "
            "use LOGITS."
        )

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        return [{"text": text, "choices": texts} for text in texts], None

    def serves_all(self, targets: Any) -> bool:
        """The number of a choice, the text of one, or "all"."""
        return isinstance(targets, str) or is_number(targets)

    def split_targets(self, targets: Any, count: int) -> list[list[Any]] | None:
        """None, one choice or "all" for every text, or a list of these (or of lists of these), or an integer tensor."""
        if targets is None:
            return None
        if self.serves_all(targets):
            return [[targets]] * count
        if isinstance(targets, bytes | Mapping) or not isinstance(targets, Iterable):
            raise _unsuited(targets)
        each = [row_of(target) for target in targets]
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'text')} but {counted(len(each), 'target')}; give one for each text, or one for all. "
                "Several targets of one text stand in a list of their own, as in [[0, 1]]."
            )
        if any(not row for row in each):
            raise InvalidArgumentError("A text has no target; give at least one choice for each text.")
        return each

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """Numbers of choices (as strings too), texts of choices, or "all", the same for each text."""
        return (
            [[int(word) if isinstance(word, str) and word.isdecimal() else word for word in words]] * count
            if words
            else None
        )


def _refused(source: Any) -> FastshapError:
    if isinstance(source, FastshapError):
        return source
    return InvalidTypeError(
        'This model chooses among texts: pass {"text": ..., "choices": [..., ...]} for each text, so that there is something '
        f"to choose; got {type(source).__name__}."
    )


def _prepared(
    encoded: Encoded, choices: Sequence[str], given: Sequence[Any], logits: Tensor | FastshapError
) -> Prepared | FastshapError:
    if isinstance(logits, FastshapError):
        return logits
    best = int(logits.argmax())
    try:
        numbers = [number for target in given for number in _numbers(target, choices, best)]
    except FastshapError as error:
        return error
    shares = logits.float().softmax(0)
    prediction = Prediction(choices[best], float(shares[best]), shares[numbers])
    return Prepared(encoded, torch.tensor(numbers), [choices[number] for number in numbers], prediction)


def _numbers(target: Any, choices: Sequence[str], best: int) -> list[int]:
    """Of the choices that a target names."""
    if target is None:
        return [best]
    if isinstance(target, str):
        if target in choices:
            return [choices.index(target)]
        if target == "all":
            return [*range(len(choices))]
        raise InvalidArgumentError(f"No choice is {target!r}; the choices are {', '.join(map(repr, choices))}.")
    if not is_number(target):
        raise InvalidTypeError(f"A target is the number of a choice, or its text; got {target!r}.")
    if not 0 <= target < len(choices):
        raise InvalidArgumentError(f"Target {target} is out of range; the choices are 0 to {len(choices) - 1}.")
    return [int(target)]


def _unsuited(targets: Any) -> InvalidTypeError:
    return InvalidTypeError(
        "Targets among choices are None (the predicted one), the number of a choice, its text, 'all', or a list with one of "
        f"these for each text; got {type(targets).__name__}."
    )
