"""Makes the files beside it: `python tests/data/golden/make.py DIRECTORY`.

They were made once, with version 0.1.0 before its modules were moved into rooms (commit 60205f7), and are what later versions
have to compute and to read. It uses public names alone, so that every version can run it. Weights are whole numbers
from a generator that numpy has frozen, over a power of two: the same on every machine and with every version of a library.
"""

import json
import os
import platform
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

import fastshap
from fastshap.cli import app

TEXT = "A gorgeous, witty film, but the ending isn't."
SENTENCES = "Dr. Smith's unwatchably overproduced mess. Would I?"
LONG = "The battery died after two days, the screen cracked after three, and nobody at all answered the phone."
JOB_TEXTS = ["not good at all", "", None, "Simply wonderful. I want my money back!", "good " * 600, "naïve 東京"]
MERGES = ["Ġ f", "i l", "Ġf il", "Ġfil m", "i s", "Ġ is", "T h", "Th e", "o o", "Ġ g", "Ġg oo", "Ġgoo d", "n o", "no t"]


def _filled(model, seed, scale):
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.copy_(torch.from_numpy(draw.randint(-128, 129, tuple(weight.shape))).float() / 128 * scale)
    return model.eval()


def classifier(labels=3, positions=24):
    """Three classes, and no more than 24 tokens."""
    tokenizer = fastshap.load_default_model()[1]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        num_labels=labels,
    )
    tokenizer.model_max_length = positions
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return _filled(BertForSequenceClassification(config), 0, 0.5), tokenizer


def writer():
    """A causal language model that reads bytes and a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in MERGES]
    vocabulary = ["<|end|>", *letters, *("".join(merge) for merge in merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        max_position_embeddings=64,
    )
    return _filled(LlamaForCausalLM(config), 1, 0.5), tokenizer


def pairs():
    """The models by name."""
    return {"default": fastshap.load_default_model(), "classifier": classifier(), "writer": writer()}


def _cases(tokenizer):
    """Name, model, text, targets, options of the explainer, and of the call. Each text stands alone, as reproduce has it."""
    width = torch.linspace(-1, 1, 8)
    length = len(tokenizer(TEXT)["input_ids"])
    granularities = [
        ("all_tokens", "mean"),
        ("token", "max"),
        ("word", "signed_max"),
        ("tokenizer_word", "min"),
        ("part_sentence", "sum"),
        ("sentence", "first"),
        ("word", "last"),
        ("sentence", "max"),
    ]
    yield "default settings", "default", TEXT, None, {}, {}
    yield "default settings, 2 classes", "default", LONG, "all", {}, {}
    for granularity, strategy in granularities:
        chosen = {"granularity": granularity, "granularity_aggregation_strategy": strategy}
        yield f"{granularity}, {strategy}", "classifier", SENTENCES, None, chosen, {}
    for reduction in ("sum", "abs_mean"):
        for multiplied in (True, False):
            chosen = {"reduction": reduction, "input_x_gradient": multiplied}
            yield f"{reduction}, {multiplied}", "writer", "The film is", " not good", chosen, {}
    yield "absolute", "default", TEXT, None, {"reduction": "abs_mean"}, {}
    yield "absolute gradients", "classifier", TEXT, "all", {"reduction": "abs_mean", "input_x_gradient": False}, {}
    yield "iid", "default", TEXT, None, {"sampling": "iid", "n_perturbations": 7}, {}
    yield "an odd number of samples, another seed", "default", TEXT, None, {"n_perturbations": 7, "seed": -(2**63)}, {}
    yield "path density", "default", TEXT, None, {"path_density": 0.5}, {}
    yield "path density, iid", "classifier", TEXT, 1, {"path_density": 2.0, "sampling": "iid"}, {}
    yield "tolerance", "default", TEXT, None, {"rtol": 0.2, "n_perturbations": 4}, {}
    yield (
        "tolerance not met",
        "classifier",
        TEXT,
        None,
        {"rtol": 0.01, "n_perturbations": 2, "max_perturbations": 16},
        {},
    )
    yield (
        "tolerance of a maximum",
        "default",
        SENTENCES,
        None,
        {"rtol": 0.3, "granularity_aggregation_strategy": "max"},
        {},
    )
    yield "convergence delta", "default", TEXT, None, {"return_convergence_delta": True}, {}
    yield "delta, rounds", "classifier", TEXT, [[0, 2]], {"return_convergence_delta": True, "rtol": 0.5}, {}
    yield "several targets", "classifier", TEXT, [[2, 0]], {}, {}
    yield "all, softmax", "classifier", TEXT, "all", {"inference_mode": "softmax"}, {}
    yield "all, log softmax", "classifier", TEXT, "all", {"inference_mode": "log_softmax", "granularity": "token"}, {}
    pair = dict(tokenizer("not good", "Simply wonderful."))
    yield "a pair", "classifier", pair, None, {"granularity": "all_tokens"}, {}
    yield "token ids", "classifier", tokenizer(TEXT)["input_ids"], None, {}, {}
    yield "a number as baseline", "writer", "The film is", " not good", {"baseline": 0.25}, {}
    yield "a vector as baseline", "classifier", TEXT, None, {"baseline": width}, {}
    yield "a matrix as baseline", "classifier", TEXT, 0, {"baseline": width.repeat(length, 1) / 2}, {}
    yield "no noise", "default", TEXT, None, {"noise_std": 0.0}, {}
    yield (
        "special tokens stay",
        "default",
        TEXT,
        None,
        {"perturb_special_tokens": False, "granularity": "all_tokens"},
        {},
    )
    yield "an error", "default", "", None, {"on_error": "record"}, {}
    yield "no text", "default", b"fine", None, {"on_error": "record"}, {}
    yield "truncated", "classifier", f"{LONG} {LONG}", None, {}, {}
    yield "a text as target", "writer", "The film is", " not good", {}, {}
    yield "token by token", "writer", "The film", " is good", {"granularity": "token", "inference_mode": "softmax"}, {}
    yield "delta of a generation", "writer", "The film", " is it", {"return_convergence_delta": True}, {}
    yield "sentences of a generation", "writer", SENTENCES, " Yes. It is", {"granularity": "sentence"}, {}
    yield "written", "writer", "The film", None, {}, {"generation_kwargs": {"max_new_tokens": 4, "do_sample": False}}
    chosen = {"reduction": "abs_mean", "sampling": "iid", "granularity_aggregation_strategy": "signed_max"}
    yield "absolute, written", "writer", "not", None, chosen, {"generation_kwargs": {"max_new_tokens": 3}}
    yield "tolerance of a generation", "writer", "The film", " is", {"rtol": 0.4, "n_perturbations": 4}, {}


def explained():
    """Each case's name, its model's name, and its output."""
    models_ = pairs()
    for name, model, text, targets, options, call in _cases(models_["classifier"][1]):
        explainer = fastshap.GradientShap(*models_[model], batch_size="auto", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastshap.TruncationWarning)
            (output,) = explainer([text], targets, progress=False, **call)
        yield name, model, output


def machine():
    """What the last bit of a sum depends on."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    kind = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model\t", "model name", "cpu family"))]
    return {
        "torch": torch.__version__,
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability(), *kind[:3]],
        "threads": torch.get_num_threads(),
    }


def _command(*arguments):
    """A command of the shell, in this process."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output


def run_job(source, output, *options):
    _command("run", source, output, "--local", "--n-perturbations", "4", *options)


def verify_job(source, output):
    _command("verify", output, source)


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)  # so that manifests name no path of this machine
    directory = Path()
    torch.set_num_threads(1)
    names, models_, outputs = zip(*explained(), strict=True)
    cases = [{"name": name, "model": model} for name, model in zip(names, models_, strict=True)]
    about = {"machine": machine(), "cases": cases}
    (directory / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    fastshap.write_jsonl(outputs, directory / "outputs.jsonl")
    fastshap.write_parquet(outputs, directory / "outputs.parquet")
    rows = [{"id": i, "text": text} for i, text in enumerate(JOB_TEXTS)]
    (directory / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"id": [f"t{row['id']}" for row in rows], "text": JOB_TEXTS}), directory / "texts.parquet")
    run_job(directory / "texts.jsonl", directory / "job-jsonl")
    run_job(directory / "texts.parquet", directory / "job-parquet", "--target", "all", "--granularity", "sentence")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
