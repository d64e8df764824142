"""Every class that transformers maps to sequence classification or causal language modelling, built small and explained.

``python tests/every_class.py`` runs them all and writes the table in docs/models.md.
"""

import inspect
import os
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import fastshap
from fastshap.reference import normals
from fastshap.sampling import draw_samples

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
WORDS = (
    "the film was not good at all and acting superb dull ending while nobody knew why it began to end so late".split()
)
LENGTHS = (3, 5, 8, 17, 40, 75)  # words, a token each
TARGET = "superb and dull"
SAMPLES = 2
TOLERANCE = 1e-4  # of a text's largest score

HEAD = """# Models

fastshap explains text classifiers and causal language models. It decides by what a model does, not by its name: before the
first explanation the model runs at a few points of its own, and every shortcut (padding, calls without a mask, a shorter last
layer, fewer logits) is taken only where logits and gradients stay as they are. What cannot be explained rightly is refused.

A model is accepted if it is a `*ForSequenceClassification`, or if it goes on with a text: it generates, takes `inputs_embeds`,
gives a row of logits for each token, and no logits depend on later tokens. Encoders with a decoder, and models that fill in,
mark or classify tokens, are refused. If a checkpoint lacks a head, transformers makes up a random one; fastshap notices this
by the marks that transformers 5 leaves on what it did read, and warns with `UntrainedHeadWarning`. A model that was copied
carries no marks, so a made-up head goes unnoticed there: look at the loading report of transformers.

## Every class

Each of the {n} classes that transformers {version} maps to sequence classification or causal language modelling was built
small with large random weights, and six texts of different lengths were explained in one list. "equal": the scores are those
of a plain forward and backward pass of each text alone, with the same noise, to 1e-4 of the largest; the number is the
largest difference, and behind it stands how texts of different lengths share a call ("right" or "left" padding, or "alone").
"refused": an error of ours says why. "not built": no small model could be made here, so nothing is known. A class that is
not listed was not reached. Equal: {equal}, refused: {refused}, not built: {built}, wrong: {wrong}.

Run again by `python tests/every_class.py` (all) or with the names of some.

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
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "linear_head_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 256),
}
# What names and sizes do not tell.
TWEAKS = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 0},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mobilebert": {"intra_bottleneck_size": 32, "hidden_size": 32, "true_hidden_size": 32},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (16, 16), "attn_layers": ["local", "local"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["linear_attention", "hybrid"] * 3,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}
# Weights so large that nothing comes through tell nothing.
GAINS = {"mobilebert": 0.3}


def tokenizer():
    """A token a word, and no token for padding among them."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *(f"w{i}" for i in range(200))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.model = models.WordLevel(
        {f"▁{w}" if i >= len(special) else w: i for w, i in vocabulary.items()}, unk_token="<unk>"
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, clean_up_tokenization_spaces=False)


def texts():
    return [" ".join(WORDS[(i * 7 + length) % len(WORDS)] for i in range(length)) for length in LENGTHS]


def mapped():
    """(task, model type, class name), each class once."""
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
    return [(task, kind, name) for (task, name), kind in sorted(found.items())]


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
        elif name == "vocab_size":
            given[name] = vocabulary
    heads, groups = (vars(config).get(f"num_{name}_heads") for name in ("attention", "key_value"))
    if heads and (groups is None or groups == heads) and "num_key_value_heads" in vars(config):
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    if vars(config).get("head_dim", 0) is None:
        given["head_dim"] = SIZES["head_dim"]
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and layers > 2 and len(value) == layers:
            kinds = list(dict.fromkeys(value)) if all(isinstance(one, str) for one in value) else list(value)
            given[name] = (kinds * 2)[:2]
    given |= {
        f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos")) if hasattr(config, f"{name}_token_id")
    }
    return given | {name: value for name, value in tweaks.items() if not isinstance(value, dict)}


def built(task, kind, name, words):
    """The model, with weights of a size that makes it far from linear."""
    cls = getattr(transformers, name).config_class or CONFIG_MAPPING[kind]
    config = cls(**shrunk(cls(), len(words), TWEAKS.get(kind, {})))
    text = config.get_text_config()
    for one in (config, text):
        one.num_labels = 3
        one.is_decoder = task == "generation" or getattr(one, "is_decoder", False)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel() if parameter.shape[0] < 10**4 else 32
                parameter.normal_(std=max(GAINS.get(kind, 1.5) / fan**0.5, 0.05), generator=generator)
    return model


def plainly(model, ids, wanted, task):
    """Scores (targets, L): a forward and a backward pass for each sample and score, of one text alone."""
    with torch.no_grad():
        x = model.get_input_embeddings()(ids[None])[0].clone()
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
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
            logits = model(
                inputs_embeds=leaf * 1, attention_mask=torch.ones(1, length, dtype=torch.int64), **options
            ).logits
            score = logits[0, target] if task == "classification" else logits[0, target - 1, ids[target]]
            (gradient,) = torch.autograd.grad(score, leaf)
            total[i] += float(weight) * ((x - b) * gradient[0]).sum(1) / SAMPLES
    return total


def verdict(task, kind, name):
    """("equal", how far apart), ("refused", our error), ("not built", why) or ("wrong", why)."""
    words = tokenizer()
    try:
        model = built(task, kind, name, words)
        with torch.no_grad():
            ids = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}", traceback.format_exc()
    try:
        explainer = fastshap.GradientShap(
            model, words, batch_size=16, n_perturbations=SAMPLES, granularity="all_tokens"
        )
        wanted = [[0, 2]] * len(LENGTHS) if task == "classification" else [TARGET] * len(LENGTHS)
        outputs = explainer(texts(), wanted)
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
    side = explainer._settings
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
    PAGE.write_text(HEAD.format(n=len(rows), version=transformers.__version__, **counts) + "\n".join(lines) + "\n")


def main():
    """Runs all classes, or those named, and writes their rows of the page."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    wanted = sys.argv[1:]
    rows = {}
    for task, kind, name in mapped():
        known = row_of(task, name)
        if wanted and not {name, kind} & set(wanted):
            rows |= {(task, name): known} if known else {}
            continue
        what, why, trace = verdict(task, kind, name)
        rows[task, name] = what, in_short(why)
        print(f"{task} {name} | {what} | {in_short(why)}", flush=True)
        if os.environ.get("TRACE"):
            print(trace)
    written(rows)


def in_short(why):
    """One line of a table."""
    return " ".join(why.replace("|", "/").split())[:160].rstrip()


if __name__ == "__main__":
    main()
