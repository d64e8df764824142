"""Baselines in numbers: what the model's embeddings make of a token's name, of the mean and of background texts."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap.checks import baseline_width, number_or_name
from fastshap.engine.members import Members
from fastshap.engine.run import device_of
from fastshap.errors import InvalidArgumentError
from fastshap.text.encode import Encoded, encode
from fastshap.types.baselines import BaselineSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fastshap.tasks.base import Task

MEAN = "mean"
_BY_NUMBER = re.compile(r"#\d+", re.ASCII)
_MOST_KNOWN = 8  # baselines of one model that are remembered
_AT_ONCE = 1 << 13  # tokens that are embedded together
_SHOWN = 12  # special tokens in a message


def check(baseline: float | Tensor | str | BaselineSet, tokenizer: Any, rows: int, width: int) -> None:
    """Whether a model with a table of embeddings (rows, width) and its tokenizer can have this baseline.

    Raises:
        InvalidArgumentError: they cannot; the message says what would do.
    """
    baseline_width(baseline, width)
    if isinstance(baseline, str) and baseline != MEAN:
        token_id(baseline, tokenizer, rows)


def in_numbers(baseline: float | Tensor | str | BaselineSet, task: Task) -> float | Tensor | Members:
    """The baseline as the engine takes it. What the model has to be asked for is remembered until its state changes."""
    if isinstance(baseline, float | Tensor):
        return _of_its_dtype(baseline, task)
    known = task.found("baselines", _Known)
    assert known is not None  # made where there was none
    return known.of(baseline, task)


class _Known:
    """What was found last."""

    def __init__(self) -> None:
        self._found: dict[str | BaselineSet, Tensor | Members] = {}

    def of(self, baseline: str | BaselineSet, task: Task) -> Tensor | Members:
        found = self._found.get(baseline)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = _named(baseline, task) if isinstance(baseline, str) else _of_set(baseline, task)
            while len(self._found) >= _MOST_KNOWN:
                self._found.pop(next(iter(self._found)), None)
            self._found[baseline] = found
        return found


def token_id(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """The id of a token, by its name in the vocabulary or as #id.

    Args:
        rows: of the model's table of embeddings.

    Raises:
        InvalidArgumentError: the tokenizer does not know the token, or the model has no embedding for it.
    """
    try:
        found: Any = int(name[1:]) if _BY_NUMBER.fullmatch(name) else tokenizer.convert_tokens_to_ids(name)
    except ValueError:  # thousands of digits, or half a character
        raise InvalidArgumentError(f"The tokenizer has no token {name[:40]!r} for a baseline.") from None
    spelt = None if found is None else _spelt(tokenizer, found)
    if spelt is None or not (spelt == name or _BY_NUMBER.fullmatch(name)):
        raise InvalidArgumentError(
            f"The tokenizer has no token {name!r} for a baseline{_near(name, tokenizer) or '.'} Name a token as the "
            f'vocabulary spells it, or by its number, "#103" say; "mean" is the mean embedding. Special tokens are '
            f"{', '.join(map(repr, tokenizer.all_special_tokens[:_SHOWN])) or 'none'}."
        )
    if found >= rows:
        raise InvalidArgumentError(
            f"The baseline names the token {spelt!r}, id {found}, but the model's embedding table has {rows} rows: call "
            "model.resize_token_embeddings(len(tokenizer)) and train the new rows, or name another token."
        )
    return int(found)


def _spelt(tokenizer: PreTrainedTokenizerBase, number: int) -> str | None:
    """The token of this id, if there is one."""
    try:
        name: Any = tokenizer.convert_ids_to_tokens(number)
        return name if isinstance(name, str) and tokenizer.convert_tokens_to_ids(name) == number else None
    except (IndexError, KeyError, OverflowError, ValueError):
        return None


def _near(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What may have been meant, as the end of a sentence."""
    if isinstance(number_or_name(name), float):
        return "; for a constant, pass the number itself, without quotes."
    if _BY_NUMBER.fullmatch(name):
        return f"; it has {len(tokenizer)} tokens."
    vocabulary = tokenizer.get_vocab()
    (encoded,) = encode(tokenizer, [name], max_length=None, add_special_tokens=False)
    alone = encoded.input_ids if isinstance(encoded, Encoded) else []
    spelt = [_spelt(tokenizer, alone[0])] if len(alone) == 1 and alone[0] != tokenizer.unk_token_id else []
    special = difflib.get_close_matches(name, tokenizer.all_special_tokens, 2, 0.5)
    same = [token for token in vocabulary if token.casefold() == name.casefold()]
    near = list(dict.fromkeys(filter(None, [*special, *spelt, *same]))) or difflib.get_close_matches(
        name, vocabulary, 3, 0.7
    )
    named = [f"{token!r} (#{vocabulary[token]})" for token in near[:4] if token in vocabulary]
    return f"; did you mean {' or '.join(named)}?" if named else ""


def _named(name: str, task: Task) -> Tensor:
    """(D,)"""
    rows = _rows(task)
    if name != MEAN:
        return _embedded(task, [token_id(name, task.tokenizer, rows)])[0]
    ids = sorted({number for number in task.tokenizer.get_vocab().values() if number < rows})
    parts = (ids[lo : lo + _AT_ONCE] for lo in range(0, len(ids), _AT_ONCE))
    totals = [_promoted(_embedded(task, part)).sum(0) for part in parts]
    return torch.stack(totals).sum(0) / len(ids)


def _of_set(baselines: BaselineSet, task: Task) -> Members:
    if baselines.texts is None:
        tensor = _of_its_dtype(baselines.tensor, task)
        assert isinstance(tensor, Tensor)  # as it has no texts
        return Members(tensor.to(device_of(task.model)))
    texts = [_tokens(text, place, task) for place, text in enumerate(baselines.texts)]
    filling = _filling(task)
    longest = max(map(len, texts))
    rows = [
        torch.cat([_embedded(task, ids), filling.expand(longest - len(ids), -1)])
        if len(ids) < longest
        else _embedded(task, ids)
        for ids in texts
    ]
    return Members(torch.stack(rows), filling)


def _of_its_dtype(baseline: Any, task: Task) -> Any:
    """The same baseline, if it is no wider than what the model's embeddings are computed in.

    Raises:
        InvalidArgumentError: it is.
    """
    if isinstance(baseline, Tensor):
        own = next(task.model.get_input_embeddings().parameters()).dtype
        if baseline.dtype.itemsize > max(own.itemsize, torch.float32.itemsize):
            ours, theirs = (str(dtype).removeprefix("torch.") for dtype in (baseline.dtype, own))
            raise InvalidArgumentError(
                f"The baseline has dtype {ours}, but the model's embeddings have {theirs}: pass its float()."
            )
    return baseline


def _tokens(text: str, place: int, task: Task) -> list[int]:
    """A background text's ids, as those of a text to explain."""
    encoded = task.background(text)
    if isinstance(encoded, Encoded):
        return encoded.input_ids
    raise InvalidArgumentError(
        f"Text {place} of the BaselineSet, {text[:40]!r}, has no token that the model can take; leave it out."
    )


def _filling(task: Task) -> Tensor:
    """(D,) what fills background texts up: the padding token, else the end-of-text token, else zero."""
    rows, its = _rows(task), task.tokenizer
    for number in (its.pad_token_id, its.eos_token_id):
        if isinstance(number, int) and 0 <= number < rows:
            return _embedded(task, [number])[0]
    return torch.zeros_like(_embedded(task, [0])[0])


def _rows(task: Task) -> int:
    """Of the model's table of embeddings."""
    return int(next(task.model.get_input_embeddings().parameters()).shape[0])


def _embedded(task: Task, ids: list[int]) -> Tensor:
    """(tokens, D) as the model embeds them, in its dtype."""
    table = task.model.get_input_embeddings()
    embedded: Tensor = table(torch.tensor(ids, device=device_of(task.model)))
    return embedded.detach()


def _promoted(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
