"""Masked language models: targets are the tokens that stand at the masks of a text."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.engine.run import backward_only_once
from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Prepared, Shown
from fastshap.tasks.classes import is_number
from fastshap.tasks.heads import Way, head_of, placed_logits, target_logits
from fastshap.tasks.layout import masked
from fastshap.tasks.places import PlacesTask, Target, or_contrast, picked
from fastshap.tasks.tokens import unknown
from fastshap.tasks.trial import Judge, ToLogits, as_written, points, ran
from fastshap.text.encode import Encoded
from fastshap.types import InferenceModes

_TRIED = 8  # tokens on which the ways to the logits are compared


class MaskedLMTask(PlacesTask):
    """``*ForMaskedLM``: logits (R, L, V). At a mask they say which token stands there."""

    name = "masked_lm"
    class_endings = ("ForMaskedLM",)
    auto_class = "AutoModelForMaskedLM"
    explains = "models that fill in masked tokens (*ForMaskedLM)"
    shown = Shown(targets="filled in")
    takes_words = True
    _proven: tuple[Way, ...] = ()  # ways that give what the full logits hold
    _tried_head: Any = None  # what the output layer was then

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        mask = self.tokenizer.mask_token
        return [text if mask is None else f"{mask} {text}" for text in texts], None

    def find_shortcuts(self) -> None:
        self._proven = ()
        with as_written(self.model), contextlib.suppress(Exception):  # what fails on texts too is said of them
            self._proven = self.found("ways at masks", self._ways_that_agree) or ()
        self._tried_head = (head_of(self.model),)

    def _ways_that_agree(self) -> tuple[Way, ...] | None:
        if backward_only_once(self.model):
            return ()  # a compiled graph is made for one way
        z = points(self.model, [min(_TRIED, self.max_length() or _TRIED)] * 2, self.ordinary_tokens())
        if not z or z[0].shape[1] < 4:
            return None
        rows = torch.cat(z)
        inputs = masked(rows, self.extra())
        with torch.no_grad():
            vocabulary = self.logits_of(self.model, {"inputs_embeds": rows.clone(), **inputs}).shape[-1]
        targets = torch.linspace(vocabulary - 1, 0, 4, device=rows.device).long().view(2, 2)
        columns = torch.tensor([[-4, -1], [-2, -3]], device=rows.device)
        call = Call({}, targets, at=(torch.arange(2, device=rows.device)[:, None], columns))

        def through(way: Way) -> ToLogits:
            def forward(given: Mapping[str, Any]) -> Tensor:
                return way(self.model, self.given(dataclasses.replace(call, inputs=dict(given))), {})

            return forward

        def own(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
            return picked(_full_rows(model, call, options), call)

        found: list[Way] = []
        for short, plain in ((target_logits, own), (placed_logits, _full_rows)):
            right = ran(through(plain), rows, inputs)
            if not right.tells():
                return None
            judge = Judge(through(plain), [right], rows, inputs)
            with contextlib.suppress(ValueError, TypeError, RuntimeError):
                if judge.agree(ran(through(short), rows, inputs), right):
                    found.append(short)
        return tuple(found)

    def _may(self, way: Way, model: Any) -> bool:
        return way in self._proven and (head_of(model),) == self._tried_head

    def rows(self, model: Any, call: Call) -> Tensor:
        way = placed_logits if self._may(placed_logits, model) else _full_rows
        return way(model, self.given(call), {})

    def scores(self, model: Any, call: Call) -> Tensor:
        if self.inference_mode is InferenceModes.LOGITS and self._may(target_logits, model):
            return target_logits(model, self.given(call), {}).to(call.targets.device)
        return super().scores(model, call)

    def looked_at(self, encoded: Encoded) -> Tensor:
        mask = self.tokenizer.mask_token_id
        places = [i for i, token in enumerate(encoded.input_ids) if token == mask]
        if not places:
            how = (
                "the tokenizer has no mask token" if mask is None else f"write {self.tokenizer.mask_token} for a token"
            )
            raise InvalidArgumentError(f"The text holds no mask, so there is nothing to fill in; {how}.")
        return torch.tensor(places, device="cpu")

    def predicted(self, encoded: Encoded, logits: Tensor) -> list[Target]:
        return self.asked_for(encoded, [None] * len(logits), logits)

    def asked_for(self, encoded: Encoded, given: Sequence[Any], logits: Tensor) -> list[Target]:
        places = self.looked_at(encoded).tolist()
        if len(given) != len(places):
            raise InvalidArgumentError(
                f"{there_are(len(places), 'mask')} in the text but {counted(len(given), 'target')}; give a token for each, in "
                "their order."
            )
        at = [partial(self._target, encoded, *one) for one in zip(places, logits, strict=True)]
        return [or_contrast(one, target_of) for one, target_of in zip(given, at, strict=True)]

    def _target(self, encoded: Encoded, place: int, logits: Tensor, given: Any) -> Target:
        token = int(logits.argmax()) if given is None else self._token(encoded, place, given, len(logits))
        return Target(self._spelt(token), [place], [token], [1.0], float(logits.softmax(0)[token]))

    def _token(self, encoded: Encoded, place: int, given: Any, vocabulary: int) -> int:
        if is_number(given):
            if 0 <= given < vocabulary:
                return operator.index(given)
            raise InvalidArgumentError(f"There is no token {given}; the model predicts those below {vocabulary}.")
        if not isinstance(given, str):
            raise InvalidTypeError(
                "Targets of a text are None (the predicted tokens) or a list with one for each mask: a token as a string, its "
                f"id, or None; got {given!r}."
            )
        start = encoded.offsets[place][0]
        behind_space = start == 0 or encoded.text[start - 1].isspace() or encoded.text[start].isspace()
        spellings = [f" {given}", given] if behind_space else [given, f" {given}"]
        rows = [self.tokenizer(one, add_special_tokens=False)["input_ids"] for one in spellings]
        found = [row[0] for row in rows if len(row) == 1 and row[0] != self.tokenizer.unk_token_id]
        known = self.tokenizer.get_vocab().get(given)  # spelt as the vocabulary has it: ##ing, Ġfilm
        if not found and known is None:
            raise InvalidArgumentError(
                f"{given!r} is no single token of the model's vocabulary, and a mask stands for one token."
            )
        return found[0] if found else known  # type: ignore[return-value]

    def _spelt(self, token: int) -> str:
        """A token as people write it."""
        return str(self.tokenizer.decode([token])).strip() or str(self.tokenizer.convert_ids_to_tokens(token))

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if (error := unknown(self, saved.targets.tolist())) is not None:
            raise error
        return saved

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """A token for each mask, the same for each text."""
        return [list(words)] * count if words else None


def _full_rows(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
    """(R, T, V)."""
    logits: Tensor = model(**call.inputs, **options).logits
    return logits[call.places]
