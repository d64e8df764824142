"""Several baselines at once, and the form that files give to baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError, InvalidTypeError

_MOST = 2**31 - 1  # members
_DTYPES = ("float16", "bfloat16", "float32", "float64")


class BaselineSet:
    """Several baselines. Each sample draws one of them, uniformly, and adds its noise to it.

    Args:
        members: a tensor of embeddings, (k, D), or (k, L, D) for texts of L tokens; or a list of k background texts. These are
            tokenised like the texts to explain, embedded by the model, and cut or filled with the padding token to a text's
            length.

    Attributes:
        texts: the background texts; None if the members are embeddings.
        fingerprint: 16 hex digits, which change with any member.

    The set cannot be changed. Sets of the same members are equal. ``len`` is k.

    Raises:
        InvalidArgumentError, InvalidTypeError: there is no member, a text is empty, or the tensor cannot hold embeddings.

    Example:
        >>> background = BaselineSet(["An ordinary film.", "It is what it is."])
        >>> explainer = fastshap.GradientShap(*fastshap.load_default_model(), baseline=background)
        >>> explainer("A gorgeous film.")[0].elements
        ['A', 'gorgeous', 'film', '.']
    """

    __slots__ = ("_tensor", "fingerprint", "texts")
    texts: tuple[str, ...] | None
    fingerprint: str
    _tensor: Tensor | None

    def __init__(self, members: Tensor | Iterable[str]) -> None:
        tensor = _embeddings(members) if isinstance(members, Tensor) else None
        texts = None if tensor is not None else _texts(members)
        for name, value in (("_tensor", tensor), ("texts", texts), ("fingerprint", _fingerprint(tensor, texts))):
            object.__setattr__(self, name, value)

    @property
    def tensor(self) -> Tensor | None:
        """A copy of the embeddings, on the CPU. None if the members are texts."""
        return None if self._tensor is None else self._tensor.clone()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the embeddings, (k, D) or (k, L, D). None if the members are texts."""
        return None if self._tensor is None else tuple(self._tensor.shape)

    def __len__(self) -> int:
        return len(self.texts if self._tensor is None else self._tensor)  # type: ignore[arg-type]  # it has one of the two

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A BaselineSet cannot be changed; make another one instead of setting {name!r}.")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaselineSet):
            return NotImplemented
        if self.fingerprint != other.fingerprint or self.texts != other.texts:
            return False
        return self._tensor is None or (other._tensor is not None and torch.equal(self._tensor, other._tensor))

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[type[BaselineSet], tuple[Any]]:
        return type(self), (self.texts if self._tensor is None else self._tensor,)

    def __repr__(self) -> str:
        what = f"{len(self)} texts" if self._tensor is None else f"{_short(self._tensor.dtype)} {self.shape}"
        return f"BaselineSet({what}, fingerprint {self.fingerprint})"


def _embeddings(members: Tensor) -> Tensor:
    shape = tuple(members.shape)
    if members.layout != torch.strided or members.is_meta:
        raise InvalidArgumentError("The embeddings of a BaselineSet must be a dense tensor that holds values.")
    if not members.is_floating_point() or _short(members.dtype) not in _DTYPES:
        raise InvalidArgumentError(
            f"The embeddings of a BaselineSet must have one of the dtypes {', '.join(_DTYPES)}; got {_short(members.dtype)}."
        )
    if len(shape) not in (2, 3):
        raise InvalidArgumentError(
            f"The embeddings of a BaselineSet have shape (k, D) or (k, L, D), with D the model's embedding dimension and L the "
            f"number of the text's tokens; got {shape}."
        )
    if 0 in shape or len(members) > _MOST:
        raise InvalidArgumentError(f"A BaselineSet needs at least one member, and no empty ones; got shape {shape}.")
    if not bool(members.isfinite().all()):
        raise InvalidArgumentError("The embeddings of a BaselineSet hold NaN or infinite values.")
    return members.detach().to("cpu", copy=True).contiguous()


def _texts(members: Iterable[str]) -> tuple[str, ...]:
    if isinstance(members, str | bytes | Mapping) or not isinstance(members, Iterable):
        raise InvalidTypeError(
            f"A BaselineSet takes a tensor of embeddings or a list of texts; got {type(members).__name__}"
            + (". Put a single text into a list." if isinstance(members, str) else ".")
        )
    texts = tuple(members)
    if not texts:
        raise InvalidArgumentError("A BaselineSet needs at least one member; the list of texts is empty.")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidTypeError(f"Text {place} of the BaselineSet must be a string; got {type(text).__name__}.")
        if not text.strip():
            raise InvalidArgumentError(f"Text {place} of the BaselineSet is empty or only white space.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"Text {place} of the BaselineSet holds half of a surrogate pair at character {error.start}."
            ) from None
    return texts


def _fingerprint(tensor: Tensor | None, texts: tuple[str, ...] | None) -> str:
    if tensor is None:
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    digest = hashlib.sha256(f"{_short(tensor.dtype)} {tuple(tensor.shape)}".encode())
    digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------- in files

_ROW = {"anyOf": [{"$ref": "#/$defs/finite"}, {"$ref": "#/$defs/finites"}]}
BASELINE_SCHEMA: Mapping[str, Any] = {
    "description": "A number; a token's name, its number (#103), or mean; a tensor; a set of embeddings or of texts.",
    "anyOf": [
        {"type": "null"},
        {"$ref": "#/$defs/finite"},
        {"type": "string"},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "dtype": {"enum": [*_DTYPES]},
                "values": {
                    "type": "array",
                    "items": {"anyOf": [{"$ref": "#/$defs/finite"}, {"type": "array", "items": _ROW}]},
                },
                "texts": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
            },
            "oneOf": [{"required": ["dtype", "values"]}, {"required": ["texts", "fingerprint"]}],
        },
    ],
}


def plain_baseline(value: float | Tensor | str | BaselineSet) -> Any:
    """A baseline as numbers, strings and lists. A set has its fingerprint too."""
    if isinstance(value, BaselineSet):
        said = {"fingerprint": value.fingerprint}
        if value.texts is not None:
            return {"texts": [*value.texts], **said}
        return plain_baseline(value.tensor) | said  # type: ignore[arg-type]  # no texts, so it is a tensor
    return {"dtype": _short(value.dtype), "values": value.tolist()} if isinstance(value, Tensor) else value


def baseline_of_plain(plain: Any) -> Any:
    """The baseline that :func:`plain_baseline` wrote.

    Raises:
        InvalidArgumentError: what it says does not fit together; the message names the field.
    """
    if not isinstance(plain, dict):
        return plain
    where = "settings.baseline"
    if "texts" in plain:
        its = BaselineSet(plain["texts"])
    else:
        for name in ("dtype", "values"):
            if name not in plain:
                raise InvalidArgumentError(f"{where} lacks {name!r}")
        _regular(plain["values"], f"{where}.values")
        tensor = torch.tensor(_floats(plain["values"]), dtype=getattr(torch, plain["dtype"]), device="cpu")
        if not bool(tensor.isfinite().all()):
            raise InvalidArgumentError(f"{where}.values must be finite as {plain['dtype']}.")
        if "fingerprint" not in plain:
            return tensor
        its = BaselineSet(tensor)
    if plain.get("fingerprint") != its.fingerprint:
        raise InvalidArgumentError(
            f"{where}.fingerprint is {plain.get('fingerprint')!r}, and the members have {its.fingerprint!r}."
        )
    return its


def _regular(values: Any, where: str) -> tuple[int, ...]:
    """The shape of lists in lists.

    Raises:
        InvalidArgumentError: they are of different lengths or depths.
    """
    if not isinstance(values, list):
        return ()
    inner = {_regular(one, where) for one in values}
    if len(inner) > 1:
        raise InvalidArgumentError(f"{where} must hold numbers, or lists of one length.")
    return (len(values), *next(iter(inner), ()))


def _floats(values: Any) -> Any:
    return [_floats(one) for one in values] if isinstance(values, list) else float(values)
