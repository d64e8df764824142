"""One call, forward, backward and the operators, launched operator by operator and as one CUDA graph.

The graph is captured for fixed sizes: so many rows of so many tokens. What is compared are the scores, and the time from the
first launch until the device is done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.operators import Shape, make_rows
from fastshap import ops


def step_of(model: Any, rows: int, length: int, device: torch.device) -> Callable[[], Tensor]:
    """Scores (1, R, L) of one text with so many samples, of class 1, as the engine makes them."""
    embeddings = model.get_input_embeddings()
    dtype = next(model.parameters()).dtype
    _, described = make_rows(Shape("one text", [length], rows), 8, dtype, device)
    ids = torch.randint(100, embeddings.weight.shape[0], (length,), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    mask = torch.ones(rows, length, dtype=torch.int64, device=device)

    def step() -> Tensor:
        with torch.no_grad():
            x = embeddings(ids)
            z = ops.perturb(x, described).requires_grad_()
            with torch.enable_grad():
                logits = model(inputs_embeds=z, attention_mask=mask).logits
                score = (logits if logits.ndim == 2 else logits[:, -1])[:, 1]
            gradients = torch.autograd.grad(score, z, grad_outputs=torch.ones_like(score))[0][None]
            return ops.attribute(gradients, z.detach(), x, described, reduction="sum", input_x_gradient=True)

    return step


def captured(step: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of a step, and the tensor that a replay writes."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def seconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median of runs, each until the device is done."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def compared(model: Any, rows: int, length: int, device: torch.device, repeats: int = 15) -> dict[str, Any]:
    """Milliseconds of both; ``apart``: the largest difference of scores, in shares of the largest score."""
    step = step_of(model, rows, length, device)
    plain = step().clone()
    start = time.perf_counter()
    graph, out = captured(step, device)
    graph.replay()
    torch.cuda.synchronize(device)
    built = time.perf_counter() - start
    apart = float((out - plain).abs().max() / plain.abs().max())
    return {
        "plain_ms": 1e3 * seconds(step, repeats, device),
        "replay_ms": 1e3 * seconds(graph.replay, repeats, device),
        "capture_ms": 1e3 * built,
        "apart": apart,
    }
