"""Inputs and what follows them, as tokens: a target reads as the tokenizer reads any text, and the input's tokens stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.tasks.base import Task
from fastshap.tasks.heads import output_layer
from fastshap.text.encode import Encoded, after, goes_on, without_ending
from fastshap.text.spelling import decode
from fastshap.text.words import unspaced


class Continued(NamedTuple):
    """An input and the target that follows it."""

    prompt: Encoded
    ending: Encoded


class Continuing(Task):
    """What tasks share whose targets follow the text."""

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
