"""Sequence classification: targets are classes."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.ops.transfer import to_host
from fastshap.tasks.base import NO_PREDICTION, Predict, Prediction, Prepared, Riding, Shown, Task
from fastshap.tasks.classes import RidingScores, Row, is_number, joined_of, padding_token_named, row_of
from fastshap.tasks.embeddings import misread_by
from fastshap.tasks.first_token import Cut, cuts, first_token_alone
from fastshap.tasks.layout import masked
from fastshap.tasks.sequences import in_windows, mean_of, of_each
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, points, ran
from fastshap.text.encode import Encoded
from fastshap.text.groups import TEXT, Scope
from fastshap.types import InferenceModes
from fastshap.types.targets import Contrast, contrasted

_SHARED: Any = (InferenceModes.SOFTMAX, InferenceModes.LOG_SOFTMAX)  # of classes that exclude each other
_INDEPENDENT = "multi_label_classification"
_TRIED = 8  # tokens on which a shorter way is compared with the whole model


class _Seen(NamedTuple):
    """What the model makes of a text itself."""

    best: int  # the class of the largest logit
    tells: bool  # whether that is a prediction
    probability: float  # of that class
    probabilities: np.ndarray  # (classes,) float32


class ClassificationTask(Task):
    """``*ForSequenceClassification``: logits (R, classes)."""

    name = "classification"
    class_endings = ("ForSequenceClassification",)
    auto_class = "AutoModelForSequenceClassification"
    explains = "models that classify texts (*ForSequenceClassification)"
    targets_are_classes = measurable = True
    takes_pairs = takes_words = takes_chats = True
    takes_windows = takes_contrasts = True
    shown = Shown(sequences="windows")
    _cut: Cut | None = None  # until the model has been looked at

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        mode: Any = self.inference_mode
        config = self.model.config
        if len(self.labels) == 1 and mode in _SHARED:
            raise InvalidArgumentError(
                f"inference_mode={mode.name} of a single class is constant, so every score would be zero; use "
                "LOGITS for a model with one output."
            )
        if mode in (*_SHARED, InferenceModes.SIGMOID) and config.problem_type == "regression":
            raise InvalidArgumentError(
                f"This model's outputs are values (problem_type='regression'), and {mode.name} makes no probabilities of them; "
                "use LOGITS."
            )
        if mode in _SHARED and config.problem_type == _INDEPENDENT:
            raise InvalidArgumentError(
                f"This model's classes do not exclude each other (problem_type={_INDEPENDENT!r}), so {mode.name} of them is no "
                "probability; use inference_mode=SIGMOID, or score='probability'."
            )

    @classmethod
    def mode_named(cls, score: str, model: Any) -> InferenceModes:
        """Of classes that do not exclude each other, probability is SIGMOID; of one value, there is none."""
        if score == "probability" and model.config.problem_type == _INDEPENDENT:
            return InferenceModes.SIGMOID
        return super().mode_named(score, model)

    @cached_property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        config: Any = self.model.config
        return [str(config.id2label.get(i, i)) for i in range(config.num_labels)]

    def _read_labels_again(self) -> None:
        """The model's labels, or their number, may be others than for the texts before."""
        vars(self).pop("labels", None)

    def logits_in_company(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        with padding_token_named(model):
            return self.logits_of(model, inputs)

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        """A classifier gives a row of logits for a text."""
        if plain.logits.ndim != 2:
            raise UnsupportedModelError(
                f"{self.model_name} gives logits of shape {tuple(plain.logits.shape)} for a text, and not one for each class."
            )

    def find_shortcuts(self) -> None:
        self._cut = None
        with as_written(self.model), contextlib.suppress(torch.OutOfMemoryError):
            (self._cut,) = self.found("cut", lambda: (self._harmless_cut(),)) or (None,)

    def _harmless_cut(self) -> Cut | None:
        """Where the last layer can be cut down to the first token, if logits and gradients stay as they are."""
        tokens = min(_TRIED, self.max_length() or _TRIED)
        for cut in cuts(self.model) if tokens > 1 else []:
            try:
                z = torch.cat(points(self.model, [tokens] * 2, self.ordinary_tokens()))
                inputs = masked(z, [])
                right = ran(self._through(None), z, inputs)
                with torch.no_grad():
                    poisoned = self._through(cut, poisoned=True)({"inputs_embeds": z, **inputs})
                ours = ran(self._through(cut), z, inputs)
                judge = Judge(self._through(None), [right], z, inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                continue  # a head that wants all rows
            # Of logits that hardly depend on the text, agreement would say nothing.
            if right.tells() and judge.agree(right._replace(logits=poisoned), right) and judge.agree(ours, right):
                return cut
        return None

    def _through(self, cut: Cut | None, poisoned: bool = False) -> ToLogits:
        def forward(inputs: Mapping[str, Any]) -> Tensor:
            with first_token_alone(self.model, cut, poisoned):
                return self.logits_in_company(self.model, inputs)

        return forward

    def logits(self, model: Any, call: Call) -> Tensor:
        """(R, classes), before the inference mode; of several windows their mean."""
        return mean_of(self.logits_of_each(model, call))

    def logits_of_each(self, model: Any, call: Call) -> Tensor:
        """(R, classes), or (R, S, classes) of S windows."""
        given = self.given(call)
        with first_token_alone(model, self._cut):
            if call.sequences is None:
                return self.logits_in_company(model, given.inputs)
            return of_each(lambda inputs: self.logits_in_company(model, inputs), given)

    def scores(self, model: Any, call: Call) -> Tensor:
        return self.chosen(self.logits_of_each(model, call), call.targets)

    def chosen(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(R, T): the targets' scores; of several windows their mean."""
        return mean_of(self.transformed(logits)).to(targets.device).gather(1, targets)

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        self._read_labels_again()
        if self.settings.long_text != "window":
            return super().tokenised(sources, targets, options)
        limit, found = self.max_length(), self.encode(sources, max_length=None)
        return found if limit is None else [in_windows(one, limit) for one in found]

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        misread = misread_by(self)
        return (one for one in super().readable(tokenised) if misread(one) is None)

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        wanted = [[None]] * len(tokenised) if targets is None else targets
        misread = misread_by(self)
        found = [self._with_classes(one, given, misread) for one, given in zip(tokenised, wanted, strict=True)]
        read = [one for one in found if isinstance(one, tuple)]
        seen: Iterator[_Seen | FastshapError | None] = repeat(None)
        if self._predicts() or any((None,) in rows for _, rows in read):
            seen = iter(self._seen(predict([encoded for encoded, _ in read], self.logits)))
        return [self._prepared(*one, next(seen)) if isinstance(one, tuple) else one for one in found]

    def riding(self, tokenised: Any, targets: Sequence[Any] | None) -> Riding | None:
        found = self._with_classes(tokenised[0], [None] if targets is None else targets[0], misread_by(self))
        if isinstance(found, FastshapError) or not (self._predicts() or (None,) in found[1]):
            return None
        encoded, rows = found
        if (None,) in rows and self.model.config.problem_type == _INDEPENDENT:
            return None  # nobody knows how many classes are predicted
        scores = RidingScores(self)

        def complete() -> Prepared | FastshapError:
            return self._prepared(encoded, rows, self._seen(to_host(scores.aside))[0])

        wanted = np.array([-1 if index is None else index for row in rows for index in row], np.int64)
        open_ = Prepared(encoded, torch.from_numpy(wanted), [], scope=Scope(joined=joined_of(rows)))
        return Riding(open_, scores, complete)

    def _seen(self, logits: Sequence[Tensor | FastshapError]) -> list[_Seen | FastshapError]:
        """What rows of logits tell, all at once."""
        rows = [one for one in logits if isinstance(one, Tensor)]
        if not rows:
            return [one for one in logits if isinstance(one, FastshapError)]
        together = torch.stack(rows)
        best, probabilities = together.argmax(1), self.probabilities(together)
        finite = together.isfinite().all(1).tolist() if self._predicts() else [False] * len(rows)
        of_best = probabilities.gather(1, best[:, None]).squeeze(1).tolist()
        told = zip(best.tolist(), finite, of_best, probabilities.numpy(), strict=True)
        return [one if isinstance(one, FastshapError) else _Seen(*next(told)) for one in logits]

    def _with_classes(
        self,
        encoded: Encoded | FastshapError,
        targets: Sequence[Any],
        misread: Callable[[Encoded], FastshapError | None],
    ) -> tuple[Encoded, list[Row]] | FastshapError:
        """A text's targets: the number of a class, two of a contrast, None for what is predicted."""
        if isinstance(encoded, FastshapError):
            return encoded
        if error := misread(encoded):
            return error
        try:
            return encoded, [row for target in targets for row in self._rows(target)]
        except FastshapError as wrong:
            return wrong

    def _rows(self, target: Any) -> list[Row]:
        if target is None:
            return [(None,)]
        if isinstance(target, Contrast):
            pair = self._class(target.target), self._class(target.other)
            if pair[0] == pair[1]:
                raise InvalidArgumentError(
                    f"A contrast of {self.labels[pair[0]]!r} with itself is zero everywhere; name two classes that differ."
                )
            return [pair]
        return [(index,) for index in self._classes(target)]

    def _predicts(self) -> bool:
        """Whether the largest logit tells a class."""
        config: Any = self.model.config
        return len(self.labels) > 1 and config.problem_type != "regression"

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., classes) float32: each class by itself where they do not exclude each other."""
        config: Any = self.model.config
        return logits.float().sigmoid() if config.problem_type == _INDEPENDENT else logits.float().softmax(-1)

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        targets = saved.targets
        if len(targets) and int(targets.max()) >= len(self.labels):
            raise InvalidArgumentError(
                f"The output explains class {int(targets.max())}, and this model has {len(self.labels)} classes."
            )
        return saved

    def names_now(self, targets: Tensor) -> list[str] | None:
        return [self.labels[target] for target in targets.tolist()]

    def _prepared(
        self, encoded: Encoded, rows: Sequence[Row], seen: _Seen | FastshapError | None
    ) -> Prepared | FastshapError:
        """``seen``: None where neither a target nor a prediction hangs on the text's own logits."""
        if isinstance(seen, FastshapError):
            return seen
        labels = self.labels
        if seen is not None and (None,) in rows:
            predicted = [(index,) for index in self._predicted(seen)]
            rows = [one for row in rows for one in (predicted if row == (None,) else [row])]
        chosen: list[int] = [-1 if index is None else index for row in rows for index in row]
        try:
            each = iter([labels[i] if 0 <= i < len(labels) else labels[self._class(i)] for i in chosen])
        except FastshapError as error:
            return error
        names = [next(each) if len(row) == 1 else contrasted(next(each), next(each)) for row in rows]
        joined, prediction = joined_of(rows), NO_PREDICTION
        if seen is not None and seen.tells and seen.best < len(labels):
            of_targets = None if joined is not None else torch.from_numpy(seen.probabilities.take(chosen))
            prediction = Prediction(labels[seen.best], seen.probability, of_targets)
        targets = torch.from_numpy(np.array(chosen, np.int64))
        return Prepared(encoded, targets, names, prediction, TEXT if joined is None else Scope(joined=joined))

    def _predicted(self, seen: _Seen) -> list[int]:
        """The class of the largest logit; of classes that do not exclude each other, all from the threshold on."""
        if self.model.config.problem_type != _INDEPENDENT:
            return [seen.best]
        return [i for i, share in enumerate(seen.probabilities.tolist()) if share >= self.settings.threshold] or [
            seen.best
        ]

    def entries(self, targets: Any) -> Iterator[Any]:
        if isinstance(targets, bytes | Mapping):
            raise self._unsuited(targets)
        try:
            return iter(targets)
        except TypeError:
            raise self._unsuited(targets) from None

    def serves_all(self, targets: Any) -> bool:
        """A class, by number or label, a contrast of two, or "all"."""
        return isinstance(targets, str | Contrast) or is_number(targets)

    def split_targets(self, targets: Any, count: int) -> list[list[Any]] | None:
        """None, one class or "all" for every text, a list of these (or of lists of these), or a tensor (n,) or (n, t).

        None among the entries is that text's predicted class.
        """
        if targets is None:
            return None
        self._read_labels_again()
        if isinstance(targets, np.ndarray):
            targets = targets.tolist()
        if isinstance(targets, Tensor) and targets.ndim > 0:
            if targets.ndim not in (1, 2) or targets.is_floating_point() or targets.dtype == torch.bool:
                raise InvalidTypeError(
                    "Classification targets as a tensor are integers of shape (texts,) or (texts, targets); "
                    f"got {tuple(targets.shape)} {targets.dtype}."
                )
            each = [row.reshape(-1).tolist() for row in targets]
        elif self.serves_all(targets):
            each = [[targets] if isinstance(targets, Contrast) else self._classes(targets)] * count
            self._rows(each[0][0])
        elif isinstance(targets, Iterable) and not isinstance(targets, bytes | Mapping | Tensor):
            each = [row_of(target) for target in targets]
        else:
            raise self._unsuited(targets)
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'text')} but {counted(len(each), 'target')}; give one for each text, or one class "
                "for all. Several targets of one text stand in a list of their own, as in [[0, 1]]."
            )
        if any(not one for one in each):
            raise InvalidArgumentError("A text has no target; give at least one class for each text.")
        return each

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """Class numbers (as strings too), labels in any case, or "all", the same for each text."""
        if not words:
            return None
        classes = [self._spelled(word) for word in words]
        for one in classes:
            self.split_targets(one, 1)  # an unknown class is a mistake of usage, not of a text
        return [classes] * count

    def _spelled(self, word: str | int) -> int | str:
        """A number, or a label in any case where that leaves no doubt."""
        if not isinstance(word, str):
            return word
        if re.fullmatch(r"-?[0-9]+", word) and word not in self.labels:
            return int(word)
        alike = [label for label in self.labels if label.lower() == word.lower()]
        return alike[0] if word not in self.labels and len(alike) == 1 else word

    @staticmethod
    def _unsuited(targets: Any) -> InvalidTypeError:
        return InvalidTypeError(
            "Classification targets are None (the predicted class), a class (a number or a label), a Contrast of two, 'all', a "
            "list with one of these for each text, or an integer tensor (texts,) or (texts, targets); got "
            f"{type(targets).__name__}."
        )

    def _classes(self, target: Any) -> list[int]:
        """A class by number or label, or all of them."""
        if isinstance(target, str) and target == "all" and "all" not in self.labels:
            return list(range(len(self.labels)))
        return [self._class(target)]

    def _class(self, target: Any) -> int:
        labels = self.labels
        if type(target) is int and 0 <= target < len(labels):  # most often
            return target
        if isinstance(target, str) and target in labels:
            return labels.index(target)
        if not isinstance(target, str) and not is_number(target):
            raise InvalidTypeError(f"A target class is a number or a label; got {target!r}.")
        if not isinstance(target, str) and 0 <= operator.index(target) < len(labels):
            return operator.index(target)
        listed = ", ".join(f"{i} ({label})" for i, label in enumerate(labels[:20])) + ", …" * (len(labels) > 20)
        what = f"The model has no label {target!r}" if isinstance(target, str) else f"Target {target} is out of range"
        raise InvalidArgumentError(f"{what}; its classes are {listed}.")
