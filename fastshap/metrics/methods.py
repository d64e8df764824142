"""Methods by name, for ``fastshap evaluate``: ours, controls, and those of captum and interpreto."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastshap.errors import InvalidArgumentError
from fastshap.explainer import GradientShap
from fastshap.metrics import controls, measures, peers
from fastshap.metrics.faithfulness import Faithfulness
from fastshap.metrics.measures import AOPC_GRID, Measure
from fastshap.metrics.normalized import NormalizedAOPC
from fastshap.output.output import AttributionOutput
from fastshap.output.progress import Progress, Wanted, checked_progress

Outputs = list[AttributionOutput]


@dataclass(frozen=True)
class Setup:
    """What a method is run on.

    Attributes:
        explainer: with the settings that are evaluated; a text's error is recorded.
        faithfulness: for the control that leaves elements out.
        texts, targets: as for :meth:`GradientShap.explain`.
        reference: the explainer's outputs, which say the targets and elements.
    """

    explainer: GradientShap
    faithfulness: Faithfulness
    texts: Sequence[Any]
    targets: Any
    reference: Outputs

    @property
    def rows(self) -> int:
        """Model rows a text, of methods that sample."""
        return self.explainer.settings.n_perturbations


class Method(NamedTuple):
    """A method: from a set-up and a seed to outputs of the same texts, targets and elements."""

    run: Callable[[Setup, int], Outputs]
    random: bool = False


def _ours(setup: Setup, seed: int, **changed: Any) -> Outputs:
    own = setup.explainer._for_call({**changed, "seed": seed})
    return list(own.explain(list(setup.texts), setup.targets, progress=False))


def _reference(setup: Setup, seed: int) -> Outputs:
    return setup.reference if seed == setup.explainer.settings.seed else _ours(setup, seed)


def _captum_shap(setup: Setup, seed: int) -> Outputs:
    return peers.captum_gradient_shap(setup.explainer, setup.reference, n_samples=setup.rows, seed=seed)


def _captum_gradients(setup: Setup, seed: int) -> Outputs:
    return peers.captum_integrated_gradients(setup.explainer, setup.reference, n_steps=setup.rows)


def _interpreto(setup: Setup, seed: int, method: str) -> Outputs:
    return peers.interpreto_scores(setup.explainer, setup.reference, method, n_perturbations=setup.rows, seed=seed)


METHODS: dict[str, Method] = {
    "fastshap": Method(_reference, random=True),
    "fastshap-sum": Method(functools.partial(_ours, granularity_aggregation_strategy="sum"), random=True),
    "fastshap-abs-mean": Method(functools.partial(_ours, reduction="abs_mean"), random=True),
    "leave-one-out": Method(lambda setup, seed: controls.leave_one_out(setup.faithfulness, setup.reference)),
    "gradient-norm": Method(lambda setup, seed: controls.gradient_norm(setup.explainer, setup.reference)),
    "word-length": Method(lambda setup, seed: controls.word_length(setup.reference)),
    "random-order": Method(lambda setup, seed: controls.random_order(setup.reference, seed), random=True),
    "captum-gradient-shap": Method(_captum_shap, random=True),
    "captum-integrated-gradients": Method(_captum_gradients),
    **{
        f"interpreto-{name}": Method(functools.partial(_interpreto, method=theirs), theirs in peers.INTERPRETO_RANDOM)
        for name, theirs in zip(
            ("gradient-shap", "integrated-gradients", "saliency", "occlusion", "lime", "kernel-shap"),
            peers.INTERPRETO,
            strict=True,
        )
    },
}
OURS_AND_CONTROLS = tuple(name for name in METHODS if not name.startswith(("captum-", "interpreto-")))
GROUPS = {group: tuple(n for n in METHODS if n.startswith(f"{group}-")) for group in ("captum", "interpreto")}

MEASURES: dict[str, Measure] = {
    "comprehensiveness": measures.Comprehensiveness(),
    "sufficiency": measures.Sufficiency(),
    "log-odds": measures.LogOdds(),
    "aopc-comprehensiveness": measures.Comprehensiveness(AOPC_GRID),
    "aopc-sufficiency": measures.Sufficiency(AOPC_GRID),
    "insertion": measures.Insertion(),
    "deletion": measures.Deletion(),
    "infidelity": measures.Infidelity(),
    "normalized-aopc": NormalizedAOPC(),
}


def methods_named(given: str) -> list[str]:
    """From names and groups with commas between them; fastshap comes first, as all others are compared with it."""
    found = [name for one in _listed(given) for name in GROUPS.get(one, (one,))]
    _refuse_unknown(found, METHODS, "method", also=GROUPS)
    return list(dict.fromkeys(["fastshap", *found]))


def measures_named(given: str) -> list[Measure]:
    """From names with commas between them."""
    found = list(dict.fromkeys(_listed(given)))
    _refuse_unknown(found, MEASURES, "measure")
    return [MEASURES[name] for name in found]


def run(setup: Setup, names: Sequence[str], seeds: int, progress: Wanted = None) -> dict[str, list[Outputs]]:
    """Of each method its outputs, for each of so many seeds where it is random."""
    first = setup.explainer.settings.seed
    found: dict[str, list[Outputs]] = {}
    count = len(setup.texts)
    runs = {name: seeds if METHODS[name].random else 1 for name in names}
    with Progress(checked_progress(progress), count * sum(runs.values())) as shown:
        for name, times in runs.items():
            found[name] = []
            for seed in range(first, first + times):
                shown.begin(count)
                found[name].append(METHODS[name].run(setup, seed))
                shown.end()
    return found


def _listed(given: str) -> list[str]:
    return [one.strip().lower().replace("_", "-") for one in given.split(",") if one.strip()]


def _refuse_unknown(names: Sequence[str], known: Any, what: str, also: Any = ()) -> None:
    if not names:
        raise InvalidArgumentError(f"Name a {what}: {', '.join([*known, *also])}.")
    for name in names:
        if name not in known:
            raise InvalidArgumentError(f"There is no {what} {name!r}; there are {', '.join([*known, *also])}.")
