"""Batches to gradients to token scores. Knows no task and no tokenizer.

Rows of many texts share a model call, and one backward pass per target runs for a whole call. Between two calls run the lookup
of the embeddings, ``fastshap::perturb``, what the task takes from the model's output, and ``fastshap::attribute``: nothing
waits for the device until all calls are done.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastshap import ops
from fastshap.batches import Batch, Call, Item, Piece, Settings, batches, columns, halves, planned, to_host
from fastshap.locks import lock_of
from fastshap.sampling import Samples

Forward = Callable[[Call], Tensor]
_Result = TypeVar("_Result")


def token_scores(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], forward: Forward, settings: Settings
) -> list[Tensor]:
    """The scores of every target, sample and token: (T, n, L) float32 for each item, on the model's device."""
    parts: list[list[Tensor]] = [[] for _ in items]
    for pieces, scores in _run(
        model, items, samples, settings, lambda batch: _batch_scores(model, batch, forward, settings)
    ):
        row = 0
        for piece in pieces:
            count = piece.hi - piece.lo
            there = columns(len(items[piece.item].input_ids), scores[0].shape[-1], settings.padding_side)
            here = [score[:, row : row + count, there] for score in scores]
            parts[piece.item].append(here[0] if len(here) == 1 else torch.cat(here))
            row += count
    # A text's samples are put together before anything is summed, so that the order never depends on the batches.
    return [part[0] if len(part) == 1 else torch.cat(part, 1) for part in parts]


def evaluate(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], forward: Forward, settings: Settings
) -> list[Tensor]:
    """What ``forward`` gives for every row, without gradients: (rows, ...) on the CPU for each item."""

    def values(batch: Batch) -> Tensor:
        with torch.no_grad():
            _, z = _points(model, batch, settings)
            return forward(_with_embeddings(batch, z))

    parts: list[list[Tensor]] = [[] for _ in items]
    found = list(_run(model, items, samples, settings, values))
    for (pieces, _), result in zip(found, to_host([result for _, result in found]), strict=True):
        for piece, part in zip(pieces, result.split([p.hi - p.lo for p in pieces]), strict=True):
            parts[piece.item].append(part)
    return [torch.cat(part) for part in parts]


def _run(
    model: nn.Module,
    items: Sequence[Item],
    samples: Sequence[Samples],
    settings: Settings,
    run: Callable[[Batch], _Result],
) -> list[tuple[Sequence[Piece], _Result]]:
    """Runs one call after another; a call that does not fit into the device's memory is run as two of half the rows."""
    done: list[tuple[Sequence[Piece], _Result]] = []
    device = device_of(model)
    with torch.inference_mode(False):
        for call in batches(planned(items, samples, settings), items, samples, settings, device):
            waiting = [call]
            while waiting:
                batch = waiting.pop()
                try:
                    result = run(batch)
                except torch.OutOfMemoryError:
                    if len(batch.rows.alphas) == 1:
                        raise
                else:
                    done.append((batch.pieces, result))
                    continue
                # Here, where nothing keeps the failed call's tensors alive.
                waiting += reversed(list(batches(halves(batch.pieces), items, samples, settings, device)))
    return done


def _batch_scores(model: nn.Module, batch: Batch, forward: Forward, settings: Settings) -> list[Tensor]:
    """(1, R, L) for each target."""
    scores = []
    with torch.no_grad():
        x, z = _points(model, batch, settings)
        with torch.enable_grad():
            outputs = forward(_with_embeddings(batch, z.requires_grad_())).unbind(1)
        for i, output in enumerate(outputs):
            # Rows do not mix, so one pass gives every row's gradient.
            (gradient,) = torch.autograd.grad(output, z, grad_outputs=_ones(output), retain_graph=i + 1 < len(outputs))
            score = ops.attribute(
                gradient[None],
                z.detach(),
                x,
                batch.rows,
                reduction=settings.reduction,
                input_x_gradient=settings.input_x_gradient,
                backend=settings.backend,
            )
            del gradient  # so that the next one finds room
            scores.append(score if batch.weights is None else score.mul_(batch.weights[:, None]))
    return scores


def _points(model: Any, batch: Batch, settings: Settings) -> tuple[Tensor, Tensor]:
    """The embeddings x (M, D) and the perturbed points z (R, L, D)."""
    x = model.get_input_embeddings()(batch.input_ids)
    return x, ops.perturb(x, batch.rows, backend=settings.backend)


def _with_embeddings(batch: Batch, z: Tensor) -> Call:
    return dataclasses.replace(batch.call, inputs={"inputs_embeds": z, **batch.call.inputs})


_ONE: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _ones(like: Tensor) -> Tensor:
    """Ones in the shape of ``like``, without an operator after the first time."""
    key = like.dtype, like.device
    if key not in _ONE:
        _ONE[key] = torch.ones((), dtype=like.dtype, device=like.device)
    return _ONE[key].expand(like.shape)


def device_of(model: Any) -> torch.device:
    """Where the model's input embeddings lie."""
    return next(model.get_input_embeddings().parameters()).device


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, no parameter asking for a gradient, one caller at a time; put back as it was."""
    with lock_of(model):
        training = [module for module in model.modules() if module.training]
        wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            for module in training:
                module.training = False
            for parameter in wanting:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in wanting:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True
