"""Train a BERT classifier, and ask it for the log-odds of "positive"."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import BertForSequenceClassification as Classifier


def word_table(model: Classifier) -> torch.Tensor:
    return model.bert.embeddings.word_embeddings.weight.detach()


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
    changed: Callable[[list[int]], list[int]] = lambda row: row,
) -> None:
    """Fit the probability of "positive" to ``target`` and, if given, a projection of the pooled features.

    Args:
        changed: what the model reads in place of a row, anew in each epoch.
    """
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
            margin, pooled = forward(model, [changed(rows[i]) for i in batch], fast)
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
