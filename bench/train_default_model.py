"""Train the small sentiment classifier that ships with the package.

Run ``python -m bench.train_default_model [--out fastshap/data/sentiment] [--seed 0]``.

1. Split the human-rated sentences into train, validation and test so that no review and no (near-)duplicate
   text lies on both sides.
2. Teacher: fine-tune all-MiniLM-L6-v2 on the training sentences and on short template sentences.
3. Make many variants of the training texts and let the teacher label them.
4. Student: train a small BERT on those labels, its word embeddings started from a PCA of the teacher's.
5. Calibrate on validation, round to float16, save, load the saved files and measure on test.

Every choice was made on validation; the test part is only measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers import BertForSequenceClassification as Classifier

from bench.assets import Sentence, minilm_dir, rated_sentences

LABELS = {0: "negative", 1: "positive"}
MIN_RATING = 0.5  # sentences rated closer to neutral than this carry no label
TEST_SHARE, VALIDATION_SHARE = 0.12, 0.06
VOCABULARY = 11000  # pieces in the student's tokenizer

# ---------------------------------------------------------------- data


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
    """Divide the sentences into train, validation and test by groups of reviews linked by duplicates.

    Movie rows carry only a running number. Neighbouring rows share proper names no more often than rows
    2,000 apart, so the file gives no sign of which snippets, if any, come from one review: every movie row
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


# ---------------------------------------------------------------- more texts

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
    """Short judgements, negations and contrasts with their soft labels."""
    lean, made = opinion_words(train), []
    for _ in range(count):
        side, kind = rng.random() < 0.5, rng.choices(list(SHARES), list(SHARES.values()))[0]
        a, b = rng.choice(lean[side]), rng.choice(lean[side])
        c, x = rng.choice(lean[not side]), rng.choice(["", "actually ", "rather ", "quite "])
        n, p, v = (rng.choice(words.split()) for words in (NOUNS, PARTS, VERBS[side]))
        text = rng.choice(FRAMES[kind].split("|")).strip().format(a=a, b=b, c=c, x=x + c, n=n, p=p, v=v)
        made.append((text + rng.choice(["", ".", "!"]), TARGETS[kind][side]))
    return made


def word_table(model: Classifier) -> torch.Tensor:
    return model.bert.embeddings.word_embeddings.weight.detach()


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


# ---------------------------------------------------------------- models


def encode(tokenizer: Tokenizer, texts: list[str], limit: int = 96) -> list[list[int]]:
    rows = [e.ids for e in tokenizer.encode_batch(texts)]
    return [row if len(row) <= limit else row[: limit - 1] + row[-1:] for row in rows]


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # [PAD] is 0, no other piece is
    return {"input_ids": padded, "attention_mask": (padded != 0).long()}


def batches(rows: list[list[int]], size: int, rng: random.Random) -> list[list[int]]:
    """Index batches of similar lengths, in random order."""
    order, made = list(range(len(rows))), []
    rng.shuffle(order)
    for start in range(0, len(order), size * 50):
        part = sorted(order[start : start + size * 50], key=lambda i: len(rows[i]))
        made += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(made)
    return made


def forward(model: Classifier, rows: list[list[int]], fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds of "positive" and pooled features; ``fast`` computes in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        pooled = model.bert(**collate(rows)).pooler_output
        logits = model.classifier(model.dropout(pooled)).float()
    return logits[:, 1] - logits[:, 0], pooled.float()


@torch.no_grad()
def predict(
    model: Classifier, tokenizer: Tokenizer, texts: list[str], fast: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """``forward`` for many texts, without dropout."""
    model.eval()
    rows = encode(tokenizer, texts)
    margin, features = torch.zeros(len(rows)), torch.zeros(len(rows), model.config.hidden_size)
    for batch in batches(rows, 64, random.Random(0)):
        margin[batch], features[batch] = forward(model, [rows[i] for i in batch], fast)
    return margin, features


def train(
    model: Classifier,
    rows: list[list[int]],
    target: torch.Tensor,
    rng: random.Random,
    *,
    epochs: int,
    rate: float,
    size: int,
    features: torch.Tensor | None = None,
    fast: bool = False,
) -> None:
    """Fit the probability of "positive" to ``target`` and, if given, a projection of the pooled features."""
    projection = torch.nn.Linear(model.config.hidden_size, 1 if features is None else features.shape[1])
    parameters = [*model.parameters(), *(projection.parameters() if features is not None else ())]
    steps = epochs * len(batches(rows, size, random.Random(0)))
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 150, 1, 1 - s / steps))
    model.train()
    started = time.time()
    for epoch in range(epochs):
        losses = []
        for batch in batches(rows, size, rng):
            margin, pooled = forward(model, [rows[i] for i in batch], fast)
            loss = F.binary_cross_entropy_with_logits(margin, target[batch])
            losses.append(loss.item())
            if features is not None:
                loss = loss + F.mse_loss(projection(pooled), features[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        mean = sum(losses) / len(losses)
        print(f"  epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {time.time() - started:.0f} s", flush=True)


def student_tokenizer(full: Tokenizer, texts: list[str]) -> Tokenizer:
    """MiniLM's WordPiece tokenizer cut down to the pieces that matter for ``texts``."""
    old = full.get_vocab()
    by_id = sorted(old, key=old.__getitem__)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [p for p in by_id if len(p.removeprefix("##")) == 1 and (ord(p[-1]) < 0x250 or p in "’“”–—…€")]
    counts = Counter(p for e in full.encode_batch(texts, add_special_tokens=False) for p in e.tokens)
    frequent = sorted((p for p in counts if counts[p] > 1), key=lambda p: (-counts[p], old[p]))
    common = [p for p in by_id if p.isalpha() and p.isascii()]  # MiniLM's order follows general frequency
    pieces = list(dict.fromkeys(special + letters + frequent + common))[:VOCABULARY]
    new = {p: i for i, p in enumerate(sorted(pieces, key=old.__getitem__))}
    settings = json.loads(full.to_str())
    settings["model"]["vocab"] = new
    for token in settings["added_tokens"]:
        token["id"] = new[token["content"]]
    for token in settings["post_processor"]["special_tokens"].values():
        token["ids"] = [new[t] for t in token["tokens"]]
    return Tokenizer.from_str(json.dumps(settings))


def build_student(teacher: Classifier, full: Tokenizer, small: Tokenizer) -> Classifier:
    """A small BERT whose word embeddings are the first principal components of the teacher's."""
    config = BertConfig(
        vocab_size=small.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    student, old, new = Classifier(config), full.get_vocab(), small.get_vocab()
    table = word_table(teacher)[[old[p] for p in sorted(new, key=new.__getitem__)]]
    table = table - table.mean(0)
    table = table @ torch.linalg.svd(table, full_matrices=False).Vh[: config.hidden_size].T
    word_table(student).copy_(0.05 * table / table.std())
    return student


# ---------------------------------------------------------------- calibrate, save, measure

NEGATION = re.compile(r"\b(not|no|never|nothing|neither|nor|hardly|cannot)\b|n't\b")
HAND_WRITTEN = {
    "negative": """not good at all|The plot is a mess and the acting is worse.|I did not like it
        |Terrible customer service, I want my money back.|The battery died after two days.
        |The food was not great.|I would not recommend this to anyone.|This update broke everything.
        |There is nothing funny about this movie.|The hotel room was dirty and smelled awful.
        |My flight was delayed for six hours.|I expected more from this director.
        |I am so tired of these lies.|It doesn't work and nobody answers the phone.
        |The cast is talented, but the film is a boring waste of time.""",
    "positive": """A gorgeous, witty film, but the ending is dull.|I loved every minute of it.|never boring
        |This is the best phone I have ever owned.|Not bad, actually quite fun.|this is not a bad film
        |It was never boring, not even for a second.|It isn't terrible.|I don't regret buying it.
        |Fantastic value for the price.|What a lovely day at the beach with friends!
        |The screen is bright and the sound is superb.|The story is thin, but the performances are wonderful.
        |Thanks so much, you made my week!|A warm, funny and moving story.""",
}


def calibrate(model: Classifier, margin: torch.Tensor, positive: torch.Tensor) -> float:
    """Scale the last layer so that the log loss on validation is least; return the factor."""
    factors = [0.5 + 0.02 * i for i in range(100)]
    best = min(factors, key=lambda f: float(F.binary_cross_entropy_with_logits(f * margin, positive.float())))
    with torch.no_grad():
        model.classifier.weight.mul_(best)
        model.classifier.bias.mul_(best)
    return best


def calibration_error(margin: torch.Tensor, positive: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error of the predicted label, equal-width confidence bins from 0.5 to 1."""
    confidence, correct = torch.sigmoid(margin.abs()), ((margin > 0) == positive).float()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = [float((confidence - correct)[index == b].sum().abs()) for b in range(bins)]
    return sum(gaps) / len(margin)


def report(name: str, margin: torch.Tensor, sentences: list[Sentence]) -> None:
    positive = torch.tensor([s.rating > 0 for s in sentences])
    right = ((margin > 0) == positive).float()
    error = calibration_error(margin, positive)
    print(f"{name}: accuracy {right.mean():.4f} (n={len(right)}), calibration error {error:.4f}")
    subsets = {source: [s.source == source for s in sentences] for source in ("movie", "amazon", "tweets")}
    subsets["with a negation word"] = [bool(NEGATION.search(s.text.lower())) for s in sentences]
    for label, chosen in subsets.items():
        print(f"  {label}: {right[torch.tensor(chosen)].mean():.4f} (n={sum(chosen)})", flush=True)


def save(model: Classifier, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    (out / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"model_max_length": model.config.max_position_embeddings}
    settings |= {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the packaged sentiment classifier.")
    parser.add_argument("--out", type=Path, default=Path("fastshap/data/sentiment"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    rng, started = random.Random(args.seed), time.time()

    parts = split(rated_sentences(), args.seed)
    labelled = {name: [s for s in part if is_labelled(s)] for name, part in parts.items()}
    texts = {name: [s.text for s in part] for name, part in labelled.items()}
    unlabelled = [s.text for s in parts["train"] if not is_labelled(s)]
    print("sentences:", {name: len(t) for name, t in texts.items()}, "unlabelled:", len(unlabelled))
    rules = template_texts(labelled["train"], 8000, rng)
    known = [rating_target(s.rating) for s in labelled["train"]] + [target for _, target in rules]
    seeds = texts["train"] + [text for text, _ in rules]

    print("teacher")
    full = Tokenizer.from_file(str(minilm_dir() / "tokenizer.json"))
    full.no_padding()
    full.no_truncation()
    teacher = Classifier.from_pretrained(minilm_dir(), num_labels=2)
    some = len(texts["train"]) + 2500  # all sentences, part of the templates
    rows, target = encode(full, seeds[:some]), torch.tensor(known[:some])
    train(teacher, rows, target, rng, epochs=2, rate=6e-5, size=32, fast=True)
    for name in ("validation", "test"):
        report(f"teacher, {name}", predict(teacher, full, texts[name], fast=True)[0], labelled[name])

    print("texts for the student")
    near = neighbours(teacher, full, 8)
    pool = seeds + unlabelled
    pool += [perturb(t, near, rng) for t in texts["train"] * 3 + unlabelled]
    pool += [recombine(t, rng.choice(texts["train"]), rng) for t in texts["train"] * 2]
    small = student_tokenizer(full, texts["train"] + unlabelled)
    pool += [p for p in sorted(small.get_vocab()) if len(p) > 2 and p.isalpha() and p.isascii()]
    margin, features = predict(teacher, full, pool, fast=True)
    target = torch.sigmoid(margin)
    # Where a rating or rule exists, it counts as much as the teacher.
    target[: len(known)] = (target[: len(known)] + torch.tensor(known)) / 2
    print(f"  {len(pool)} texts, {time.time() - started:.0f} s", flush=True)

    print("student")
    student = build_student(teacher, full, small)
    features = (features - features.mean(0)) / features.std()
    train(student, encode(small, pool), target, rng, epochs=3, rate=1e-3, size=64, features=features)
    positive = torch.tensor([s.rating > 0 for s in labelled["validation"]])
    factor = calibrate(student, predict(student, small, texts["validation"])[0], positive)
    print(f"  last layer scaled by {factor:.2f}")
    save(student, small, args.out)

    # From here on: the files as they ship.
    model = AutoModelForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.out).backend_tokenizer
    for name in ("validation", "test"):
        report(f"shipped model, {name}", predict(model, tokenizer, texts[name])[0], labelled[name])
    hand = [(text.strip(), label) for label, block in HAND_WRITTEN.items() for text in block.split("|")]
    margin, _ = predict(model, tokenizer, [text for text, _ in hand])
    for (text, label), p in zip(hand, torch.sigmoid(margin).tolist(), strict=True):
        print(f"  {'ok   ' if LABELS[p > 0.5] == label else 'WRONG'} {p:.2f} {label}: {text}")
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    print(f"{sum((args.out / f).stat().st_size for f in names)} bytes, {time.time() - started:.0f} s in all")


if __name__ == "__main__":
    main()
