"""CUDA graphs: what the device does in a small call, recorded once for its shapes and then started by a single launch.

A call of one text has few rows, and a GPU computes it in less time than the host takes to launch its operators
(docs/adr/0020). A graph is trusted once it gave the results of the plain call for two different texts. Where it gives others,
or where the model cannot be recorded, calls stay the plain ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastshap.engine.budget import Budget
from fastshap.engine.constants import made_anew
from fastshap.engine.outside import outside_of
from fastshap.engine.packing import Batch, Execution, Item
from fastshap.errors import InvalidArgumentError
from fastshap.types import InferenceModes

MOST_ALONE = 6  # texts that run one graph after the other, rather than share a call
_MOST_TOKENS = 5120  # rows times their length: larger calls keep a GPU busy as they are (docs/adr/0020)
_MOST_GRAPHS = 256  # at a time
_MOST_RECORDED, _MOST_FAILED = 1024, 8  # of one explainer, whatever states its model is in
_MOST_SEEN = 4096  # shapes that are remembered
_MOST_BASELINE = 1 << 22  # numbers in a baseline, of which each graph has a copy
_TOLERANCE = 1e-5  # of the largest score
_REPEATS, _WIDER = 3, 2  # plain calls that show how far apart they come, and how much further a graph may be
_SEEN, _PLAIN = "seen", "plain"  # what is known of shapes without a graph: that they came, that they cannot have one

_log = logging.getLogger(__name__)
_one_at_a_time = threading.RLock()  # PyTorch records one graph at a time, and none is replayed meanwhile

Report = Callable[[int], None]
Compute = Callable[[Batch, Report | None], Tensor]


class Graphs:
    """The graphs of one model, for the explainers that share them. One thread at a time uses them: it holds the model's lock.

    No graph is replaced by another, and only so many are ever recorded. So the time that recording takes is bounded, whatever
    texts come.
    """

    def __init__(self, wanted: bool, device: torch.device, devices: Sequence[torch.device] = ()) -> None:
        if wanted and (device.type != "cuda" or len(devices) > 1):
            where = f"the model is on {device}" if device.type != "cuda" else f"device names {len(devices)}"
            raise InvalidArgumentError(
                f"cuda_graphs=True needs one NVIDIA GPU, and {where}. Pass device='cuda:0', or leave cuda_graphs out."
            )
        self._begin(wanted)

    def _begin(self, wanted: bool) -> None:
        self._wanted, self._open = wanted, False
        self._state: Any = None
        self._recorder: Recorder | None = None
        self._records = self._failures = 0
        self._forget()

    def _forget(self) -> None:
        self._known: dict[Hashable, str | _Graph] = {}
        self._failed: set[Hashable] = set()  # kinds of calls that could not be recorded
        self._alone: dict[Hashable, bool] = {}  # texts of one shape: whether their calls have a graph

    def anew(self) -> Graphs:
        """For a copy of the model: without graphs."""
        own = object.__new__(Graphs)
        own._begin(self._wanted)
        return own

    def at(self, state: Callable[[], Any], is_view: bool) -> Graphs | None:
        """These, if graphs are wanted and the model can have any. Those of another state of it go.

        ``is_view``: it runs as a view, so that nothing hangs on its modules. Texts under way ask ``is_open``.
        """
        self._open = self._wanted and is_view
        if not self._open:
            return None
        if self._state != (now := state()):
            self._forget()
            self._state = now
        return self

    def is_open(self, device: torch.device) -> bool:
        """Whether calls there may be graphs now."""
        return self._open and may_record(device)

    def takes(self, item: Item, rows: int, kind: Hashable) -> bool:
        """Whether a call of so many rows of this text alone has a graph, or is to have one."""
        if kind is None or rows * len(item.input_ids) > _MOST_TOKENS:
            return False
        return self._alone.get(_shape(item, rows, kind), self._may_record_more(kind))

    def run(
        self,
        compute: Compute,
        model: nn.Module,
        batch: Batch,
        item: Item,
        kind: Hashable,
        forward: Any,
        budget: Budget,
        report: Report | None,
    ) -> Tensor:
        """What ``compute(batch, report)`` gives, by a graph where there is one.

        Args:
            item: the text, if it is one alone.
            kind: what else decides the operators of the call; None: it may depend on what nobody knows.
            forward: its list ``aside``, where it has one, holds further tensors of the call.
            report: told what the plain call would tell it.
        """
        key = None if kind is None or len(batch.pieces) > 1 else _key(batch, kind)
        if key is None:
            return compute(batch, report)
        known, aside = self._known.get(key), getattr(forward, "aside", [])
        if isinstance(known, _Graph) and known.is_trusted:
            return known.replay(batch, aside, report)
        right = compute(batch, report)
        held = list(aside)
        if isinstance(known, _Graph):
            if known.ids != list(item.input_ids):  # one text tells nothing of others
                known.is_trusted = _agrees(known, compute, batch, right, aside)
                self._known[key] = known if known.is_trusted else self._given_up(kind)
        elif known == _SEEN and self._may_record_more(kind):
            self._known[key] = self._recorded(compute, model, batch, item, kind, aside, right, budget)
        elif known is None and len(self._known) < _MOST_SEEN:
            self._known[key] = _SEEN
        if self._known.get(key, _SEEN) != _SEEN:
            self._alone[_shape(item, len(batch.rows.alphas), kind)] = self._known[key] != _PLAIN
        aside[:] = held
        return right

    def give_way(self) -> bool:
        """Frees what all graphs hold, where memory ran out; no more are recorded. False if there was none."""
        had = any(isinstance(one, _Graph) for one in self._known.values())
        self._forget()
        self._records = _MOST_RECORDED
        return had

    def _may_record_more(self, kind: Hashable) -> bool:
        return (
            kind not in self._failed
            and self._failures < _MOST_FAILED
            and self._records < _MOST_RECORDED
            and sum(isinstance(one, _Graph) for one in self._known.values()) < _MOST_GRAPHS
        )

    def _recorded(
        self,
        compute: Compute,
        model: nn.Module,
        batch: Batch,
        item: Item,
        kind: Hashable,
        aside: list[Tensor],
        right: Tensor,
        budget: Budget,
    ) -> str | _Graph:
        device, together, held = batch.input_ids.device, budget.together, list(aside)
        if self._recorder is None or self._recorder.device != device:
            self._recorder = Recorder(device)
        self._records += 1
        try:
            graph = _Graph(self._recorder, compute, model, batch, item, aside)
        except Exception as error:
            _log.info("cuda_graphs: a call could not be recorded: %s: %s", type(error).__name__, error)
            return self._given_up(kind)
        finally:
            budget.together = together  # which operators can share a backward pass, a recording does not tell
        aside[:] = held
        return graph if _agrees(graph, compute, batch, right, aside) else self._given_up(kind)

    def _given_up(self, kind: Hashable) -> str:
        """Calls of this kind are not recorded again: what failed for one length most likely does for others."""
        self._failures += 1
        self._failed.add(kind)
        return _PLAIN


class _Graph:
    """One call: its inputs in buffers of their own, and what it gave."""

    def __init__(
        self,
        recorder: Recorder,
        compute: Compute,
        model: nn.Module,
        batch: Batch,
        item: Item,
        aside: list[Tensor],
    ) -> None:
        self.ids, self.is_trusted = list(item.input_ids), False
        self._recorder = recorder
        given = _cloned(batch)
        self._inputs = [*tensors_of(given).values()]
        self._told: list[int] = []

        def step() -> tuple[Tensor, ...]:
            self._told.clear()
            with made_anew():
                scores = compute(given, self._told.append)
            return scores, *aside

        self._start, (self._out, *self._aside) = recorder.record(step, lambda: outside_of(step, model, self._inputs))

    def replay(self, batch: Batch, aside: list[Tensor], report: Report | None) -> Tensor:
        with self._recorder.alone():
            for mine, given in zip(self._inputs, tensors_of(batch).values(), strict=True):
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

    def record(
        self, step: Callable[[], tuple[Tensor, ...]], warm_up: Callable[[], None]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What starts the step again, and the tensors that it then fills. ``warm_up`` runs it once, not to be recorded."""
        with _one_at_a_time:
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                warm_up()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile. After an error the caller's stream would not come back by itself.
                with (
                    torch.cuda.stream(current),
                    torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
                ):
                    out = step()
            except BaseException:
                del graph
                self._recover()
                raise
        return graph.replay, out

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Whatever stream the caller is on, the graph before this one has ended, and none is recorded."""
        with _one_at_a_time:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._done)
            try:
                yield
            finally:
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
    """What decides a call's operators beside its shapes and the model. None: a user's function or task may decide more."""
    its = execution.settings
    if not isinstance(its.inference_mode, InferenceModes) or callable(its.score):
        return None
    if inspect.ismethod(forward):
        task, what = forward.__self__, forward.__func__
    elif hasattr(forward, "aside"):
        task, what = forward.task, type(forward)
    else:
        return None
    if not type(task).__module__.startswith("fastshap."):
        return None
    how = its.inference_mode, its.score, its.reduction, its.input_x_gradient
    return type(task), what, how, execution.backend, execution.layout, execution.with_text, execution.with_ids, backward


def may_record(device: torch.device) -> bool:
    """Whether calls there can become graphs now: on NVIDIA GPUs, without autocast, which keeps copies of weights."""
    return device.type == "cuda" and torch.version.hip is None and not torch.is_autocast_enabled("cuda")


def _key(batch: Batch, kind: Hashable) -> Hashable | None:
    """What calls of one graph have in common; None where there can be none."""
    rows, call = batch.rows, batch.call
    is_tensor = isinstance(rows.baseline, Tensor)
    if len(rows.alphas) * rows.length > _MOST_TOKENS or (is_tensor and rows.baseline.numel() > _MOST_BASELINE):  # type: ignore[union-attr]
        return None
    shapes = tuple((name, tuple(one.shape), one.dtype) for name, one in tensors_of(batch).items())
    layout = rows.length, rows.padding_side, float(rows.noise_std), None if is_tensor else float(rows.baseline)
    return kind, shapes, layout, call.kept, call.widths, call.apart, _switches()


def _switches() -> tuple[Any, ...]:
    """PyTorch's own that choose operators."""
    its, matmul = torch.backends.cuda, torch.backends.cuda.matmul
    return (
        torch.are_deterministic_algorithms_enabled(),
        its.flash_sdp_enabled(),
        its.mem_efficient_sdp_enabled(),
        its.math_sdp_enabled(),
        its.cudnn_sdp_enabled(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )


def _shape(item: Item, rows: int, kind: Hashable) -> Hashable:
    return kind, rows, len(item.input_ids), item.targets.numel(), item.n_scores


def _agrees(graph: _Graph, compute: Compute, batch: Batch, right: Tensor, aside: list[Tensor]) -> bool:
    """Whether a graph gives what the plain call gives, or comes as near to it as plain calls come to each other.

    Where these differ, operators add in any order. Graphs differ where a model does something else while it is recorded.
    """
    theirs = [right, *aside]
    ours = [graph.replay(batch, aside, None), *aside]
    off = _apart(ours, theirs)
    if off <= _TOLERANCE:
        return True
    itself = max(_apart([compute(batch, None), *aside], theirs) for _ in range(_REPEATS))
    if off <= _WIDER * itself:
        return True
    _log.info("cuda_graphs: a graph was %.1e of the largest score off, plain calls come %.1e apart", off, itself)
    return False


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, in shares of the largest value. NaN where there is one: no bound holds then."""
    shares = [(one - other).abs().max() / other.abs().max() for one, other in zip(ours, theirs, strict=True)]
    return float(torch.stack([share.float() for share in shares]).max())


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """All that a call gets, by name."""
    call = batch.call
    found: dict[str, Any] = {name: getattr(batch, name) for name in _BATCH}
    found |= {f"rows {name}": getattr(batch.rows, name) for name in _ROWS}
    found |= {f"call {name}": getattr(call, name) for name in _CALL}
    found |= {f"input {name}": value for name, value in call.inputs.items()}
    if call.at is not None:
        found |= {"at row": call.at[0], "at column": call.at[1]}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _cloned(batch: Batch) -> Batch:
    """The same call with tensors of its own."""

    def own(holder: Any, names: Sequence[str]) -> dict[str, Any]:
        each = {name: getattr(holder, name) for name in names}
        return {name: value.clone() for name, value in each.items() if isinstance(value, Tensor)}

    call = batch.call
    at = call.at and (call.at[0].clone(), call.at[1].clone())
    inputs = {name: value.clone() for name, value in call.inputs.items()}
    rows = dataclasses.replace(batch.rows, **own(batch.rows, _ROWS))
    return dataclasses.replace(
        batch, rows=rows, call=dataclasses.replace(call, inputs=inputs, at=at, **own(call, _CALL)), **own(batch, _BATCH)
    )


_BATCH = ("input_ids", "weights", "moved")
_CALL = ("targets", "joined", "sequences", "vectors")
_ROWS = ("token_offsets", "row_offsets", "alphas", "streams", "draws", "signs", "baseline", "held", "members")
