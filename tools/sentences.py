"""Split the human-rated sentences into train, validation and test, so that no text is in two of them."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict

from tools.assets import Sentence

MIN_RATING = 0.5  # sentences rated closer to neutral than this carry no label
TEST_SHARE, VALIDATION_SHARE = 0.12, 0.06


def is_labelled(sentence: Sentence) -> bool:
    return sentence.source != "nyt" and abs(sentence.rating) > MIN_RATING


def rating_target(rating: float) -> float:
    """How surely a sentence with this mean rating is positive: 0.92 at +2, 0.65 at +0.5, 0.5 at 0."""
    return 1 / (1 + math.exp(-1.25 * rating))


def near_duplicate_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Pairs with the same words, or sharing more than 40 % of their word trigrams."""
    pairs: set[tuple[int, int]] = set()
    first: dict[tuple[str, ...], int] = {}
    holders, shingles = defaultdict(list), []
    for i, text in enumerate(texts):
        words = re.findall(r"[a-z0-9]+", text.lower())
        pairs.add((first.setdefault(tuple(words), i), i))
        shingles.append(set(zip(words, words[1:], words[2:], strict=False)))
        for shingle in shingles[i]:
            holders[shingle].append(i)
    common: Counter[tuple[int, int]] = Counter()
    for members in holders.values():
        if len(members) <= 30:  # "one of the" says nothing
            common.update((a, b) for n, b in enumerate(members) for a in members[:n])
    return pairs | {(a, b) for (a, b), n in common.items() if n > 0.4 * len(shingles[a] | shingles[b])}


def split(sentences: list[Sentence], seed: int) -> dict[str, list[Sentence]]:
    """Split the sentences into train, validation and test. Reviews that duplicates link stay together.

    Movie rows carry only a running number. Neighbouring rows share proper names no more often than rows
    2,000 apart. So the file gives no sign of which snippets, if any, come from one review. Every movie row
    counts as a review of its own, and so does every tweet.
    """
    keys = [(s.source, s.review) for s in sentences]
    parent = {key: key for key in keys}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent[key] != key:
            key = parent[key]
        return key

    for a, b in sorted(near_duplicate_pairs([s.text for s in sentences])):
        parent[root(keys[b])] = root(keys[a])
    groups = defaultdict(list)
    for key, sentence in zip(keys, sentences, strict=True):
        groups[root(key)].append(sentence)

    parts: dict[str, list[Sentence]] = {"train": [], "validation": [], "test": []}
    total = Counter(s.source for s in sentences if is_labelled(s))
    taken: Counter[tuple[str, str]] = Counter()
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    for key in order:
        source, part = key[0], "train"
        for name, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
            # A few groups chained by stock phrases ("buyer beware") are large: those stay in train.
            if taken[name, source] < share * total[source] and len(groups[key]) < 100:
                part = name
                taken[name, source] += sum(map(is_labelled, groups[key]))
                break
        parts[part] += groups[key]
    return parts
