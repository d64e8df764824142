"""Inputs and what follows them, as tokens: a target reads as the tokenizer reads any text, and the input's tokens stay."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import POSITIONS, Predict, Prepared, Task
from fastshap.tasks.heads import output_layer
from fastshap.tasks.writing import checked_options, written
from fastshap.text.encode import Encoded, after, beginning, goes_on, without_ending
from fastshap.text.groups import Scope
from fastshap.text.inputs import KINDS, sources
from fastshap.text.spelling import decode
from fastshap.text.words import unspaced
from fastshap.types.targets import Contrast, contrasted


class Continued(NamedTuple):
    """An input and the target that follows it."""

    prompt: Encoded
    ending: Encoded


class Continuing(Task):
    """What tasks share whose targets follow the text."""

    takes_contrasts = True

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        targets = [None] * len(sources) if targets is None else targets
        both = [
            (_one(target.target), _one(target.other)) if isinstance(target, Contrast) else (target,)
            for target in targets
        ]
        pairs = [(source, one) for source, some in zip(sources, both, strict=True) for one in some if one is not None]
        each = iter(self.with_targets([source for source, _ in pairs], [one for _, one in pairs]))
        read = {i: [next(each) for _ in some] for i, some in enumerate(both) if some != (None,)}
        found = {i: self.explained(some) for i, some in read.items()}
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
            new.append(written(self, prompt, options, self.settings.seed, self.written_before(prompt)))
            generated()
        endings = self.encode(new, max_length=None)
        for (i, (source, prompt)), ending in zip(asked.items(), endings, strict=True):
            found[i] = self.explained([self.fitted(source, prompt, ending)])
        return [found[i] for i in range(len(found))]

    def explained(self, read: Sequence[Continued | FastshapError]) -> Prepared | FastshapError:
        """What is explained of a target, or of the two of a contrast."""
        span: Any = self.settings.span
        good = [one for one in read if isinstance(one, Continued)]
        if len(good) < len(read):
            return next(one for one in read if isinstance(one, FastshapError))
        if len(good) == 2:
            return InvalidArgumentError("A contrast is no span; leave out span.") if span else self._contrast(*good)
        prompt, ending = good[0]
        encoded, first = self.row(prompt, ending)
        if not span:
            return each_of(encoded, torch.tensor(ending.input_ids, device="cpu"), ending.tokens, first)
        bare = ending.text.lstrip()
        shift = len(ending.text) - len(bare)
        spans = [(0, len(bare))] if span is True else span
        rows = [[max(a, start + shift) < min(b, end + shift) for a, b in ending.offsets] for start, end in spans]
        if not all(map(any, rows)) or max(end for _, end in spans) > len(bare):
            return InvalidArgumentError(f"A span must lie in the target, which has {len(bare)} characters: {bare!r}.")
        names = [_text_of(ending, row) for row in rows]
        places = torch.arange(first - 1, first - 1 + len(ending), device="cpu")
        scope = Scope(places, joined=torch.tensor(rows, device="cpu").float())
        return sums_of(Prepared(encoded, torch.tensor(ending.input_ids, device="cpu"), names, scope=scope))

    def _contrast(self, one: Continued, other: Continued) -> Prepared | FastshapError:
        """The first tokens in which two targets differ, behind what they have in common."""
        ours, theirs = one.ending.input_ids, other.ending.input_ids
        same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if same is None:
            return InvalidArgumentError(
                f"{one.ending.text!r} and {other.ending.text!r} have no token in which they differ, as one begins with the "
                "other; contrast texts that part ways."
            )
        prompt = min(one.prompt, other.prompt, key=len)  # of a long input, cut to leave room for either target
        encoded, first = self.row(prompt, beginning(one.ending, same + 1))
        pair = torch.tensor([ours[same], theirs[same]], device="cpu")
        names = [contrasted(one.ending.text.strip(), other.ending.text.strip())]
        place = torch.tensor([first + same - 1] * 2, device="cpu")
        return sums_of(
            Prepared(encoded, pair, names, scope=Scope(place, joined=torch.tensor([[1.0, -1.0]], device="cpu")))
        )

    def background(self, text: str) -> Encoded | FastshapError:
        """As an input that leaves room for a token to follow."""
        return self.with_room([text], self.prompts([text]), {})[0]

    def written_before(self, prompt: Any) -> int:
        """How many tokens of what the model writes are no target: the input's."""
        return len(prompt) if isinstance(prompt, Encoded) else 0

    @abstractmethod
    def row(self, prompt: Encoded, ending: Encoded) -> tuple[Encoded, int]:
        """A row of an input and the target that follows it, and the place of the target's first token there."""

    def kept(self, prepared: Prepared) -> dict[str, Tensor]:
        """Of sums, where their targets are."""
        positions = prepared.scope.positions
        return {} if prepared.scope.joined is None or positions is None else {POSITIONS: positions}

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        found, asked, _ = tokenised
        yield from (one.encoded for one in found.values() if isinstance(one, Prepared))
        yield from (prompt for _, prompt in asked.values() if isinstance(prompt, Encoded))

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

    def with_targets(self, sources: Sequence[Any], targets: Sequence[Any]) -> list[Continued | FastshapError]:
        """Inputs with the targets that follow them; what is wrong with one stands in its place."""
        texts = [isinstance(s, str) and isinstance(t, str) for s, t in zip(sources, targets, strict=True)]
        sources = [_stripped(s) if both else s for s, both in zip(sources, texts, strict=True)]
        prompts = self.prompts(sources)
        spaced = [
            self._spaced(prompt, target) if isinstance(prompt, Encoded) and isinstance(target, str) else target
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        endings = self.encode(spaced, max_length=None, add_special_tokens=False)
        # Tokenised together, the two read as the tokenizer reads any text.
        joint = iter(self.prompts([s + e for s, e, both in zip(sources, spaced, texts, strict=True) if both]))
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
            found.append(self.fitted(source, prompt, ending))
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

    def with_room(
        self, sources: Sequence[Any], prompts: list[Encoded | FastshapError], options: Mapping[str, Any]
    ) -> list[Encoded | FastshapError]:
        """Prompts that leave the model room to go on; a string that fills it is cut."""
        limit = self.max_length()
        for i, (source, prompt) in enumerate(zip(sources, prompts, strict=True)):
            if limit is None or isinstance(prompt, FastshapError) or len(prompt) < limit:
                continue
            if isinstance(source, str):
                new = min(options.get("max_new_tokens") or 1, limit // 2)
                prompts[i] = self.prompts([source], limit - new)[0]
            else:
                prompts[i] = InvalidArgumentError(
                    f"The input has {len(prompt)} tokens and the model takes {limit}, so it cannot go on; pass a shorter one."
                )
        return prompts

    def prompts(self, sources: Sequence[Any], max_length: int | None = None) -> list[Encoded | FastshapError]:
        """Tokenised inputs; a string keeps none of the special tokens that a tokenizer puts at its end.

        What is too long loses its beginning: the target follows the end.
        """
        encoded = self.encode(sources, max_length=max_length, truncation_side="left")
        return [
            without_ending(one) if isinstance(one, Encoded) and isinstance(source, str) else one
            for source, one in zip(sources, encoded, strict=True)
        ]

    def fitted(
        self, source: Any, prompt: Encoded | FastshapError, ending: Encoded | FastshapError
    ) -> Continued | FastshapError:
        """An input and a target that the model can take together."""
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
        return Continued(prompt, ending)

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
        (cut,) = self.prompts([source], room)
        return cut


def each_of(encoded: Encoded, targets: Tensor, names: list[str], first: int) -> Prepared:
    """Each token of a target, the first at a row's place ``first``: the token before predicts it, and it sees none behind."""
    length, count = len(encoded), len(targets)
    own = torch.arange(first, first + count, device="cpu")
    hidden = torch.arange(length, device="cpu") >= own[:, None]
    return Prepared(encoded, targets, names, scope=Scope(own - 1, hidden, range(first, first + count)))


def sums_of(prepared: Prepared) -> Prepared:
    """Sums of targets' scores: each depends on no token behind the last place that it is read at."""
    positions, joined = prepared.scope.positions, prepared.scope.joined
    assert positions is not None
    assert joined is not None
    last = positions.expand_as(joined).where(joined != 0, -1).amax(1, keepdim=True)
    hidden = torch.arange(len(prepared.encoded), device="cpu") > last
    return dataclasses.replace(prepared, scope=Scope(positions, hidden, joined=joined))


def _text_of(ending: Encoded, chosen: Sequence[bool]) -> str:
    """The whole tokens that a span reaches."""
    places = [place for place, has in zip(ending.offsets, chosen, strict=True) if has]
    return ending.text[min(start for start, _ in places) : max(end for _, end in places)].strip()


def _one(target: Any) -> Any:
    """A side of a contrast, as :func:`sources` gives it."""
    found = [*sources([target])]
    return found[0] if len(found) == 1 else InvalidTypeError("Each side of a contrast is one text, or its token ids.")


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
