"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap.engine import Call, device_of
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.inputs import KINDS, Tokens, sources
from fastshap.sampling import text_key
from fastshap.tasks.base import Predict, Prepared, Task, near, takes, unwrapped
from fastshap.text import Encoded, continuation, join, without_ending
from fastshap.types import ModelTask

_NEW_TOKENS = 20
# Scripts that put no space between words, by the beginnings of their characters' Unicode names.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "FULLWIDTH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class GenerationTask(Task):
    """``*ForCausalLM`` and ``*LMHeadModel``: logits (R, L, V); the one before a token's position predicts it."""

    class_endings = ("ForCausalLM", "LMHeadModel")
    model_task = ModelTask.GENERATION

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if takes(self.model, "use_cache") else {}

    def raw_logits(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs, **self._options).logits

    def check_model(self, x: Tensor, inputs: dict[str, Tensor], logits: Tensor) -> None:
        """A causal model's logits do not depend on later tokens."""
        other = x.clone()
        other[:, -1] = -x[:, -1] + 1
        if not near(self.raw_logits(inputs_embeds=other, **inputs)[:, :-1], logits[:, :-1]):
            raise UnsupportedModelError(
                f"{type(unwrapped(self.model)).__name__} is not causal: its logits depend on later tokens, so they do not "
                "predict the next one. Load an encoder as a decoder (is_decoder=True in its configuration), or use a causal "
                "language model."
            )

    def scores(self, call: Call) -> Tensor:
        logits = self.raw_logits(**call.inputs)  # (R, L, V)
        count = call.targets.shape[1]
        before = call.ends[:, None] - count - 1 + torch.arange(count, device=logits.device)
        row = torch.arange(logits.shape[0], device=logits.device)[:, None]
        values = self.transformed(logits[row, before])  # (R, T, V)
        return values.gather(2, call.targets[..., None]).squeeze(2)

    def prepare(
        self, sources: Sequence[Any], targets: Sequence[Any] | None, predict: Predict, options: Mapping[str, Any]
    ) -> list[Prepared | FastshapError]:
        if targets is None:
            limit, new = self.max_length(), options.get("max_new_tokens", 1)
            prompts = self._prompts(sources, None if limit is None else max(1, limit - new))
            endings = self._targets([self._generated(prompt, options) for prompt in prompts])
            wholes: list[Any] = [None] * len(prompts)
        else:
            texts = [_are_texts(*pair) for pair in zip(sources, targets, strict=True)]
            sources = [_stripped(s) if both else s for s, both in zip(sources, texts, strict=True)]
            prompts = self._prompts(sources)
            spaced = [
                _spaced(prompt.text, target) if isinstance(prompt, Encoded) and isinstance(target, str) else target
                for prompt, target in zip(prompts, targets, strict=True)
            ]
            endings = self._targets(spaced)
            # Tokenised together, the two read as the tokenizer reads any text.
            joined = iter(self._prompts([s + e for s, e, both in zip(sources, spaced, texts, strict=True) if both]))
            wholes = [next(joined) if both else None for both in texts]
        return [self._prepared(*one) for one in zip(sources, prompts, endings, wholes, strict=True)]

    def _prompts(self, sources: Sequence[Any], max_length: int | None = None) -> list[Encoded | FastshapError]:
        """Tokenised inputs; a string keeps none of the special tokens that a tokenizer puts at its end."""
        return [
            without_ending(one) if isinstance(one, Encoded) and isinstance(source, str) else one
            for source, one in zip(sources, self.encode(sources, max_length=max_length), strict=True)
        ]

    def _targets(self, targets: Sequence[Any]) -> list[Encoded | FastshapError]:
        """Tokenised targets by themselves."""
        found = self.encode(targets, max_length=None, add_special_tokens=False)
        for i, (target, one) in enumerate(zip(targets, found, strict=True)):
            # SentencePiece puts a space before every text, so a second one would become a token of its own.
            if isinstance(one, Encoded) and isinstance(target, str) and target[0] == " " and one.tokens[0] == "▁":
                found[i] = self.encode([target[1:]], max_length=None, add_special_tokens=False)[0]
        return found

    def _prepared(
        self, source: Any, prompt: Encoded | FastshapError, ending: Encoded | FastshapError, whole: Any
    ) -> Prepared | FastshapError:
        if isinstance(prompt, FastshapError):
            return prompt
        if isinstance(ending, FastshapError):
            return type(ending)(f"The target cannot be used. {ending}")
        joined = continuation(prompt, whole) if isinstance(whole, Encoded) else None
        joined = joined or join(prompt, ending)
        limit = self.max_length()
        if limit is not None and len(joined) > limit:
            cut = self._cut(source, len(prompt), len(ending), limit)
            if isinstance(cut, FastshapError):
                return cut
            joined = join(cut, ending)
        targets = slice(joined.prompt_length, None)
        return Prepared(joined, torch.tensor(joined.input_ids[targets], device="cpu"), joined.tokens[targets])

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
        with self._own_random_numbers(prompt, options), torch.no_grad():
            try:
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            except (TypeError, ValueError) as error:
                return InvalidArgumentError(f"The model could not generate a target with {dict(options)}: {error}")
        new = out[0, len(prompt) :].tolist()
        while new and new[-1] in self.tokenizer.all_special_ids:
            new.pop()
        return (
            Tokens(new) if new else InvalidArgumentError("The model ends the text at once; pass targets of your own.")
        )

    @contextlib.contextmanager
    def _own_random_numbers(self, prompt: Encoded, options: Mapping[str, Any]) -> Iterator[None]:
        """Sampling draws from the explainer's seed and the input, and the user's random state is put back."""
        if not options.get("do_sample"):
            yield
            return
        device = device_of(self.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            low, high = text_key(self.seed, prompt.input_ids)
            torch.manual_seed(low | high << 32)
            yield

    def check_options(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Greedy, and at most 20 tokens, where the user says nothing else."""
        options = dict(options or {})
        if not getattr(self.model, "can_generate", lambda: True)():
            raise UnsupportedModelError(f"{type(unwrapped(self.model)).__name__} cannot generate; pass targets.")
        if "max_length" not in options:
            options = {"max_new_tokens": _NEW_TOKENS} | options
        options = {"do_sample": False} | options
        if "pad_token_id" not in options and self.tokenizer.pad_token_id is not None:
            options["pad_token_id"] = self.tokenizer.pad_token_id
        return options | {"return_dict_in_generate": False, "num_return_sequences": 1}

    def serves_all(self, targets: Any) -> bool:
        """Each input has a target of its own."""
        return False

    def entries(self, targets: Any) -> Iterator[Any]:
        try:
            return sources(targets)
        except InvalidTypeError:
            raise InvalidTypeError(
                f"Generation targets are None (the model generates them) or, for each input, {KINDS}; got "
                f"{type(targets).__name__}."
            ) from None

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """None, or a text or token ids for each input."""
        if targets is None:
            return None
        each = list(self.entries(targets))
        if len(each) != count:
            raise InvalidArgumentError(f"There are {count} inputs but {len(each)} targets; give one for each input.")
        return each


def _are_texts(source: Any, target: Any) -> bool:
    return isinstance(source, str) and isinstance(target, str)


def _stripped(prompt: str) -> str:
    """Without spaces at its end, as the target brings its own; a line break there is part of the prompt."""
    bare = prompt.rstrip(" ")
    return prompt if bare[-1:].isspace() else bare


def _spaced(prompt: str, target: str) -> str:
    """The target with the space that parts it from the prompt."""
    last, first = prompt[-1:], target[:1]
    if not first or not last or last.isspace() or first.isspace() or _unspaced(last) or _unspaced(first):
        return target
    return f" {target}"


def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)
