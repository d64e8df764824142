"""Running an explanation again, perhaps much later, and saying whether anything has changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.explainer import GradientShap
from fastshap.models.provenance import Provenance
from fastshap.output.output import AttributionOutput
from fastshap.output.record import Record
from fastshap.output.visible import printable
from fastshap.tasks import task_named
from fastshap.types import name_of_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What another order of float32 sums may do: other batches, devices and versions of libraries.
_ROUNDING = 1e-5
_EPSILON = torch.finfo(torch.float32).eps
_NOT_SET = "not set"


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What came of running an explanation again.

    Attributes:
        output: the new output.
        identical: whether all attributions are the same to the bit.
        largest_difference: of an attribution, as it is.
        relative_difference: as a share of the largest absolute attribution of its target, or of ten standard errors where
            that is more, as for sums of tokens that cancel; the largest of all. A sum of a gradient's entries may be zero in
            truth, as behind a LayerNorm: where the entries cancel so far, the share is of 0.012 of the sum of their sizes, so
            that 1e-5 of it is what float32 tells apart.
        changed: what differs, by name: what it was then and what it is now, "" where that is not known. Names are those of
            :class:`Provenance`, of its versions, ``configuration.`` and the name of an entry, and ``target_names``.
    """

    output: AttributionOutput
    identical: bool
    largest_difference: float
    relative_difference: float
    changed: dict[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        """Whether the attributions are the same but for the rounding of float32: ``relative_difference`` is at most 1e-5."""
        return self.relative_difference <= _ROUNDING

    def __str__(self) -> str:
        verdict = "the same to the bit" if self.identical else "the same but for rounding" if self.same else "DIFFERENT"
        lines = [
            f"attributions: {verdict} (largest difference {self.largest_difference:.3g}, {self.relative_difference:.2g} of the "
            "target's size)"
        ]
        lines += [
            printable(f"{name}: was {then or 'unknown'}, is {now or 'unknown'}")
            for name, (then, now) in self.changed.items()
        ]
        return "\n".join(lines)


def reproduce(
    output: Record,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    inference_mode: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[Any, Any], Tensor] | None = None,
) -> Reproduction:
    """Computes an output again, from its own tokens, elements, targets and settings.

    Args:
        output: an output, also one that was read from a file.
        model, tokenizer: what it was computed with, or what should give the same.
        inference_mode, score: the function, where the output was computed with one of your own and read from a file.

    Raises:
        InvalidArgumentError: there is nothing to compute again, or it needs what a file cannot hold.
        UnsupportedModelError: the model does another task.
    """
    given: Any = output
    if not isinstance(given, Record):
        only = ": outputs[0]" if isinstance(given, list) else ""
        raise InvalidTypeError(f"reproduce takes one output{only}; got {type(given).__name__}.")
    if output.error is not None:
        raise InvalidArgumentError(
            f"This text was not explained, so there is nothing to compute again: {printable(output.error)}"
        )
    if "input_ids" not in output.model_inputs_to_explain:
        raise InvalidArgumentError(
            "This output holds no tokens: a job of an earlier version did not store them. Explain its text."
        )
    settings = output.settings.named()
    own = {"inference_mode": inference_mode, "score": score}
    settings |= {name: function for name, function in own.items() if function is not None}
    adds_up = output.convergence_delta is not None
    name = name_of_task(output.model_task)
    task = task_named(name)
    try:
        explainer = GradientShap(model, tokenizer, "auto", task=task, return_convergence_delta=adds_up, **settings)
        if task is None:
            raise UnsupportedModelError("This process does not know the task; register it.")
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"The output explains a {name}. {error}") from None
    again = explainer._repeat(output)
    renamed = _renamed(output, explainer.task.names_now(output.targets) if output.target_weights is None else None)
    return compared(output.attributions, output.provenance, again, explainer, renamed)


def compared(
    then: Tensor,
    provenance: Provenance,
    again: AttributionOutput,
    explainer: GradientShap,
    changed: dict[str, tuple[str, str]] | None = None,
) -> Reproduction:
    """What came of it: attributions (t, G) that there were, beside those of a new output.

    Args:
        provenance: of the attributions that there were.
        explainer: what made the new output.
        changed: what differs beside what the two provenances say.
    """
    now = again.attributions
    difference = (now - then).abs().nan_to_num(0)
    difference[now.isnan() != then.isnan()] = torch.inf
    largest = torch.maximum(then.abs(), now.abs()).nan_to_num(0).amax(1, keepdim=True)
    size = torch.maximum(largest, 10 * again.standard_error.nan_to_num(0))
    its = explainer.settings
    if (difference > _ROUNDING * size).any() and its.reduction == "sum" and not its.input_x_gradient:
        size = torch.maximum(size, _EPSILON / _ROUNDING * _summed(again, explainer))
    return Reproduction(
        output=again,
        identical=bool((difference == 0).all()),
        largest_difference=float(difference.max()),
        relative_difference=float((difference / size.clamp_min(torch.finfo(torch.float32).tiny)).max()),
        changed=_changed(provenance, again.provenance) | (changed or {}),
    )


def _summed(output: AttributionOutput, explainer: GradientShap) -> Tensor:
    """(t, 1): the sum of the sizes of the gradient's entries that an attribution is the sum of, the largest of a target."""
    means = explainer._again(output, {"reduction": "abs_mean"}).attributions
    width = next(explainer.model.get_input_embeddings().parameters()).shape[-1]
    return width * means.abs().nan_to_num(0).amax(1, keepdim=True)


def _changed(before: Provenance, after: Provenance) -> dict[str, tuple[str, str]]:
    """Entries that differ; versions and the configuration's entries one by one."""
    then, now = dataclasses.asdict(before), dataclasses.asdict(after)
    then, now = then | then.pop("versions"), now | now.pop("versions")
    was, is_ = then.pop("configuration"), now.pop("configuration")
    found = {name: (then.get(name, ""), now[name]) for name in now if then.get(name, "") != now[name]}
    if was and is_ and was != is_:
        found.pop("configuration_fingerprint", None)
        found |= _entries(_parsed(was), _parsed(is_), "configuration")
    return found


def _parsed(text: str) -> Any:
    """What JSON says; a file may hold anything for it, which stands for itself then."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _entries(then: Any, now: Any, name: str) -> dict[str, tuple[str, str]]:
    """Entries of two plain values that differ, by their names; what one lacks is "not set"."""
    if isinstance(then, dict) and isinstance(now, dict):
        found: dict[str, tuple[str, str]] = {}
        for key in {**then, **now}:
            found |= _entries(then.get(key, _NOT_SET), now.get(key, _NOT_SET), f"{name}.{key}")
        return found
    return {} if then == now else {name: (_spelled(then), _spelled(now))}


def _spelled(value: Any) -> str:
    return _NOT_SET if value == _NOT_SET else json.dumps(value)


def _renamed(output: Record, now: list[str] | None) -> dict[str, tuple[str, str]]:
    """The names of the explained targets, where the model has others now."""
    if now is None or now == output.target_names:
        return {}
    return {"target_names": (", ".join(output.target_names), ", ".join(now))}
