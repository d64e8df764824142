"""Whole explanations: "auto" beside fixed batch sizes, the kernels' share, scores that share a pass, other libraries."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType

import fastshap
from bench.console import say
from bench.gpu import explanations
from bench.gpu.day.record import AbsentError, Record
from bench.gpu.explanations import Size, Subject
from bench.gpu.operators import DTYPES
from fastshap.engine import run as engine

FIXED = (128, 512, 2048)
GRIDS: dict[str, tuple[Any, ...]] = {"interpreto": (64, 16, 256), "captum": (16, 32, 4)}  # the likely best first
KERNELS = ("perturb_kernel", "attribute_kernel", "segment_kernel", "moments_kernel")
BUILDERS = {"BERT-base shape": explanations.classifier, "causal LM of 135M": explanations.language_model}
PROFILED = "BERT-base shape"  # a profile of a deep language model takes longer than all else
_TOGETHER, _APART = "together", "one after the other"


def size_of(device: torch.device) -> Size:
    if device.type == "cpu":
        return Size(texts=2, longest=4, prompt=3, n=4, layers=1, narrow=True, repeats=1)
    return Size(repeats=3)


def measure(record: Record, device: torch.device) -> None:
    """Each model in bfloat16 first, and what the claims need most; other libraries may be absent, and take longest."""
    size = size_of(device)
    for model in BUILDERS:
        for dtype in reversed(DTYPES):
            _measure_model(record, model, dtype, size, device)
        record.case("6 classes: scores that share a pass", lambda: scores_together(size, device))


def _measure_model(record: Record, model: str, dtype: str, size: Size, device: torch.device) -> None:
    name = f"{model}, {dtype}"
    names = [f"{name}: batch sizes", f"{name}: share of the kernels"][: 2 if model == PROFILED else 1]
    if not record.begun().issuperset(names):
        subject = _subject(model, dtype, size, device)
        record.case(names[0], functools.partial(batch_sizes, subject, size, device))
        if model == PROFILED:
            record.case(names[1], functools.partial(share_of_kernels, subject, size, device))
        del subject
    for tool in ("interpreto", "captum"):
        say(f"{name}: {tool}")
        record.case(f"{name}: {tool}", functools.partial(other, tool, model, dtype, size, device))


def _subject(model: str, dtype: str, size: Size, device: torch.device) -> Subject:
    say(f"{model}, {dtype}")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    subject = BUILDERS[model](size, DTYPES[dtype])
    subject.model.to(device).requires_grad_(False)
    return subject


def in_turn(runs: Mapping[Any, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each, medians of rounds in which all take their turn, after one round to warm up."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {str(name): [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[str(name)].append(explanations.seconds_of(run, device))
    return {name: {"median": statistics.median(each), "seconds": each} for name, each in taken.items()}


def batch_sizes(subject: Subject, size: Size, device: torch.device) -> dict[str, Any]:
    """ "auto" and fixed numbers of rows."""
    run = explanations.run_fastshap(subject, size, device)
    runs = {rows: functools.partial(run, rows) for rows in ("auto", *(FIXED if device.type == "cuda" else FIXED[:1]))}
    taken = in_turn(runs, size.repeats, device)
    return {"seconds": taken, "texts": len(subject.texts), "n": size.n}


def share_of_kernels(subject: Subject, size: Size, device: torch.device) -> dict[str, Any]:
    """Of the time that the device is at work in an explanation; on a CPU, of the operators' time there."""
    run = functools.partial(explanations.run_fastshap(subject, size, device), "auto")
    run()
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    ours = KERNELS if on_gpu else tuple(f"fastshap::{name.split('_')[0]}" for name in KERNELS)
    each: dict[str, float] = {}
    total = 0.0
    for event in profile.key_averages():
        if event.device_type != wanted:
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total += taken
        for name in ours:
            if name in event.key:
                each[name] = each.get(name, 0.0) + taken
    return {"share": sum(each.values()) / total, "microseconds": each, "microseconds_in_all": total}


def scores_together(size: Size, device: torch.device) -> dict[str, Any]:
    """Small calls for all classes: as many scores a backward pass as the limit allows, and one after the other."""
    words, tokenizer = explanations.words_and_tokenizer()
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig()
    config.num_labels = 6
    if size.narrow:
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 48, 96, 1
    model = BertForSequenceClassification(config).eval().to(device).requires_grad_(False)
    texts = [" ".join(words[k : k + 18]) for k in range(0, 18 * (2 if size.narrow else 8), 18)]
    limits: dict[str, Any] = {_TOGETHER: engine._TOKENS_TOGETHER_ON_A_GPU, _APART: 0}
    before = engine._TOKENS_TOGETHER, engine._TOKENS_TOGETHER_ON_A_GPU

    def run(limit: int) -> Any:
        engine._TOKENS_TOGETHER, engine._TOKENS_TOGETHER_ON_A_GPU = {"cpu": limit}, limit
        return [fastshap.GradientShap(model, tokenizer, "auto", n_perturbations=16)(text, "all") for text in texts]

    try:
        return {
            "seconds": in_turn({name: functools.partial(run, n) for name, n in limits.items()}, size.repeats, device)
        }
    finally:
        engine._TOKENS_TOGETHER, engine._TOKENS_TOGETHER_ON_A_GPU = before


def other(tool: str, model: str, dtype: str, size: Size, device: torch.device) -> dict[str, Any]:
    """Another library at each batch size of its grid, on a fresh model; each batch size may fail by itself."""
    if not explanations.is_there(tool):
        raise AbsentError(f"{tool} is not installed")
    subject = _subject(model, dtype, size, device)
    run = explanations.TOOLS[tool](subject, size, device)
    grid: Sequence[Any] = GRIDS[tool] if device.type == "cuda" else size.grids[tool][:1]
    found: dict[str, Any] = {}
    for rows in grid:
        try:
            run(rows)
            each = [explanations.seconds_of(functools.partial(run, rows), device) for _ in range(min(2, size.repeats))]
        except Exception as error:
            found[str(rows)] = {"error": f"{type(error).__name__}: {error}"[:300]}
        else:
            found[str(rows)] = {"median": statistics.median(each), "seconds": each}
    return {"seconds": found, "texts": len(subject.texts), "n": size.n}
