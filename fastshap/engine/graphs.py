"""CUDA graphs: what the device does in a small call, recorded once for its shapes and then started by a single launch.

A call of one text has few rows, and a GPU computes it in less time than the host takes to launch its operators
(docs/adr/0020). A graph is trusted once it gave the scores of the plain call for two texts. Where it gives others, or the
model cannot be recorded, because it reads values on the host say, its calls stay the plain ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Batch, Execution, Item
from fastshap.errors import InvalidArgumentError
from fastshap.ops import Rows
from fastshap.types import InferenceModes

MOST_ALONE = 6  # texts that run one graph after the other, rather than share a call
_MOST_TOKENS = 5120  # rows times their length: larger calls keep a GPU busy as they are (docs/adr/0020)
_MOST_GRAPHS = 256
_MOST_SEEN = 4096  # shapes that are remembered
_TOLERANCE = 1e-5  # of the largest score
_REPEATS, _WIDER = 3, 2  # plain calls that show how far apart they come, and how much further a graph may be
_SEEN, _PLAIN = "seen", "plain"  # what is known of shapes without a graph: that they came, that they cannot have one

_log = logging.getLogger(__name__)

Report = Callable[[int], None]
Compute = Callable[[Batch, Report | None], Tensor]


class Graphs:
    """The graphs of one model, for the explainers that share them. One thread at a time uses them: it holds the model's lock.

    No graph is ever replaced by another: when there are ``_MOST_GRAPHS``, further shapes stay plain calls. So the time that
    recording takes is bounded, whatever texts come.
    """

    def __init__(self, wanted: bool, device: torch.device, devices: Sequence[torch.device] = ()) -> None:
        if wanted and (device.type != "cuda" or len(devices) > 1):
            where = f"the model is on {device}" if device.type != "cuda" else f"device names {len(devices)}"
            raise InvalidArgumentError(
                f"cuda_graphs=True needs one NVIDIA GPU, and {where}. Pass device='cuda:0', or leave cuda_graphs out."
            )
        self._wanted = wanted
        self._state: Any = None
        self._forget()

    def _forget(self) -> None:
        self._known: dict[Hashable, str | _Graph] = {}
        self._texts: dict[Hashable, bool] = {}  # what is known of texts like one: whether their calls have a graph
        self._recorder: Recorder | None = None
        self._full = False

    def anew(self) -> Graphs:
        """For a copy of the model: without graphs."""
        own = object.__new__(Graphs)
        own._wanted, own._state = self._wanted, None
        own._forget()
        return own

    def at(self, state: Callable[[], Any], is_view: bool) -> Graphs | None:
        """These, if graphs are wanted and the model can have any. Those of another state of it go.

        ``is_view``: it runs as a view, so that its modules do nothing beside their operators.
        """
        if not self._wanted or not is_view:
            return None
        if self._state != (now := state()):
            self._forget()
            self._state = now
        return self

    def takes(self, item: Item, rows: int, kind: Hashable) -> bool:
        """Whether a call of so many rows of this text alone has a graph, or is to have one."""
        if kind is None or rows * len(item.input_ids) > _MOST_TOKENS:
            return False
        return self._texts.get(_like(item, rows, kind), not self._full)

    def run(
        self,
        compute: Compute,
        batch: Batch,
        item: Item,
        kind: Hashable,
        forward: Any,
        report: Report | None,
    ) -> Tensor:
        """What ``compute(batch, report)`` gives, by a graph where there is one.

        Args:
            item: the text, if it is one alone.
            kind: what else decides the operators of the call; None: it may depend on what nobody knows.
            forward: its list ``aside``, where it has one, holds further tensors of the call.
            report: told what the plain call would tell it.
        """
        key = None if kind is None or len(batch.pieces) > 1 else self._key(batch, kind)
        if key is None:
            return compute(batch, report)
        known, aside = self._known.get(key), getattr(forward, "aside", [])
        if isinstance(known, _Graph) and known.checks == 0:
            return known.replay(batch, aside, report)
        right = compute(batch, report)
        held = list(aside)
        if isinstance(known, _Graph):
            known.checks -= 1
            if not _agrees(known, compute, batch, right):
                self._known[key] = _PLAIN
        elif known == _SEEN and not self._full:
            self._known[key] = self._recorded(compute, batch, aside, right)
            self._full |= sum(isinstance(one, _Graph) for one in self._known.values()) >= _MOST_GRAPHS
        elif known is None and len(self._known) < _MOST_SEEN:
            self._known[key] = _SEEN
        if key in self._known and self._known[key] != _SEEN:
            self._texts[_like(item, len(batch.rows.alphas), kind)] = self._known[key] != _PLAIN
        aside[:] = held
        return right

    def give_way(self) -> bool:
        """Frees what all graphs hold, where memory ran out; no more are recorded. False if there was none."""
        had = any(isinstance(one, _Graph) for one in self._known.values())
        self._forget()
        self._full = True
        return had

    def _key(self, batch: Batch, kind: Hashable) -> Hashable | None:
        """What calls of one graph have in common; None where there can be none."""
        rows = batch.rows
        if len(rows.alphas) * rows.length > _MOST_TOKENS or not may_record(batch.input_ids.device):
            return None
        call = batch.call
        shapes = tuple((tuple(one.shape), one.dtype) for one in _tensors(batch))
        number = rows.baseline if isinstance(rows.baseline, float) else None
        layout = rows.length, rows.padding_side, float(rows.noise_std), number, *call.inputs
        return kind, shapes, layout, call.kept, call.widths, call.apart, _switches()

    def _recorded(self, compute: Compute, batch: Batch, aside: list[Tensor], right: Tensor) -> str | _Graph:
        try:
            self._recorder = self._recorder or Recorder(batch.input_ids.device)
            graph = _Graph(self._recorder, compute, batch, aside)
        except Exception as error:
            self._full = True  # what could not be recorded once is not tried again
            _log.info("cuda_graphs: this model's calls cannot be recorded: %s: %s", type(error).__name__, error)
            return _PLAIN
        return graph if _agrees(graph, compute, batch, right) else _PLAIN


class _Graph:
    """One call: its inputs in buffers of their own, and what it gave."""

    def __init__(self, recorder: Recorder, compute: Compute, batch: Batch, aside: list[Tensor]) -> None:
        self.checks = 1  # that it has yet to pass
        self._recorder = recorder
        given = _with_tensors(batch, torch.clone)
        self._inputs = _tensors(given)
        self._told: list[int] = []

        def step() -> tuple[Tensor, ...]:
            self._told.clear()
            scores = compute(given, self._told.append)
            return scores, *aside

        self._start, (self._out, *self._aside) = recorder.record(step)

    def replay(self, batch: Batch, aside: list[Tensor], report: Report | None) -> Tensor:
        with self._recorder.alone():
            for mine, given in zip(self._inputs, _tensors(batch), strict=True):
                mine.copy_(given, non_blocking=True)
            self._start()
            out = self._out.clone()
            aside[:] = [one.clone() for one in self._aside]
        for positions in self._told if report is not None else ():
            report(positions)  # type: ignore[misc]
        return out


@dataclass
class Recorder:
    """Records on one device. Graphs share memory for what they do not give out, so they run one after the other."""

    device: torch.device
    _pool: Any = field(init=False)
    _stream: torch.cuda.Stream = field(init=False)
    _done: torch.cuda.Event = field(init=False)

    def __post_init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self.device)
        self._done = torch.cuda.Event()

    def record(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What starts the step again, and the tensors that it then fills."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()  # what libraries set up once is not for the graph
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile. After an error the caller's stream would not come back by itself.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                out = step()
        except Exception:
            del graph
            self._recover()
            raise
        return graph.replay, out

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Whatever stream the caller is on, the graph before this one has ended."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self._done)
        yield
        self._done.record(current)

    def _recover(self) -> None:
        """After a recording that failed, PyTorch still takes its random generator and its memory to be recording.

        A recording that succeeds puts the generator right.
        """
        torch.cuda.synchronize(self.device)
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), self._pool, self._stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=self.device)


def kind_of(execution: Execution, forward: Any, backward: bool) -> Hashable | None:
    """What decides a call's operators beside its shapes and the model. None: a function of the user's may."""
    its = execution.settings
    task = forward.__self__ if inspect.ismethod(forward) else getattr(forward, "task", None)
    if not isinstance(its.inference_mode, InferenceModes) or callable(its.score):
        return None
    if not inspect.ismethod(forward) and not hasattr(forward, "aside"):
        return None
    what = type(task), forward.__func__ if inspect.ismethod(forward) else type(forward)
    how = its.inference_mode, its.score, its.reduction, its.input_x_gradient
    return what, how, execution.backend, execution.layout, execution.with_text, execution.with_ids, backward


def _agrees(graph: _Graph, compute: Compute, batch: Batch, right: Tensor) -> bool:
    """Whether a graph gives what the plain call gives, or comes as near to it as plain calls come to each other.

    Where these differ, operators add in any order. Graphs differ where a model does something else while it is recorded.
    """
    off = (graph.replay(batch, [], None) - right).abs().max()
    if bool(off <= _TOLERANCE * right.abs().max()):
        return True
    apart = torch.stack([(compute(batch, None) - right).abs().max() for _ in range(_REPEATS)]).max()
    if bool(off <= _WIDER * apart):
        return True
    shares = float(off / right.abs().max()), float(apart / right.abs().max())
    _log.info("cuda_graphs: a graph was %.1e of the largest score off, plain calls come %.1e apart", *shares)
    return False


def may_record(device: torch.device) -> bool:
    """Whether calls there can become graphs now: on NVIDIA GPUs, without autocast, which keeps copies of weights."""
    return device.type == "cuda" and torch.version.hip is None and not torch.is_autocast_enabled("cuda")


def _switches() -> tuple[bool, ...]:
    """PyTorch's own that choose operators."""
    its = torch.backends.cuda
    return (
        torch.are_deterministic_algorithms_enabled(),
        its.flash_sdp_enabled(),
        its.mem_efficient_sdp_enabled(),
        its.math_sdp_enabled(),
    )


def _like(item: Item, rows: int, kind: Hashable) -> Hashable:
    return kind, rows, len(item.input_ids), item.targets.numel(), item.n_scores


def _tensors(batch: Batch) -> list[Tensor]:
    """All that a call gets, in an order that depends on nothing but what is there."""
    found: list[Tensor] = []
    _with_tensors(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _with_tensors(batch: Batch, of: Callable[[Tensor], Tensor]) -> Batch:
    """The same call with other tensors."""

    def changed(holder: Any, names: Sequence[str]) -> dict[str, Any]:
        each = {name: getattr(holder, name) for name in names}
        return {name: of(value) for name, value in each.items() if isinstance(value, Tensor)}

    rows = dataclasses.replace(batch.rows, **changed(batch.rows, _ROWS))
    call = dataclasses.replace(
        batch.call,
        inputs={name: of(value) for name, value in batch.call.inputs.items()},
        at=batch.call.at and (of(batch.call.at[0]), of(batch.call.at[1])),
        **changed(batch.call, _CALL),
    )
    return dataclasses.replace(batch, rows=rows, call=call, **changed(batch, _BATCH))


_ROWS = tuple(one.name for one in dataclasses.fields(Rows))
_CALL = ("targets", "joined", "sequences", "vectors")
_BATCH = ("input_ids", "weights", "moved")
