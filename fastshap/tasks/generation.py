"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap.engine import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.tasks.base import Predict, Prepared, Task, near, takes
from fastshap.text import Encoded, join
from fastshap.types import ModelTask


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
                f"{type(self.model).__name__} is not causal: its logits depend on later tokens, so they do not predict the "
                "next one. Load an encoder as a decoder (is_decoder=True in its configuration), or use a causal language model."
            )

    def scores(self, call: Call) -> Tensor:
        logits = self.raw_logits(**call.inputs)  # (R, L, V)
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
        stripped = [t.rstrip() if isinstance(t, str) else t for t in texts]
        prompts = self.encode(stripped, max_length=None)
        spaced = [f" {t}" if isinstance(t, str) and t[:1] not in (" ", "") else t for t in targets]
        endings = self.encode(spaced, max_length=None, add_special_tokens=False)
        return [self._prepared(*one) for one in zip(stripped, prompts, endings, strict=True)]

    def _prepared(
        self, text: Any, prompt: Encoded | FastshapError, ending: Encoded | FastshapError
    ) -> Prepared | FastshapError:
        if isinstance(prompt, FastshapError):
            return prompt
        if isinstance(ending, FastshapError):
            return type(ending)(f"The target text cannot be used. {ending}")
        limit = self.max_length()
        if limit is not None and len(prompt) + len(ending) > limit:
            # At least one token of the input has to stay beside those that the tokenizer adds.
            room = limit - len(ending)
            if room <= self.tokenizer.num_special_tokens_to_add():
                return InvalidArgumentError(
                    f"The target is {len(ending)} tokens long and the model takes {limit} with the input; shorten it."
                )
            (cut,) = self.encode([text], max_length=room)
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
        elif isinstance(targets, Iterable) and not isinstance(targets, bytes | Mapping | Tensor):
            each = list(targets)
        else:
            raise InvalidTypeError(
                f"Generation targets are a text or a list of texts, one for each input; got {type(targets).__name__}."
            )
        if len(each) != count:
            raise InvalidArgumentError(f"There are {count} inputs but {len(each)} targets; give one for each input.")
        return each
