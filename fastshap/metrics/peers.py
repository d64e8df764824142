"""Other libraries' methods for the texts, targets and elements of our outputs: captum's and interpreto's, where installed.

Neither is imported before a method of it is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.explainer import GradientShap
from fastshap.extras import needed
from fastshap.metrics.controls import with_scores
from fastshap.metrics.rows import working
from fastshap.output.inputs import saved_in
from fastshap.output.output import AttributionOutput
from fastshap.types import GranularityAggregationStrategy, InferenceModes

INTERPRETO = ("GradientShap", "IntegratedGradients", "Saliency", "Occlusion", "Lime", "KernelShap")
INTERPRETO_RANDOM = ("GradientShap", "Lime", "KernelShap")
_SAMPLED = ("GradientShap", "IntegratedGradients", "Lime", "KernelShap")

_Attribute = Callable[[Callable[..., Tensor], Tensor, int], Tensor]


def captum_gradient_shap(
    explainer: GradientShap,
    outputs: Sequence[AttributionOutput],
    *,
    baseline: Tensor | float = 0.0,
    n_samples: int = 50,
    with_input: bool = False,
    seed: int = 0,
) -> list[AttributionOutput]:
    """captum's GradientShap over embeddings, without noise.

    Args:
        baseline: an embedding (D,) or a number.
        with_input: the text itself is a second baseline, so that about half of all samples have no path: as time_interpret's
            public table ran it, with captum's default of 5 samples.
    """
    captum = _captum()

    def attribute(forward: Callable[..., Tensor], x: Tensor, target: int) -> Tensor:
        base = _like(baseline, x)
        rows = torch.cat([x, base]) if with_input else base
        found: Tensor = captum.GradientShap(forward).attribute(x, rows, n_samples=n_samples, stdevs=0.0, target=target)
        return found

    with _seeded(seed):
        return _by_embeddings(explainer, outputs, attribute)


def captum_integrated_gradients(
    explainer: GradientShap, outputs: Sequence[AttributionOutput], *, baseline: Tensor | float = 0.0, n_steps: int = 50
) -> list[AttributionOutput]:
    """captum's IntegratedGradients over embeddings, with its default Gauss-Legendre rule."""
    captum = _captum()

    def attribute(forward: Callable[..., Tensor], x: Tensor, target: int) -> Tensor:
        found: Tensor = captum.IntegratedGradients(forward).attribute(
            x, _like(baseline, x), n_steps=n_steps, target=target
        )
        return found

    return _by_embeddings(explainer, outputs, attribute)


def interpreto_scores(
    explainer: GradientShap,
    outputs: Sequence[AttributionOutput],
    method: str,
    *,
    n_perturbations: int = 50,
    seed: int = 0,
) -> list[AttributionOutput]:
    """A method of interpreto for the same targets, with its defaults but for the number of samples.

    Its words are those of ``granularity="tokenizer_word"``.

    Raises:
        InvalidArgumentError: the outputs' elements are others.
    """
    interpreto = needed("interpreto")
    good = [one for one in outputs if one.error is None]
    if not good:
        return list(outputs)
    mode = next((m.name for m in InferenceModes if m == good[0].inference_mode), None)
    if mode is None:
        raise InvalidTypeError("interpreto's methods explain logits, probabilities or log-probabilities.")
    model, tokenizer = copy.deepcopy(explainer.model), copy.deepcopy(explainer.tokenizer)  # it writes to both
    options = {"n_perturbations": n_perturbations} if method in _SAMPLED else {}
    own = getattr(interpreto, method)(
        model,
        tokenizer,
        batch_size=max(1, n_perturbations),
        granularity=interpreto.Granularity.WORD,
        inference_mode=interpreto.attributions.InferenceModes[mode],
        device=model.device,
        **options,
    )
    found = []
    with _seeded(seed):
        for output in good:
            text, target = _of_interpreto(output)
            found += own([text], [target])
    for output, theirs in zip(good, found, strict=True):
        if _words(theirs.elements) != _words(output.elements):
            raise InvalidArgumentError(
                "interpreto's methods score the tokenizer's words; explain with granularity='tokenizer_word' "
                f"({output.elements[:4]} are not {list(theirs.elements)[:4]})."
            )
    each = iter(found)
    return [one if one.error is not None else with_scores(one, _rows(next(each), one)) for one in outputs]


def _captum() -> Any:
    needed("captum")
    return needed("captum.attr")


def _of_interpreto(output: AttributionOutput) -> tuple[str, Tensor]:
    """The text and its targets, as interpreto takes them."""
    if output.classes is not None:
        return output.text, output.targets
    start = min((s for (s, _), part in zip(output.element_spans, output.segments, strict=True) if part), default=None)
    return output.text[:start], output.targets[None]


def _words(elements: Sequence[str]) -> list[str]:
    """Without what an uncased tokenizer leaves out: capitals and accents."""
    bare = (unicodedata.normalize("NFD", one.strip().lower()) for one in elements)
    return ["".join(character for character in one if not unicodedata.combining(character)) for one in bare]


def _rows(theirs: Any, output: AttributionOutput) -> Tensor:
    rows: Tensor = theirs.attributions.detach().float().reshape(-1, len(output.elements))
    if len(rows) != len(output.attributions):
        raise InvalidArgumentError("interpreto explains each word of the target alone; leave out the span or contrast.")
    return rows


def _by_embeddings(
    explainer: GradientShap, outputs: Sequence[AttributionOutput], attribute: _Attribute
) -> list[AttributionOutput]:
    """Each token's attribution, summed over the embedding's dimensions, and over an element's tokens by MEAN or SUM."""
    model, task, found = explainer.model, explainer.task, []
    table = model.get_input_embeddings()
    with working(explainer):
        for output in outputs:
            if output.error is not None:
                found.append(output)
                continue
            prepared = task.again(*saved_in(output))
            item = prepared.item(explainer._grouping(prepared, (output.element_tokens, output.elements)).joined)
            forward = _forward(model, item, output.inference_mode)
            x = table(torch.tensor([item.input_ids], device=model.device)).detach()
            tokens = torch.cat([attribute(forward, x, t).sum(-1).detach() for t in range(len(output.attributions))])
            summed = output.granularity_aggregation_strategy == GranularityAggregationStrategy.SUM
            how = torch.sum if summed else torch.mean
            scores = [how(tokens[:, list(member)], dim=1) for member in output.element_tokens]
            found.append(with_scores(output, torch.stack(scores, 1).cpu()))
    return found


def _forward(model: Any, item: Any, mode: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """From embeddings (R, L, D) to the t explained scores (R, t)."""
    targets = item.targets

    def forward(x: Tensor) -> Tensor:
        logits = model(inputs_embeds=x).logits
        if item.positions is not None:
            scores = mode(logits[:, item.positions])  # (R, T, V)
            scores = scores[:, torch.arange(len(targets)), targets]
        else:
            scores = mode(logits)[:, targets]
        return scores if item.joined is None else scores @ item.joined.T.to(scores)

    return forward


def _like(baseline: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        return baseline.to(x).expand_as(x)
    return torch.full_like(x, baseline)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Without warnings, and with global random states that are put back."""
    state = np.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)
