"""Every class that transformers maps to sequence classification or causal language modelling, built small and explained.

``python tests/every_class.py`` runs them all and writes the table in docs/models.md.
"""

import inspect
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import fastshap
from fastshap.reference import normals
from fastshap.sampling import draw_samples
from helpers.twice_read import reading

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
WORDS = (
    "the film was not good at all and acting superb dull ending while nobody knew why it began to end so late".split()
)
LENGTHS = (3, 5, 8, 17, 40, 75)  # words, a token each
TARGET = "superb and dull"
SAMPLES = 2
TOLERANCE = 1e-4  # of a text's largest score

HEAD = """# Models

This page lists every class of text classifiers and causal language models. [Tasks](tasks.md) has the others. fastshap decides
by what a model does, not by its name. Before the first explanation it runs the model at a few points of its own. It takes a
shortcut (padding, calls without a mask, a shorter last layer, fewer logits) only if logits and gradients stay as they are. It
refuses a model that it cannot explain correctly.

fastshap accepts a model as a causal language model if it continues a text: the model generates, takes `inputs_embeds`, gives a
row of logits for each token, and no logits depend on later tokens. fastshap refuses

- models that are an encoder with a decoder, unless the decoder reads the text itself, shifted by one token (BART, T5): then
  both readings count ([why](adr/0027-texts-read-twice.md));
- models that look tokens up by their ids in further tables, one for each layer (Gemma 3n, the small ones of Gemma 4), because
  a point between two embeddings has no id.

If a checkpoint lacks a head, transformers fills it with random weights. transformers 5 marks the weights that it did read, so
fastshap notices this and warns with `UntrainedHeadWarning`. A copied model carries no marks, so fastshap does not notice a
random head there: look at the loading report of transformers.

## Every class

transformers maps {classes} classes to sequence classification or causal language modelling. Each was built small, with large
random weights, and explained six texts of different lengths in one list. A few classes were built twice, because the
configuration decides.

- "equal": the scores are those of a plain forward and backward pass of each text alone, with the same noise, to 1e-4 of the
  largest. The number is the largest difference. After it stands how texts of different lengths share a call: with "right" or
  "left" padding, or "alone", that is, not at all. "masked" means that the model always needs its attention mask.
- "refused": one of fastshap's errors says why.
- "not built": no small model can be made without a further package, so nothing is known.

Equal: {equal}, refused: {refused}, not built: {built}, wrong: {wrong}.

Run on {day} on a CPU, with transformers {transformers} and torch {torch}, by `python tests/every_class.py`, which writes this
page. With the names of some classes it runs those and writes nothing.

| class | task | verdict | |
| --- | --- | --- | --- |
"""

# What a size of a configuration becomes, by its name.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "input_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "pooler_hidden_size", "d_embed", "hidden_dim", "true_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "swa_num_attention_heads", "index_n_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "dim_head", "kv_channels", "swa_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "ffn_dim", "d_ff", "dim_ff", "dff", "n_inner"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "intermediate_size_mlp", "shared_intermediate_size"), 48),
    **dict.fromkeys(("shared_experts_intermediate_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "linear_head_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("hidden_size_per_layer_input", "hc_lowrank"), 8),
    "hidden_size_global": 32,
    "encoder_hash_byte_group_vocab": 500,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 256),
}
QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
    "layer_types": ["linear_attention", "indexed_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "ple_embed_dim": 32,
    "ngram_vocab_size_base": 500,
    "split_ngram_parts": 2,
}
# What names and sizes do not tell.
TWEAKS = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 0},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4": {"text_config": {"global_head_dim": 16}},
    "gemma4_assistant": {
        "text_config": {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified": {"text_config": {"global_head_dim": 16}},
    "gemma4_unified_assistant": {"text_config": {"global_head_dim": 16}},
    "gemma4_unified_text": {"global_head_dim": 16},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 32, "hidden_size": 32, "true_hidden_size": 32},
    "qwen4_exp": QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (16, 16), "attn_layers": ["local", "local"]},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}
# Configurations of a class beside its usual one that decide whether it can be explained.
VARIANTS = {
    "BigBirdForCausalLM": {"attention_type": "original_full"},
    "BigBirdForSequenceClassification": {"attention_type": "original_full"},
    "BigBirdPegasusForCausalLM": {"attention_type": "original_full"},
    "BigBirdPegasusForSequenceClassification": {"attention_type": "original_full"},
    "Gemma4ForCausalLM": {"hidden_size_per_layer_input": 0},
    "Gemma4ForConditionalGeneration": {"text_config": {"hidden_size_per_layer_input": 0}},
    "Qwen4ExpForCausalLM": {"ple_layer_ids": [1]},
}
# Run on something else than a row of token ids for each text, so whether the small model runs says nothing.
OTHER_INPUTS = {"gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody"}
# What cannot be made here, and why.
UNBUILDABLE = {
    "Gemma3nForConditionalGeneration": "its image part needs the package timm; its text part is Gemma3nForCausalLM.",
    "LayoutLMv2ForSequenceClassification": "its image part needs the package detectron2.",
}
# Words of the shortest text, where the model itself fails on fewer.
SHORTEST = {"funnel": 5}
# Weights so large that nothing comes through tell nothing, nor those of six layers that part a plain pass in float32 from
# one in float64 by more than the tolerance.
GAINS = {"bart": 1.0, "mobilebert": 0.3, "zamba": 1.0}
GAINS |= dict.fromkeys(("t5", "mt5", "umt5"), 0.7)  # they do not scale their attention


def tokenizer(ending=False):
    """A token a word, and no token for padding among them.

    Args:
        ending: a text ends with the token for its end.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *(f"w{i}" for i in range(200))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.model = models.WordLevel(
        {f"▁{w}" if i >= len(special) else w: i for w, i in vocabulary.items()}, unk_token="<unk>"
    )
    if ending:
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, clean_up_tokenization_spaces=False)


def texts(shortest=0):
    lengths = [max(length, shortest) for length in LENGTHS]
    return [" ".join(WORDS[(i * 7 + length) % len(WORDS)] for i in range(length)) for length in lengths]


def mapped():
    """(task, model type, class name), each class once, and once more with the other configurations that are of interest."""
    mappings = {
        "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "generation": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    found = {}
    for task, mapping in mappings.items():
        for kind, names in mapping.items():
            for name in names if isinstance(names, tuple | list) else [names]:
                if (task, name) not in found or getattr(transformers, name).__module__.split(".")[2] == kind:
                    found[task, name] = kind
    return [
        (task, kind, name if variant is None else f"{name} ({_written(variant)})")
        for (task, name), kind in sorted(found.items())
        for variant in [None, *([VARIANTS[name]] if name in VARIANTS else [])]
    ]


def _written(variant):
    """As it stands behind the name of the class."""
    items = variant.get("text_config", variant).items()
    return ", ".join(f"{name}={value!r}" for name, value in items)


def shrunk(config, vocabulary, tweaks):
    """Arguments that make a configuration of this class small."""
    given, layers = {}, 0
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            given[name] = shrunk(value, vocabulary, tweaks.get(name, {}))
            given[name].setdefault("model_type", value.model_type)
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            given[name] = min(value, SIZES[name])
            if name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
                layers = value
        elif name in ("vocab_size", "vocab_size_per_layer_input"):
            given[name] = vocabulary
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= vocabulary:
            given[name] = vocabulary - 1  # of an image, a sound: no text holds it
    heads, groups = (vars(config).get(f"num_{name}_heads") for name in ("attention", "key_value"))
    if heads and (groups is None or groups == heads) and "num_key_value_heads" in vars(config):
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    if vars(config).get("head_dim", 0) is None:
        given["head_dim"] = SIZES["head_dim"]
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and layers > 2 and len(value) == layers:
            kinds = list(dict.fromkeys(value)) if all(isinstance(one, str) for one in value) else list(value)
            given[name] = [SIZES[name]] * 2 if name in SIZES else (kinds * 2)[:2]
    given |= {
        f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos")) if hasattr(config, f"{name}_token_id")
    }
    parts = {name for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    return given | {name: value for name, value in tweaks.items() if name not in parts}


def built(task, kind, name, vocabulary, labels=3):
    """The model, with weights of a size that makes it far from linear, and none of them zero."""
    name, _, variant = name.partition(" ")
    tweaks = dict(TWEAKS.get(kind, {}))
    for key, value in VARIANTS[name].items() if variant else ():
        tweaks[key] = {**tweaks.get(key, {}), **value} if isinstance(value, dict) else value
    cls = getattr(transformers, name).config_class or CONFIG_MAPPING[kind]
    usual = cls(**{part: given for part, given in tweaks.items() if part == "text_config"})
    config = cls(**shrunk(usual, vocabulary, tweaks))
    text = config.get_text_config()
    for one in (config, text):
        one.num_labels = labels
        one.is_decoder = task == "generation" or getattr(one, "is_decoder", False)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel() if parameter.shape[0] < 10**4 else 32
                parameter.normal_(std=max(GAINS.get(kind, 1.5) / fan**0.5, 0.05), generator=generator)
            else:  # a factor that begins at zero would hide a part of the model
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def uncached(model):
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def plainly(model, ids, wanted, task):
    """Scores (targets, L): a forward and a backward pass for each sample and score, of one text alone."""
    with torch.no_grad():
        x = model.get_input_embeddings()(ids[None])[0].clone()
    options = uncached(model)
    samples = draw_samples(0, ids.tolist(), SAMPLES, "antithetic")
    length, width = x.shape
    streams = torch.tensor([samples.stream] * length)
    total = torch.zeros(len(wanted), length)
    for alpha, draw, sign, weight in zip(samples.alphas, samples.draws, samples.signs, samples.weights, strict=True):
        noise = float(sign) * normals(streams, torch.full((length,), int(draw)), torch.arange(length), width)
        b = 0.1 * noise
        z = ((1 - float(alpha)) * x + float(alpha) * b)[None]
        for i, target in enumerate(wanted):
            leaf = z.clone().requires_grad_()
            given = {"attention_mask": torch.ones(1, length, dtype=torch.int64), **options}
            if task == "classification" and model.config.is_encoder_decoder:
                with reading(model, leaf[0], ids[None]):
                    logits = model(input_ids=ids[None], **given).logits
            else:
                logits = model(inputs_embeds=leaf * 1, **given).logits
            score = logits[0, target] if task == "classification" else logits[0, target - 1, ids[target]]
            (gradient,) = torch.autograd.grad(score, leaf)
            total[i] += float(weight) * ((x - b) * gradient[0]).sum(1) / SAMPLES
    return total


def verdict(task, kind, name):
    """("equal", how far apart), ("refused", our error), ("not built", why) or ("wrong", why)."""
    if name in UNBUILDABLE:
        return "not built", UNBUILDABLE[name], ""
    try:
        model = built(task, kind, name, len(tokenizer()))
        if kind not in OTHER_INPUTS:
            ids = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
            with torch.no_grad():
                model(input_ids=ids, attention_mask=torch.ones_like(ids), **uncached(model))
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}", traceback.format_exc()
    # Those of encoders with a decoder end a text, and their classifiers look for that.
    words = tokenizer(ending=task == "classification" and model.config.is_encoder_decoder)
    try:
        explainer = fastshap.GradientShap(
            model, words, batch_size=16, n_perturbations=SAMPLES, granularity="all_tokens"
        )
        wanted = [[0, 2]] * len(LENGTHS) if task == "classification" else [TARGET] * len(LENGTHS)
        outputs = explainer(texts(SHORTEST.get(kind, 0)), wanted)
    except fastshap.FastshapError as error:
        return "refused", f"{type(error).__name__}: {error}", ""
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}", traceback.format_exc()
    apart = 0.0
    for output in outputs:
        ids = output.model_inputs_to_explain["input_ids"][0]
        own = output.targets.tolist()
        asked = own if task == "classification" else list(range(len(ids) - len(own), len(ids)))
        right = plainly(model, ids, asked, task)
        ours = output.attributions.nan_to_num()
        if task == "generation":
            right = right.where(~output.attributions.isnan(), torch.zeros(()))
        apart = max(apart, float((ours - right).abs().max() / right.abs().max()))
    side = explainer._layout
    how = "alone" if side.equal_lengths else side.padding_side
    return ("equal" if apart <= TOLERANCE else "wrong"), f"{apart:.1e} {how} {'' if side.maskless else 'masked'}", ""


def row_of(task, name):
    """The verdict in the page, or None."""
    for line in PAGE.read_text().splitlines() if PAGE.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[:2] == [name, task]:
            return cells[2:]
    return None


def written(rows):
    """The page, of verdicts by (task, name)."""
    counts = Counter({"equal": 0, "refused": 0, "built": 0, "wrong": 0})
    counts.update(what.split()[-1] for what, _ in rows.values())
    lines = [f"| {name} | {task} | {what} | {why} |" for (task, name), (what, why) in sorted(rows.items())]
    classes = len({name.split(" ")[0] for _, name in rows})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    head = HEAD.format(classes=classes, day=date.today().isoformat(), **versions, **counts)
    PAGE.write_text(head + "\n".join(lines) + "\n")


def of_this_version():
    """Whether the page was written with the installed transformers."""
    return f"transformers {transformers.__version__} and torch" in PAGE.read_text()


def main():
    """Runs all classes and writes the page, or runs those that are named."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    wanted = set(sys.argv[1:])
    rows = {}
    for task, kind, name in mapped():
        if wanted and not {name, name.split(" ")[0], kind} & wanted:
            continue
        what, why, trace = verdict(task, kind, name)
        rows[task, name] = what, in_short(why, name)
        print(f"{task} {name} | {what} | {in_short(why, name)}", flush=True)
        if os.environ.get("TRACE"):
            print(trace)
    if not wanted:
        written(rows)


def in_short(why, name):
    """One line of a table, which names the class already."""
    why = " ".join(why.replace("|", "/").split())
    name = name.split(" ")[0]
    why = re.sub(rf"^(UnsupportedModelError: )?(The )?({name} )?(cannot be explained, since it )?", "", why)
    why = why.replace(f" for {name}", "").replace(f" of {name}", "")
    return why if len(why) <= 240 else why[:240].rpartition(" ")[0] + " …"


if __name__ == "__main__":
    main()
