"""What is said about a result's scores, in the same words on a page, in a terminal and on a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastshap.engine.estimate import student_quantile
from fastshap.output.record import SEQUENCES, Record
from fastshap.output.visible import named
from fastshap.tasks import shown
from fastshap.types import Granularity, GranularityAggregationStrategy, InferenceModes

_SCORES = {
    InferenceModes.SOFTMAX: "probability",
    InferenceModes.LOG_SOFTMAX: "log-probability",
    InferenceModes.SIGMOID: "probability",
}


def explained(record: Record) -> str:
    """What the scores are parts of: "logit", say."""
    mode = record.score or record.inference_mode
    if mode is InferenceModes.LOGITS:
        return shown(record.model_task).score
    return _SCORES[mode] if isinstance(mode, InferenceModes) else f"score of {getattr(mode, '__name__', 'its own')}"


def unit(record: Record) -> str:
    """What one score stands for: "word (mean of its tokens)", say."""
    name = unit_name(record)
    if record.granularity in (Granularity.TOKEN, Granularity.ALL_TOKENS):
        return name
    return f"{name} ({record.granularity_aggregation_strategy.name.lower().replace('_', ' ')} of its tokens)"


def unit_name(record: Record) -> str:
    """What an element is: "word", say."""
    return record.granularity.name.lower().replace("_", " ").replace("all tokens", "token")


def drawn(record: Record) -> Iterator[str]:
    """How the samples were drawn."""
    yield f"{record.n_perturbations} samples" + (f" in {record.rounds} rounds" if record.rounds > 1 else "")
    if record.converged is not None:
        most = record.settings.max_perturbations
        missed = f"rtol {record.rtol:g} not met within max_perturbations={most}"
        yield f"within rtol {record.rtol:g}" if record.converged else missed


def remainders(record: Record, t: int, form: str) -> Iterator[str]:
    """What it takes to add a target's scores up: where they are sums, and where it was asked for."""
    if record.granularity_aggregation_strategy is GranularityAggregationStrategy.SUM and record.reduction == "sum":
        yield f"elsewhere {float(record.unassigned[t]):{form}}"
    if record.convergence_delta is not None:
        yield f"convergence delta {float(record.convergence_delta[t]):{form}}"


def sequences(record: Record) -> str | None:
    """How many windows the model read, where there were several."""
    name = shown(record.model_task).sequences
    mask = record.model_inputs_to_explain.get(SEQUENCES) if name else None
    return None if mask is None else f"mean of {mask.shape[2]} {name}"


def prediction(record: Record) -> str | None:
    """What the model predicts, where that is known."""
    if record.predicted_label is None or record.probability is None:
        return None
    return f"predicted {named(record.predicted_label)}, probability {record.probability:.3f}"


def probability(record: Record, t: int) -> float | None:
    """Of a target's class, where that is known."""
    return None if record.target_probabilities is None else float(record.target_probabilities[t])


def reliability(record: Record, t: int) -> str | None:
    """That of a target, where it is known."""
    share = float(record.reliability[t])
    return None if math.isnan(share) else f"reliability {share:.2f}"


def uncertain(record: Record, t: int) -> list[bool]:
    """Of each element, whether the 95 % interval of its score contains zero; never where there is no standard error."""
    scores = record.attributions[t].tolist()
    if record.degrees_of_freedom <= 0 or not record.standard_error.numel():
        return [False] * len(scores)
    errors = record.standard_error[t].tolist()
    return [may_be_zero(*one, record.degrees_of_freedom) for one in zip(scores, errors, strict=False)]


def may_be_zero(score: float, error: float, freedom: int) -> bool:
    """Whether the 95 % interval of a score contains zero; False for NaN, and for a zero that is certain."""
    return error > 0 and abs(score) <= student_quantile(0.975, freedom) * error


def of_uncertain(record: Record) -> str:
    """What it means that an element has no colour."""
    return f"{unit_name(record)}s without colour: the 95 % interval of their score contains zero, so it may be noise"


def form_of(largest: float) -> str:
    """How scores are written that are at most so large: with three decimals, or with three digits where these say nothing."""
    return "+#.3g" if largest < 1e-2 or largest >= 1e3 else "+.3f"  # the # keeps trailing zeros


def largest_of(scores: list[float]) -> float:
    """The largest absolute score that is a number."""
    return max((abs(score) for score in scores if not math.isnan(score)), default=0.0)


def share(score: float, largest: float) -> float:
    """Of full colour, from -1 to 1."""
    if math.isinf(score):
        return math.copysign(1.0, score)
    return score / largest if largest else 0.0
