"""Batches to gradients to token scores. Knows no task and no tokenizer.

Rows of many texts share a model call, and one backward pass per target runs for a whole call. Between two calls run the lookup
of the embeddings, ``fastshap::perturb``, what the task takes from the model's output, and ``fastshap::attribute``: nothing
is sent, and nothing waits for the device, within a group of calls (fastshap.batches).
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
) -> Iterator[tuple[int, Tensor]]:
    """The scores of every target, sample and token, as items are complete: number and (T, n, L) float32 on the device."""
    parts: dict[int, list[Tensor]] = {}
    once = _backward_only_once(model)
    for done in _run(
        model, items, samples, settings, lambda batch: _batch_scores(model, batch, forward, settings, once)
    ):
        complete = []
        for pieces, scores in done:
            row = 0
            for piece in pieces:
                count = piece.hi - piece.lo
                there = columns(len(items[piece.item].input_ids), scores[0].shape[-1], settings.padding_side)
                here = [score[:, row : row + count, there] for score in scores]
                parts.setdefault(piece.item, []).append(here[0] if len(here) == 1 else torch.cat(here))
                row += count
                if piece.hi == len(samples[piece.item].alphas):
                    complete.append(piece.item)
        for item in complete:
            # A text's samples are put together before anything is summed, so that the order never depends on the batches.
            part = parts.pop(item)
            yield item, part[0].contiguous() if len(part) == 1 else torch.cat(part, 1)


def evaluate(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], forward: Forward, settings: Settings
) -> list[Tensor]:
    """What ``forward`` gives for every row, without gradients: (rows, ...) on the CPU for each item."""

    def values(batch: Batch) -> Tensor:
        with torch.no_grad():
            _, z = _points(model, batch, settings)
            return forward(_with_embeddings(batch, z)).clone()  # a model may write its next output to the same place

    parts: list[list[Tensor]] = [[] for _ in items]
    for done in _run(model, items, samples, settings, values):
        for (pieces, _), result in zip(done, to_host([result for _, result in done]), strict=True):
            for piece, part in zip(pieces, result.split([p.hi - p.lo for p in pieces]), strict=True):
                parts[piece.item].append(part)
    return [torch.cat(part) for part in parts]


def _run(
    model: nn.Module,
    items: Sequence[Item],
    samples: Sequence[Samples],
    settings: Settings,
    run: Callable[[Batch], _Result],
) -> Iterator[list[tuple[Sequence[Piece], _Result]]]:
    """Runs one call after another, and hands on the results of those whose inputs were sent together.

    A call that does not fit into the device's memory is run as two of half the rows.
    """
    device = device_of(model)
    groups = batches(planned(items, samples, settings), items, samples, settings, device)
    while True:
        done: list[tuple[Sequence[Piece], _Result]] = []
        # Not around the yield: the caller's mode is the caller's. What is sent may be needed for a backward pass.
        with torch.inference_mode(False):
            waiting = next(groups, [])[::-1]
            while waiting:
                batch = waiting.pop()
                try:
                    done.append((batch.pieces, run(batch)))
                    continue
                except torch.OutOfMemoryError:
                    if len(batch.rows.alphas) == 1:
                        raise
                # Here, where nothing keeps the failed call's tensors alive.
                for group in batches(halves(batch.pieces)[::-1], items, samples, settings, device):
                    waiting += group
        if not done:
            return
        yield done


def _batch_scores(model: nn.Module, batch: Batch, forward: Forward, settings: Settings, once: bool) -> list[Tensor]:
    """(1, R, L) for each target, from one forward pass, or from one each where it can be walked back only ``once``."""
    scores: list[Tensor] = []
    targets = batch.call.targets.shape[1]
    with torch.no_grad():
        x, z = _points(model, batch, settings)
        call = _with_embeddings(batch, z.requires_grad_())
        outputs: Sequence[Tensor] = ()
        for i in range(targets):
            if once or not outputs:
                with torch.enable_grad():
                    outputs = forward(call).unbind(1)
            # Rows do not mix, so one pass gives every row's gradient.
            (gradient,) = torch.autograd.grad(
                outputs[i], z, grad_outputs=_ones(outputs[i]), retain_graph=not once and i + 1 < targets
            )
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


def _backward_only_once(model: nn.Module) -> bool:
    """Whether torch.compile made part of the model: its graphs give their buffers away in the backward pass."""
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())


def _points(model: Any, batch: Batch, settings: Settings) -> tuple[Tensor, Tensor]:
    """The embeddings x (M, D) and the perturbed points z (R, L, D)."""
    x = model.get_input_embeddings()(batch.input_ids)
    return x, ops.perturb(x, batch.rows, backend=settings.backend)


def _with_embeddings(batch: Batch, z: Tensor) -> Call:
    return dataclasses.replace(batch.call, inputs={"inputs_embeds": z, **batch.call.inputs})


_ONE: dict[tuple[torch.dtype, torch.device, int], Tensor] = {}


def _ones(like: Tensor) -> Tensor:
    """Ones in the shape of ``like``, without an operator after the first time."""
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    key = like.dtype, like.device, stream
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
