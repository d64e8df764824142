"""The operators by kernel, by eager torch and by torch.compile: milliseconds, and the bandwidth that they imply.

The compared formulas are written plainly here, with the same random numbers as the library's, and checked against it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.profiler
from torch import Tensor

from bench.console import say
from fastshap import ops
from fastshap.reference import philox4x32

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOISE_STD = 0.1


class CheckFailedError(Exception):
    """An operator gave a wrong number, so there is nothing to report."""


@dataclass(frozen=True)
class Shape:
    """The rows of one model call: tokens of each text, and rows a text."""

    name: str
    tokens: list[int]
    rows: int


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    dims: tuple[int, ...] = (768, 4096)
    shapes: tuple[Shape, ...] = (
        Shape("one text", [128], 16),
        Shape("16 texts of one length", [128] * 16, 16),
        Shape("32 texts of 8 to 256 tokens", [8 * (k + 1) for k in range(32)], 8),
    )
    kernel_ms: int = 200  # time spent on each measurement
    copy_bytes: int = 2**30
    compiled: tuple[str, ...] = tuple(DTYPES)  # dtypes for which torch.compile is measured


# ---------------------------------------------------------------- the formulas written plainly, for torch.compile


@dataclass(frozen=True)
class Layout:
    """What a row needs to know of its text, looked up beforehand."""

    token: Tensor  # (R, L) int64, which of x; 0 on padding
    shown: Tensor  # (R, L, 1) bool
    alphas: Tensor  # (R, 1, 1)
    scale: Tensor  # (R, 1, 1): noise_std times the sign
    streams: Tensor  # (R, 3)
    draws: Tensor  # (R,)
    position: Tensor  # (L, 1)
    quad: Tensor  # (D / 4,): a tensor, as the compiler of Triton 3.6 takes a range's product for one of 32 bits


def layout(rows: ops.Rows, dim: int) -> Layout:
    """Of rows with padding on the right."""
    text = torch.repeat_interleave(rows.row_offsets.diff())
    tokens = rows.token_offsets.diff()[text]
    column = torch.arange(rows.length, device=text.device)
    shown = column < tokens[:, None]
    token = (rows.token_offsets[text][:, None] + column).where(shown, 0)
    alphas, scale = rows.alphas[:, None, None], rows.noise_std * rows.signs[:, None, None]
    quad = torch.arange(-(-dim // 4), device=text.device)
    return Layout(token, shown[..., None], alphas, scale, rows.streams[text], rows.draws, column[:, None], quad)


def noise(here: Layout, dim: int) -> Tensor:
    """Standard normals (R, L, D): the formula of fastshap.reference.philox in one go."""
    k0, k1, around = (column[:, None, None] for column in here.streams.unbind(1))
    words = philox4x32((here.quad, here.position, here.draws[:, None, None], around << 8), (k0, k1))
    normals = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = (-2.0 * ((radius_word.float() + 0.5) * 2.0**-32).log()).sqrt()
        angle = ((angle_word ^ 0x80000000) - 0x80000000).float() * (math.pi * 2.0**-31)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, -1).flatten(2)[..., :dim]


def perturb(x: Tensor, here: Layout) -> Tensor:
    """z (R, L, D) for a baseline of 0."""
    own = x[here.token].float()
    z = own + here.alphas * (here.scale * noise(here, x.shape[1]) - own)
    return z.where(here.shown, 0).to(x.dtype)


def attribute(gradients: Tensor, x: Tensor, here: Layout) -> Tensor:
    """Signed scores (T, R, L) for a baseline of 0."""
    difference = x[here.token].float() - here.scale * noise(here, x.shape[1])
    return (gradients.float() * difference).sum(-1).where(here.shown[..., 0], 0)


def segment_mean(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """(T, G) where every column belongs to one group, and none is NaN."""
    total = values.new_zeros(values.shape[0], count).index_add_(1, groups, values)
    return total / torch.zeros(count, device=values.device).index_add_(0, groups, torch.ones_like(values[0]))


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over an even number of samples in pairs."""
    n = values.shape[1]
    pairs = values.unflatten(1, (n // 2, 2)).mean(2)
    return values.mean(1), (pairs.diff(dim=1).square().mean(1) / n).sqrt()


# ---------------------------------------------------------------- cases


def make_rows(shape: Shape, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ops.Rows]:
    """Embeddings and the rows of antithetic samples, padding on the right."""
    torch.manual_seed(0)
    texts, count = len(shape.tokens), len(shape.tokens) * shape.rows
    within = torch.arange(shape.rows).repeat(texts)
    rows = ops.Rows(
        token_offsets=torch.tensor([0, *shape.tokens]).cumsum(0),
        row_offsets=torch.arange(texts + 1) * shape.rows,
        alphas=torch.rand(count),
        streams=torch.randint(0, 2**32, (texts, 3)) % torch.tensor([2**32, 2**32, 9]),
        draws=within // 2,
        signs=1.0 - 2.0 * (within % 2),
        baseline=0.0,
        noise_std=NOISE_STD,
        held=None,
        length=max(shape.tokens),
        padding_side="right",
    )
    there = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    there = {name: value.to(device) for name, value in there.items() if isinstance(value, Tensor)}
    return torch.randn(sum(shape.tokens), dim).to(device, dtype), dataclasses.replace(rows, **there)


@dataclass(frozen=True)
class Case:
    """One operator on one input: by the library, and the formula written plainly."""

    operator: str
    shape: str
    dim: int | None
    dtype: str
    least_bytes: int  # every input read once, every output written once
    run: Callable[[str], Any]  # takes a backend
    formula: Callable[..., Any]
    arguments: tuple[Any, ...]


def row_cases(shape: Shape, dim: int, name: str, device: torch.device) -> Iterator[Case]:
    """perturb and attribute. All inputs are drawn on the CPU, so that every device gets the same."""
    x, rows = make_rows(shape, dim, DTYPES[name], device)
    z = ops.perturb(x, rows, backend="torch")
    gradients = torch.randn(1, *z.shape).to(device, DTYPES[name])
    here, size, written = layout(rows, dim), x.element_size(), z.numel()
    yield Case(
        "perturb",
        shape.name,
        dim,
        name,
        (x.numel() + written) * size,
        lambda backend: ops.perturb(x, rows, backend=backend),
        perturb,
        (x, here),
    )
    how: dict[str, Any] = {"reduction": "sum", "input_x_gradient": True}
    yield Case(
        "attribute",
        shape.name,
        dim,
        name,
        (sum(shape.tokens) * shape.rows * dim + x.numel()) * size + written // dim * 4,
        lambda backend: ops.attribute(gradients, z, x, rows, **how, backend=backend),
        attribute,
        (gradients, x, here),
    )


def score_cases(shape: Shape, device: torch.device) -> Iterator[Case]:
    """segment_reduce and moments: groups of two tokens, 16 samples."""
    torch.manual_seed(0)
    tokens = sum(shape.tokens)
    values = torch.randn(2, 16, tokens).to(device)
    flat = values[0]
    offsets = torch.tensor([*range(0, tokens, 2), tokens], device=device)
    members = torch.arange(tokens, device=device)
    count = len(offsets) - 1
    yield Case(
        "segment_reduce",
        shape.name,
        None,
        "float32",
        4 * 16 * (tokens + count) + 8 * (tokens + count + 1),
        lambda backend: ops.segment_reduce(flat, members, offsets, "mean", backend=backend),
        segment_mean,
        (flat, members // 2, count),
    )
    yield Case(
        "moments",
        shape.name,
        None,
        "float32",
        4 * (values.numel() + 2 * 2 * tokens),
        lambda backend: ops.moments(values, pairs=True, backend=backend),
        moments,
        (values,),
    )


def all_cases(size: Size, device: torch.device) -> Iterator[Case]:
    """One after another, so that the inputs of one only are held."""
    for shape in size.shapes:
        yield from score_cases(shape, device)
        for dim in size.dims:
            for name in DTYPES:
                yield from row_cases(shape, dim, name, device)


# ---------------------------------------------------------------- the check


def check_operators(device: torch.device) -> None:
    """The kernels, where there is a GPU, and the plain formulas against the reference on the CPU; raises where they differ."""
    size = Size(dims=(40, 768), shapes=(Shape("check", [37, 5, 1], 6),))
    for right, case in zip(all_cases(size, torch.device("cpu")), all_cases(size, device), strict=True):
        found = {"formula": case.formula(*case.arguments), "torch": case.run("torch")}
        if device.type == "cuda":
            found["kernel"] = case.run("triton")
        for side, result in found.items():
            for ours, theirs in zip(_tensors(result), _tensors(right.run("torch")), strict=True):
                _compare(f"{case.operator}, D = {case.dim}, {case.dtype}, {side}", ours.cpu(), theirs, case.dtype)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _compare(what: str, ours: Tensor, right: Tensor, dtype: str) -> None:
    """Close on average; at worst a step of bfloat16, or a normal whose squared radius, near 0, is off by 1e-6."""
    if ours.shape != right.shape:
        raise CheckFailedError(f"{what}: shape {tuple(ours.shape)} where {tuple(right.shape)} is right")
    error = (ours.double() - right.double()).abs()
    largest, mean, worst = float(right.double().abs().max()), float(error.mean()), float(error.max())
    step = 1e-4 if dtype == "float32" else 2**-7
    if not (worst <= step * largest and mean <= step / 50 * largest):  # NaN fails
        raise CheckFailedError(f"{what}: off by {worst:.2e}, {mean:.2e} on average, where the largest is {largest:.2e}")


# ---------------------------------------------------------------- the measurement


def measure_operators(size: Size, device: torch.device) -> dict[str, Any]:
    """Milliseconds of every case and side, and the bandwidth that they imply beside that of a copy."""
    copied = copy_milliseconds(size, device)
    copy_rate = 2 * size.copy_bytes / copied["median"] * 1e3
    rows = []
    for case in all_cases(size, device):
        say(f"{case.operator}, {case.shape}, D = {case.dim}, {case.dtype}")
        sides: dict[str, Callable[[], Any]] = {"eager torch": lambda case=case: case.run("torch")}  # type: ignore[misc]
        if device.type == "cuda":
            sides["kernel"] = lambda case=case: case.run("triton")  # type: ignore[misc]
        if case.dtype in size.compiled:
            torch._dynamo.reset()
            compiled = torch.compile(case.formula, dynamic=False)
            sides["torch.compile"] = lambda compiled=compiled, case=case: compiled(*case.arguments)  # type: ignore[misc]
        row: dict[str, Any] = {
            "operator": case.operator,
            "shape": case.shape,
            "D": case.dim,
            "dtype": case.dtype,
            "least_bytes": case.least_bytes,
        }
        for side, run in sides.items():
            alone = device.type == "cuda" and side != "eager torch"  # which launches so much that its launches count
            times = device_milliseconds(run, device) if alone else milliseconds(run, size.kernel_ms, device)
            rate = case.least_bytes / times["median"] * 1e3
            row[side] = {"ms": times, "share_of_copy_bandwidth": round(rate / copy_rate, 4)}
        rows.append(row)
    return {"copy_bytes_per_second": round(copy_rate), "copy_ms": copied, "operators": rows}


def copy_milliseconds(size: Size, device: torch.device) -> dict[str, float]:
    """Of torch's copy of a large tensor."""
    source = torch.ones(size.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source), size.kernel_ms, device)


def milliseconds(run: Callable[[], Any], budget: int, device: torch.device) -> dict[str, float]:
    """Of a call, its launches included: median and the 20th and 80th percentile, by triton.testing.do_bench or by the clock.

    A call that takes the device less than it takes the host to launch it shows the host's time here.
    """
    if device.type == "cuda" and (once := _clocked(run, device)) < _LONG:
        import triton.testing

        middle, low, high = triton.testing.do_bench(run, warmup=min(25, budget), rep=budget, quantiles=[0.5, 0.2, 0.8])
    elif device.type == "cuda":
        low, middle, high = sorted([once, _clocked(run, device), _clocked(run, device)])
    else:
        run()
        low, middle, high = sorted(_clocked(run, device) for _ in range(3))
    return {"median": round(middle, 5), "p20": round(low, 5), "p80": round(high, 5)}


_LONG = 20.0  # milliseconds of a call that is timed three times only


def _clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call, until the device is done; warm."""
    run()
    for wait in (True, False):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if wait:
            start = time.perf_counter()
            run()
    return (time.perf_counter() - start) * 1e3


def device_milliseconds(run: Callable[[], Any], device: torch.device, repeats: int = 30) -> dict[str, float]:
    """Of a call, what the device was at work: by the profiler, with nothing of the inputs in the device's cache."""
    flush = torch.empty(_FLUSH, dtype=torch.uint8, device=device)
    run()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            flush.zero_()
            run()
        torch.cuda.synchronize(device)
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    each: list[float] = []
    for event in events:
        took = event.time_range.elapsed_us()
        if "emset" in event.name and took > _FLUSHING:
            each.append(0.0)
        elif each and "ProfilerStep" not in event.name:
            each[-1] += took / 1e3
    if len(each) != repeats:  # flushing shows under another name: the mean is what is left
        known = {name for name in (event.name for event in events) if "emset" in name or "fill" in name.lower()}
        total = sum(event.time_range.elapsed_us() for event in events if event.name not in known)
        each = [total / 1e3 / repeats] * repeats
    low, middle, high = (sorted(each)[int(share * repeats)] for share in (0.2, 0.5, 0.8))
    return {"median": round(middle, 5), "p20": round(low, 5), "p80": round(high, 5)}


_FLUSH = 2**28  # bytes, several times the cache
_FLUSHING = 40.0  # microseconds that this takes at least
