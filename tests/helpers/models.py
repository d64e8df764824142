"""Small models with random weights, made here: nothing is downloaded.

The classes of transformers take seconds to import: each function imports its own.
"""

import copy

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from helpers.texts import SENTENCES


def bert(vocabulary):
    """A BERT of three classes, large weights so that it is far from linear."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=3,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def typed(tokenizer):
    """The same tokenizer, which tells the two texts of a pair apart by token_type_ids."""
    found = copy.deepcopy(tokenizer)
    found.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return found


def byte_tokenizer():
    """A byte-level BPE tokenizer in GPT-2's manner."""
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", clean_up_tokenization_spaces=False
    )


def llama(vocabulary):
    """A two-layer Llama with untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()
