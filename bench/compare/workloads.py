"""The six workloads of ``python -m bench``: a model, its texts as token ids, and the targets to explain.

``full`` takes public models and held-out texts; ``small`` makes models of the same kinds in memory, with random weights and
few layers, and fetches nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import fastshap
from bench.models import fine_tuned_minilm, held_out_sentences
from bench.vocabulary import byte_tokenizer, words_and_tokenizer
from tools.assets import minilm_dir, rated_sentences, smollm2_dir

NOISE_STD = 0.1
NAMES = ("a", "b", "c", "d", "p", "e")


@dataclass(frozen=True)
class Workload:
    """What every tool gets: the same model, texts, targets and samples."""

    name: str
    title: str
    model: Any
    tokenizer: Any
    ids: list[list[int]]  # all tokens that the model sees; for a language model with the target's
    targets: list[list[int]]  # classes, or a language model's target tokens
    n: int
    texts: list[str]  # the strings; a language model's prompts
    causal: bool = False
    probabilities: bool = False  # whether the targets' probabilities are explained, and not their logits

    @property
    def rows(self) -> int:
        """Perturbed rows of one run."""
        return len(self.ids) * self.n

    @property
    def inputs(self) -> list[Any]:
        """As fastshap takes them."""
        pairs = zip(self.ids, self.targets, strict=True)
        return [ids[: -len(targets)] for ids, targets in pairs] if self.causal else self.texts

    @property
    def inference_mode(self) -> str:
        """The score to explain, as fastshap and interpreto name it."""
        return "softmax" if self.probabilities else "logits"

    def with_probabilities(self) -> Workload:
        """The same texts and targets, whose probabilities are explained."""
        return dataclasses.replace(self, name="p", title=f"{self.title}, probabilities", probabilities=True)

    def scores(self, logits: Any) -> Any:
        """What is explained, of logits (..., V)."""
        return logits.softmax(-1) if self.probabilities else logits

    def some(self, count: int) -> Workload:
        """So many of the texts, spread evenly over those sorted by length."""
        if count >= len(self.ids):
            return self
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        chosen = sorted(order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count))
        pick = lambda values: [values[i] for i in chosen]  # noqa: E731
        return dataclasses.replace(self, ids=pick(self.ids), targets=pick(self.targets), texts=pick(self.texts))

    def few_targets(self, count: int) -> Workload:
        """A language model's texts, each with so many of its target tokens only, at places spread over the target."""
        texts, ids, targets = [], [], []
        for k, (all_ids, all_targets) in enumerate(zip(self.ids, self.targets, strict=True)):
            first = len(all_ids) - len(all_targets)
            wanted = first + (2 * k + 1) * len(all_targets) // (2 * len(self.ids))
            places = sorted(range(first, len(all_ids) - count + 1), key=lambda place: abs(place - wanted))
            # What a tool that takes text sees must be these very tokens.
            place = next(p for p in places if is_faithful(self.tokenizer, all_ids[: p + count], p))
            texts.append(self.tokenizer.decode(all_ids[:place]))
            ids.append(all_ids[: place + count])
            targets.append(all_ids[place : place + count])
        return dataclasses.replace(self, ids=ids, targets=targets, texts=texts)

    @functools.cached_property
    def target_groups(self) -> list[int]:
        """How many words a language model's target has, as fastshap groups it; for a classifier the number of classes."""
        if not self.causal:
            return [len(targets) for targets in self.targets]
        explainer = fastshap.GradientShap(self.model, self.tokenizer, len(self.ids), n_perturbations=1)
        return [output.attributions.shape[0] for output in explainer(self.inputs, self.targets)]


def is_faithful(tokenizer: Any, ids: Sequence[int], first: int) -> bool:
    """Whether the text of ``ids`` has these very tokens, and that from ``first`` on begins with a space.

    interpreto puts a prompt and its target together as text, and a space before the target where there is none.
    """
    whole, end = tokenizer.decode(ids), tokenizer.decode(ids[first:])
    return end.startswith(" ") and tokenizer(whole)["input_ids"] == list(ids) and tokenizer.decode(ids[:first]) != ""


def full(name: str) -> Workload:
    """A workload with its public model."""
    if name == "p":
        return full("d").with_probabilities()
    if name in "ae":
        model, tokenizer = fastshap.load_default_model()
        texts = held_out_sentences(500) if name == "a" else short_texts(20_000)
        title = f"packaged classifier, {len(texts):,} short texts"
        return classifier(name, title, model, tokenizer, texts)
    if name == "b":
        model, tokenizer = fine_tuned_minilm()
        texts = spread(joined(), tokenizer, 12, 17, 180)
        return classifier(name, "MiniLM fine-tuned, 12 texts of 17 to 180 tokens", model, tokenizer, texts)
    if name == "c":
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(minilm_dir(), num_labels=6, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
        texts = spread(joined(), tokenizer, 8, 12, 60)
        return classifier(name, "MiniLM with 6 classes, all explained, 8 texts", model, tokenizer, texts)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir())
    return language_model(
        "SmolLM2-135M, 4 prompts of 20 tokens, 16 target tokens", model, tokenizer, joined(), 4, 20, 16
    )


def small(name: str, texts: int = 24) -> Workload:
    """The same kinds of models with random weights and few layers; the packaged classifier is itself."""
    if name == "p":
        return small("d").with_probabilities()
    words, tokenizer = words_and_tokenizer()
    pick = random.Random(0)
    sentences = lambda count, least, most: [  # noqa: E731
        " ".join(pick.choices(words, k=pick.randint(least, most))) for _ in range(count)
    ]
    if name in "ae":
        model = fastshap.load_default_model()[0]
        chosen = sentences(texts if name == "a" else 20 * texts, 4, 24)
        return classifier(name, f"packaged classifier, {len(chosen)} short texts", model, tokenizer, chosen)
    torch.manual_seed(0)
    if name in "bc":
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            initializer_range=0.2,
        )
        config.num_labels = 2 if name == "b" else 6
        title = f"small random BERT, {config.num_labels} classes{', all explained' if name == 'c' else ''}"
        pool = sentences(12, 40, 60)
        chosen = spread(pool, tokenizer, 5, 8, 48) if name == "b" else spread(pool, tokenizer, 4, 8, 24)
        return classifier(name, title, BertForSequenceClassification(config), tokenizer, chosen)
    core = byte_tokenizer(words)
    llama = LlamaConfig(
        vocab_size=len(core),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    title = "small random Llama, 2 prompts of 8 tokens, 6 target tokens"
    return language_model(title, LlamaForCausalLM(llama), core, sentences(8, 20, 30), 2, 8, 6)


def classifier(name: str, title: str, model: Any, tokenizer: Any, texts: list[str]) -> Workload:
    """Explains the predicted class of each text; all classes for workload c."""
    model.eval().requires_grad_(False)
    ids = tokenizer(texts)["input_ids"]
    if name == "c":
        targets = [list(range(model.config.num_labels))] * len(texts)
    elif name == "e":
        targets = []
    else:
        explainer = fastshap.GradientShap(model, tokenizer, "auto", n_perturbations=1)
        targets = [output.targets.tolist() for output in explainer(texts)]
    return Workload(name, title, model, tokenizer, ids, targets, 10, texts)


def language_model(
    title: str, model: Any, tokenizer: Any, pool: Sequence[str], count: int, prompt: int, target: int
) -> Workload:
    """Texts spread over the pool, whose first tokens are the prompt, and the next ones the target."""
    model.eval().requires_grad_(False)
    found: list[list[int]] = []
    for k in range(count):
        for text in pool[k * len(pool) // count :]:
            ids = tokenizer(text)["input_ids"][: prompt + target]
            if len(ids) == prompt + target and is_faithful(tokenizer, ids, prompt) and ids not in found:
                found.append(ids)
                break
    if len(found) < count:
        raise ValueError(f"Only {len(found)} of the texts can be cut into {prompt} and {target} tokens.")
    texts, targets = [tokenizer.decode(ids[:prompt]) for ids in found], [ids[prompt:] for ids in found]
    return Workload("d", title, model, tokenizer, found, targets, 4, texts, causal=True)


@functools.cache
def joined() -> list[str]:
    """The sentences of each Amazon review, one after the other."""
    reviews: dict[str, list[str]] = defaultdict(list)
    for sentence in rated_sentences():
        if sentence.source == "amazon":
            reviews[sentence.review].append(sentence.text)
    return [" ".join(sentences) for sentences in reviews.values()]


def spread(pool: Sequence[str], tokenizer: Any, count: int, shortest: int, longest: int) -> list[str]:
    """Texts of evenly spread token counts: the beginnings of the pool's texts, cut between words."""
    unused, texts = list(pool), []
    for k in range(count):
        wanted = round(shortest + k * (longest - shortest) / (count - 1))
        cuts = ((text, cut(text, tokenizer, wanted)) for text in unused)
        text, here = next((text, here) for text, here in cuts if here is not None)
        unused.remove(text)
        texts.append(here)
    return texts


def cut(text: str, tokenizer: Any, tokens: int) -> str | None:
    """The first words of a text with exactly so many tokens, the special ones included."""
    words = text.split()
    # As many tokens need at most as many words.
    for k in range(min(tokens, len(words)), 0, -1):
        here = " ".join(words[:k])
        count = len(tokenizer(here)["input_ids"])
        if count <= tokens:
            return here if count == tokens else None
    return None


def short_texts(count: int) -> list[str]:
    """Distinct texts of 4 to 24 words: the rated sentences, longer ones cut into pieces.

    Dealt in 20 parts of equal lengths, each in an order of its own, so that every part is as much work.
    """
    found: dict[str, None] = {}
    for sentence in rated_sentences():
        words = sentence.text.split()
        for lo in range(0, len(words), 24):
            piece = words[lo : lo + 24]
            if len(piece) >= 4:
                found[" ".join(piece)] = None
    if len(found) < count:
        raise ValueError(f"There are only {len(found)} texts.")
    tokenizer = fastshap.load_default_model()[1]
    texts = random.Random(0).sample(list(found), count)
    lengths = {text: len(ids) for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True)}
    texts.sort(key=lambda text: lengths[text])
    parts = [texts[k::20] for k in range(20)]
    for k, part in enumerate(parts):
        random.Random(k).shuffle(part)
    return [text for part in parts for text in part]
