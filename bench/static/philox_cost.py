"""What generating the noise costs: the share of a run on MiniLM that is spent in Philox and Box-Muller.

    python -m bench.static.philox_cost

Twelve texts of 17 to 177 tokens, n = 10, CPU, float32; medians of five runs, both times taken inside one run.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fastshap
from fastshap.reference import rows
from tools.assets import minilm_dir, rated_sentences


def texts_of_many_lengths(tokenizer: Any, count: int = 12, longest: int = 177) -> list[str]:
    """Texts of 17 to ``longest`` tokens, put together from rated sentences."""
    sentences = iter([sentence.text for sentence in rated_sentences() if sentence.source == "nyt"])
    texts = []
    for k in range(count):
        wanted = 17 + (longest - 17) * k // (count - 1)
        ids: list[int] = []
        while len(ids) < wanted:
            ids += tokenizer(next(sentences), add_special_tokens=False)["input_ids"]
        texts.append(tokenizer.decode(ids[: wanted - 2]))
    return texts


def main() -> None:
    """Measures and prints one JSON object."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    model = AutoModelForSequenceClassification.from_pretrained(minilm_dir(), num_labels=2)
    texts = texts_of_many_lengths(tokenizer)
    spent = [0.0]
    generate = rows.normals

    def timed(*arguments: Any) -> Tensor:
        start = time.perf_counter()
        noise = generate(*arguments)
        spent[0] += time.perf_counter() - start
        return noise

    rows.normals = timed  # type: ignore[assignment]
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fastshap": fastshap.__version__,
    }
    for sampling in ("antithetic", "iid"):
        for batch_size in (4, "auto"):
            explainer = fastshap.GradientShap(model, tokenizer, batch_size=batch_size, sampling=sampling)
            explainer(texts, 1)
            shares, seconds = [], []
            for _ in range(5):
                spent[0] = 0.0
                start = time.perf_counter()
                explainer(texts, 1)
                seconds.append(time.perf_counter() - start)
                shares.append(spent[0] / seconds[-1])
            result[f"{sampling}, batch_size={batch_size}"] = {
                "seconds": round(statistics.median(seconds), 3),
                "share": round(statistics.median(shares), 4),
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
