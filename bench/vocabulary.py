"""Words and tokenizers that are at hand: nothing is fetched."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import fastshap


@functools.cache
def words_and_tokenizer() -> tuple[list[str], Any]:
    """The whole words of the packaged model's vocabulary, and its tokenizer."""
    tokenizer = fastshap.load_default_model()[1]
    return sorted(
        word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    ), tokenizer


def byte_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in GPT-2's manner; at least a tenth of the model's vocabulary, or fastshap takes it for another's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" " + word for word in words], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", clean_up_tokenization_spaces=False
    )
