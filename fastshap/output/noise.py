"""What is said where scores are mostly noise, or zero, and what helps: measured on one text, not guessed (docs/adr/0021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.engine.estimate import LEAST_ROUNDS
from fastshap.errors import NoiseWarning, silenced, warn
from fastshap.output.record import Record
from fastshap.types import InferenceModes, plain_mode

LEAST = 0.5  # reliability of scores that are not mostly noise

_SAMPLES = 20  # of each candidate, at most
_WORK = 1 << 16  # tokens times targets times samples of each candidate, at most
_ENOUGH = 20  # antithetic samples of one round, whose standard errors are not far too large (docs/adr/0021)
_FEW = 3  # outputs that are faster looked at one by one
_GAIN = 0.1  # in reliability, that counts as help
_LESS_NOISE = 5
_MEASURED = 8  # settings that an explainer measures for, at most
_MOST_NAMED = 100_000  # samples that a message names
_ALL_ZERO = (
    "All scores are zero: the gradient of score is zero wherever it was taken. Take a function that changes a little where the "
    "model's output does: without sign, round, comparisons, or a bound that holds the output."
)

Again = Callable[[Record, Mapping[str, Any]], Record]  # computes an output again, with other parameters


class Noise:
    """The outputs of one call of which a target's scores are mostly noise: how many, the lowest reliability, and the first.

    Args:
        early: the call goes on when it is told of them.
    """

    def __init__(self, early: bool = False) -> None:
        self.early = early
        self._told = False
        self._place = self._texts = self._noisy = 0
        self._lowest = LEAST
        self._first: tuple[int, Record, int] | None = None  # its number, and that of its first such target
        self._flat = 0  # texts all of whose scores are zero, of a score of the user's own

    def add(self, outputs: Iterable[Record]) -> None:
        """The next outputs of the call."""
        if self._told:
            return
        records = list(outputs)
        for place in _low(records) if len(records) > _FEW else range(len(records)):
            record = records[place]
            shares = record.reliability.tolist()
            noisy = [t for t, share in enumerate(shares) if share < LEAST]
            if noisy:
                self._noisy += 1
                self._lowest = min(self._lowest, *(shares[t] for t in noisy))
                self._first = self._first or (self._place + place, record, noisy[0])
        if records and records[0].settings.score is not None:
            self._flat += sum(record.error is None and not record.attributions.any() for record in records)
        self._place += len(records)
        self._texts += sum(record.error is None for record in records)

    def tell(self, known: Known, again: Again) -> None:
        """Warns once, if there was such an output. If warnings of this kind are ignored, nothing is measured."""
        if self._flat == self._texts >= (2 if self.early else 1) and not self._told:
            self._told = True
            warn(_ALL_ZERO, NoiseWarning)
        if self._first is None or self._told:
            return
        self._told = True
        head = self._head()
        if not silenced(head, NoiseWarning):
            warn(" ".join([head, *known.of(*self._first, again)]), NoiseWarning)
        self._first = None

    def _head(self) -> str:
        first = "first " if self.early else ""
        which = f"{self._noisy} of the {first}{self._texts} texts" if self._texts > 1 else f"the {first}text"
        head = f"for {which}: reliability below {LEAST}, the lowest {self._lowest:.2f}."
        if self._first is not None and _understated(self._first[1]):
            return (
                f"Scores may be mostly noise {head} It is too low if a text has one round of fewer than {_ENOUGH} antithetic "
                f"samples: n_perturbations={_ENOUGH} tells more."
            )
        return f"Scores are mostly noise {head} With another seed they come out differently."


def _low(records: Sequence[Record]) -> list[int]:
    """The places of records in which a target's reliability is below the least, or on its border; of all in few operators."""
    each = [(place, one.attributions, one.standard_error) for place, one in enumerate(records)]
    each = [
        (place, scores, errors) for place, scores, errors in each if scores.numel() and scores.shape == errors.shape
    ]
    if not each:
        return []
    values = torch.cat([scores.flatten() for _, scores, _ in each]).numpy().astype(np.float64)
    noise = torch.cat([errors.flatten() for _, _, errors in each]).numpy().astype(np.float64)
    noise[np.isnan(values)] = 0  # what the target cannot see
    rows = [(place, scores.shape[1]) for place, scores, _ in each for _ in range(len(scores))]
    starts = np.cumsum([0, *(count for _, count in rows[:-1])])
    sizes, noises = (np.add.reduceat(np.square(one), starts) for one in (np.nan_to_num(values), noise))
    low = noises * (1 + 1e-6) > (1 - LEAST) * sizes
    return list(dict.fromkeys(rows[row][0] for row in low.nonzero()[0]))


class Known:
    """What an explainer found would help, for each of its settings."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}  # sentences with a place for what they were measured on

    def of(self, number: int, record: Record, t: int, again: Again) -> list[str]:
        """Sentences about what helps, measured the first time: on text ``number``, for its target ``t``."""
        own = f"text {number}" + (f", target {t}" if len(record.target_names) > 1 else "")
        key, where = _key(record), "a text of an earlier call"
        if key not in self._found and len(self._found) < _MEASURED:
            self._found[key] = ""  # whatever happens now, it is not tried again
            self._found[key] = _advice(record, t, again)
            where = own
        measured = self._found.get(key, "").format(where)
        return [*filter(None, [measured]), _samples(record, t).format(own)]


def _key(record: Record) -> str:
    plain = record.settings.changes() | {"inference_mode": plain_mode(record.inference_mode)}
    if isinstance(baseline := plain.get("baseline"), Tensor):
        plain["baseline"] = hash(baseline.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return repr({name: value for name, value in plain.items() if name != "seed"})


def _understated(record: Record) -> bool:
    """Whether the reliability counts the change along the path as noise."""
    few = record.rounds < LEAST_ROUNDS and record.n_perturbations < _ENOUGH * record.rounds
    return record.settings.sampling == "antithetic" and few


def _advice(record: Record, t: int, again: Again) -> str:
    """A sentence with a place for what it was measured on; nothing if nothing could be measured."""
    now = float(record.reliability[t])
    measured = sorted(_measured(record, t, again), reverse=True)
    if helping := [f"{name} gives {share:.2f}" for share, name in measured if share >= now + _GAIN]:
        return f"What helps, measured on {{}} ({now:.2f}): {', '.join(helping)}."
    tried = ", ".join(f"{name} ({share:.2f})" for share, name in measured)
    return f"Measured on {{}} ({now:.2f}), this does not clearly help: {tried}." if measured else ""


def _samples(record: Record, t: int) -> str:
    """How many samples it would take, by the output's own standard errors; a sentence with a place for which it is."""
    needed = [(share, samples_for(share, record, t)) for share in (LEAST, 0.9)]
    named = [f"{count:,} samples for {share}" for share, count in needed if count <= _MOST_NAMED]
    if not named:
        return "The standard errors do not show any score behind the noise, so nobody knows how many samples it would take."
    parameter = "n_perturbations" if record.settings.rtol is None else "max_perturbations, and a smaller rtol"
    return f"By its standard errors, {{}} takes about {' and '.join(named)} ({parameter})."


def _measured(record: Record, t: int, again: Again) -> Iterable[tuple[float, str]]:
    """The reliability of the target with other parameters, and their names; nothing of what fails."""
    work = len(record.model_inputs_to_explain["input_ids"][0]) * len(record.target_names)
    samples = min(_SAMPLES, record.settings.n_perturbations, _WORK // max(1, work))
    own = {"n_perturbations": samples, "rtol": None, "max_perturbations": None}
    for name, options in _candidates(record):
        try:
            t_there, one = _of_one_target(record, t)
            found = again(dataclasses.replace(one, rounds=1), own | options)
            share = float(found.reliability[t_there])
            # A score that is the same whatever the input, as the probability of a single class is, explains nothing.
            if not math.isnan(share) and bool(found.attributions[t_there].nan_to_num().any()):
                yield share, name
        except Exception:
            continue  # a warning must not end a call


def _candidates(record: Record) -> Iterable[tuple[str, dict[str, Any]]]:
    if record.inference_mode in (InferenceModes.LOGITS, InferenceModes.LOG_SOFTMAX):
        yield "inference_mode='softmax'", {"inference_mode": InferenceModes.SOFTMAX}
    if record.noise_std > 0:
        less = float(f"{record.noise_std / _LESS_NOISE:.2g}")
        yield f"noise_std={less:g}", {"noise_std": less}


def _of_one_target(record: Record, t: int) -> tuple[int, Record]:
    """The output as one of that target alone, where that is simple, and the target's number in it."""
    if record.classes is None:
        return t, record
    known = record.target_probabilities
    return 0, dataclasses.replace(
        record,
        targets=record.targets[t : t + 1],
        target_names=record.target_names[t : t + 1],
        target_probabilities=None if known is None else known[t : t + 1],
    )


def samples_for(share: float, record: Record, t: int) -> float:
    """Samples that take a target to this reliability, as squared errors fall at least with their number; inf: nobody knows."""
    now = float(record.reliability[t])
    if not now > 0:
        return math.inf
    count = record.n_perturbations * share / (1 - share) * (1 - now) / now
    return count if not math.isfinite(count) else _rounded_up(count)


def _rounded_up(count: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return math.ceil(count / unit) * unit
