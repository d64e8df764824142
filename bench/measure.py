"""Time, work done and memory of every tool on a workload, in one process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastshap
from bench.gpu_operators import say
from bench.peers import Runner, Tool, prepare_fastshap, tools_for
from bench.workloads import NOISE_STD, Workload

SAMPLING_INTERVAL = 0.002  # seconds between two looks at the resident memory
LESSER_SECONDS = 60.0  # a tool that is not one of the core is timed until it has taken so long in all


def timed(runner: Runner, batch_size: Any, n: int) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    runner.run(batch_size, n, 0)
    return time.perf_counter() - start


# ------------------------------------------------------------------ time


def sweep(workload: Workload, cap: float) -> dict[str, Any]:
    """Each tool's best batch size: a warm run and a timed run at each point of its grid.

    A grid point that would exceed the tool's share of the cap (in seconds) is left out, and the record says so.
    """
    tools = tools_for(workload)
    found: dict[str, Any] = {"texts": len(workload.ids), "targets": len(workload.targets[0]), "tools": {}}
    for tool in tools:
        say(f"{workload.name}: batch size of {tool.name}")
        grid, left_out = sweep_tool(tool, workload, cap / len(tools))
        found["tools"][tool.name] = {
            "unit": tool.unit,
            "best": min(grid, key=lambda batch_size: grid[batch_size]),
            "seconds": {str(batch_size): taken for batch_size, taken in grid.items()},
            "left_out": left_out,
        }
    return found


def sweep_tool(tool: Tool, workload: Workload, cap: float) -> tuple[dict[Any, float], list[Any]]:
    """Seconds of each grid point, and the points left out; at least one is measured."""
    runner, start = tool.prepare(workload), time.perf_counter()
    grid: dict[Any, float] = {}
    left_out = []
    for batch_size in tool.grid(workload):
        if grid and time.perf_counter() - start + 2 * min(grid.values()) > cap:
            left_out.append(batch_size)
            continue
        runner.run(batch_size, workload.n, 0)
        grid[batch_size] = timed(runner, batch_size, workload.n)
    return grid, left_out


def best_sizes(swept: dict[str, Any]) -> dict[str, Any]:
    return {name: its["best"] for name, its in swept["tools"].items()}


def interleaved(workload: Workload, best: dict[str, Any], rounds: int, cap: float) -> dict[str, Any]:
    """All tools in turn, round after round; after ``cap`` seconds no round beyond the third begins.

    A round beforehand is not counted. A language model, whose rounds take minutes, goes without.
    """
    tools = tools_for(workload)
    runners = {tool.name: tool.prepare(workload) for tool in tools}
    taken: dict[str, list[float | None]] = {tool.name: [] for tool in tools}
    if not workload.causal:
        say(f"{workload.name}: a round beforehand")
        for tool in tools:
            timed(runners[tool.name], best[tool.name], workload.n)
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > cap:
            break
        say(f"{workload.name}: round {number + 1} of {rounds}")
        gc.collect()
        # Each round begins with another tool, so that none is always in the wake of the same one.
        turn = number % len(tools)
        for tool in tools[turn:] + tools[:turn]:
            past = [value for value in taken[tool.name] if value is not None]
            if past and not tool.core and sum(past) + past[-1] > LESSER_SECONDS:
                taken[tool.name].append(None)
                continue
            taken[tool.name].append(timed(runners[tool.name], best[tool.name], workload.n))
    return {
        "title": workload.title,
        "texts": len(workload.ids),
        "tokens": sum(map(len, workload.ids)),
        "targets": len(workload.targets[0]),
        "n": workload.n,
        "rows": workload.rows,
        "tools": {name: {"batch_size": best[name]} | summary(values) for name, values in taken.items()},
        "ratios": {
            name: {other: ratios(taken[name], taken[other]) for other in taken if other != name} for name in taken
        },
    }


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """The median, and each round's seconds, None where a round was left out."""
    return {"median": statistics.median(v for v in values if v is not None), "seconds": list(values)}


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float]:
    """The ratio of each round in which both ran: median, least and largest."""
    each = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def finding_targets(workload: Workload, best: Any, rounds: int) -> dict[str, Any]:
    """What the predicted classes cost: fastshap without targets against with targets given."""
    given, found = prepare_fastshap(workload), prepare_fastshap(workload, targets=False)
    found.run(best, workload.n, 0)
    each = [(timed(found, best, workload.n), timed(given, best, workload.n)) for _ in range(rounds)]
    return ratios([one for one, _ in each], [other for _, other in each])


# ------------------------------------------------------------------ work


class Counter(TorchDispatchMode):
    """Rows and tokens given to the model, rows backpropagated, and operators beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0  # of the model, with gradients
        self.rows = 0
        self.rows_back = 0
        self.rows_without_gradient = 0
        self.cells = 0  # rows times columns of calls with gradients
        self.padding = 0
        self.stretches = [0]  # operators before the first model call, between two, and after the last
        self._inside = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside and not function.is_view:
            self.stretches[-1] += 1
        return function(*args, **(kwargs or {}))

    @property
    def between(self) -> float:
        """Operators for each model call, from the first call to the last."""
        return sum(self.stretches[1:-1]) / max(1, self.calls - 1)

    @contextmanager
    def inside(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def saw(self, embeddings: Tensor, mask: Tensor | None) -> None:
        """One call of the model."""
        rows, columns = embeddings.shape[:2]
        if not torch.is_grad_enabled():
            self.rows_without_gradient += rows
            return
        self.calls += 1
        self.stretches.append(0)
        self.rows += rows
        self.cells += rows * columns
        if mask is not None:
            with self.inside():
                self.padding += int((mask == 0).sum())

    def walked_back(self, inputs: Any, grad_outputs: Any, batched: bool) -> None:
        """One call of torch.autograd.grad."""
        rows, outer = (one[0] if isinstance(one, list | tuple) else one for one in (inputs, grad_outputs))
        self.rows_back += len(rows) * (len(outer) if batched else 1)


@contextmanager
def counted(model: Any, first: Callable[[], object]) -> Iterator[Counter]:
    """Counts what is done with ``model``: its body's forward is a call, and what runs in a forward or backward is its own.

    ``first`` runs uncounted: a model whose forward is watched is another model, which fastshap tries again.
    """
    counter = Counter()
    grad, backward = torch.autograd.grad, Tensor.backward
    last_rows = 0

    def counting_grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        counter.walked_back(inputs, grad_outputs, kwargs.get("is_grads_batched", False))
        with counter.inside():
            return grad(outputs, inputs, grad_outputs, *args, **kwargs)

    def counting_backward(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        counter.rows_back += last_rows
        with counter.inside():
            return backward(self, *args, **kwargs)

    def watched(module: Any, body: bool) -> Callable[..., Any]:
        forward = module.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal last_rows
            if body:
                embeddings = kwargs.get("inputs_embeds")
                if embeddings is None:
                    embeddings = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
                counter.saw(embeddings, kwargs.get("attention_mask"))
                last_rows = len(embeddings)
            with counter.inside():
                return forward(*args, **kwargs)

        # So that what reads the signature still sees the model's.
        call.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        return call

    with contextlib.ExitStack() as stack:
        for module, body in ((model, False), (model.base_model, True)):
            stack.enter_context(mock.patch.object(module, "forward", watched(module, body)))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", counting_grad))
        stack.enter_context(mock.patch.object(Tensor, "backward", counting_backward))
        first()
        counter = stack.enter_context(Counter())
        yield counter


def work(workload: Workload, best: dict[str, Any]) -> dict[str, Any]:
    """Rows backpropagated against rows needed, padding, and operators beside the model, for a run of each tool."""
    found = {}
    for tool in tools_for(workload):
        say(f"{workload.name}: work of {tool.name}")
        found[tool.name] = work_of(tool, tool.prepare(workload), workload, best[tool.name])
    return found


def work_of(tool: Tool, runner: Runner, workload: Workload, batch_size: Any) -> dict[str, Any]:
    """A run after another, so that what is done once is done."""
    needed = workload.n * sum(backwards_needed(tool, workload))
    with counted(runner.model, lambda: runner.run(batch_size, 1, 0)) as counter:
        runner.run(batch_size, workload.n, 0)
    between = counter.between
    if counter.calls < 3 and tool.unit == "rows":  # too few to tell: with n rows a call instead
        with counted(runner.model, lambda: runner.run(workload.n, 1, 0)) as smaller:
            runner.run(workload.n, workload.n, 0)
        between = smaller.between
    return {
        "targets": len(workload.targets[0]),
        "rows_needed": needed,
        "rows_backpropagated": counter.rows_back,
        "backpropagated_over_needed": counter.rows_back / needed,
        "rows_forward": counter.rows,
        "rows_without_gradient": counter.rows_without_gradient,
        "model_calls": counter.calls,
        "operators_per_call": between,
        "operators_before_and_after": counter.stretches[0] + counter.stretches[-1],
        "padding_share": counter.padding / max(1, counter.cells),
    }


def backwards_needed(tool: Tool, workload: Workload) -> list[int]:
    """Backward passes that a text's rows need: one a target, or one a target word where scores of words are sums."""
    by_group = tool.name == "fastshap" or tool.causal_only
    return workload.target_groups if by_group else [len(targets) for targets in workload.targets]


# ------------------------------------------------------------------ memory


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def settle() -> None:
    """Gives free memory back, so that what a run takes shows in the resident size."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Peak(threading.Thread):
    """The largest resident size while it runs, looked at every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = resident()
        self._done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._done.wait(SAMPLING_INTERVAL):
            self.largest = max(self.largest, process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.largest


def peak_memory(workload: Workload, best: dict[str, Any]) -> dict[str, int]:
    """Bytes of resident memory above that before the run, at most."""
    found = {}
    gc.collect()
    gc.freeze()  # so that the next collections are quick
    try:
        for tool in tools_for(workload):
            say(f"{workload.name}: memory of {tool.name}")
            runner = tool.prepare(workload)
            runner.run(best[tool.name], 1, 0)
            settle()
            before, watch = resident(), Peak()
            watch.start()
            runner.run(best[tool.name], workload.n, 0)
            found[tool.name] = watch.stop() - before
    finally:
        gc.unfreeze()
    return found


# ------------------------------------------------------------------ a long list


@dataclass(frozen=True)
class Line:
    """A straight line through cumulative times, and how far off they are."""

    per_text: float
    start: float
    largest_deviation: float  # of a time from the line, as a share of the line's value


def straight_line(texts: Sequence[float], times: Sequence[float]) -> Line:
    """The least squares line."""
    x, y = np.asarray(texts, float), np.asarray(times, float)
    per_text, start = np.polyfit(x, y, 1)
    line = per_text * x + start
    return Line(float(per_text), float(start), float(np.abs(y / line - 1).max()))


def burst_ends(times: Sequence[float]) -> list[int]:
    """How many outputs were there before each long wait, and at the end.

    Outputs come a window of texts at a time, so in between their number says nothing of the work done.
    """
    waits = np.diff(times)
    return [*(int(k) + 1 for k in np.flatnonzero(waits > 0.1 * waits.max())), len(times)]


def long_list(workload: Workload, n: int) -> dict[str, Any]:
    """``iter_explain`` over all texts, once: is time linear, is memory flat?

    The line goes through the times at which windows of texts were done, from a twentieth of the texts on; the half-way time is
    interpolated between them. Memory is looked at after each quarter of the texts, and again once the C library has given its
    free blocks back, for which the clock is stopped.
    """
    explainer = fastshap.GradientShap(
        workload.model,
        workload.tokenizer,
        "auto",
        n_perturbations=n,
        noise_std=NOISE_STD,
        on_error="record",
    )
    explainer(workload.texts[:8])
    count = len(workload.texts)
    errors = 0
    padding, positions = explainer.padding
    settle()
    times: list[float] = []
    quarters: list[int] = []
    settled: list[int] = []
    start = time.perf_counter()
    for output in explainer.iter_explain(iter(workload.texts)):
        times.append(time.perf_counter() - start)
        errors += output.error is not None
        if len(times) % (count // 4) == 0:
            halted = time.perf_counter()
            quarters.append(resident())
            settle()
            settled.append(resident())
            say(f"e: {len(times)} of {count} texts")
            start += time.perf_counter() - halted
    at = [end for end in burst_ends(times) if end >= count // 20]
    done = [times[k - 1] for k in at]
    half = float(np.interp(count / 2, [0, *at], [0, *done]))
    return {
        "title": workload.title,
        "texts": count,
        "n": n,
        "errors": errors,
        "seconds": times[-1],
        "texts_per_second": count / times[-1],
        "points": [{"texts": a, "seconds": t} for a, t in zip(at, done, strict=True)],
        "largest_deviation_from_line": straight_line(at, done).largest_deviation,
        "second_half_over_first": (times[-1] - half) / half,
        "resident_bytes_at_quarters": quarters,
        "settled_bytes_at_quarters": settled,
        "padding_share": (explainer.padding[0] - padding) / (explainer.padding[1] - positions),
        "tokens": sum(map(len, workload.ids)),
    }
