"""Extractive question answering: targets are answers, as spans of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.tasks.base import Prediction, Shown
from fastshap.tasks.places import PlacesTask, Target, or_contrast, picked
from fastshap.text.encode import Encoded
from fastshap.text.groups import span
from fastshap.text.inputs import Pair
from fastshap.text.spans import span_in, tokens_at
from fastshap.types import InferenceModes

_LONGEST = 30  # tokens of an answer that the model chooses, at most
_ENDS = ("start", "end")  # what the two logits of a token are for


class QuestionAnsweringTask(PlacesTask):
    """``*ForQuestionAnswering``: logits (R, L, 2), of being an answer's first token and its last.

    What is explained of an answer is the sum of both. Probabilities are over the tokens of the text.
    """

    name = "question_answering"
    class_endings = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    auto_class = "AutoModelForQuestionAnswering"
    explains = "models that mark answers in a text (*ForQuestionAnswering)"
    shown = Shown(targets="answer", segments=("question", "context"))
    takes_pairs = True

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        return [Pair("a", text) for text in texts], None

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        found = self.outputs_of(model, inputs)
        if "start_logits" not in found or "end_logits" not in found:
            raise UnsupportedModelError(
                f"{self.model_name} does not give each token a logit for the start and one for the end of an answer. Load the "
                "model as one that does, such as XLNetForQuestionAnsweringSimple."
            )
        return torch.stack([found.start_logits, found.end_logits], -1)

    def scores(self, model: Any, call: Call) -> Tensor:
        logits = self.logits_in_company(model, self.given(call).inputs)
        if self.inference_mode is not InferenceModes.LOGITS:
            logits = self._over_tokens(logits.transpose(1, 2), call.inputs.get("attention_mask")).transpose(1, 2)
        return picked(logits[call.places], call)

    def _over_tokens(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """The inference mode's scores of logits (R, 2, L), for each row of its own tokens alone."""
        if mask is None:
            return self.transformed(logits)
        mask = mask.to(logits.device)
        if isinstance(self.inference_mode, InferenceModes):
            return self.transformed(logits.masked_fill(mask[:, None] == 0, -torch.inf))
        rows = []
        for row, own in zip(logits, mask.bool(), strict=True):  # a callable need not take infinity
            scores = self.transformed(row[None, :, own])[0]
            rows.append(scores.new_zeros(row.shape).masked_scatter(own.expand_as(row), scores))
        return torch.stack(rows)

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        bare = [Pair(one.first.rstrip(), one.second) if isinstance(one, Pair) else one for one in sources]
        return [_with_context(one) for one in super().tokenised(bare, targets, options)]

    def predicted(self, encoded: Encoded, logits: Tensor) -> list[Target]:
        return self.asked_for(encoded, [None], logits)

    def prediction(self, encoded: Encoded, logits: Tensor) -> Prediction:
        (best,) = self.predicted(encoded, logits)
        return Prediction(best.name, best.probability, None)

    def asked_for(self, encoded: Encoded, given: Sequence[Any], logits: Tensor) -> list[Target]:
        probabilities = logits.masked_fill(self._no_answers(encoded), -torch.inf).softmax(0)
        return [or_contrast(one, partial(self._answer, encoded, logits, probabilities)) for one in given]

    def _answer(self, encoded: Encoded, logits: Tensor, probabilities: Tensor, given: Any) -> Target:
        ends, where = [0, 1], given
        if isinstance(given, tuple) and len(given) == 2 and given[0] in _ENDS:
            ends, where = [_ENDS.index(given[0])], given[1]
        answer = _best(encoded, logits) if where is None else _found(encoded, where)
        places = [answer[end] for end in ends]
        start, stop = span(encoded, [*answer])
        only = f"{given[0]}: " if len(ends) == 1 else ""
        name = only + (encoded.text[start:stop].strip() or encoded.tokens[answer[0]])
        return Target(name, places, ends, [1.0] * len(ends), float(probabilities[places, ends].prod()))

    def _no_answers(self, encoded: Encoded) -> Tensor:
        """(L, 1) bool: all but the context, and the token that stands for no answer; as transformers' pipeline had it."""
        none = [i for i, token in enumerate(encoded.input_ids) if token == self.tokenizer.cls_token_id]
        others = torch.ones(len(encoded), 1, dtype=torch.bool, device="cpu")
        others[none + _context(encoded)] = False
        return others

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """Answers as they stand in the context; "start: Paris" and "end: Paris" for one of an answer's two scores."""
        return [[_spelled(str(word)) for word in words]] * count if words else None


def _with_context(encoded: Encoded | FastshapError) -> Encoded | FastshapError:
    if isinstance(encoded, Encoded) and not (encoded.parts and _context(encoded)):
        return InvalidTypeError(
            "Question answering takes a question with its context: a tuple (question, context) in a list, or a mapping with "
            "text and text_pair."
        )
    return encoded


def _context(encoded: Encoded) -> list[int]:
    """The tokens in which an answer may stand."""
    return [i for i in range(encoded.parts[0], len(encoded)) if not encoded.special[i]]


def _best(encoded: Encoded, logits: Tensor) -> tuple[int, int]:
    """The first and last token of the answer with the largest sum of logits."""
    context = _context(encoded)
    start, end = logits[context].unbind(1)
    sums = start[:, None] + end[None]
    fits = torch.ones_like(sums, dtype=torch.bool).triu().tril(_LONGEST - 1)
    first, last = divmod(int(sums.masked_fill(~fits, -torch.inf).argmax()), len(context))
    return context[first], context[last]


def _found(encoded: Encoded, where: Any) -> tuple[int, int]:
    """The first and last token of an answer that was given."""
    if not isinstance(where, str | tuple):
        raise InvalidTypeError(
            "A target is None (the predicted answer), an answer as it stands in the context, or its characters (start, end) "
            f"there; ('start', answer) and ('end', answer) name one of its two scores. Got {where!r}."
        )
    question = max((end for _, end in encoded.offsets[: encoded.parts[0]]), default=0)
    begin = encoded.text.index("\n", question) + 1  # the context's first character: no question ends in a line break
    start, end = span_in(encoded.text[begin:], where)
    inside = {*tokens_at(encoded, (start + begin, end + begin))}.intersection(_context(encoded))
    if not inside:
        raise InvalidArgumentError(f"No token of the context stands at {where!r}; the model does not read that part.")
    return min(inside), max(inside)


def _spelled(word: str) -> Any:
    end, colon, answer = word.partition(": ")
    return (end, answer) if colon and end in _ENDS else word
