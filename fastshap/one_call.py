"""Explains texts in one call, given a model's name; warms an explainer up; fits a path density for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from fastshap import checks
from fastshap.engine.learned import density
from fastshap.errors import InvalidArgumentError, InvalidTypeError, NoiseWarning
from fastshap.explainer import GradientShap
from fastshap.output.output import AttributionOutputs
from fastshap.output.progress import Wanted
from fastshap.settings.own import BESIDE, OPTIONS
from fastshap.tasks.loading import load_pair
from fastshap.tasks.registry import wanted_task

# Words of one token, which need no reduction of their own, and a word of several, which does.
_WARM_TEXTS = ("a", "a incomprehensibilities")
_WARM_ROWS = 4
_FEWEST_FITTED = 20  # samples of a text, that a density is fitted to

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

    from fastshap.tasks import Task


def explain(
    model_inputs: Any,
    model: str | os.PathLike[str] | PreTrainedModel | Pipeline | None = None,
    targets: Any = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task: str | type[Task] | None = None,
    generation_kwargs: Mapping[str, Any] | None = None,
    progress: Wanted = None,
    **settings: Any,
) -> AttributionOutputs:
    """Explains texts in one call.

    Args:
        model_inputs, targets, generation_kwargs, progress: as for :meth:`GradientShap.explain`.
        model: a directory or hub id of a sequence classifier or causal language model, a transformers pipeline, or a model
            with its ``tokenizer``; None is the packaged sentiment model. The two models last used by name stay in memory,
            so a further call with one of them loads nothing. Files that have changed are loaded again.
        tokenizer: of a model that you pass itself, or one that replaces the one beside the files or in the pipeline.
        task: the task's name, where the model leaves a choice. A model by name is loaded for this task.
        settings: parameters of :class:`GradientShap`. ``batch_size`` is "auto" unless given. ``device="auto"`` takes the
            GPUs of this machine.

    Returns:
        n outputs, in the order of the texts.

    Raises:
        FastshapError: as :class:`GradientShap` and its ``explain``, and where the model cannot be loaded.

    Example:
        >>> (output,) = fastshap.explain("A gorgeous, witty film.", n_perturbations=20)
        >>> output.target_names
        ['positive']
    """
    if isinstance(model_inputs, torch.nn.Module):
        raise InvalidTypeError(
            "You passed a model as model_inputs; write fastshap.explain(texts, model, tokenizer=...)."
        )
    if checks.is_tokenizer(targets):
        raise InvalidTypeError("You passed a tokenizer as targets; write tokenizer=...")
    devices = tuple(checks.devices(settings.pop("device", None)))
    checks.refuse_unknown(
        settings, {*OPTIONS, "both"}, "fastshap.explain", "It takes model, tokenizer, task and device too.", BESIDE
    )
    if model is None or isinstance(model, str | os.PathLike):
        name = None if model is None else os.fspath(model)
        wanted = None if task is None else wanted_task(task)
        explainer = _explainer(name, _state(name), wanted, devices)
        if tokenizer is not None:
            explainer = GradientShap(explainer.model, tokenizer, "auto", device=devices or None, task=wanted)
    else:
        explainer = GradientShap(model, tokenizer, "auto", device=devices or None, task=task)
    return explainer.explain(model_inputs, targets, generation_kwargs=generation_kwargs, progress=progress, **settings)


def warm_up(explainer: GradientShap) -> None:
    """Makes an explainer ready, so that a service's first text need not wait. Call it once per explainer, before any request.

    It explains two short texts with the explainer's parameters, but with a small batch size and without ``rtol``. This tries
    the model. On a GPU it also compiles and loads the kernels that the explainer needs. Other sizes and addresses need no
    further variants, so no later text waits for Triton's compiler (on AMD, a tensor of more than 2 GB needs one more). Triton
    keeps compiled kernels on disk: a second process or device only loads them. If a model writes its own targets, it writes
    those of the two texts.

    A call whose options change the noise, the reduction, the strategy or the baseline may need variants of its own.

    Raises:
        FastshapError: neither text can be explained.

    Example:
        >>> explainer = fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto")
        >>> fastshap.warm_up(explainer)
    """
    # With a batch size of its own, as these texts do not show how much memory others take.
    options: dict[str, Any] = {"batch_size": _WARM_ROWS, "progress": False}
    options |= one_round(explainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoiseWarning)  # nobody looks at the scores
        texts, targets = explainer.task.examples(list(_WARM_TEXTS))
        outputs = explainer.explain(texts, targets, on_error="record", **options)
        if all(output.error is not None for output in outputs):
            explainer.explain(texts, targets, on_error="raise", **options)


def fit_path_density(
    explainer: GradientShap,
    texts: Any,
    targets: Any = None,
    *,
    n_perturbations: int = 200,
    generation_kwargs: Mapping[str, Any] | None = None,
    progress: Wanted = None,
) -> tuple[float, ...]:
    """Where on the path this model's samples are worth most: numbers for ``path_density``, to fit once and use for many texts.

    It explains the texts with the explainer's own settings, but with ``n_perturbations`` uniform samples each, and sees where
    scores vary. Later explanations with this density need fewer samples for the same error, above all those of language models
    with ``inference_mode="softmax"``. They cannot become wrong by it: samples are weighted, so that the expectation stays.
    Take ten or more texts like those that you will explain.

    Args:
        texts, targets, generation_kwargs, progress: as for :meth:`GradientShap.explain`. Each text counts the same, and each
            target by its scores' size.
        n_perturbations: samples of each text, 20 or more.

    Returns:
        A density on equal bins of the path, from the text (first) to the baseline (last); 1 is that of uniform positions.

    Raises:
        FastshapError: as ``explain``; or no text could be explained.

    Example:
        >>> model, tokenizer = fastshap.load_default_model()
        >>> texts = ["A gorgeous, witty film.", "The ending is dull."]
        >>> density = fastshap.fit_path_density(fastshap.GradientShap(model, tokenizer, "auto"), texts)
        >>> explainer = fastshap.GradientShap(model, tokenizer, "auto", path_density=density)
        >>> len(explainer("Weak but witty.")[0].path_density)
        32
    """
    if not isinstance(explainer, GradientShap):
        raise InvalidTypeError(f"fit_path_density takes a GradientShap first; got {type(explainer).__name__}.")
    count = checks.whole(n_perturbations, "n_perturbations", least=_FEWEST_FITTED)
    options: dict[str, Any] = {"n_perturbations": count, "path_density": None, "return_convergence_delta": False}
    options |= one_round(explainer)
    own = explainer._for_call(options)
    own._variances = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoiseWarning)  # nobody looks at the scores
        outputs = own.explain(texts, targets, generation_kwargs=generation_kwargs, progress=progress)
    if not own._variances:
        raise InvalidArgumentError(f"No text could be explained, so there is nothing to fit: {outputs[0].error}")
    return tuple(round(float(one), 4) for one in density(own._variances))


def one_round(explainer: GradientShap) -> dict[str, Any]:
    """Options for a call without ``rtol``, and without what needs it."""
    its = explainer.settings
    return ({} if its.rtol is None else {"rtol": None, "max_perturbations": None}) | (
        {"path_density": None} if its.path_density == "auto" else {}
    )


@lru_cache(maxsize=2)
def _explainer(
    name: str | None, state: Any, task: type[Task] | None, devices: tuple[torch.device, ...]
) -> GradientShap:
    return GradientShap(*load_pair(name, task), "auto", device=devices or None, task=task)


def _state(name: str | None) -> Any:
    """What changes with the files of a directory."""
    if name is None or not os.path.isdir(name):
        return None
    return tuple(sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in os.scandir(name)))
