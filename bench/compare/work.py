"""What every tool does on a workload, counted: rows given to the model, rows backpropagated, operators, padding."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.compare.peers import Runner, Tool, tools_for
from bench.compare.workloads import Workload
from bench.console import say


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
