"""The small sentiment classifier inside the package. Its model card is data/sentiment/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL_PATH = Path(__file__).parents[1] / "data" / "sentiment"


def load_default_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model, in float32 and evaluation mode, and its tokenizer. Needs no network.

    Labels: 0 negative, 1 positive. English, short texts; meant for trying things out.

    Example:
        >>> explainer = fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto")
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL_PATH, local_files_only=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes a moment
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            DEFAULT_MODEL_PATH, dtype=torch.float32, local_files_only=True
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval(), tokenizer
