"""Checks of what comes in, with messages that say what would do."""

from __future__ import annotations

import difflib
import inspect
import numbers
import operator
import re
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastshap.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.types.baselines import BaselineSet

MOST_BINS = 1024  # of a path density
_MOST_WEIGHT = 1000  # of a sample, with such a density
_LARGEST = float(np.finfo(np.float32).max)


def pair(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A model and its tokenizer; a transformers pipeline brings both."""
    pipelines = sys.modules.get("transformers.pipelines.base")  # where there is a pipeline, it was imported
    if pipelines is not None and isinstance(model, pipelines.Pipeline):
        model, tokenizer = model.model, model.tokenizer if tokenizer is None else tokenizer
    if isinstance(model, str):
        raise InvalidTypeError(
            f"model must be a model or a transformers pipeline; got the name {model!r}. Load it, or call "
            "fastshap.explain, which takes a name."
        )
    if tokenizer is None:
        raise InvalidTypeError(
            "There is no tokenizer: pass the model's own beside it, or a transformers pipeline, which brings both."
        )
    if is_tokenizer(model):
        raise InvalidTypeError(
            f"model must be a model or a transformers pipeline; got the tokenizer {type(model).__name__}. The model comes "
            "first, the tokenizer second."
        )
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a model or a transformers pipeline; got {type(model).__name__}.")
    if isinstance(tokenizer, str | nn.Module) or not callable(tokenizer):
        raise InvalidTypeError(f"tokenizer must be the model's tokenizer; got {type(tokenizer).__name__}.")
    if not hasattr(model, "config"):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no config, so it is no model of transformers; those are explained that classify texts "
            "(*ForSequenceClassification) or go on with them (*ForCausalLM)."
        )
    return model, tokenizer


def is_tokenizer(value: Any) -> bool:
    """Whether it is one of transformers'."""
    base = sys.modules.get("transformers.tokenization_utils_base")  # where there is a tokenizer, it was imported
    return base is not None and isinstance(value, base.PreTrainedTokenizerBase)


_ELSEWHERE = dict.fromkeys(("n_samples", "nsamples", "n_steps"), "n_perturbations") | {"text_pair": "pair"}  # in peers


def near(name: str, known: Collection[str]) -> str:
    """Which of the known names may have been meant, in brackets; nothing where none is near."""
    other = _ELSEWHERE.get(name)
    found = [other] if other in known else difflib.get_close_matches(name, known, 1, 0.7)
    return f" (did you mean {found[0]}?)" if found else ""


def meant(name: str, value: Any, known: Sequence[str]) -> str:
    """What an option that there is not may have been meant for, in brackets; nothing where nobody knows."""
    if said := near(name, known):
        return said
    from transformers import GenerationConfig

    return f' (write generation_kwargs={{"{name}": {value!r:.40}}})' if name in vars(GenerationConfig()) else ""


def whole(value: Any, name: str, *, least: int, most: int | None = None, also: str = "") -> int:
    """A whole number within bounds; ``also`` names what else the parameter takes."""
    kinds = "a whole number" + (f" or {also}" if also else "")
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise InvalidTypeError(f"{name} must be {kinds}; got {value!r}.")
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise InvalidArgumentError(f"{name} must be {kinds}, {bounds}; got {number}.")
    return number


def batch_size(value: Any) -> int | str:
    """Rows of one model call, or "auto"."""
    return "auto" if isinstance(value, str) and value == "auto" else whole(value, "batch_size", least=1, also='"auto"')


def one_of(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    return value


def counted(count: int, thing: str) -> str:
    """A number with its noun: "1 text", "2 texts"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def there_are(count: int, thing: str) -> str:
    """The beginning of a sentence: "There is 1 text", "There are 2 texts"."""
    return f"There {'is' if count == 1 else 'are'} {counted(count, thing)}"


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidTypeError(f"{name} must be True or False; got {value!r}.")
    return bool(value)


def share(value: Any, name: str) -> float:
    """A number from 0 to 1."""
    number = finite(value, name)
    if not 0 <= number <= 1:
        raise InvalidArgumentError(f"{name} must be from 0 to 1; got {value}.")
    return number


def template(value: Any, name: str) -> str:
    """A string with one place to put something."""
    if not isinstance(value, str) or not re.fullmatch(r"[^{}]*\{\}[^{}]*", value):
        kind = InvalidArgumentError if isinstance(value, str) else InvalidTypeError
        raise kind(f"{name} must be a string with exactly one {{}}, where the label goes; got {value!r}.")
    return value


def spans(value: Any, name: str) -> bool | tuple[tuple[int, int], ...]:
    """True, False, or some (start, end), each with something between."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    try:
        found = tuple((operator.index(start), operator.index(end)) for start, end in value)
    except (TypeError, ValueError):
        found = ()
    if not found or any(not 0 <= start < end for start, end in found):
        raise InvalidTypeError(
            f"{name} must be True, False, or a list of (start, end) in characters of the target, as [(0, 5)]; got {value!r}."
        )
    return found


def devices(value: Any) -> list[torch.device]:
    """Devices that are here; none for None. "auto" is every GPU, or the CPU."""
    if value is None:
        return []
    if isinstance(value, str) and value == "auto":
        value = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    if not isinstance(value, list | tuple):
        value = [value]
    if not value:
        raise InvalidArgumentError("device is an empty list; name at least one device, or pass None.")
    return [_device(one) for one in value]


def _device(value: Any) -> torch.device:
    try:
        wanted = torch.device(value)
        if wanted.type == "meta":
            raise ValueError("tensors on it have no values")
        torch.empty(0, device=wanted)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InvalidArgumentError(
            "device must be None, 'auto', or a device of this machine, such as 'cpu' or 'cuda:0', or a list of these; got "
            f"{value!r} ({error})."
        ) from None
    return wanted


def finite(value: Any, name: str, also: str = "") -> float:
    """A number that is finite in float32, which the noise is computed in; ``also`` names what else the parameter takes."""
    kinds = f"{also} or a number" if also else "a number"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{name} must be {kinds}; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not abs(number) <= _LARGEST:
        raise InvalidArgumentError(f"{name} must be finite; got {value}.")
    return number


_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE | re.ASCII)
_BASELINES = "None, a number, a token's name, a Tensor or a BaselineSet"


def number_or_name(word: str) -> float | str:
    """A word of a command line: a number where it reads as one, else a name."""
    return float(word) if _NUMBER.fullmatch(word) else word


def path_density(value: Any, name: str) -> float | tuple[float, ...] | str | None:
    """A density of path positions: none, a width, numbers for equal bins, or "auto"; from the shell as "3,2,1"."""
    if isinstance(value, str):
        if value == "auto":
            return value
        value = _numbers(value)
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return _bins(tuple(finite(one, f"each number of {name}") for one in value), name)
    number = None if value is None else finite(value, name, 'None, "auto", numbers in a list')
    if number is not None and not 1e-3 <= number <= 1e3:
        raise InvalidArgumentError(f"{name} must be between 0.001 and 1000; got {value}.")
    return number


def _bins(value: tuple[float, ...], name: str) -> tuple[float, ...]:
    if not 2 <= len(value) <= MOST_BINS:
        raise InvalidArgumentError(f"{name} takes 2 to {MOST_BINS} numbers; got {len(value)}.")
    mean = sum(value) / len(value)
    if min(value) <= 0 or min(value) * _MOST_WEIGHT < mean:
        raise InvalidArgumentError(
            f"The numbers of {name} must be more than zero, and none below a {_MOST_WEIGHT}th of their mean: the rare samples "
            f"there would count that many times as much. Got {min(value)}, with a mean of {mean:.4g}."
        )
    return value


def _numbers(value: str) -> Any:
    """The numbers of a text from the shell, "3,2,1"; one alone is no list. The text itself, if it is something else."""
    try:
        found = [float(one) for one in value.split(",")]
    except ValueError:
        return value
    return found if len(found) > 1 else found[0]


def baseline(value: Any, name: str) -> float | Tensor | str | BaselineSet:
    """A reference embedding as a number, a name, a set, or a tensor of its own, which nobody else writes to."""
    if value is None:
        return 0.0
    if isinstance(value, str):
        if not value:
            raise InvalidArgumentError(f'The {name} is an empty string; name a token, "[MASK]" say, or pass "mean".')
        return value
    if isinstance(value, BaselineSet):
        return value
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise InvalidTypeError(f"The {name} must be {_BASELINES}; got {type(value).__name__}.")
        return finite(value, name, "None, a token's name, a Tensor, a BaselineSet")
    if value.layout != torch.strided or value.is_meta:
        raise InvalidArgumentError(f"The {name} must be a dense tensor that holds values.")
    if not value.is_floating_point():
        raise InvalidArgumentError(
            f"The {name} must have a floating-point dtype like the embeddings; got {value.dtype}."
        )
    if value.ndim not in (1, 2):
        raise InvalidArgumentError(
            f"The {name} has shape {tuple(value.shape)}: pass a number, or a tensor of shape (D,) or (L, D), where D is the "
            "model's embedding dimension and L the number of the text's tokens. Several baselines are a fastshap.BaselineSet."
        )
    if not bool(value.isfinite().all()):
        raise InvalidArgumentError(f"The {name} holds NaN or infinite values.")
    return value.detach().clone()


def baseline_width(value: float | Tensor | str | BaselineSet, width: int) -> None:
    """Nothing, if a baseline fits embeddings of that dimension."""
    if isinstance(value, BaselineSet) and value.shape is not None and value.shape[-1] != width:
        raise InvalidArgumentError(
            f"The BaselineSet has shape {value.shape}, but the model's embeddings have shape (L, {width}): its embeddings must "
            f"have shape (k, {width}), or (k, L, {width}) for texts of L tokens."
        )
    if isinstance(value, Tensor) and value.shape[-1] != width:
        raise InvalidArgumentError(
            f"The baseline has shape {tuple(value.shape)}, but the model's embeddings have shape (L, {width}): pass a "
            f"number, a tensor of shape ({width},), or one of the text's shape (L, {width})."
        )


def baseline_length(value: float | Tensor | str | BaselineSet, length: int) -> InvalidArgumentError | None:
    """What is wrong with a baseline for a text of so many tokens."""
    if isinstance(value, BaselineSet):
        if value.shape is None or len(value.shape) == 2 or value.shape[1] == length:
            return None
        return InvalidArgumentError(
            f"The BaselineSet has shape {value.shape}, but this text has embeddings of shape {(length, value.shape[2])}. Pass "
            f"members of that shape, or embeddings (k, {value.shape[2]}) or background texts, which fit every text."
        )
    if not isinstance(value, Tensor) or value.ndim == 1 or len(value) == length:
        return None
    rows, width = value.shape
    return InvalidArgumentError(
        f"The baseline has shape {(rows, width)}, but this text has embeddings of shape {(length, width)}. Pass a "
        f"baseline of that shape, or one of shape ({width},) that fits every text."
    )


def refuse_unknown(
    options: Mapping[str, Any], known: Collection[str], who: str, further: str, beside: Sequence[str] = ()
) -> None:
    """Names of options that there are not are an error, which says what may have been meant.

    Args:
        beside: what may have been meant as well, though it is no such option.

    Raises:
        InvalidArgumentError: there are such names.
    """
    if said := _of_unknown(options, known, beside):
        raise InvalidArgumentError(f"{who} has {said}. {further}")


def _of_unknown(options: Mapping[str, Any], known: Collection[str], beside: Sequence[str] = ()) -> str:
    """Which names are no options, and which options there are; an empty string if all are known."""
    unknown = sorted(options.keys() - set(known))
    named = ", ".join(name + meant(name, options[name], [*beside, *known]) for name in unknown)
    return f"no option {named}; there are {', '.join(sorted(known))}" if unknown else ""


def bound(signature: inspect.Signature, who: str, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names. The first in ``given`` is the object itself.

    Raises:
        InvalidTypeError: they do not fit the signature. For an unknown name, the message suggests the right one.
    """
    known = [name for name in signature.parameters if name != "self"]
    if said := _of_unknown(named, known):
        raise InvalidTypeError(f"{who} has {said}.")
    try:
        return signature.bind(*given, **named).arguments
    except TypeError as error:
        raise InvalidTypeError(f"{who}: {error}.") from None


def signature(places: Sequence[str], defaults: Mapping[str, Any]) -> inspect.Signature:
    """A function's: parameters that can be given by their places, and those of ``defaults`` beside them by name alone."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if name in places else inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, inspect.Parameter.empty),
            )
            for name in dict.fromkeys((*places, *defaults))
        ]
    )


def vocabulary(own: int, known: int) -> None:
    """Refuses a tokenizer of ``own`` tokens for a model that knows many more."""
    if 10 * own < known:
        raise InvalidArgumentError(
            f"The tokenizer knows {own} tokens and the model {known}: it is another model's, or its files are missing beside "
            "the model's. Load the one that the model was trained with."
        )


def noise(value: Any, name: str) -> float:
    """A standard deviation."""
    number = finite(value, name)
    if number < 0:
        raise InvalidArgumentError(f"{name} must be finite, and zero or more; got {value}.")
    return number


def tolerance(value: Any, name: str) -> float | None:
    """A share, or None."""
    number = None if value is None else finite(value, name, "None")
    if number is not None and number <= 0:
        raise InvalidArgumentError(f"{name} must be more than zero and finite, for example 0.05; got {value}.")
    return number


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a parameter are the same; tensors by their numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)


def documented(doc: str | None, parameters: Mapping[str, Any]) -> str | None:
    """A docstring in which the parameters' docs replace the line ``{settings}``."""
    if doc is None:  # Python was started without docstrings
        return None
    (line,) = (line for line in doc.splitlines() if line.strip() == "{settings}")
    first = line[: -len("{settings}")]
    wrapped = (
        textwrap.fill(f"{name}: {its.doc}", 120, initial_indent=first, subsequent_indent=f"{first}    ")
        for name, its in parameters.items()
    )
    return doc.replace(line, "\n".join(wrapped))
