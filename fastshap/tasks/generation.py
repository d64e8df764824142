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
from fastshap.tasks.base import POSITIONS, Predict, Prepared, Shown
from fastshap.tasks.continuations import Continued, Continuing
from fastshap.tasks.heads import Way, full_logits, head_of, kept_logits, output_layer, target_logits
from fastshap.tasks.layout import masked
from fastshap.tasks.subject import takes
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, far, leaks, points, ran
from fastshap.tasks.writing import checked_options, written
from fastshap.text.encode import Encoded, join, until
from fastshap.text.groups import Scope
from fastshap.text.inputs import KINDS, sources
from fastshap.types import InferenceModes
from fastshap.types.targets import Contrast, contrasted

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
        both = [(target.target, target.other) if isinstance(target, Contrast) else (target,) for target in targets]
        pairs = [(source, one) for source, some in zip(sources, both, strict=True) for one in some if one is not None]
        each = iter(self.with_targets([source for source, _ in pairs], [one for _, one in pairs]))
        read = {i: [next(each) for _ in some] for i, some in enumerate(both) if some != (None,)}
        found = {i: self._explained(some) for i, some in read.items()}
        asked = {i: source for i, source in enumerate(sources) if i not in found}
        options = options or (self.check_options(None) if asked else {})
        prompts = self.with_room([*asked.values()], self.prompts([*asked.values()]), options)
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
            found[i] = self._explained([self.fitted(source, prompt, ending)])
        return [found[i] for i in range(len(found))]

    def _explained(self, read: Sequence[Continued | FastshapError]) -> Prepared | FastshapError:
        """What is explained of a target, or of the two of a contrast."""
        span: Any = self.settings.span
        good = [one for one in read if isinstance(one, Continued)]
        if len(good) < len(read):
            return next(one for one in read if isinstance(one, FastshapError))
        if len(good) == 2:
            return InvalidArgumentError("A contrast is no span; leave out span.") if span else _contrast(*good)
        prompt, ending = good[0]
        targets = torch.tensor(ending.input_ids, device="cpu")
        whole = _prepared(join(prompt, ending), targets, ending.tokens)
        if not span:
            return whole
        bare = ending.text.lstrip()
        first = len(ending.text) - len(bare)
        spans = [(0, len(bare))] if span is True else span
        rows = [[max(a, start + first) < min(b, end + first) for a, b in ending.offsets] for start, end in spans]
        if not all(map(any, rows)):
            return InvalidArgumentError(
                f"A span holds no token of the target, which has {len(bare)} characters: {bare!r}."
            )
        names = [bare[start:end].strip() for start, end in spans]
        return _sums(whole.encoded, targets, names, _positions(whole), torch.tensor(rows, device="cpu").float())

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

    def kept(self, prepared: Prepared) -> dict[str, Tensor]:
        """Of sums, where their targets are."""
        return {} if prepared.scope.joined is None else {POSITIONS: _positions(prepared)}

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if saved.scope.joined is not None:
            return _sums(saved.encoded, saved.targets, saved.target_names, _positions(saved), saved.scope.joined)
        parts = (len(saved.encoded) - len(saved.targets),)
        return _prepared(dataclasses.replace(saved.encoded, parts=parts), saved.targets, saved.target_names)

    def cut_end(self) -> str:
        """The target follows the end, so the beginning goes."""
        return "beginning"

    def serves_all(self, targets: Any) -> bool:
        """Each input has a target of its own; one contrast may serve all."""
        return isinstance(targets, Contrast)

    def entries(self, targets: Any) -> Iterator[Any]:
        try:
            return sources(targets, of_targets=True)
        except InvalidTypeError:
            raise InvalidTypeError(
                f"Generation targets are None (the model generates them) or, for each input, None, {KINDS}; got "
                f"{type(targets).__name__}."
            ) from None

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """None, one contrast, or a text, token ids, a contrast or None for each input."""
        if targets is None:
            return None
        if isinstance(targets, Contrast):
            return [targets] * count
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


def _positions(prepared: Prepared) -> Tensor:
    positions = prepared.scope.positions
    assert positions is not None
    return positions


def _sums(encoded: Encoded, targets: Tensor, names: list[str], positions: Tensor, joined: Tensor) -> Prepared:
    """Sums of targets' scores: each depends on no token behind the last place that it is read at."""
    last = positions.expand_as(joined).where(joined != 0, -1).amax(1, keepdim=True)
    hidden = torch.arange(len(encoded), device="cpu") > last
    return Prepared(encoded, targets, names, scope=Scope(positions, hidden, joined=joined))


def _contrast(one: Continued, other: Continued) -> Prepared | FastshapError:
    """The first tokens in which two targets differ, behind what they have in common."""
    ours, theirs = one.ending.input_ids, other.ending.input_ids
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if same is None or one.prompt.input_ids != other.prompt.input_ids:
        return InvalidArgumentError(
            f"{one.ending.text!r} and {other.ending.text!r} have no token in which they differ, as one begins with the other; "
            "contrast texts that part ways."
        )
    shared = until(one.ending, same + 1)
    whole = join(one.prompt, dataclasses.replace(shared, text=shared.text[: shared.offsets[-1][1]]))
    place, pair = (
        torch.tensor([len(whole) - 2] * 2, device="cpu"),
        torch.tensor([ours[same], theirs[same]], device="cpu"),
    )
    names = [contrasted(one.ending.text.strip(), other.ending.text.strip())]
    return _sums(whole, pair, names, place, torch.tensor([[1.0, -1.0]], device="cpu"))


def _goes_on(model: Any) -> bool:
    """Whether a model of any other name is a causal language model of text, as far as shows before it runs.

    That its logits are a row for each token, and depend on no later one, is found when it is tried.
    """
    generates = getattr(model, "can_generate", bool)() and not getattr(model.config, "is_encoder_decoder", False)
    return generates and takes(model, "inputs_embeds") and output_layer(model) is not None


def _names(mapping: Mapping[str, str | Sequence[str]]) -> set[str]:
    return {one for names in mapping.values() for one in ([names] if isinstance(names, str) else names)}
