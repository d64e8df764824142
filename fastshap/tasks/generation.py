"""Causal language models: targets are the tokens of a text that follows the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.engine.run import backward_only_once
from fastshap.errors import FastshapError, UnsupportedModelError
from fastshap.tasks.base import Prepared, Shown
from fastshap.tasks.continuations import Continuing, each_of, sums_of
from fastshap.tasks.heads import Way, full_logits, head_of, kept_logits, output_layer, target_logits
from fastshap.tasks.layout import masked
from fastshap.tasks.subject import takes
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, far, leaks, points, ran
from fastshap.text.encode import Encoded, join
from fastshap.types import InferenceModes

_TRIED = 8  # tokens, at least, on which the ways to the logits are compared


class GenerationTask(Continuing):
    """Models that go on with a text: logits (R, L, V); the one before a token's position predicts it."""

    name = "generation"
    class_endings = ("ForCausalLM", "LMHeadModel")
    auto_class = "AutoModelForCausalLM"
    explains = "causal language models, which predict the next token from text alone"
    shown = Shown("generated", segments=("prompt", "generated"), map_axes=("generated", "drew on"), reads_on=True)
    writes_targets = True
    takes_spans = True
    takes_chats = True
    steadiest_mode = "softmax"
    keeps_positions = False  # the targets are a text's last tokens
    measurable = True
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

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if saved.scope.joined is not None:
            return sums_of(saved)
        first = len(saved.encoded) - len(saved.targets)
        encoded = dataclasses.replace(saved.encoded, parts=saved.encoded.parts or (first,))
        return each_of(encoded, saved.targets, saved.target_names, first)

    def row(self, prompt: Encoded, ending: Encoded) -> tuple[Encoded, int]:
        return join(prompt, ending), len(prompt)

    def cut_end(self) -> str:
        """The target follows the end, so the beginning goes."""
        return "beginning"


def _goes_on(model: Any) -> bool:
    """Whether a model of any other name is a causal language model of text, as far as shows before it runs.

    That its logits are a row for each token, and depend on no later one, is found when it is tried.
    """
    generates = getattr(model, "can_generate", bool)() and not getattr(model.config, "is_encoder_decoder", False)
    return generates and takes(model, "inputs_embeds") and output_layer(model) is not None


def _names(mapping: Mapping[str, str | Sequence[str]]) -> set[str]:
    return {one for names in mapping.values() for one in ([names] if isinstance(names, str) else names)}
