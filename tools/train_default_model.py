"""Train the small sentiment classifier that ships with the package.

Run ``python -m tools.train_default_model [--out fastshap/data/sentiment] [--seed 0]``.

1. Split the human-rated sentences into train, validation and test, so that no review and no (near-)duplicate
   text is in two of them.
2. Teacher: fine-tune all-MiniLM-L6-v2 on the training sentences and on short template sentences.
3. Make many variants of the training texts and let the teacher label them.
4. Student: train a small BERT on those labels. Its word embeddings start from a PCA of the teacher's.
5. Calibrate on validation, round to float16, save, load the saved files and measure on test.

Every choice was made on validation. The test part only measures the result.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from tools.assets import Sentence, minilm_dir, rated_sentences
from tools.classifier import Classifier, encode, predict, train, word_table
from tools.more_texts import neighbours, perturb, recombine, template_texts
from tools.sentences import is_labelled, rating_target, split

LABELS = {0: "negative", 1: "positive"}
VOCABULARY = 11000  # pieces in the student's tokenizer


def student_tokenizer(full: Tokenizer, texts: list[str]) -> Tokenizer:
    """MiniLM's WordPiece tokenizer, reduced to the pieces that matter for ``texts``."""
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
    """Scale the last layer to minimise the log loss on validation. Return the factor."""
    factors = [0.5 + 0.02 * i for i in range(100)]
    best = min(factors, key=lambda f: float(F.binary_cross_entropy_with_logits(f * margin, positive.float())))
    with torch.no_grad():
        model.classifier.weight.mul_(best)
        model.classifier.bias.mul_(best)
    return best


def calibration_error(margin: torch.Tensor, positive: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error of the predicted label, with equal-width confidence bins from 0.5 to 1."""
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
