"""Batches to gradients to token scores. Knows no task and no tokenizer.

Rows of many texts share a model call, and one backward pass per score runs for a whole call, or for a few scores together where
calls are small. Between two calls run the lookup of the embeddings, ``fastshap::perturb``, what the task takes from the model's
output, and ``fastshap::attribute``: nothing is sent, and nothing waits for the device, within a group of calls
(fastshap.engine.packing). Several copies of a model take groups from one queue, each in a thread of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastshap import ops
from fastshap.engine.budget import Budget
from fastshap.engine.constants import ones, unit_vectors
from fastshap.engine.cutting import Piece, halves
from fastshap.engine.graphs import MOST_ALONE, kind_of
from fastshap.engine.memory import collect_young
from fastshap.engine.packing import Batch, Call, Execution, Item, columns, planned, sent
from fastshap.models.tree import first_parameter, modules_of
from fastshap.ops.transfer import to_host
from fastshap.sampling import Samples

Forward = Callable[[Any, Call], Tensor]  # of a model
Report = Callable[[int], None]
_Result = TypeVar("_Result")
_Done = list[tuple[Sequence[Piece], _Result]]

# Calls whose inputs are sent together: many, so that sending is rare; fewer where several devices share them out.
_CALLS_AHEAD = 64
_CALLS_AHEAD_OF_EACH = {"cpu": 1}
_CALLS_AHEAD_OF_EACH_GPU = 8
# Tokens times scores up to which scores share a backward pass: measured on a CPU, where larger calls are slower so
# (docs/adr/0009). Not measured on a GPU.
_TOKENS_TOGETHER = {"cpu": 512}
_TOKENS_TOGETHER_ON_A_GPU = 4096


def token_scores(
    models: Sequence[nn.Module],
    items: Sequence[Item],
    samples: Sequence[Samples],
    forward: Forward,
    execution: Execution,
    report: Report | None = None,
) -> Iterator[list[tuple[int, Tensor]]]:
    """Every score's share of every sample and token, as items are complete: their numbers and (t, n, L) float32.

    They lie on the device of the first of ``models``, which are equal. ``report`` is called with the scores times positions of
    each backward pass, from whichever thread it ran in.
    """
    parts: dict[int, list[Tensor]] = {}
    device = device_of(models[0])

    def compute(model: nn.Module, batch: Batch, report: Report | None) -> Tensor:
        return _batch_scores(model, batch, forward, execution, report)

    run, apart = _by_graphs(compute, models, items, samples, execution, forward, report, backward=True)
    for done in _run(models, items, samples, execution, run, backward=True, apart=apart):
        complete: list[tuple[int, list[Tensor]]] = []
        for pieces, scores in done:
            length = scores.shape[-1]
            of_each = scores.to(device).split([piece.hi - piece.lo for piece in pieces], 1)
            for piece, part in zip(pieces, of_each, strict=True):
                tokens = len(items[piece.item].input_ids)
                if tokens < length:
                    part = part[..., columns(tokens, length, execution.layout.padding_side)]
                if piece.lo:
                    parts[piece.item].append(part)
                else:
                    parts[piece.item] = [part]
                if piece.hi == len(samples[piece.item].alphas):
                    complete.append((piece.item, parts.pop(piece.item)))
        # A text's samples are put together before anything is summed, so that the order never depends on the batches.
        yield [(item, part[0] if len(part) == 1 else torch.cat(part, 1)) for item, part in complete]


def evaluate(
    models: Sequence[nn.Module],
    items: Sequence[Item],
    samples: Sequence[Samples],
    forward: Forward,
    execution: Execution,
) -> list[Tensor]:
    """What ``forward`` gives for every row, without gradients: (rows, ...) on the CPU for each item."""

    def values(model: nn.Module, batch: Batch, report: Report | None) -> Tensor:
        with torch.no_grad():
            _, z = _points(model, batch, execution)
            return _joined(forward(model, _with_embeddings(batch, z)), batch).clone()  # a model may write there again

    parts: list[list[Tensor]] = [[] for _ in items]
    run, apart = _by_graphs(values, models, items, samples, execution, forward, None, backward=False)
    for done in _run(models, items, samples, execution, run, backward=False, apart=apart):
        for (pieces, _), result in zip(done, to_host([result for _, result in done]), strict=True):
            for piece, part in zip(pieces, result.split([p.hi - p.lo for p in pieces]), strict=True):
                parts[piece.item].append(part)
    return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]


def _by_graphs(
    compute: Callable[[nn.Module, Batch, Report | None], Tensor],
    models: Sequence[nn.Module],
    items: Sequence[Item],
    samples: Sequence[Samples],
    execution: Execution,
    forward: Forward,
    report: Report | None,
    backward: bool,
) -> tuple[Callable[[nn.Module, Batch], Tensor], set[int]]:
    """Calls, as CUDA graphs where these are wanted; and the texts that share no call, as graphs of their own are faster."""
    graphs, budget, device = execution.graphs, execution.budget, device_of(models[0])
    # The first call shows how much memory calls take.
    if graphs is None or len(models) > 1 or not budget.measured or not graphs.is_open(device):
        return lambda model, batch: compute(model, batch, report), set()
    kind, apart = kind_of(execution, forward, backward), set()
    if backward and len(items) <= MOST_ALONE:
        rows = [len(sample.alphas) for sample in samples]
        whole = [i for i, item in enumerate(items) if rows[i] <= budget.rows(len(item.input_ids))]
        apart = {i for i in whole if graphs.takes(items[i], rows[i], kind)}

    def run(model: nn.Module, batch: Batch) -> Tensor:
        item = items[batch.pieces[0].item]
        return graphs.run(functools.partial(compute, model), model, batch, item, kind, forward, budget, report)

    return run, apart


def _run(
    models: Sequence[nn.Module],
    items: Sequence[Item],
    samples: Sequence[Samples],
    execution: Execution,
    run: Callable[[nn.Module, Batch], _Result],
    backward: bool,
    apart: Collection[int],
) -> Iterator[_Done[_Result]]:
    """Runs one call after another, and hands on the results of those whose inputs were sent together, in order."""
    calls = planned(items, samples, execution, backward, apart)
    most = _CALLS_AHEAD
    if len(models) > 1:
        most = _CALLS_AHEAD_OF_EACH.get(device_of(models[0]).type, _CALLS_AHEAD_OF_EACH_GPU)
    groups = iter(lambda: list(itertools.islice(calls, most if execution.budget.measured or not backward else 1)), [])

    def group_done(model: nn.Module, group: list[list[Piece]]) -> _Done[_Result]:
        return _group_done(model, group, items, samples, execution, run)

    if len(models) == 1:
        yield from (group_done(models[0], group) for group in groups)
    else:
        yield from _shared_out(models, groups, group_done)


def _shared_out(
    models: Sequence[nn.Module],
    groups: Iterator[list[list[Piece]]],
    group_done: Callable[[nn.Module, list[list[Piece]]], _Done[_Result]],
) -> Iterator[_Done[_Result]]:
    """Whichever model is free takes the next group."""
    free: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
    for model in models:
        free.put(model)
    devices = [device_of(model) for model in models]
    modes = {device.type for device in devices}
    # What threads do not inherit: the caller's autocast, and the streams that the caller's other work is on.
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in modes if torch.is_autocast_enabled(kind)]
    streams = {device: torch.cuda.current_stream(device) for device in devices if device.type == "cuda"}

    def work(group: list[list[Piece]]) -> _Done[_Result]:
        model = free.get()
        try:
            with contextlib.ExitStack() as stack:
                for kind, dtype in autocast:
                    stack.enter_context(torch.autocast(kind, dtype))
                if streams:
                    stack.enter_context(torch.cuda.stream(streams[device_of(model)]))
                return group_done(model, group)
        finally:
            free.put(model)

    waiting: deque[Future[_Done[_Result]]] = deque()
    with _pool(models) as pool:
        for group in groups:
            waiting.append(pool.submit(work, group))
            if len(waiting) > 2 * len(models):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(models: Sequence[nn.Module]) -> Iterator[ThreadPoolExecutor]:
    """A thread for each model. Those on a CPU share its cores with the caller's thread, which gets its own back afterwards."""
    on_cpu = sum(device_of(model).type == "cpu" for model in models)
    usual = torch.get_num_threads()
    share = max(1, usual // max(1, on_cpu))
    ready = threading.Barrier(len(models) + 1)

    def start() -> None:
        torch.set_num_threads(share)
        torch.get_num_threads()  # otherwise the thread's first operator would ask what is set by then
        meet()

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # the caller has gone
            ready.wait()

    pool = ThreadPoolExecutor(len(models), initializer=start)
    try:
        for _ in models:
            pool.submit(meet)
        ready.wait()
        torch.set_num_threads(share)
        # What threads get that begin from now on, the user's say.
        keeper = threading.Thread(target=torch.set_num_threads, args=(usual,))
        keeper.start()
        keeper.join()
        ready.wait()
        yield pool
    finally:
        ready.abort()  # a thread still waits there if something went wrong meanwhile
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # also where a second interrupt ends the wait
            torch.set_num_threads(usual)


def _group_done(
    model: nn.Module,
    group: list[list[Piece]],
    items: Sequence[Item],
    samples: Sequence[Samples],
    execution: Execution,
    run: Callable[[nn.Module, Batch], _Result],
) -> _Done[_Result]:
    """The results of some calls. One that does not fit into the device's memory is run as two of half the rows."""
    device, budget = device_of(model), execution.budget
    done: _Done[_Result] = []
    here = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    # What is sent may be needed for a backward pass.
    with here, torch.inference_mode(False):
        waiting = sent(group, items, samples, execution, device)[::-1]
        while waiting:
            batch = waiting.pop()
            rows, length = len(batch.rows.alphas), batch.rows.length
            if budget.fits(rows, length):
                try:
                    done.append((batch.pieces, run(model, batch)))
                    budget.ran(rows * length, sum((p.hi - p.lo) * len(items[p.item].input_ids) for p in batch.pieces))
                    collect_young()
                    continue
                except torch.OutOfMemoryError:
                    again = execution.graphs is not None and execution.graphs.give_way()
                    if rows == 1 and not again:
                        raise
                    if not again:
                        budget.shrink(rows, length)
            # Here, where nothing keeps the failed call's tensors alive.
            parts = [batch.pieces] if budget.fits(rows, length) else halves(batch.pieces)[::-1]
            waiting += sent(parts, items, samples, execution, device)
    return done


def _batch_scores(
    model: nn.Module, batch: Batch, forward: Forward, execution: Execution, report: Report | None
) -> Tensor:
    """(t, R, L), from one forward pass, or from several where it can be walked back only once."""
    settings = execution.settings
    with torch.no_grad():
        x, z = _points(model, batch, execution)
        rows = len(z)
        if execution.with_text:
            batch, z = _with_last_again(batch), torch.cat([z, x[None]])
        call = _with_embeddings(batch, z.requires_grad_())
        scores: list[Tensor] = []
        for gradients in _gradients(model, call, z, forward, batch, execution.budget):
            score = ops.attribute(
                gradients[:, :rows],
                z.detach()[:rows],
                x,
                batch.rows,
                reduction=settings.reduction,
                input_x_gradient=settings.input_x_gradient,
                backend=execution.backend,
            )
            if report is not None:
                report(gradients.shape[:3].numel())
            del gradients  # so that the next one finds room
            scores.append(score if batch.weights is None else score.mul_(batch.weights[:, None]))
        return scores[0] if len(scores) == 1 else torch.cat(scores)


def _gradients(
    model: nn.Module, call: Call, z: Tensor, forward: Forward, batch: Batch, budget: Budget
) -> Iterator[Tensor]:
    """(scores of a chunk, R, L, D), one chunk after the other. Rows do not mix, so one pass gives every row's gradient."""

    def outputs_of() -> Tensor:
        with torch.enable_grad(), budget.watch(model, z):
            return _joined(forward(model, call), batch)

    outputs = outputs_of()  # (R, t)
    count = outputs.shape[1]
    once = count > 1 and backward_only_once(model)
    limit = _TOKENS_TOGETHER.get(z.device.type, _TOKENS_TOGETHER_ON_A_GPU)
    chunk = max(1, min(count, limit // (z.shape[0] * z.shape[1])))
    lo = 0
    if chunk > 1 and not once and budget.together:
        try:
            for lo in range(0, count, chunk):
                yield _together(outputs, z, lo, min(lo + chunk, count))
            return
        except torch.OutOfMemoryError:
            budget.together = False  # fewer rows would only bring more scores together
            raise
        except Exception:  # an operator that cannot be batched; whatever else is wrong shows below
            budget.together = False
    for i in range(lo, count):
        if once and i > lo:
            outputs = outputs_of()
        with torch.enable_grad():
            one = outputs.unbind(1)[i]
        yield torch.autograd.grad(one, z, grad_outputs=ones(one), retain_graph=not once and i + 1 < count)[0][None]


def _together(outputs: Tensor, z: Tensor, lo: int, hi: int) -> Tensor:
    """(hi - lo, R, L, D), of scores that share a backward pass."""
    wanted = unit_vectors(outputs, lo, hi)[:, None].expand(-1, len(z), -1)
    return torch.autograd.grad(outputs, z, grad_outputs=wanted, retain_graph=True, is_grads_batched=True)[0]


def _joined(outputs: Tensor, batch: Batch) -> Tensor:
    """Scores (R, t) from those of targets (R, T)."""
    joined = batch.call.joined
    return outputs if joined is None else torch.bmm(joined.to(outputs.dtype), outputs.unsqueeze(2)).squeeze(2)


def backward_only_once(model: nn.Module) -> bool:
    """Whether torch.compile made part of the model: its graphs give their buffers away in the backward pass."""
    return any("_orig_mod" in m._modules or vars(m).get("_compiled_call_impl") for m in modules_of(model))


def _points(model: Any, batch: Batch, execution: Execution) -> tuple[Tensor, Tensor]:
    """The embeddings x (M, D) and the perturbed points z (R, L, D)."""
    x = model.get_input_embeddings()(batch.input_ids)
    if batch.moved is not None:
        x = x + batch.moved.to(x.dtype)
    return x, ops.perturb(x, batch.rows, backend=execution.backend)


def _with_last_again(batch: Batch) -> Batch:
    """The same call with its last row twice."""

    def longer(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[-1:]])

    call = batch.call
    inputs = {name: longer(tensor) for name, tensor in call.inputs.items()}
    given = {name: getattr(call, name) for name in ("targets", "joined", "sequences", "vectors")}
    at = call.at and (torch.cat([call.at[0], call.at[0][-1:] + 1]), longer(call.at[1]))
    changed: dict[str, Any] = {name: longer(tensor) for name, tensor in given.items() if tensor is not None}
    return dataclasses.replace(batch, call=dataclasses.replace(call, inputs=inputs, at=at, **changed))


def _with_embeddings(batch: Batch, z: Tensor) -> Call:
    return dataclasses.replace(batch.call, inputs={"inputs_embeds": z, **batch.call.inputs})


def device_of(model: Any) -> torch.device:
    """Where the model's input embeddings lie."""
    return first_parameter(model.get_input_embeddings()).device
