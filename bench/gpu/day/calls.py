"""What the host costs: calls of one text beside bare passes, calls as CUDA graphs, and how busy many texts keep the device."""

from __future__ import annotations

import cProfile
import functools
import io
import pstats
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType

import fastshap
from bench.gpu import graphs
from bench.gpu.day.record import AbsentError, Record
from bench.vocabulary import words_and_tokenizer

TINY, PACKAGED, SMALL, BASE = "tiny, 12 layers", "packaged", "MiniLM shape, bfloat16", "BERT-base shape, bfloat16"
SHAPES: dict[str, tuple[int, int, int, torch.dtype]] = {  # hidden size, layers, heads, dtype
    TINY: (32, 12, 2, torch.float32),
    SMALL: (384, 6, 12, torch.bfloat16),
    BASE: (768, 12, 12, torch.bfloat16),
}
CALLS = ((10, 16), (10, 64), (40, 32), (160, 32), (640, 32))  # rows, tokens
MANY = {PACKAGED: 1000, SMALL: 1000, BASE: 300}


def measure(record: Record, device: torch.device) -> None:
    """Calls of one text first; then many texts; then graphs; then where the host's time goes."""
    few = device.type == "cpu"
    for name in [TINY, PACKAGED, BASE][: 1 if few else None]:
        record.case(f"one text, {name}", functools.partial(one_text, name, device))
    record.case("memory of graphs", functools.partial(memory_of_graphs, device))
    for name, texts in MANY.items():
        if not few or name == PACKAGED:
            record.case(f"many texts, {name}", functools.partial(many_texts, name, 8 if few else texts, device))
    for name in (PACKAGED, TINY, BASE):
        for rows, length in CALLS:
            record.case(f"graph, {name}, {rows} x {length}", functools.partial(graph, name, rows, length, device))


def pair(name: str, device: torch.device) -> tuple[Any, Any]:
    """A model on the device, and a tokenizer."""
    model, tokenizer = fastshap.load_default_model()
    if name != PACKAGED:
        from transformers import BertConfig, BertForSequenceClassification

        hidden, layers, heads, dtype = SHAPES[name]
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
        model = BertForSequenceClassification(config).eval().to(dtype)  # type: ignore[assignment]
    return model.to(device).requires_grad_(False), tokenizer  # type: ignore[arg-type]


def sentences(count: int, seed: int = 0) -> list[str]:
    """4 to 12 words each."""
    words, pick = words_and_tokenizer()[0], random.Random(seed)
    return [" ".join(pick.choices(words, k=pick.randint(4, 12))) for _ in range(count)]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_text(name: str, device: torch.device) -> dict[str, Any]:
    """Milliseconds, medians in turn: a bare forward and backward pass of a text's rows, and explanations of it."""
    model, tokenizer = pair(name, device)
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto")
    texts = sentences(3 if device.type == "cpu" else 25)
    ids = {text: torch.tensor([tokenizer(text)["input_ids"]], device=device) for text in texts}

    def bare(text: str) -> None:
        z = model.get_input_embeddings()(ids[text]).repeat(10, 1, 1).requires_grad_()
        score = model(inputs_embeds=z, attention_mask=torch.ones(z.shape[:2], dtype=torch.int64, device=device)).logits
        torch.autograd.grad(score[:, 1].sum(), z)

    runs: dict[str, Callable[[str], Any]] = {
        "bare": bare,
        "class given": lambda text: explainer(text, 1),
        "class predicted": explainer,
    }
    if device.type == "cuda":
        recorded = fastshap.GradientShap(model, tokenizer, batch_size="auto", cuda_graphs=True)
        for text in texts * 4:  # some lengths come once
            recorded(text, 1)
        runs["by graphs"] = lambda text: recorded(text, 1)
    taken: dict[str, list[float]] = {run: [] for run in runs}
    for text in texts:
        for run, function in runs.items():
            wait(device)
            start = time.perf_counter()
            function(text)
            wait(device)
            taken[run].append(1e3 * (time.perf_counter() - start))
    found: dict[str, Any] = {run: statistics.median(each[2:] or each) for run, each in taken.items()}
    print(profiled(lambda: [explainer(text, 1) for text in texts]))
    return found


def memory_of_graphs(device: torch.device, graphs: int = 20) -> dict[str, Any]:
    """Bytes of the device that each graph takes, of calls of one text with BERT-base's shape, beside what one graph takes."""
    if device.type != "cuda":
        raise AbsentError("CUDA graphs need a GPU")
    model, tokenizer = pair(BASE, device)
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto", cuda_graphs=True)
    word = sentences(1)[0].split()[0]

    def explain(words: int) -> None:
        for seed in range(4):
            explainer(" ".join([word] * words), 1, seed=seed)

    explain(graphs + 2)  # the longest; the others share its memory
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info(device)
    start = time.perf_counter()
    for words in range(1, graphs + 1):
        explain(words)
    torch.cuda.synchronize(device)
    took = time.perf_counter() - start
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info(device)
    return {"graphs": graphs, "bytes_a_graph": (before - after) / graphs, "seconds_a_length": took / graphs}


def many_texts(name: str, count: int, device: torch.device) -> dict[str, Any]:
    """Texts a second of a warm explainer, its processor time, and how busy the device was."""
    model, tokenizer = pair(name, device)
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto")
    texts = sentences(count)
    explainer(texts[: count // 4], 1)
    walls, hosts = [], []
    for _ in range(3):
        wait(device)
        start, host = time.perf_counter(), time.process_time()
        explainer(texts, 1)
        wait(device)
        walls.append(time.perf_counter() - start)
        hosts.append(time.process_time() - host)
    wall, host = statistics.median(walls), statistics.median(hosts)
    print(profiled(lambda: explainer(texts, 1)))
    busy = _busy(lambda: explainer(texts, 1), device) if device.type == "cuda" else None
    return {
        "texts": count,
        "texts_per_second": count / wall,
        "seconds": walls,
        "host_microseconds_a_text": 1e6 * host / count,
        "device_seconds": busy,
        "device_share": None if busy is None else busy / wall,
        "padding": explainer.padding,
    }


def _busy(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of all that ran on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        wait(device)
    events = [event for event in profile.key_averages() if event.device_type == DeviceType.CUDA]
    return 1e-6 * sum(event.self_device_time_total for event in events)


def graph(name: str, rows: int, length: int, device: torch.device) -> dict[str, Any]:
    """A call of the model with the operators, plain and as a CUDA graph."""
    if device.type != "cuda":
        raise AbsentError("CUDA graphs need a GPU")
    return graphs.compared(pair(name, device)[0], rows, length, device)


def profiled(run: Callable[[], Any]) -> str:
    """Where the host's time goes: the functions that took most of it themselves."""
    profile = cProfile.Profile()
    profile.runcall(run)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(35)
    return text.getvalue()
