"""The models that explanations are measured on, with their texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastshap
from bench.models import PROMPTS, Subject, fine_tuned_minilm, held_out_sentences, subject
from tools.assets import rated_sentences
from tools.masked_model import masked_model
from tools.sentences import is_labelled, split

MORE_PROMPTS = [
    ("The opposite of hot is", "cold."),
    ("The sun rises in the", "east."),
    ("Two plus two equals", "four."),
    ("The largest planet in our solar system is", "Jupiter."),
    ("In the morning the farmer went out to milk the", "cows."),
    ("The letter was so sad that she began to", "cry."),
    ("He forgot his keys, so he could not open the", "door."),
    ("The children built a castle out of", "sand."),
    ("After the concert the audience began to", "clap."),
    ("The train was late, so we had to", "wait."),
]
BACKGROUND = 50  # sentences that the classifiers were trained on


@dataclass(frozen=True)
class Plan:
    """How much is measured of a subject.

    Attributes:
        title: for the tables.
        texts: so many.
        rows: of each method that samples: model rows a text.
        seeds: of each random method.
        baselines: by name, as fastshap takes them; "background" is made here.
        replacements: what stands in the place of an element.
        few: no settings beside the default's family; for a model that is slow.
        normalised: with normalised AOPC.
    """

    title: str
    texts: int
    rows: int
    seeds: int
    baselines: tuple[str, ...]
    replacements: tuple[str, ...]
    few: bool = False
    normalised: bool = True


_OF_BERT = ("zero", "PAD", "MASK", "mean", "background")
FULL = {
    "packaged": Plan("packaged model (BERT, 2 layers)", 100, 50, 2, _OF_BERT, ("delete", "mask")),
    "masked": Plan(
        "the same, trained with random masks",
        *(100, 50, 2),
        ("zero", "MASK"),
        ("delete", "mask"),
        normalised=False,
    ),
    "minilm": Plan(
        "MiniLM fine-tuned (BERT, 6 layers)",
        *(60, 50, 2),
        ("zero", "MASK"),
        ("delete", "mask"),
        normalised=False,
    ),
    "smollm2": Plan(
        "SmolLM2-135M-Instruct, next words",
        *(16, 20, 2),
        ("zero", "mean"),
        ("mean",),
        few=True,
        normalised=False,
    ),
}
QUICK = {"packaged": Plan("packaged model (BERT, 2 layers)", 4, 4, 2, _OF_BERT, ("delete", "mask"), normalised=False)}


def load(name: str, plan: Plan) -> Subject:
    if name == "smollm2":
        prompts = (PROMPTS + MORE_PROMPTS)[: plan.texts]
        its = subject(name, len(PROMPTS))
        return Subject(name, its.model, its.tokenizer, [one for one, _ in prompts], [one for _, one in prompts])
    loaders: dict[str, Callable[[], Any]] = {
        "packaged": fastshap.load_default_model,
        "masked": masked_model,
        "minilm": fine_tuned_minilm,
    }
    model, tokenizer = loaders[name]()
    return Subject(name, model, tokenizer, held_out_sentences(plan.texts))


def background() -> list[str]:
    """Sentences of 4 to 24 words from the part that the classifiers were trained on."""
    texts = [s.text for s in split(rated_sentences(), 0)["train"] if is_labelled(s) and 4 <= len(s.text.split()) <= 24]
    return random.Random(1).sample(texts, BACKGROUND)
