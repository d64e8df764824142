"""Which model, tokenizer and libraries an explanation came from: enough to tell later whether something changed.

Fingerprints detect change. They are no signatures: somebody who wants to forge weights of the same fingerprint can.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastshap.models.locks import lock_of
from fastshap.models.tree import tensors_of
from fastshap.version import __version__

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART = 1 << 15  # elements that share their position weights
_PARTS = 32  # of a tensor at a time: bounds the memory
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio's fraction in 64 bits, as a signed number
_LIBRARIES = ("torch", "transformers", "tokenizers")
# Entries of a configuration, also of one inside another, that no number depends on or that have a field of their own.
_BESIDE = frozenset(
    "_name_or_path _commit_hash _from_model_config transformers_version architectures auto_map tokenizer_class finetuning_task "
    "task_specific_params id2label label2id dtype torch_dtype use_cache return_dict output_attentions output_hidden_states "
    "gradient_checkpointing _attn_implementation_autoset".split()
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Provenance:
    """What an explanation was computed with, beside its settings.

    Attributes:
        model: the name or last directory that the model was loaded from, "" where it was made in memory.
        model_class: its class.
        model_fingerprint: of its weights; see :func:`model_fingerprint`.
        tokenizer_class, tokenizer_fingerprint: likewise.
        configuration: the entries of the model's configuration that numbers can depend on, as JSON; see
            :func:`configuration_of`.
        configuration_fingerprint: of these.
        labels_fingerprint: of the names of the classes.
        dtype: of its embeddings, "float32" say.
        attention: transformers' attention implementation, "sdpa" say.
        device: where it ran.
        versions: of fastshap, torch, transformers, tokenizers and Python.

    Of an output that an earlier version wrote, what that did not know is "".
    """

    model: str = ""
    model_class: str = ""
    model_fingerprint: str = ""
    tokenizer_class: str = ""
    tokenizer_fingerprint: str = ""
    configuration: str = ""
    configuration_fingerprint: str = ""
    labels_fingerprint: str = ""
    dtype: str = ""
    attention: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def provenance_of(model: Any, tokenizer: Any, device: torch.device) -> Provenance:
    """Of a model (where torch.compile wrapped it, of what it wrapped) and its tokenizer; fingerprints are cached."""
    config = model.config
    name = str(getattr(config, "_name_or_path", "") or "")
    configuration, configuration_fingerprint, labels_fingerprint = configuration_of(model)
    return Provenance(
        model=Path(name).name if os.path.isdir(name) else name,
        model_class=type(getattr(model, "_orig_mod", model)).__name__,
        model_fingerprint=model_fingerprint(model),
        tokenizer_class=type(tokenizer).__name__,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        configuration=configuration,
        configuration_fingerprint=configuration_fingerprint,
        labels_fingerprint=labels_fingerprint,
        dtype=str(next(model.get_input_embeddings().parameters()).dtype).removeprefix("torch."),
        attention=str(getattr(config, "_attn_implementation", "") or ""),
        device=_described(device),
        versions=library_versions(),
    )


def model_fingerprint(model: nn.Module) -> str:
    """16 hex digits that change with any weight: of the names, shapes, dtypes and bits of the model's state.

    The bits are summed where they lie, each times an odd number that depends on its place. Computed again when a tensor was
    replaced or written to; writing through ``.data`` goes unnoticed until then.
    """
    model = getattr(model, "_orig_mod", model)
    return _cached(_models, model, version_of(model), lambda: _of_state(model.state_dict()))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits that change with vocabulary and rules; truncation and padding, which come and go, are left out.

    Computed again when tokens were added.
    """
    return _cached(_tokenizers, tokenizer, len(tokenizer), lambda: _digest(_plain(tokenizer)))


def configuration_of(model: nn.Module) -> tuple[str, str, str]:
    """The entries of the model's configuration that numbers can depend on, as JSON; 16 hex digits of them, and of the labels.

    Names, versions and what has a field of its own in :class:`Provenance` are left out. Of a model that generates, its
    generation configuration is an entry. Computed again when an entry was changed, also in memory.
    """
    model = getattr(model, "_orig_mod", model)
    generation = getattr(model, "generation_config", None)

    def made() -> tuple[str, str, str]:
        entries = _entries(model.config)
        if generation is not None:
            entries["generation_config"] = _without(generation.to_diff_dict())
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"), default=_named)
        labels = [
            [str(number), str(label)] for number, label in (getattr(model.config, "id2label", None) or {}).items()
        ]
        return text, _digest(text), _digest(sorted(labels))

    return _cached(_configurations, model, _state_of(model.config) + _state_of(generation), made)


def generation_settings(model: Any) -> bytes:
    """Bytes that differ if the model's generation configuration does."""
    return _state_of(getattr(getattr(model, "_orig_mod", model), "generation_config", None))


def version_of(model: nn.Module) -> tuple[list[int], list[int], list[torch.dtype]]:
    """What changes with the model's parameters and buffers, but for changes through ``.data``."""
    tensors = tensors_of(model)
    places = [tensor.data_ptr() for tensor in tensors]
    return places, [tensor._version for tensor in tensors], [tensor.dtype for tensor in tensors]


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """() int64 on the tensor's device: its bits as numbers, each times an odd number for its place, summed modulo 2^64.

    It changes with every change of one element, and hardly ever stays where several change.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits = tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    places = _odd_numbers(_PART, bits.device)
    for start in range(0, len(bits), _PART * _PARTS):
        some = bits[start : start + _PART * _PARTS]
        whole = len(some) // _PART * _PART
        sums = [(some[:whole].view(-1, _PART) * places).sum(1)] if whole else []
        if whole < len(some):
            sums.append((some[whole:] * places[: len(some) - whole]).sum()[None])
        each = torch.cat(sums)
        first = start // _PART
        total += (each * _odd_numbers(first + len(each), bits.device)[first:]).sum()
    return total


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """(count,) int64, different and odd."""
    return (torch.arange(1, count + 1, device=device) * _ODD) | 1


def _of_state(state: dict[str, Any]) -> str:
    lines, sums = [], []
    for name, value in sorted(state.items()):
        for inner, tensor in _inner(name, value):
            lines.append(f"{inner} {tuple(tensor.shape)} {tensor.dtype}")
            if tensor.device.type != "meta":
                sums.append(checksum(tensor).to("cpu", non_blocking=True))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return _digest([lines, torch.stack(sums).tolist() if sums else []])


def _inner(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """The plain tensors that a tensor is made of: itself, or what a subclass (a quantised weight, say) wraps."""
    if not isinstance(value, Tensor):
        return []
    if type(value) in (Tensor, nn.Parameter):
        return [(name, value)]
    local = getattr(value, "_local_tensor", None)  # a shard of a distributed tensor
    if local is not None:
        return _inner(name, local)
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return [part for one in names for part in _inner(f"{name}.{one}", getattr(value, one))]
    return [(name, value.as_subclass(Tensor))]


def _state_of(config: Any) -> bytes:
    """What changes with a configuration's entries, at the cost of some microseconds."""
    try:
        return pickle.dumps(getattr(config, "__dict__", None))
    except Exception:  # an entry that cannot be pickled
        return repr(config).encode("utf-8", "replace")


def _entries(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = _without(config.to_dict() if hasattr(config, "to_dict") else vars(config))
    return found


def _without(value: Any) -> Any:
    """A plain value without the entries that no number depends on, at any depth."""
    if isinstance(value, dict):
        return {str(name): _without(one) for name, one in value.items() if name not in _BESIDE}
    return [_without(one) for one in value] if isinstance(value, list | tuple) else value


def _named(value: Any) -> str:
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def _plain(tokenizer: Any) -> Any:
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        return [type(tokenizer).__name__, {k: v for k, v in rules.items() if k not in ("truncation", "padding")}]
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [type(tokenizer).__name__, tokenizer.get_vocab(), named]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_models: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()
_tokenizers: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()
_configurations: weakref.WeakKeyDictionary[Any, tuple[Any, tuple[str, str, str]]] = weakref.WeakKeyDictionary()


def _cached(
    known: weakref.WeakKeyDictionary[Any, tuple[Any, _T]], owner: Any, version: Any, make: Callable[[], _T]
) -> _T:
    with lock_of(_cached):
        found = known.get(owner)
    if found is None or found[0] != version:
        found = (version, make())
        with lock_of(_cached):
            known[owner] = found
    return found[1]


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


@cache
def _known_versions() -> tuple[tuple[str, str], ...]:
    found = [("fastshap", __version__), ("python", platform.python_version())]
    return tuple(found + [(name, installed(name) or "unknown") for name in _LIBRARIES])


def installed(name: str) -> str | None:
    """The version of a package that is installed, None where it is not.

    Of torch it is torch's own, with the build ("2.15.0+cu132"), which the package's metadata leave out for the default build.
    """
    if name == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Of fastshap, Python, torch, transformers and tokenizers, here."""
    return dict(_known_versions())
