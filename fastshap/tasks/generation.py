"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap.engine import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Predict, Prepared, Task
from fastshap.text import Encoded, encode, join
from fastshap.types import ModelTask


class GenerationTask(Task):
    """``*ForCausalLM`` and ``*LMHeadModel``: logits (R, L, V); the one before a token's position predicts it."""

    class_endings = ("ForCausalLM", "LMHeadModel")
    model_task = ModelTask.GENERATION

    @cached_property
    def _options(self) -> dict[str, Any]:
        known = inspect.signature(type(self.model).forward).parameters
        return {"use_cache": False} if "use_cache" in known else {}

    def scores(self, call: Call) -> Tensor:
        logits = self.model(**call.inputs, **self._options).logits  # (R, L, V)
        count = call.targets.shape[1]
        before = call.ends[:, None] - count - 1 + torch.arange(count, device=logits.device)
        row = torch.arange(logits.shape[0], device=logits.device)[:, None]
        values = self.inference_mode(logits[row, before])  # (R, T, V)
        return values.gather(2, call.targets[..., None]).squeeze(2)

    def prepare(
        self, texts: Sequence[Any], targets: Sequence[Any] | None, predict: Predict
    ) -> list[Prepared | FastshapError]:
        if targets is None:
            raise InvalidArgumentError(
                "A causal language model is explained for a text that follows the input: pass targets, one text for each "
                "input, for instance what model.generate returned."
            )
        # interpreto cuts white space before the target, which brings its own, likewise.
        prompts = encode(self.tokenizer, [t.rstrip() if isinstance(t, str) else t for t in texts], max_length=None)
        spaced = [f" {t}" if isinstance(t, str) and t[:1] not in (" ", "") else t for t in targets]
        endings = encode(self.tokenizer, spaced, max_length=None, add_special_tokens=False)
        return [self._prepared(prompt, ending) for prompt, ending in zip(prompts, endings, strict=True)]

    def _prepared(self, prompt: Encoded | FastshapError, ending: Encoded | FastshapError) -> Prepared | FastshapError:
        if isinstance(prompt, FastshapError):
            return prompt
        if isinstance(ending, FastshapError):
            return type(ending)(f"The target text cannot be used. {ending}")
        limit = self.max_length()
        if limit is not None and len(prompt) + len(ending) > limit:
            if len(ending) >= limit:
                return InvalidArgumentError(
                    f"The target is {len(ending)} tokens long and the model takes {limit} with the input; shorten it."
                )
            (cut,) = encode(self.tokenizer, [prompt.text], max_length=limit - len(ending))
            if isinstance(cut, FastshapError):
                return cut
            prompt = cut
        return Prepared(join(prompt, ending), torch.tensor(ending.input_ids), ending.tokens)

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """A text, or one text for each input."""
        if targets is None:
            return None
        if isinstance(targets, str):
            each = [targets]
        elif isinstance(targets, Iterable) and not isinstance(targets, bytes | dict | Tensor):
            each = list(targets)
        else:
            raise InvalidTypeError(
                f"Generation targets are a text or a list of texts, one for each input; got {type(targets).__name__}."
            )
        if len(each) != count:
            raise InvalidArgumentError(f"There are {count} inputs but {len(each)} targets; give one for each input.")
        return each
