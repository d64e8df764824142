"""Tiny models with random weights, of many families, for whatever head transformers has for them."""

import torch

_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_GPT = {"n_embd": 24, "n_layer": 2, "n_head": 2}
CONFIGURATIONS = {
    "Bert": _SIZES,
    "Roberta": {**_SIZES, "max_position_embeddings": 130},
    "DistilBert": {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "DebertaV2": {**_SIZES, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    "Electra": {**_SIZES, "embedding_size": 16},
    "Albert": {**_SIZES, "embedding_size": 16},
    "XLNet": {"d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "ModernBert": {**_SIZES, "global_attn_every_n_layers": 2, "local_attention": 8},
    "GPT2": _GPT,
    "Llama": {**_SIZES, "num_key_value_heads": 1},
}


def with_slow_ones(names, *quick):
    """Cases of a test: all but the quick ones are slow."""
    import pytest

    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def tiny(family, head, tokenizer, **configuration):
    """A model with large weights, so that it is far from linear. ``head``: the end of its class's name, ForMaskedLM say."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}{head}")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = kind.config_class(
        vocab_size=len(tokenizer), **CONFIGURATIONS[family], initializer_range=0.2, **special, **configuration
    )
    return kind(config).eval()
