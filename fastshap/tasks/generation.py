"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap import checks
from fastshap.engine.packing import Call
from fastshap.engine.run import backward_only_once, device_of
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    UnsupportedModelError,
)
from fastshap.models.locks import lock_of
from fastshap.sampling import text_key
from fastshap.tasks.base import Predict, Prepared, Task, takes
from fastshap.tasks.heads import Way, described, full_logits, kept_logits, output_layer, target_logits
from fastshap.tasks.layout import masked
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, far, leaks, points, ran
from fastshap.text.encode import Encoded, after, continuation, join, without_ending
from fastshap.text.inputs import KINDS, Tokens, sources
from fastshap.text.spelling import read
from fastshap.text.words import unspaced
from fastshap.types import InferenceModes, ModelTask

_NEW_TOKENS = 20
_TRIED = 8  # tokens, at least, on which the ways to the logits are compared


class GenerationTask(Task):
    """Models that go on with a text: logits (R, L, V); the one before a token's position predicts it."""

    class_endings = ("ForCausalLM", "LMHeadModel")
    model_task = ModelTask.GENERATION
    _way: Way = staticmethod(full_logits)  # until the model has been tried
    _tried_head: Any = None  # what the output layer was then

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
                f"{self.name} gives logits of shape {tuple(plain.logits.shape)} for {z.shape[1]} tokens, and not one row of "
                "the vocabulary for each, which would predict the next."
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
                f"{self.name} is not causal: its logits depend on later tokens, so they do not predict the next one. Load "
                "an encoder as a decoder (is_decoder=True in its configuration), or use a causal language model."
            )

    def _look(self) -> None:
        mode, way = self.inference_mode, None
        with as_written(self.model):
            known = isinstance(mode, InferenceModes)  # what a callable does may hang on anything
            with contextlib.suppress(torch.OutOfMemoryError):  # not tried again by this explainer
                way = self.found(("way", mode), self._shortest_way) if known else self._shortest_way()
            self._way = way or full_logits
        self._tried_head = (described(self.model),)

    def _shortest_way(self) -> Way | None:
        """The way to the targets' logits that computes least, of those that give what the full logits hold."""
        if backward_only_once(self.model):
            return full_logits  # a compiled graph is made for one way
        length = min(_TRIED, self.max_length() or _TRIED)
        count = (length - 1) // 2  # so that there are columns that are asked for and columns that are not
        z = points(self.model, [length] * 2, self._usable())
        if count == 0 or not z:
            return None
        rows = torch.cat(z)
        inputs = masked(rows, self._extra())
        with torch.no_grad():
            vocabulary = self.logits_of(self.model, {"inputs_embeds": rows.clone(), **inputs}).shape[-1]
        # As in a call to come, the last column predicts nothing.
        targets = torch.linspace(vocabulary - 1, 0, 2 * count, device=rows.device).long().view(2, count)
        row = torch.arange(2, device=rows.device)[:, None]
        before = torch.arange(-count - 1, -1, device=rows.device).expand(2, -1)
        call = Call({}, targets, row, before, count + 1, None)

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
            return logits[call.row, call.before, call.targets]
        values = self.transformed(logits[call.row, call.before])  # (R, T, V)
        return values.gather(2, call.targets[..., None]).squeeze(2)

    def scores(self, model: Any, call: Call) -> Tensor:
        way = self._way if (described(model),) == self._tried_head else full_logits
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
            new.append(self._generated(prompt, options))
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
        wholes = iter(self._prompts([s + e for s, e, both in zip(sources, spaced, texts, strict=True) if both]))
        found = []
        for source, prompt, given, ending, both in zip(sources, prompts, spaced, endings, texts, strict=True):
            whole = next(wholes) if both else None
            if isinstance(ending, FastshapError):
                ending = type(ending)(f"The target cannot be used. {ending}")
            elif isinstance(given, str) and isinstance(prompt, Encoded):
                joined = continuation(prompt, whole) if isinstance(whole, Encoded) else None
                ending = after(joined, len(prompt)) if joined else self._behind(prompt, given, ending)
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
            (both,) = self.encode([read(self.tokenizer, tail) + target], max_length=None, add_special_tokens=False)
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
        return Prepared(join(prompt, ending), targets, ending.tokens)

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

    def _generated(self, prompt: Encoded | FastshapError, options: Mapping[str, Any]) -> Tokens | FastshapError:
        """What the model goes on with, without special tokens at the end."""
        if isinstance(prompt, FastshapError):
            return prompt
        ids = torch.tensor([prompt.input_ids], device=device_of(self.model))
        model: Any = self.model
        limit = self.max_length()
        if limit is not None:
            given = {name: options[name] for name in ("max_new_tokens", "max_length") if name in options}
            room = {"max_new_tokens": limit - len(prompt), "max_length": limit}
            options = {**options, **{name: min(value, room[name]) for name, value in given.items()}}
        with self._own_random_numbers(prompt, options), torch.no_grad():
            try:
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if (failed := self._fails_on(prompt)) is not None:
                    return failed
                return InvalidArgumentError(
                    f"The model could not generate a target with {dict(options)}: {type(error).__name__}: {error}"
                )
        new = out[0, len(prompt) :].tolist()
        while new and new[-1] in self.tokenizer.all_special_ids:
            new.pop()
        return (
            Tokens(new) if new else InvalidArgumentError("The model ends the text at once; pass targets of your own.")
        )

    def _fails_on(self, encoded: Encoded) -> ModelFailedError | None:
        """The model's own error on a text, whatever it is asked to generate; None where it has none."""
        ids, inputs = self._alone(encoded)
        try:
            self.raw_logits(input_ids=ids, **inputs)
        except Exception as error:
            return ModelFailedError.caused_by(error)
        return None

    @contextlib.contextmanager
    def _own_random_numbers(self, prompt: Encoded, options: Mapping[str, Any]) -> Iterator[None]:
        """Sampling draws from the explainer's seed and the input, and the user's random state is put back."""
        if not options.get("do_sample"):
            yield
            return
        device = device_of(self.model)
        # The generator belongs to the whole process, so one text at a time may use it.
        with lock_of(GenerationTask), torch.random.fork_rng([device] if device.type == "cuda" else []):
            low, high = text_key(self.seed, prompt.input_ids)
            torch.manual_seed(low | high << 32)
            yield

    def check_options(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Greedy, and at most 20 tokens, where the user says nothing else."""
        if options is not None and not isinstance(options, Mapping):
            raise InvalidTypeError(f"generation_kwargs must be a mapping of names to values; got {options!r}.")
        options = dict(options or {})
        config = options.pop("generation_config", None)
        if config is not None:
            if not hasattr(config, "to_diff_dict"):
                raise InvalidTypeError(f"generation_config must be a GenerationConfig; got {type(config).__name__}.")
            described = {"transformers_version", "_from_model_config"}
            options = {k: v for k, v in config.to_diff_dict().items() if k not in described} | options
        for name in ("max_new_tokens", "max_length"):
            if name in options:
                options[name] = checks.whole(options[name], name, least=1)
        if not getattr(self.model, "can_generate", lambda: True)():
            raise UnsupportedModelError(f"{self.name} cannot generate; pass targets.")
        if "max_length" not in options:
            options = {"max_new_tokens": _NEW_TOKENS} | options
        options = {"do_sample": False} | options
        if "pad_token_id" not in options and self.tokenizer.pad_token_id is not None:
            options["pad_token_id"] = self.tokenizer.pad_token_id
        return options | {"return_dict_in_generate": False, "num_return_sequences": 1}

    def cut_end(self) -> str:
        """The target follows the end, so the beginning goes."""
        return "beginning"

    def serves_all(self, targets: Any) -> bool:
        """Each input has a target of its own."""
        return False

    def entries(self, targets: Any) -> Iterator[Any]:
        try:
            return sources(targets, or_none=True)
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
            raise InvalidArgumentError(f"There are {count} inputs but {len(each)} targets; give one for each input.")
        return each


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
