"""One side of a pair: runs fixed workloads with the fastshap that PYTHONPATH names, and tells what each run took.

:mod:`bench.compare.pairs` starts it by its path, and writes the name of a workload to its standard input for each run. This
file must run with old checkouts: of fastshap it uses the public names and ``fastshap.ops``, and of bench nothing.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import logging

import fastshap
from fastshap import ops

Run = Callable[[], Iterable[torch.Tensor]]
WORDS = (
    "a gorgeous witty film but the ending is dull not good at all terrible service i want my money back battery died after "
    "two days simply wonderful never boring cast plot music slow warm funny story about people who love their work"
).split()
HOSTED, SMALL = 2000, 16  # texts
TEXTS_OF_OPERATORS, TOKENS, SAMPLES, DIM = 2, 48, 10, 384


def sentences(count: int, least: int, most: int) -> list[str]:
    """The same for the same arguments."""
    pick = random.Random(f"{count} {least} {most}")
    return [" ".join(pick.choices(WORDS, k=pick.randint(least, most))) for _ in range(count)]


def explanations(texts: list[str], model: Any = None, targets: Any = None, **settings: Any) -> Run:
    """All texts in one call; the explainer is made beforehand."""
    explainer = fastshap.GradientShap(*(model or fastshap.load_default_model()), **settings)
    return lambda: [output.attributions for output in explainer(texts, targets)]


def one_by_one(texts: list[str]) -> Run:
    """A call for each text, where what is not the model's work counts most."""
    explainer = fastshap.GradientShap(*fastshap.load_default_model(), n_perturbations=2)
    return lambda: [explainer(text)[0].attributions for text in texts]


class Stubs:
    """``fastshap.ops`` for the engine without work: points and scores that are zero."""

    check_backend = staticmethod(ops.check_backend)

    @staticmethod
    def perturb(x: torch.Tensor, rows: Any, **_: Any) -> torch.Tensor:
        return x.new_zeros(len(rows.alphas), rows.length, x.shape[1])

    @staticmethod
    def attribute(gradients: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return gradients.new_zeros(gradients.shape[:3])


def host(targets: Any) -> Run:
    """2,000 short texts, and a model and operators that do next to nothing: what is left is fastshap's own work."""
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    class NothingForSequenceClassification(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.table, self.head = torch.nn.Embedding(config.vocab_size, 8), torch.nn.Linear(8, 2)

        def get_input_embeddings(self) -> Any:
            return self.table

        def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None) -> Any:
            x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
            x = x if attention_mask is None else x * attention_mask[..., None]
            return SequenceClassifierOutput(logits=self.head(x.sum(1)).tanh())

    # Calls as large as on a GPU, so that their number does not count.
    budget: Any = importlib.import_module("fastshap.engine.budget")
    run: Any = importlib.import_module("fastshap.engine.run")
    large = [
        (budget._TOKENS, budget._TOKENS_ON_A_GPU),
        (budget._ENOUGH, budget._ENOUGH_ON_A_GPU),
        (run._TOKENS_TOGETHER, run._TOKENS_TOGETHER_ON_A_GPU),
    ]
    tokenizer = fastshap.load_default_model()[1]
    torch.manual_seed(0)
    configured: Any = PretrainedConfig
    config = configured(num_labels=2, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = NothingForSequenceClassification(config).eval()
    texts = [f"{text} {number}" for number, text in enumerate(sentences(HOSTED, 4, 12))]

    @contextlib.contextmanager
    def stubbed() -> Iterator[None]:
        kept, usual = run.ops, [dict(sizes) for sizes, _ in large]
        try:
            run.ops = Stubs
            for sizes, size in large:
                sizes["cpu"] = size
            yield
        finally:
            run.ops = kept
            for (sizes, _), before in zip(large, usual, strict=True):
                sizes.update(before)

    with stubbed():  # an explainer reads the sizes when it is made
        explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto")
    explainer(texts[:2])

    @stubbed()
    def explained() -> list[torch.Tensor]:
        return [output.attributions for output in explainer(texts, targets)]

    return explained


def deep() -> tuple[Any, Any]:
    """A tiny classifier of 12 layers, which costs almost nothing but the calls of its modules."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = fastshap.load_default_model()[1]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


def small_calls(targets: Any) -> Run:
    """A call for each text, by the deep model."""
    texts = sentences(SMALL, 8, 8)
    explainer = fastshap.GradientShap(*deep(), batch_size="auto")
    return lambda: [explainer(text, targets)[0].attributions for text in texts]


def bare() -> Run:
    """A forward and a backward pass of as many rows and tokens."""
    model, tokenizer = deep()
    model.requires_grad_(False)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in sentences(SMALL, 8, 8)]

    def passes() -> list[torch.Tensor]:
        found = []
        for one in ids:
            z = model.get_input_embeddings()(one).repeat(10, 1, 1).requires_grad_()
            logits = model(inputs_embeds=z, attention_mask=torch.ones(z.shape[:2], dtype=torch.int64)).logits
            found += torch.autograd.grad(logits[:, 0].sum(), z)
        return found

    return passes


def new_explainers() -> Run:
    """An explainer of its own for each text, of the model of :func:`small_calls`."""
    texts, pair = sentences(SMALL, 8, 8), deep()
    return lambda: [fastshap.GradientShap(*pair, batch_size="auto")(text, 1)[0].attributions for text in texts]


def generation() -> Run:
    """A small language model with random weights, the targets given."""
    # Seconds of importing, which the operators' workloads do without.
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<unk>", "<end>", *dict.fromkeys(WORDS)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    prompts, targets = sentences(6, 8, 20), sentences(6, 3, 5)
    return explanations(prompts, (model, tokenizer), targets)


def rows() -> tuple[torch.Tensor, Any]:
    """Embeddings of two texts, and ten rows of each."""
    torch.manual_seed(0)
    count = TEXTS_OF_OPERATORS * SAMPLES
    given = ops.Rows(
        token_offsets=torch.arange(TEXTS_OF_OPERATORS + 1) * TOKENS,
        row_offsets=torch.arange(TEXTS_OF_OPERATORS + 1) * SAMPLES,
        alphas=torch.linspace(0.05, 0.95, count),
        streams=torch.arange(3 * TEXTS_OF_OPERATORS).reshape(TEXTS_OF_OPERATORS, 3),
        draws=torch.arange(count) % SAMPLES // 2,
        signs=1.0 - 2.0 * (torch.arange(count) % 2),
        baseline=0.0,
        noise_std=0.1,
        held=None,
        length=TOKENS,
        padding_side="right",
    )
    return torch.randn(TEXTS_OF_OPERATORS * TOKENS, DIM), given


def perturb() -> Run:
    x, given = rows()
    return lambda: [ops.perturb(x, given) for _ in range(20)]


def attribute(reduction: str) -> Run:
    x, given = rows()
    z = ops.perturb(x, given)
    gradients = torch.randn(2, *z.shape)
    run = lambda: ops.attribute(gradients, z, x, given, reduction=reduction, input_x_gradient=True)  # noqa: E731
    return lambda: [run() for _ in range(100)]


def segment_reduce() -> Run:
    """Groups of two tokens, by each of four strategies."""
    torch.manual_seed(0)
    values, members, offsets = torch.randn(4, 512), torch.arange(512), torch.arange(0, 513, 2)
    strategies = ("mean", "max", "sum", "signed_max") * 120
    return lambda: [ops.segment_reduce(values, members, offsets, strategy) for strategy in strategies]


def moments() -> Run:
    torch.manual_seed(0)
    values = torch.randn(4, 50, 512)
    return lambda: [ops.moments(values, pairs=pairs)[1] for pairs in (True, False) * 60]


WORKLOADS: dict[str, Callable[[], Run]] = {
    "defaults": lambda: explanations(sentences(8, 4, 24)),
    "n = 50": lambda: explanations(sentences(2, 4, 24), n_perturbations=50),
    "a long text": lambda: explanations(sentences(1, 300, 300)),
    "batch_size auto": lambda: explanations(sentences(40, 4, 24), batch_size="auto"),
    "rtol 0.05": lambda: explanations(sentences(2, 8, 12), batch_size="auto", rtol=0.05),
    "one text a call": lambda: one_by_one(sentences(16, 4, 8)),
    "host, class given": lambda: host(1),
    "host, predicted": lambda: host(None),
    "small, bare": bare,
    "small, class given": lambda: small_calls(1),
    "small, predicted": lambda: small_calls(None),
    "small, new explainer": new_explainers,
    "generation": generation,
    "perturb": perturb,
    "attribute, sum": lambda: attribute("sum"),
    "attribute, abs_mean": lambda: attribute("abs_mean"),
    "segment_reduce": segment_reduce,
    "moments": moments,
}


def measured(run: Run) -> dict[str, Any]:
    """Seconds of the process and of the clock for one run, and a digest of all its numbers."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    tensors = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"cpu": cpu, "wall": wall, "digest": digest.hexdigest()}


def main() -> None:
    """Answers each line, the name of a workload, with a line of JSON. A workload is run twice before it is first measured."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    ready: dict[str, Run] = {}
    print(json.dumps({"fastshap": str(Path(fastshap.__file__).parent)}), file=answers, flush=True)
    for line in sys.stdin:
        name = line.rstrip("\n")
        if name not in ready:
            ready[name] = WORKLOADS[name]()
            ready[name]()
            ready[name]()
        print(json.dumps(measured(ready[name])), file=answers, flush=True)


if __name__ == "__main__":
    main()
