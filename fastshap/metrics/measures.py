"""The measures that perturb texts: which elements each replaces, and what it makes of the scores.

A measure is a class with its parameters. Its :meth:`Measure.steps` is a generator for one target of one text: it yields masks
(m, G) of the elements to replace and is sent the m scores f; it returns the value. So rows of many texts share model calls.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastshap.checks import flag, whole
from fastshap.errors import InvalidArgumentError, InvalidTypeError

AOPC_GRID = tuple(tenth / 10 for tenth in range(1, 11))

Steps = Generator[np.ndarray, np.ndarray, float]


class Skip(Exception):
    """A text that has no value; its argument says why, in words that many texts share."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


class Target(NamedTuple):
    """One target of one text, as a measure sees it."""

    scores: np.ndarray  # (G,) float64, of the elements that may be replaced
    key: tuple[int, ...]  # numbers that depend on the text alone, for random draws
    is_sum: bool  # f is one target's score, or a weighted mean of several; False: a difference, of a contrast
    memo: dict[Any, Any]  # what is the same for all methods


class Measure:
    """What the measures share. ``str(measure)`` is its label."""

    higher_is_better: ClassVar[bool]
    wants_probabilities: ClassVar[bool] = False  # f has to be a probability
    of_explained_score: ClassVar[bool] = False  # f is the score that was explained

    def steps(self, target: Target) -> Steps:
        """See the module."""
        raise NotImplementedError

    def note(self, size: int) -> str | None:
        """What a result counts of texts of so many elements."""
        return None


@dataclass(frozen=True)
class Comprehensiveness(Measure):
    """How much the score falls where the top elements are replaced: ``f(x) - f(x without top k)``. Higher is better.

    Source: DeYoung et al. 2020, "ERASER"; AOPC as in ferret.

    Args:
        k: a share of the elements (0.2: the top 20 %, rounded down, at least one) or a number of elements (an integer). A list
            of these gives the mean over them, the area over the perturbation curve (AOPC); :data:`AOPC_GRID` is 10 % to
            100 %. Numbers of elements that are the same for a text count once.
    """

    k: Any = 0.2
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", checked_k(self.k))

    def steps(self, target: Target) -> Steps:
        masks = tops(target.scores, self.k)
        f = yield with_text(masks)
        return float((f[0] - f[1:]).mean())

    def __str__(self) -> str:
        return labelled("comprehensiveness", self.k)


@dataclass(frozen=True)
class Sufficiency(Measure):
    """How much the score falls where all but the top elements are replaced: ``f(x) - f(top k alone)``. Lower is better.

    Source: DeYoung et al. 2020, "ERASER"; AOPC as in ferret.

    Args:
        k: as for :class:`Comprehensiveness`.
    """

    k: Any = 0.2
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", checked_k(self.k))

    def steps(self, target: Target) -> Steps:
        f = yield with_text(~tops(target.scores, self.k))
        return float((f[0] - f[1:]).mean())

    def __str__(self) -> str:
        return labelled("sufficiency", self.k)


@dataclass(frozen=True)
class LogOdds(Measure):
    """The change of the log-probability where the top elements are replaced: ``log p(without top k) - log p(x)``.

    Lower is better. Source: Shrikumar et al. 2017; as ``log_odds`` of time_interpret.

    Args:
        k: as for :class:`Comprehensiveness`.
    """

    k: Any = 0.2
    higher_is_better: ClassVar[bool] = False
    wants_probabilities: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", checked_k(self.k))

    def steps(self, target: Target) -> Steps:
        if not target.is_sum:
            raise Skip("a contrast has no log-odds")
        f = np.log(np.maximum((yield with_text(tops(target.scores, self.k))), np.finfo(np.float32).tiny))
        return float((f[1:] - f[0]).mean())

    def __str__(self) -> str:
        return labelled("log-odds", self.k)


@dataclass(frozen=True)
class Deletion(Measure):
    """The area under the score's curve while elements are replaced, the most important first. Lower is better.

    The curve has ``min(n_perturbations, ceil(share G)) + 1`` points, at equal numbers of elements (rounded down); its area is
    that of trapezoids over the unit interval. Source: Petsiuk et al. 2018; as ``Deletion`` of interpreto, which replaces by
    the mask token.

    Args:
        n_perturbations: steps of the curve at most.
        share: up to which share of the elements.
    """

    n_perturbations: int = 100
    share: float = 1.0
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole(self.n_perturbations, "n_perturbations", least=1)
        if not 0 < self.share <= 1:
            raise InvalidArgumentError(f"share must lie above 0 and not above 1; got {self.share!r}.")

    def steps(self, target: Target) -> Steps:
        f = yield self.masks(target.scores)
        return float(((f[1:] + f[:-1]) / 2).mean())

    def masks(self, scores: np.ndarray) -> np.ndarray:
        """(points, G): what is replaced."""
        most = math.ceil(len(scores) * self.share)
        points = min(self.n_perturbations, most) + 1
        return first_of(ranked(scores), [int(most * i / (points - 1) + 1e-9) for i in range(points)])

    def __str__(self) -> str:
        share = f" up to {_spelt(self.share)}" if self.share < 1 else ""
        steps = f" in {self.n_perturbations} steps" if self.n_perturbations != Deletion.n_perturbations else ""
        return f"{type(self).__name__.lower()}{share}{steps}"


@dataclass(frozen=True)
class Insertion(Deletion):
    """The area under the score's curve while elements come back, the most important first. Higher is better.

    It begins with a text of which all elements are replaced; else as :class:`Deletion`. As ``Insertion`` of interpreto.
    """

    higher_is_better: ClassVar[bool] = True

    def masks(self, scores: np.ndarray) -> np.ndarray:
        return ~super().masks(scores)

    __str__ = Deletion.__str__


@dataclass(frozen=True)
class Infidelity(Measure):
    """How far sums of scores are from what replacing these elements changes: ``E (b sum_S s - (f(x) - f(x without S)))^2``.

    Lower is better. f is the score that was explained. Each of the random sets S holds each element with probability 1/2.
    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations"; as ``infidelity`` of captum with binary
    perturbations.

    Args:
        n_perturb_samples: how many sets. They depend on the text and the seed alone, so methods are compared on the same.
        normalize: b is the number that fits best, for each text, as methods differ in scale; False: b is 1, captum's default.
        seed: of the sets.
    """

    n_perturb_samples: int = 50
    normalize: bool = True
    seed: int = 0
    higher_is_better: ClassVar[bool] = False
    of_explained_score: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole(self.n_perturb_samples, "n_perturb_samples", least=1)
        whole(self.seed, "seed", least=0)
        flag(self.normalize, "normalize")

    def steps(self, target: Target) -> Steps:
        masks = self.masks(target)
        f = yield with_text(masks)
        ours, theirs = masks @ target.scores, f[0] - f[1:]
        if self.normalize:
            square = float(ours @ ours)
            ours = ours * (float(ours @ theirs) / square) if square else ours
        return float(((ours - theirs) ** 2).mean())

    def masks(self, target: Target) -> np.ndarray:
        return (
            np.random.default_rng([self.seed, *target.key]).random((self.n_perturb_samples, len(target.scores))) < 0.5
        )

    def __str__(self) -> str:
        return "infidelity" if self.normalize else "infidelity, not normalised"


def ranked(scores: np.ndarray) -> np.ndarray:
    """(G,): the places of elements, the largest score first; equal scores in reading order."""
    return np.argsort(-scores, kind="stable")


def first_of(order: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(counts, G) bool: the first so many elements of an order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place < np.array(counts)[:, None]


def tops(scores: np.ndarray, k: Any) -> np.ndarray:
    """(m, G) bool: the top elements for each share or number in k, without those that are there already."""
    size = len(scores)
    each = k if isinstance(k, tuple) else (k,)
    counts = [min(one, size) if isinstance(one, int) else max(1, math.floor(one * size + 1e-9)) for one in each]
    return first_of(ranked(scores), list(dict.fromkeys(counts)))


def with_text(masks: np.ndarray) -> np.ndarray:
    """The same with the whole text before them."""
    return np.concatenate([np.zeros((1, masks.shape[1]), np.bool_), masks])


def checked_k(k: Any) -> Any:
    """A share, a number of elements, or a tuple of these."""
    if isinstance(k, list | tuple | np.ndarray):
        if not len(k) or any(isinstance(one, list | tuple | np.ndarray) for one in k):
            raise InvalidArgumentError(f"k as a list holds shares or numbers of elements; got {k!r}.")
        return tuple(checked_k(one) for one in k)
    if isinstance(k, bool) or not isinstance(k, int | float | np.integer | np.floating):
        raise InvalidTypeError(f"k is a share such as 0.2, a number of elements such as 3, or a list; got {k!r}.")
    if isinstance(k, int | np.integer):
        return whole(k, "k", least=1)
    if not 0 < k <= 1:
        raise InvalidArgumentError(
            f"k as a share lies above 0 and not above 1; got {k!r}. A number of elements is an int."
        )
    return float(k)


def labelled(name: str, k: Any) -> str:
    if isinstance(k, tuple):
        return f"AOPC {name}" if k == AOPC_GRID else f"AOPC {name} at {', '.join(map(_spelt, k))}"
    return f"{name} at {_spelt(k)}"


def _spelt(k: float) -> str:
    return f"{100 * k:g} %" if isinstance(k, float) else f"{k}"
