"""Whole explanations by fastshap, interpreto and captum, each at its best batch size, in turn in one process.

The models have the shapes of BERT-base and of a causal language model of 135M parameters, with random weights: speed does not
depend on them.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import fastshap
from bench.console import say
from bench.gpu.operators import DTYPES, NOISE_STD
from bench.vocabulary import byte_tokenizer, words_and_tokenizer


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    grids: dict[str, tuple[Any, ...]] = field(
        # Rows of a call; for captum texts of a call, n rows each.
        default_factory=lambda: {
            "fastshap": ("auto", 32, 128, 512),
            "interpreto": (4, 16, 64),
            "captum": (1, 4, 16, 32),
        }
    )
    texts: int = 48
    longest: int = 96  # words of a text
    prompt: int = 32  # words of a language model's prompt
    n: int = 16
    layers: int | None = None  # None: all
    narrow: bool = False  # a hidden size of 48, to run the code only
    repeats: int = 7


@dataclass(frozen=True)
class Subject:
    """A model with what is to be explained; targets for a language model only."""

    name: str
    model: Any
    tokenizer: Any
    texts: list[str]
    targets: list[str] | None


def classifier(size: Size, dtype: torch.dtype) -> Subject:
    """BERT-base with random weights."""
    words, tokenizer = words_and_tokenizer()
    torch.manual_seed(0)
    config = BertConfig()
    config.num_labels = 2
    if size.layers is not None:
        config.num_hidden_layers = size.layers
    if size.narrow:
        config.hidden_size, config.intermediate_size = 48, 96
    pick = random.Random(0)
    texts = [
        " ".join(pick.choices(words, k=pick.randint(max(1, size.longest // 8), size.longest)))
        for _ in range(size.texts)
    ]
    return Subject("BERT-base shape", BertForSequenceClassification(config).eval().to(dtype), tokenizer, texts, None)


def language_model(size: Size, dtype: torch.dtype) -> Subject:
    """The shape of SmolLM2-135M with random weights, and a byte-level tokenizer."""
    words, _ = words_and_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=48 if size.narrow else 576,
        intermediate_size=96 if size.narrow else 1536,
        num_hidden_layers=30 if size.layers is None else size.layers,
        num_attention_heads=3 if size.narrow else 9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    pick = random.Random(0)
    sentence = lambda least, most: " ".join(pick.choices(words, k=pick.randint(least, most)))  # noqa: E731
    texts = [sentence(max(1, size.prompt // 4), size.prompt) for _ in range(size.texts)]
    targets = [" " + sentence(2, 2) for _ in texts]
    model = LlamaForCausalLM(config).eval().to(dtype)
    return Subject("causal LM of 135M", model, byte_tokenizer(words), texts, targets)


def run_fastshap(subject: Subject, size: Size, device: torch.device) -> Callable[[Any], Any]:
    """Takes rows of a call."""

    def run(batch_size: Any) -> Any:
        explainer = fastshap.GradientShap(
            subject.model, subject.tokenizer, batch_size, n_perturbations=size.n, noise_std=NOISE_STD
        )
        return explainer(subject.texts, subject.targets)

    return run


def run_interpreto(subject: Subject, size: Size, device: torch.device) -> Callable[[Any], Any]:
    """Takes rows of a call."""
    import interpreto  # type: ignore[import-untyped]

    model, tokenizer = copy.deepcopy(subject.model), copy.deepcopy(subject.tokenizer)

    def run(batch_size: Any) -> Any:
        explainer = interpreto.GradientShap(
            model, tokenizer, batch_size=batch_size, n_perturbations=size.n, noise_std=NOISE_STD, device=device
        )
        return explainer(subject.texts, subject.targets)

    return run


def run_captum(subject: Subject, size: Size, device: torch.device) -> Callable[[Any], Any]:
    """Takes texts of a call, which captum repeats n times.

    By hand: length-sorted batches, padding, targets. Token ids and targets are prepared beforehand and scores stay those of
    tokens, so captum does less here than the others.
    """
    import captum.attr  # type: ignore[import-untyped]

    model = subject.model
    table = model.get_input_embeddings()
    outputs = fastshap.GradientShap(model, subject.tokenizer, n_perturbations=1)(subject.texts, subject.targets)
    given = [(output.model_inputs_to_explain["input_ids"][0], output.targets.flatten()) for output in outputs]
    given.sort(key=lambda pair: (len(pair[1]), len(pair[0])))

    def forward(embeddings: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        # In half precision captum's points come in float32.
        logits: Tensor = model(inputs_embeds=embeddings.to(model.dtype), attention_mask=mask).logits
        if subject.targets is None:
            return logits
        return logits[torch.arange(len(place), device=place.device), place]

    def run(batch_size: Any) -> Any:
        np.random.seed(0)  # captum draws from numpy's global state
        scores = []
        for lo in range(0, len(given), batch_size):
            batch = given[lo : lo + batch_size]
            lengths = torch.tensor([len(ids) for ids, _ in batch])
            ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in batch], batch_first=True)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
            x = table(ids.to(device)).detach()
            for k in range(max(len(targets) for _, targets in batch)):
                # A text with fewer targets than its neighbours asks for its last one again.
                which = [min(k, len(targets) - 1) for _, targets in batch]
                wanted = torch.stack([targets[i] for i, (_, targets) in zip(which, batch, strict=True)]).to(device)
                place = [len(ids) - len(targets) + i - 1 for i, (ids, targets) in zip(which, batch, strict=True)]
                result = captum.attr.GradientShap(forward).attribute(
                    x,
                    torch.zeros_like(x[:1]),
                    n_samples=size.n,
                    stdevs=NOISE_STD,
                    target=wanted,
                    additional_forward_args=(mask, torch.tensor(place, device=device)),
                )
                scores.append(result.sum(-1))
        return [score.cpu() for score in scores]

    return run


def is_there(tool: str) -> bool:
    """Whether this machine has a library at all."""
    return importlib.util.find_spec(tool) is not None


TOOLS = {"fastshap": run_fastshap, "interpreto": run_interpreto, "captum": run_captum}


def measure_explanations(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Every model and dtype: the best batch size of each tool's grid, then all tools in turn, round after round."""
    results = []
    for build in (classifier, language_model):
        for name, dtype in DTYPES.items():
            subject = build(size, dtype)
            subject.model.to(device).requires_grad_(False)
            results.append(_measure(subject, name, size, device))
            del subject
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return results


def _measure(subject: Subject, dtype: str, size: Size, device: torch.device) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    best: dict[str, tuple[Callable[[Any], Any], Any]] = {}
    for tool, prepare in TOOLS.items():
        say(f"{subject.name}, {dtype}: {tool}")
        if not is_there(tool):
            found[tool] = {"absent": f"{tool} is not installed"}
            continue
        grid: dict[str, Any] = {}
        seconds: dict[Any, float] = {}
        run = prepare(subject, size, device)
        for batch_size in size.grids[tool]:
            try:
                run(batch_size)  # warm
                seconds[batch_size] = grid[str(batch_size)] = seconds_of(functools.partial(run, batch_size), device)
            except Exception as error:
                if tool == "fastshap":
                    raise
                grid[str(batch_size)] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        found[tool] = {"grid": grid}
        if seconds:
            best[tool] = (run, min(seconds, key=lambda b: seconds[b]))
    taken: dict[str, list[float]] = {tool: [] for tool in best}
    peak: dict[str, int] = {}
    for _ in range(size.repeats):
        for tool, (run, batch_size) in best.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            taken[tool].append(seconds_of(functools.partial(run, batch_size), device))
            if device.type == "cuda":
                peak[tool] = max(peak.get(tool, 0), torch.cuda.max_memory_allocated(device))
    for tool, (_, batch_size) in best.items():
        median = statistics.median(taken[tool])
        found[tool] |= {
            "batch_size": batch_size,
            "median_seconds": round(median, 5),
            "seconds": [round(value, 5) for value in taken[tool]],
            "explanations_per_second": round(len(subject.texts) / median, 3),
            "peak_memory_bytes": peak.get(tool),
        }
        found[tool]["times_fastshap"] = round(median / statistics.median(taken["fastshap"]), 3)
    config = subject.model.config
    return {
        "model": subject.name,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "dtype": dtype,
        "texts": len(subject.texts),
        "tokens": sum(len(ids) for ids in subject.tokenizer(subject.texts)["input_ids"]),
        "n": size.n,
        "tools": found,
    }


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Of one run, until the device has done all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
