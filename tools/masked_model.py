"""A second sentiment model that has seen masks: for it, a text with masked words is nothing unusual. It does not ship.

``python -m tools.masked_model`` makes it (some minutes, once) and prints its accuracy. It begins with the packaged model and is
trained on the same rated sentences. In half of the rows a random share of the tokens, from none to all, is the mask.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tools.assets import cache_dir, rated_sentences
from tools.classifier import Classifier, encode, predict, train
from tools.sentences import is_labelled, rating_target, split

NAME = "sentiment-masked-1"
PACKAGED = Path(__file__).parent.parent / "fastshap" / "data" / "sentiment"


def masked_model() -> tuple[Any, Any]:
    """The model and its tokenizer; cached outside the repository."""
    target = cache_dir() / NAME
    if not (target / "accuracy.json").is_file():
        _make(target)
    model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(target)


def with_masks(row: list[int], mask: int, rng: random.Random) -> list[int]:
    """A row (L,) of token ids: as it is, or with a random share of masks, but for the first and the last token."""
    if rng.random() < 0.5:
        return row
    share = rng.random()
    return [row[0], *(mask if rng.random() < share else one for one in row[1:-1]), row[-1]]


def _make(target: Path, epochs: int = 3) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    parts = {name: [s for s in part if is_labelled(s)] for name, part in split(rated_sentences(), 0).items()}
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED)
    mask, core = tokenizer.mask_token_id, tokenizer.backend_tokenizer
    model = Classifier.from_pretrained(PACKAGED, dtype=torch.float32)
    wanted = torch.tensor([rating_target(s.rating) for s in parts["train"]])
    rows = encode(core, [s.text for s in parts["train"]])
    train(model, rows, wanted, rng, epochs=epochs, rate=3e-4, size=64, changed=lambda row: with_masks(row, mask, rng))
    margin, _ = predict(model, core, [s.text for s in parts["test"]])
    right = (margin > 0) == torch.tensor([s.rating > 0 for s in parts["test"]])
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "accuracy.json").write_text(json.dumps({"test_accuracy": float(right.float().mean())}))


if __name__ == "__main__":
    masked_model()
    print((cache_dir() / NAME / "accuracy.json").read_text())
