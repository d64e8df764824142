"""Tasks whose models give a row of scores for each token. What is explained are some of these, at places of the text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, UnsupportedModelError
from fastshap.tasks.base import NO_PREDICTION, Predict, Prediction, Prepared, Task
from fastshap.tasks.trial import Judge, Ran, ToLogits
from fastshap.text.encode import Encoded
from fastshap.text.groups import Scope
from fastshap.types.targets import Contrast, contrasted


class Target(NamedTuple):
    """A sum of scores: of these numbers at these places, by these weights."""

    name: str
    places: list[int]
    numbers: list[int]
    weights: list[float]
    probability: float | None = None


class PlacesTask(Task):
    """Logits (R, L, C). What is explained are scores of numbers below C, at the places of tokens, and sums of such scores."""

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        if plain.logits.ndim != 3 or plain.logits.shape[1] != z.shape[1]:
            raise UnsupportedModelError(
                f"{self.model_name} gives logits of shape {tuple(plain.logits.shape)} for {z.shape[1]} tokens, and not a row "
                "for each."
            )

    # What a task says of its targets

    def looked_at(self, encoded: Encoded) -> Tensor:
        """(P,) the places of a text whose logits decide about its targets: by default, all.

        Raises:
            FastshapError: the text cannot be used.
        """
        return torch.arange(len(encoded), device="cpu")

    @abstractmethod
    def predicted(self, encoded: Encoded, logits: Tensor) -> list[Target]:
        """The targets that the model chooses.

        Args:
            logits: (P, C) float32, at the places that are looked at.

        Raises:
            FastshapError: it chooses none.
        """

    @abstractmethod
    def asked_for(self, encoded: Encoded, given: Sequence[Any], logits: Tensor) -> list[Target]:
        """The targets that the user gave for a text.

        Raises:
            FastshapError: there is no such target.
        """

    def prediction(self, encoded: Encoded, logits: Tensor) -> Prediction:
        """What outputs say of the model's prediction, whatever is explained."""
        return NO_PREDICTION

    # The same for all

    def rows(self, model: Any, call: Call) -> Tensor:
        """(R, T, C): the logits at the targets' places."""
        return self.logits_in_company(model, self.given(call).inputs)[call.places]

    def scores(self, model: Any, call: Call) -> Tensor:
        return picked(self.transformed(self.rows(model, call)), call)

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        wanted = [None] * len(tokenised) if targets is None else targets
        places = [_or_error(self.looked_at, one) if isinstance(one, Encoded) else one for one in tokenised]
        read = [i for i, one in enumerate(places) if isinstance(one, Tensor)]
        rows = predict([tokenised[i] for i in read], self.rows, [_filled(places[i]) for i in read])
        found = [*places]
        for i, logits in zip(read, rows, strict=True):
            if isinstance(logits, Tensor):
                logits = logits[: len(places[i])].float()
                found[i] = _or_error(self._prepared, tokenised[i], wanted[i], logits)
            else:
                found[i] = logits
        return found

    def _prepared(self, encoded: Encoded, given: Any, logits: Tensor) -> Prepared:
        if given is None:
            targets = self.predicted(encoded, logits)
        else:
            targets = self.asked_for(encoded, given if isinstance(given, list) else [given], logits)
        if not targets:
            raise InvalidArgumentError("A text has no target; give at least one for each text.")
        numbers = torch.tensor([number for one in targets for number in one.numbers], device="cpu")
        places = torch.tensor([place for one in targets for place in one.places], device="cpu")
        joined = None
        if any(one.weights != [1.0] for one in targets):
            joined = torch.block_diag(*(torch.tensor([one.weights], device="cpu") for one in targets))
        probabilities = [one.probability for one in targets if one.probability is not None]
        known = torch.tensor(probabilities, device="cpu") if len(probabilities) == len(targets) else None
        prediction = self.prediction(encoded, logits)._replace(of_targets=known)
        scope = Scope(places, joined=joined)
        return Prepared(encoded, numbers, [one.name for one in targets], prediction, scope)


def or_contrast(given: Any, target_of: Callable[[Any], Target]) -> Target:
    """The target that was given, or the difference of the two of a contrast."""
    if not isinstance(given, Contrast):
        return target_of(given)
    ours, theirs = target_of(given.target), target_of(given.other)
    if (ours.places, ours.numbers) == (theirs.places, theirs.numbers):
        raise InvalidArgumentError(
            f"A contrast of {ours.name!r} with itself is zero everywhere; name two targets that differ."
        )
    return Target(
        contrasted(ours.name, theirs.name),
        ours.places + theirs.places,
        ours.numbers + theirs.numbers,
        ours.weights + [-weight for weight in theirs.weights],
    )


def picked(scores: Tensor, call: Call) -> Tensor:
    """The targets' own (R, T) among the scores (R, T, C) at their places."""
    return scores.to(call.targets.device).gather(2, call.targets[..., None]).squeeze(2)


def _filled(places: Tensor) -> Tensor:
    """The last place again and again, up to a power of two: calls share texts of equal numbers of places."""
    size = 1 << (len(places) - 1).bit_length()
    return places[torch.arange(size, device="cpu").clamp_max(len(places) - 1)]


def _or_error(compute: Callable[..., Any], *arguments: Any) -> Any:
    """What is wrong with a text stands in its place."""
    try:
        return compute(*arguments)
    except FastshapError as error:
        return error
