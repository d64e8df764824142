"""What an explanation takes of a GPU's memory: what "auto" plans and what it takes, and what happens when it is too much."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

import fastshap
from bench.gpu import explanations
from bench.gpu.day.record import Record
from bench.gpu.explanations import Size, Subject
from fastshap import ops
from fastshap.engine.budget import free_memory

FREE = 6 * 2**30  # left to "auto" beside a block that is held
TAKEN_TOGETHER = 3 * 2**30  # all that may be taken where memory is to run out
ROWS_TOO_MANY = 1024
_ROWS_ON_A_CPU = 3  # that "fit" in the rehearsal


def measure(record: Record, device: torch.device) -> None:
    """Both of a classifier in float32, with long texts."""
    narrow = device.type == "cpu"
    size = Size(texts=2, longest=4, n=8, layers=1, narrow=True) if narrow else Size(texts=24, longest=300, n=64)

    def subject() -> Subject:
        its = explanations.classifier(size, torch.float32)
        its.model.to(device).requires_grad_(False)
        return its

    record.case("what auto plans", lambda: what_auto_plans(subject(), size, device))
    record.case("out of memory, so many rows", lambda: out_of_memory(subject(), size, device, ROWS_TOO_MANY))
    record.case("out of memory, auto", lambda: out_of_memory(subject(), size, device, "auto"))


def explainer(subject: Subject, size: Size, rows: Any) -> Any:
    return fastshap.GradientShap(subject.model, subject.tokenizer, rows, n_perturbations=size.n)


def what_auto_plans(subject: Subject, size: Size, device: torch.device) -> dict[str, Any]:
    """With most of the memory held by something else. The model was tried before, so that this is the calls' own."""
    explainer(subject, size, 4)(subject.texts[:1], 1)
    auto = explainer(subject, size, "auto")
    if device.type != "cuda":
        auto(subject.texts, 1)
        return {"tokens": auto._budget._tokens, "ran_out": auto._budget._fitting is not None}
    torch.cuda.empty_cache()
    held = torch.empty(max(0, torch.cuda.mem_get_info(device)[0] - FREE), dtype=torch.uint8, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    free, before = free_memory(device), torch.cuda.memory_allocated(device)
    auto(subject.texts, 1)
    peak = torch.cuda.max_memory_allocated(device) - before
    del held
    budget = auto._budget
    return {
        "free_bytes": free,
        "peak_bytes": peak,
        "share_of_free": peak / free if free else None,
        "tokens": budget._tokens,
        "bound_by_memory": budget._tokens < _most_tokens(),
        "ran_out": budget._fitting is not None,
    }


def _most_tokens() -> int:
    from fastshap.engine import budget

    return budget._TOKENS_ON_A_GPU


def out_of_memory(subject: Subject, size: Size, device: torch.device, rows: Any) -> dict[str, Any]:
    """The scores where calls did not fit, beside those of small calls."""
    texts = subject.texts[:8]
    right = explainer(subject, size, 2 if device.type == "cpu" else 8)(texts, 1)
    asked = explainer(subject, size, rows)
    with too_little(device):
        found = asked(texts, 1)
    largest = max(one.attributions.abs().max().item() for one in right)
    apart = max(
        (a.attributions - b.attributions).abs().max().item() / largest for a, b in zip(found, right, strict=True)
    )
    return {"ran_out": asked._budget._fitting is not None, "tokens_that_fit": asked._budget._fitting, "apart": apart}


@contextlib.contextmanager
def too_little(device: torch.device) -> Iterator[None]:
    """On a GPU a bound on this process's memory; on a CPU, for rehearsal, the same error where a call has many rows."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(TAKEN_TOGETHER / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    perturb = ops.perturb

    def fails(x: Any, described: Any, **options: Any) -> Any:
        if len(described.alphas) > _ROWS_ON_A_CPU:
            raise torch.OutOfMemoryError("a rehearsal on a CPU")
        return perturb(x, described, **options)

    ops.perturb = fails  # type: ignore[assignment]
    try:
        yield
    finally:
        ops.perturb = perturb
