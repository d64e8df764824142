"""The models and texts that estimators are compared on: the packaged classifier, MiniLM fine-tuned, and SmolLM2.

``python -m bench.models`` fine-tunes MiniLM (a few minutes, once) and prints its accuracy.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import fastshap
from tools.assets import cache_dir, minilm_dir, rated_sentences, smollm2_dir
from tools.classifier import Classifier, encode, predict, train
from tools.sentences import is_labelled, rating_target, split

FINE_TUNED = "all-MiniLM-L6-v2-sentiment-1"


@dataclass(frozen=True)
class Subject:
    """A model with texts to explain; targets only for a language model."""

    name: str
    model: Any
    tokenizer: Any
    texts: list[str]
    targets: list[str] | None = None


def held_out_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 4 to 24 words that neither classifier was trained on."""
    texts = [s.text for s in split(rated_sentences(), 0)["test"] if is_labelled(s) and 4 <= len(s.text.split()) <= 24]
    return random.Random(seed).sample(texts, count)


def fine_tuned_minilm() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 with a sentiment head, one epoch on the rated sentences; cached."""
    target = cache_dir() / FINE_TUNED
    if not (target / "model.safetensors").is_file():
        torch.manual_seed(0)
        parts = {name: [s for s in part if is_labelled(s)] for name, part in split(rated_sentences(), 0).items()}
        full = Tokenizer.from_file(str(minilm_dir() / "tokenizer.json"))
        full.no_padding()
        full.no_truncation()
        model = Classifier.from_pretrained(minilm_dir(), num_labels=2)
        wanted = torch.tensor([rating_target(s.rating) for s in parts["train"]])
        rows = encode(full, [s.text for s in parts["train"]])
        train(model, rows, wanted, random.Random(0), epochs=1, rate=6e-5, size=32, fast=True)
        margin, _ = predict(model, full, [s.text for s in parts["test"]], fast=True)
        right = (margin > 0) == torch.tensor([s.rating > 0 for s in parts["test"]])
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(minilm_dir()).save_pretrained(target)
        (target / "accuracy.json").write_text(json.dumps({"test_accuracy": float(right.float().mean())}))
    model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(target)


PROMPTS = [
    ("The capital of France is", "Paris."),
    ("Water freezes at zero degrees", "Celsius."),
    ("She opened the umbrella because it started to", "rain."),
    ("My favourite season is winter because I love the", "snow."),
    ("The doctor told him to stop", "smoking."),
    ("To bake bread you need flour, water and", "yeast."),
]


def subject(name: str, count: int) -> Subject:
    """ "embedded", "minilm" or "smollm2" with ``count`` texts."""
    if name == "smollm2":
        directory = smollm2_dir()
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        prompts, targets = zip(*PROMPTS[:count], strict=True)
        return Subject(name, model, AutoTokenizer.from_pretrained(directory), list(prompts), list(targets))
    model, tokenizer = fastshap.load_default_model() if name == "embedded" else fine_tuned_minilm()
    return Subject(name, model, tokenizer, held_out_sentences(count))


if __name__ == "__main__":
    fine_tuned_minilm()
    print((cache_dir() / FINE_TUNED / "accuracy.json").read_text())
