"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.engine.run import backward_only_once
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    UnsupportedModelError,
)
from fastshap.tasks.base import Predict, Prepared, Shown, Task
from fastshap.tasks.heads import Way, full_logits, head_of, kept_logits, output_layer, target_logits
from fastshap.tasks.layout import masked
from fastshap.tasks.subject import takes
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, far, leaks, points, ran
from fastshap.tasks.writing import checked_options, written
from fastshap.text.encode import Encoded, after, goes_on, join, without_ending
from fastshap.text.groups import Scope
from fastshap.text.inputs import KINDS, sources
from fastshap.text.spelling import decode
from fastshap.text.words import unspaced
from fastshap.types import InferenceModes

_TRIED = 8  # tokens, at least, on which the ways to the logits are compared


class GenerationTask(Task):
    """Models that go on with a text: logits (R, L, V); the one before a token's position predicts it."""

    name = "generation"
    class_endings = ("ForCausalLM", "LMHeadModel")
    auto_class = "AutoModelForCausalLM"
    explains = "causal language models, which predict the next token from text alone"
    shown = Shown(targets="generated", segments=("prompt", "generated"), map_axes=("generated", "drew on"))
    writes_targets = True
    steadiest_mode = "softmax"
    keeps_positions = False  # the targets are a text's last tokens
    _way: Way = staticmethod(full_logits)  # until the model has been tried
    _tried_head: Any = None  # what the output layer was then

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return super().is_named(architecture) or architecture in _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

    @classmethod
    def fits(cls, model: Any) -> bool:
        return type(model).__name__.endswith(cls.class_endings) or _goes_on(model)

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if takes(self.model, "use_cache") else {}

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        logits: Tensor = model(**inputs, **self._options).logits
        return logits

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        """A causal model's logits, a row for each token, do not depend on later tokens."""
        if plain.logits.ndim != 3 or plain.logits.shape[1] != z.shape[1]:
            raise UnsupportedModelError(
                f"{self.model_name} gives logits of shape {tuple(plain.logits.shape)} for {z.shape[1]} tokens, and not one row "
                "of the vocabulary for each, which would predict the next."
            )
        before = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        before[:, -1] = False
        ours = ran(forward, z, inputs, before)
        agree = True
        for last in (far(z, 1), z[:, :1]):  # what is far from the text may be too large for half precision
            theirs = ran(forward, torch.cat([z[:, :-1], last], 1), inputs, before)
            if theirs.tells():
                agree = judge.agree(*(one.row(0, slice(0, -1)) for one in (ours, theirs)))
                break
        if leaks(ours.gradients[:, -1], ours.gradients) or not agree:
            raise UnsupportedModelError(
                f"{self.model_name} is not causal: its logits depend on later tokens, so they do not predict the next one. "
                "Load an encoder as a decoder (is_decoder=True in its configuration), or use a causal language model."
            )

    def find_shortcuts(self) -> None:
        mode, way = self.inference_mode, None
        with as_written(self.model):
            known = isinstance(mode, InferenceModes)  # what a callable does may hang on anything
            try:
                way = self.found(("way", mode), self._shortest_way) if known else self._shortest_way()
            except FastshapError:
                raise
            except Exception:
                pass  # no room, or what fails on texts too and is said of them; not tried again by this explainer
            self._way = way or full_logits
        self._tried_head = (head_of(self.model),)

    def _shortest_way(self) -> Way | None:
        """The way to the targets' logits that computes least, of those that give what the full logits hold."""
        if backward_only_once(self.model):
            return full_logits  # a compiled graph is made for one way
        length = min(_TRIED, self.max_length() or _TRIED)
        count = (length - 1) // 2  # so that there are columns that are asked for and columns that are not
        z = points(self.model, [length] * 2, self.ordinary_tokens())
        if count == 0 or not z:
            return None
        rows = torch.cat(z)
        inputs = masked(rows, self.extra())
        with torch.no_grad():
            vocabulary = self.logits_of(self.model, {"inputs_embeds": rows.clone(), **inputs}).shape[-1]
        # As in a call to come, the last column predicts nothing.
        targets = torch.linspace(vocabulary - 1, 0, 2 * count, device=rows.device).long().view(2, count)
        row = torch.arange(2, device=rows.device)[:, None]
        columns = torch.arange(-count - 1, -1, device=rows.device).expand(2, -1)
        call = Call({}, targets, at=(row, columns), kept=count + 1)

        def through(way: Way) -> ToLogits:
            def forward(given: Mapping[str, Any]) -> Tensor:
                asked = self.given(dataclasses.replace(call, inputs=dict(given)))
                return self._picked(way(self.model, asked, self._options), asked)

            return forward

        right = ran(through(full_logits), rows, inputs)
        if not right.tells():
            return None
        judge = Judge(through(full_logits), [right], rows, inputs)
        ways = [kept_logits, full_logits] if takes(self.model, "logits_to_keep") else [full_logits]
        if self.inference_mode is InferenceModes.LOGITS:
            ways = [target_logits, *ways]
        for way in ways:
            try:
                if judge.agree(ran(through(way), rows, inputs), right):
                    return way
            except torch.OutOfMemoryError:
                raise
            except Exception:
                continue
        return full_logits

    def _picked(self, logits: Tensor, call: Call) -> Tensor:
        """The targets' scores (R, T)."""
        logits = logits.to(call.targets.device)
        if logits.ndim == 2:  # the targets' own
            return logits
        if self.inference_mode is InferenceModes.LOGITS:
            return logits[(*call.places, call.targets)]
        values = self.transformed(logits[call.places])  # (R, T, V)
        return values.gather(2, call.targets[..., None]).squeeze(2)

    def scores(self, model: Any, call: Call) -> Tensor:
        way = self._way if (head_of(model),) == self._tried_head else full_logits
        return self._picked(way(model, self.given(call), self._options), call)

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        targets = [None] * len(sources) if targets is None else targets
        given = [i for i, target in enumerate(targets) if target is not None]
        found = dict(
            zip(given, self._with_targets([sources[i] for i in given], [targets[i] for i in given]), strict=True)
        )
        asked = {i: source for i, source in enumerate(sources) if i not in found}
        options = options or (self.check_options(None) if asked else {})
        prompts = self._with_room([*asked.values()], self._prompts([*asked.values()]), options)
        return found, dict(zip(asked, zip(asked.values(), prompts, strict=True), strict=True)), options

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        found, asked, options = tokenised
        new = []
        for _, prompt in asked.values():
            new.append(written(self, prompt, options, self.seed))
            generated()
        endings = self.encode(new, max_length=None)
        for (i, (source, prompt)), ending in zip(asked.items(), endings, strict=True):
            found[i] = self._prepared(source, prompt, ending)
        return [found[i] for i in range(len(found))]

    def _with_targets(self, sources: Sequence[Any], targets: Sequence[Any]) -> list[Prepared | FastshapError]:
        texts = [isinstance(s, str) and isinstance(t, str) for s, t in zip(sources, targets, strict=True)]
        sources = [_stripped(s) if both else s for s, both in zip(sources, texts, strict=True)]
        prompts = self._prompts(sources)
        spaced = [
            self._spaced(prompt, target) if isinstance(prompt, Encoded) and isinstance(target, str) else target
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        endings = self.encode(spaced, max_length=None, add_special_tokens=False)
        # Tokenised together, the two read as the tokenizer reads any text.
        joint = iter(self._prompts([s + e for s, e, both in zip(sources, spaced, texts, strict=True) if both]))
        found = []
        for source, prompt, given, ending, both in zip(sources, prompts, spaced, endings, texts, strict=True):
            spelled = next(joint) if both else None
            if isinstance(ending, FastshapError):
                ending = type(ending)(f"The target cannot be used. {ending}")
            elif isinstance(given, str) and isinstance(prompt, Encoded):
                if isinstance(spelled, Encoded) and goes_on(prompt, spelled):
                    ending = after(spelled, len(prompt))
                else:
                    ending = self._behind(prompt, given, ending)
            found.append(self._prepared(source, prompt, ending))
        return found

    def _spaced(self, prompt: Encoded, target: str) -> str:
        """The target with the space that parts it from the prompt; none behind a special token, which ends a turn of a chat."""
        if prompt.input_ids[-1] in set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}:
            return target
        return _spaced(prompt.text, target)

    def _behind(self, prompt: Encoded, target: str, alone: Encoded) -> Encoded:
        """The target's tokens behind a prompt whose own tokens stay as they are."""
        start = 1 + max((i for i, special in enumerate(prompt.special) if special), default=-1)
        tail = prompt.input_ids[start:]
        if tail:
            (both,) = self.encode([decode(self.tokenizer, tail) + target], max_length=None, add_special_tokens=False)
            if isinstance(both, Encoded) and len(both) > len(tail) and both.input_ids[: len(tail)] == tail:
                return after(both, len(tail))
        # SentencePiece puts a space before every text: one too many before a space, or where none is wanted.
        if alone.tokens[0].strip("▁") == "" and len(alone) > 1:
            (bare,) = self.encode([target.lstrip(" ")], max_length=None, add_special_tokens=False)
            if isinstance(bare, Encoded) and target[0] == " ":
                return bare
            return after(alone, 1)
        return alone

    def _with_room(
        self, sources: Sequence[Any], prompts: list[Encoded | FastshapError], options: Mapping[str, Any]
    ) -> list[Encoded | FastshapError]:
        """Prompts that leave the model room to go on; a string that fills it is cut."""
        limit = self.max_length()
        for i, (source, prompt) in enumerate(zip(sources, prompts, strict=True)):
            if limit is None or isinstance(prompt, FastshapError) or len(prompt) < limit:
                continue
            if isinstance(source, str):
                new = min(options.get("max_new_tokens") or 1, limit // 2)
                prompts[i] = self._prompts([source], limit - new)[0]
            else:
                prompts[i] = InvalidArgumentError(
                    f"The input has {len(prompt)} tokens and the model takes {limit}, so it cannot go on; pass a shorter one."
                )
        return prompts

    def _prompts(self, sources: Sequence[Any], max_length: int | None = None) -> list[Encoded | FastshapError]:
        """Tokenised inputs; a string keeps none of the special tokens that a tokenizer puts at its end.

        What is too long loses its beginning: the target follows the end.
        """
        encoded = self.encode(sources, max_length=max_length, truncation_side="left")
        return [
            without_ending(one) if isinstance(one, Encoded) and isinstance(source, str) else one
            for source, one in zip(sources, encoded, strict=True)
        ]

    def _prepared(
        self, source: Any, prompt: Encoded | FastshapError, ending: Encoded | FastshapError
    ) -> Prepared | FastshapError:
        if isinstance(prompt, FastshapError):
            return prompt
        if isinstance(ending, FastshapError):
            return ending
        known = getattr(output_layer(self.model), "out_features", None)
        if known is not None and max(ending.input_ids, default=0) >= known:
            return InvalidArgumentError(
                f"The target holds token id {max(ending.input_ids)}, and the model predicts ids below {known}; leave the token "
                "out of the target."
            )
        limit = self.max_length()
        if limit is not None and len(prompt) + len(ending) > limit:
            cut = self._cut(source, len(prompt), len(ending), limit)
            if isinstance(cut, FastshapError):
                return cut
            prompt = cut
        targets = torch.tensor(ending.input_ids, device="cpu")
        return _prepared(join(prompt, ending), targets, ending.tokens)

    def _cut(self, source: Any, given: int, taken: int, limit: int) -> Encoded | FastshapError:
        """The input, cut to leave room for ``taken`` tokens; at least one has to stay beside those of the template."""
        room = limit - taken
        if room <= self.tokenizer.num_special_tokens_to_add():
            return InvalidArgumentError(
                f"The target is {taken} tokens long and the model takes {limit} with the input; shorten it."
            )
        if not isinstance(source, str):
            return InvalidArgumentError(
                f"The input has {given} tokens and the target {taken}, and the model takes {limit} in all. Pass the input as "
                "a string, which is cut to fit, or cut the token ids where it makes sense."
            )
        (cut,) = self._prompts([source], room)
        return cut

    def check_options(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return checked_options(self, options)

    def expected_scores(self, options: Mapping[str, Any]) -> int:
        count: int = options.get("max_new_tokens", 1)
        return count

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """One text that follows each."""
        if words and len(words) > 1:
            raise InvalidArgumentError("A language model takes one target, the text that follows.")
        return list(words) * count if words else None

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        found, asked, _ = tokenised
        yield from (one.encoded for one in found.values() if isinstance(one, Prepared))
        yield from (prompt for _, prompt in asked.values() if isinstance(prompt, Encoded))

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        parts = (len(saved.encoded) - len(saved.targets),)
        return _prepared(dataclasses.replace(saved.encoded, parts=parts), saved.targets, saved.target_names)

    def cut_end(self) -> str:
        """The target follows the end, so the beginning goes."""
        return "beginning"

    def serves_all(self, targets: Any) -> bool:
        """Each input has a target of its own."""
        return False

    def entries(self, targets: Any) -> Iterator[Any]:
        try:
            return sources(targets, of_targets=True)
        except InvalidTypeError:
            raise InvalidTypeError(
                f"Generation targets are None (the model generates them) or, for each input, None, {KINDS}; got "
                f"{type(targets).__name__}."
            ) from None

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """None, or a text, token ids or None for each input."""
        if targets is None:
            return None
        each = list(self.entries(targets))
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'input')} but {counted(len(each), 'target')}; give one for each input."
            )
        return each


def _prepared(encoded: Encoded, targets: Tensor, target_names: list[str]) -> Prepared:
    """A text that ends in its targets: the token before predicts each, which depends on none from there on."""
    length, count = len(encoded), len(targets)
    first = length - count
    hidden = torch.ones(count, length, dtype=torch.bool, device="cpu").triu(first)
    positions = torch.arange(first - 1, length - 1, device="cpu")
    return Prepared(encoded, targets, target_names, scope=Scope(positions, hidden, range(first, length)))


def _goes_on(model: Any) -> bool:
    """Whether a model of any other name is a causal language model of text, as far as shows before it runs.

    That its logits are a row for each token, and depend on no later one, is found when it is tried.
    """
    generates = getattr(model, "can_generate", bool)() and not getattr(model.config, "is_encoder_decoder", False)
    return generates and takes(model, "inputs_embeds") and output_layer(model) is not None


def _names(mapping: Mapping[str, str | Sequence[str]]) -> set[str]:
    return {one for names in mapping.values() for one in ([names] if isinstance(names, str) else names)}


def _stripped(prompt: str) -> str:
    """Without spaces at its end, as the target brings its own; a line break there is part of the prompt."""
    bare = prompt.rstrip(" ")
    return prompt if bare[-1:].isspace() else bare


def _spaced(prompt: str, target: str) -> str:
    """The target with the space that parts it from the prompt."""
    last, first = prompt[-1:], target[:1]
    if not first or not last or last.isspace() or first.isspace() or unspaced(last) or unspaced(first):
        return target
    return f" {target}"
