"""What a causal language model goes on with, where no target is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastshap import checks
from fastshap.engine.run import device_of
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    UnsupportedModelError,
)
from fastshap.models.locks import lock_of
from fastshap.sampling import text_key
from fastshap.tasks.subject import Subject
from fastshap.text.encode import Encoded
from fastshap.text.inputs import Tokens

_NEW_TOKENS = 20


def checked_options(subject: Subject, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Greedy, and at most 20 tokens, where the user says nothing else."""
    if options is not None and not isinstance(options, Mapping):
        raise InvalidTypeError(f"generation_kwargs must be a mapping of names to values; got {options!r}.")
    options = dict(options or {})
    config = options.pop("generation_config", None)
    if config is not None:
        if not hasattr(config, "to_diff_dict"):
            raise InvalidTypeError(f"generation_config must be a GenerationConfig; got {type(config).__name__}.")
        about = {"transformers_version", "_from_model_config"}
        options = {k: v for k, v in config.to_diff_dict().items() if k not in about} | options
    for name in ("max_new_tokens", "max_length"):
        if name in options:
            options[name] = checks.whole(options[name], name, least=1)
    if not getattr(subject.model, "can_generate", lambda: True)():
        raise UnsupportedModelError(f"{subject.model_name} cannot generate; pass targets.")
    if "max_length" not in options:
        options = {"max_new_tokens": _NEW_TOKENS} | options
    options = {"do_sample": False} | options
    if "pad_token_id" not in options and subject.tokenizer.pad_token_id is not None:
        options["pad_token_id"] = subject.tokenizer.pad_token_id
    return options | {"return_dict_in_generate": False, "num_return_sequences": 1}


def written(
    subject: Subject, prompt: Encoded | FastshapError, options: Mapping[str, Any], seed: int, before: int
) -> Tokens | FastshapError:
    """What the model goes on with, without special tokens at the end. The first ``before`` tokens that it gives are no part."""
    if isinstance(prompt, FastshapError):
        return prompt
    ids = torch.tensor([prompt.input_ids], device=device_of(subject.model))
    model: Any = subject.model
    limit = subject.max_length()
    if limit is not None:
        given = {name: options[name] for name in ("max_new_tokens", "max_length") if name in options}
        room = {"max_new_tokens": limit - before, "max_length": limit}
        options = {**options, **{name: min(value, room[name]) for name, value in given.items()}}
    with _own_random_numbers(subject, prompt, options, seed), torch.no_grad():
        try:
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if (failed := _fails_on(subject, prompt)) is not None:
                return failed
            return InvalidArgumentError(
                f"The model could not generate a target with {dict(options)}: {type(error).__name__}: {error}"
            )
    new = out[0, before:].tolist()
    while new and new[-1] in subject.tokenizer.all_special_ids:
        new.pop()
    return Tokens(new) if new else InvalidArgumentError("The model ends the text at once; pass targets of your own.")


def _fails_on(subject: Subject, encoded: Encoded) -> ModelFailedError | None:
    """The model's own error on a text, whatever it is asked to generate; None where it has none."""
    ids, inputs = subject.alone(encoded)
    try:
        subject.raw_logits(input_ids=ids, **inputs)
    except Exception as error:
        return ModelFailedError.caused_by(error)
    return None


@contextlib.contextmanager
def _own_random_numbers(subject: Subject, prompt: Encoded, options: Mapping[str, Any], seed: int) -> Iterator[None]:
    """Sampling draws from the explainer's seed and the input, and the user's random state is put back."""
    if not options.get("do_sample"):
        yield
        return
    device = device_of(subject.model)
    # The generator belongs to the whole process, so one text at a time may use it.
    with lock_of(written), torch.random.fork_rng([device] if device.type == "cuda" else []):
        low, high = text_key(seed, prompt.input_ids)
        torch.manual_seed(low | high << 32)
        yield
