"""Computes texts on a model and its copies. If the model fails on one text, the others are not affected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastshap.engine.estimate import Running
from fastshap.engine.packing import Execution, Item
from fastshap.engine.rounds import Ends, Rounds, Stage, at_texts
from fastshap.engine.run import Forward, device_of
from fastshap.errors import FastshapError, ModelFailedError, NonFiniteError
from fastshap.models.replicas import side_by_side
from fastshap.models.tree import modules_of, tensors_of
from fastshap.text.encode import Encoded
from fastshap.text.groups import Grouping
from fastshap.types import InferenceModes

# From this many tokens in all rows, two threads are faster on a CPU than one (docs/adr/0009).
ENOUGH_TOKENS = 1 << 12
_ENOUGH_ON_A_GPU = 1 << 15  # so many tokens fill one
# Additions and multiplications of a window of texts: some seconds' work. Measured on a CPU: with 1e11 a long list took 14 %
# longer with the packaged model, because small windows hold few texts of one length. Not measured on a GPU.
_WORK = {"cpu": 4e11}
_WORK_ON_A_GPU = 1e14
# Additions and multiplications a second, and the seconds that calling a module adds. Roughly measured on a CPU
# (docs/adr/0019); not measured on a GPU.
_SUMS = {"cpu": 3e11}
_SUMS_ON_A_GPU = 1e14
_MODULE = 2e-5

_Text = TypeVar("_Text")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Work:
    """How texts are computed. If a text cannot be computed, one of fastshap's errors takes its place.

    Args:
        model: the model itself.
        models: the model and its copies on further devices.
        stop: stop after the first text on which the model fails. Its error then takes the place of all later texts.
    """

    model: nn.Module
    models: Sequence[nn.Module]
    execution: Execution
    stop: bool

    def scores(
        self,
        items: Sequence[Item],
        groupings: Sequence[Grouping],
        forward: Forward,
        stage: Stage,
        rounds: int | None,
        with_ends: bool,
    ) -> list[tuple[Running, Ends | None] | FastshapError]:
        """The scores of every text, and the ends of its paths if ``with_ends``.

        Args:
            forward: gives the targets' scores (R, T) of a model call.
            rounds: run exactly so many rounds, whatever ``rtol`` asks for.
        """
        rounds_of = Rounds(self.execution, forward)

        def computed(some: Sequence[int], alone: bool) -> list[tuple[Running, Ends | None]]:
            texts, groups = [items[i] for i in some], [groupings[i] for i in some]
            tokens = self.execution.settings.n_perturbations * sum(len(item.input_ids) for item in texts)
            models = [self.model] if alone else self.shared_by(tokens)
            running = rounds_of.run(models, texts, groups, stage, rounds)
            ends = rounds_of.ends(models, texts, running) if with_ends else [None] * len(running)
            return list(zip(running, ends, strict=True))

        found = self._isolated(range(len(items)), computed)
        good = [one for one in found if not isinstance(one, FastshapError)]
        alike: dict[torch.Size, list[Tensor]] = {}
        for tensor in (tensor for running, ends in good for tensor in (running.tokens, *(ends or ()))):
            alike.setdefault(tensor.shape[:-1], []).append(tensor)
        if all(bool(torch.cat(tensors, -1).isfinite().all()) for tensors in alike.values()):
            return found
        return [one if isinstance(one, FastshapError) else finite(*one) for one in found]

    def text_may_ride(self, item: Item, weights: int) -> bool:
        """Whether a text's own row costs less as one more row of its call, with gradients, than in a call of its own.

        It does where calling the modules takes longer than the arithmetic: with small models, and on GPUs. All rows must fit
        into one call. ``weights``: the model's :func:`weights_of`.
        """
        budget, rows = self.execution.budget, self.execution.settings.n_perturbations + 1
        if len(self.models) > 1 or not budget.measured or rows > budget.rows(len(item.input_ids)):
            return False
        device = device_of(self.model).type
        sums = 4 * len(item.input_ids) * weights  # twice a forward pass of the row
        return sums / _SUMS.get(device, _SUMS_ON_A_GPU) < _MODULE * len(modules_of(self.model))

    def of_texts(
        self, encoded: Sequence[Encoded], forward: Forward, positions: Sequence[Tensor] | None
    ) -> list[Tensor | FastshapError]:
        """:meth:`at_texts` of tokenised texts, where the rows at ``positions`` (P,) are asked for. What is alike runs once."""
        wanted = [None] * len(encoded) if positions is None else positions
        keys = [one.key(at) for one, at in zip(encoded, wanted, strict=True)]
        different = dict(zip(keys, zip(encoded, wanted, strict=True), strict=True))
        items = [Item.of(one, None, at) for one, at in different.values()]
        found = dict(zip(different, self.at_texts(items, forward), strict=True))
        return [found[key] for key in keys]

    def at_texts(
        self, items: Sequence[Item], forward: Forward, baseline: float | Tensor | None = None
    ) -> list[Tensor | FastshapError]:
        """What ``forward`` gives for the texts themselves, one row each, on the CPU. ``baseline``: see :func:`at_texts`."""

        def values(some: Sequence[Item], alone: bool) -> list[Tensor]:
            return at_texts([self.model] if alone else self.models, some, forward, self.execution, baseline)

        return self._isolated(items, values)

    def shared_by(self, tokens: int) -> Sequence[nn.Module]:
        """The models that share so many tokens: one per device. On a CPU with enough to do, two, each on half of the cores."""
        alone = len(self.models) == 1 and device_of(self.model).type == "cpu"
        mode = self.execution.settings.inference_mode
        if not alone or tokens < ENOUGH_TOKENS or not isinstance(mode, InferenceModes):
            return self.models
        return side_by_side(self.model, min(2, torch.get_num_threads()))

    def _isolated(
        self, texts: Sequence[_Text], compute: Callable[[Sequence[_Text], bool], Sequence[_Result]]
    ) -> list[_Result | FastshapError]:
        """What was computed for each text. Halving finds a text on which the model fails; an error takes its place.

        ``compute``'s second argument: whether to run only the model itself. Copies and threads may be at fault.
        """
        if not texts:
            return []
        for alone in (False, True) if len(texts) == 1 else (False,):
            try:
                return [*compute(texts, alone)]
            except (FastshapError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if alone:
                    return [ModelFailedError.caused_by(error)]
        middle = len(texts) // 2
        first = self._isolated(texts[:middle], compute)
        failed = [one for one in first if isinstance(one, FastshapError)]
        if failed and self.stop:
            return [*first, *failed[:1] * (len(texts) - middle)]
        return [*first, *self._isolated(texts[middle:], compute)]


def tokens_of_some_seconds(model: nn.Module, passes: int, n: int) -> float:
    """How many tokens of texts make some seconds' work for a model, with n samples per text and so many passes."""
    device = device_of(model).type
    rows = _WORK.get(device, _WORK_ON_A_GPU) / (2 * weights_of(model) * passes)
    return max(rows, ENOUGH_TOKENS if device == "cpu" else _ENOUGH_ON_A_GPU) / n


def tokens_of_a_call(model: nn.Module) -> float:
    """How many tokens take as long as what a call costs whatever its size; 0 on a GPU, where it was not measured."""
    if device_of(model).type != "cpu":
        return 0.0
    return _MODULE * len(modules_of(model)) / (6 * weights_of(model) / _SUMS["cpu"])  # forward and backward


def weights_of(model: nn.Module) -> int:
    """How many weights a token passes through: all but the table of embeddings."""
    table = next(model.get_input_embeddings().parameters()).numel()  # type: ignore[operator]
    return max(1, sum(one.numel() for one in tensors_of(model)) - table)


def finite(running: Running, ends: Ends | None) -> tuple[Running, Ends | None] | NonFiniteError:
    """What was found for a text, or the error that takes its place."""
    if all(bool(tensor.isfinite().all()) for tensor in (running.tokens, *(ends or ()))):
        return running, ends
    return NonFiniteError(
        "The model's scores or gradients are NaN or infinite for this text. Look for damaged weights, for overflow in half "
        "precision (load the model in float32 or bfloat16), or for a baseline or noise_std of enormous size."
    )
