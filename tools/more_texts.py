"""Make texts for the student: from templates, and as variants of the training texts."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

from tokenizers import Tokenizer
from torch.nn import functional as F

from tools.assets import Sentence
from tools.classifier import Classifier, word_table

NOUNS = "film movie phone camera book story product place idea day service song"
PARTS = "ending music price cover menu screen title wait lighting manual colour"
VERBS = {True: "like love enjoy recommend want trust", False: "hate dislike regret mind"}
FRAMES = {
    "plain": """{a}|it is {a}|this is {a}|the {n} was {a}|a {a} {n}|what a {a} {n}|very {a}""",
    "negated": """not {a}|not {a} at all|it is not {a}|it's not {a}|this isn't {a}|the {n} was not {a}
        |never {a}|the {n} wasn't {a} at all|it was never {a}|this is not a {a} {n}|not a {a} {n}|far from {a}
        |hardly {a}
        |there is nothing {a} about this {n}|i do not think the {n} is {a}|i didn't find it {a}
        |no one could call this {n} {a}|the {n} is anything but {a}|neither {a} nor {b}|not {a}, {x}""",
    # Praise of the whole outweighs a complaint about a part of it, and the other way round.
    "contrast": """a {a}, {b} {n}, but the {p} is {c}|it is a {a} and {b} {n} but the {p} was {c}
        |the {p} is {c}, but it is a {a}, {b} {n}|despite the {c} {p}, a {a} {n}""",
    "verb": """i {v} it|i really {v} this {n}|i {v} the {n}""",
    "negated verb": """i did not {v} it|i didn't {v} the {n}|i do not {v} this {n}|i don't {v} it at all
        |i would not {v} this {n}|i can't say i {v} it|you will not {v} it""",
}
SHARES = {"plain": 25, "negated": 45, "contrast": 15, "verb": 5, "negated verb": 10}
# Soft labels for (negative, positive) opinion words. "Not bad" praises less than "good" does.
TARGETS = {
    "plain": (0.08, 0.92),
    "negated": (0.78, 0.08),
    "contrast": (0.25, 0.75),
    "verb": (0.08, 0.92),
    "negated verb": (0.75, 0.08),
}


def opinion_words(train: list[Sentence]) -> dict[bool, list[str]]:
    """Adjective-like words (seen after "very", "so" ...) that lean clearly to one side in ``train``."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    graded: Counter[str] = Counter()
    for s in train:
        words = re.findall(r"[a-z']+", s.text.lower())
        counts[s.rating > 0].update(set(words))
        after = {"very", "too", "so", "quite", "really"}
        graded.update(b for a, b in pairwise(words) if a in after)
    lean: dict[bool, list[str]] = {True: [], False: []}
    for word in sorted(w for w, n in graded.items() if n >= 2 and len(w) > 2 and not w.endswith("ly")):
        seen = counts[True][word] + counts[False][word]
        for side in lean:
            if seen >= 5 and counts[side][word] >= 0.7 * seen:
                lean[side].append(word)
    return lean


def template_texts(train: list[Sentence], count: int, rng: random.Random) -> list[tuple[str, float]]:
    """Short judgements, negations and contrasts, each with its soft label."""
    lean, made = opinion_words(train), []
    for _ in range(count):
        side, kind = rng.random() < 0.5, rng.choices(list(SHARES), list(SHARES.values()))[0]
        a, b = rng.choice(lean[side]), rng.choice(lean[side])
        c, x = rng.choice(lean[not side]), rng.choice(["", "actually ", "rather ", "quite "])
        n, p, v = (rng.choice(words.split()) for words in (NOUNS, PARTS, VERBS[side]))
        text = rng.choice(FRAMES[kind].split("|")).strip().format(a=a, b=b, c=c, x=x + c, n=n, p=p, v=v)
        made.append((text + rng.choice(["", ".", "!"]), TARGETS[kind][side]))
    return made


def neighbours(model: Classifier, tokenizer: Tokenizer, count: int) -> dict[str, list[str]]:
    """For each common whole word, the words with the nearest input embeddings."""
    vocab = tokenizer.get_vocab()
    by_id = sorted(vocab, key=vocab.__getitem__)
    words = [w for w in by_id if len(w) > 2 and w.isalpha() and w.isascii()][:13000]
    table = F.normalize(word_table(model)[[vocab[w] for w in words]], dim=1)
    near: list[list[int]] = []
    for rows in table.split(2000):
        near += (rows @ table.T).topk(count + 1).indices[:, 1:].tolist()
    return {w: [words[j] for j in ids] for w, ids in zip(words, near, strict=True)}


def perturb(text: str, near: dict[str, list[str]], rng: random.Random) -> str:
    """Swap some words for neighbours (antonyms included: the teacher gives the new label) and drop a few."""
    rate, out = rng.choice([0.15, 0.3, 0.5]), []
    for word in re.findall(r"\w+|[^\w\s]+", text):
        options = near.get(word.lower())
        if rng.random() > 0.06:
            out.append(rng.choice(options) if options and rng.random() < rate else word)
    return " ".join(out)


def recombine(a: str, b: str, rng: random.Random) -> str:
    """A clause of ``a`` joined to a clause of ``b``."""
    clauses = [[c for c in re.split(r"[,;:.!?()]| but | and ", t) if c.strip()] or [t] for t in (a, b)]
    joint = rng.choice([", but ", " but ", " and ", ", ", ". "])
    return joint.join(rng.choice(c).strip() for c in clauses) + "."
