"""Ways to save work that must not change a number: joined targets, shared backward passes, no masks, duplicates, windows."""

import copy
import dataclasses
import itertools
import random
import threading
import time
import tracemalloc

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import fastshap
from fastshap.engine.cutting import Piece
from fastshap.engine.packing import Execution, Item, Layout, sent
from fastshap.sampling import draw_samples
from fastshap.settings import Settings
from fastshap.tasks.heads import full_logits, target_logits
from fastshap.text.groups import Grouping
from helpers.checks import FIELDS, assert_equal, assert_same, large_tensors
from helpers.texts import INPUTS, TARGETS, TEXT, company


@pytest.fixture
def backward(monkeypatch):
    """The number of scores of each backward pass: those that share one count as one."""
    grad, passes = torch.autograd.grad, []

    def counted(outputs, inputs, **kwargs):
        passes.append(inputs.shape[0])
        return grad(outputs, inputs, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return passes


@pytest.fixture
def alone(monkeypatch):
    """Every score in a backward pass of its own."""
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 0})


# Joined targets


def separate(monkeypatch):
    monkeypatch.setattr(Grouping, "_as_sums", lambda self: None)


def with_padding(explainer, side):
    """After a first explanation, in which the explainer finds a side by itself."""
    explainer._layout = dataclasses.replace(explainer._layout, padding_side=side)
    return explainer


JOINABLE = [
    {},
    {"granularity_aggregation_strategy": "sum"},
    {"granularity": "sentence", "granularity_aggregation_strategy": "sum"},
    {"granularity": "part_sentence"},
    {"inference_mode": "softmax", "granularity_aggregation_strategy": "sum"},
    {"path_density": 0.5},
    {"input_x_gradient": False, "return_convergence_delta": False},
    {"sampling": "iid", "n_perturbations": 5},
    {"rtol": 0.4, "max_perturbations": 30},
    {"noise_std": 0.0, "baseline": 0.1},
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", JOINABLE, ids=str)
def test_joined_targets_have_the_numbers_of_separate_ones(llama_pair, monkeypatch, options, side):
    options = {"n_perturbations": 6, "return_convergence_delta": True, "batch_size": 64} | options
    explainer = fastshap.GradientShap(*llama_pair, **options)
    explainer(INPUTS, TARGETS)
    ours = with_padding(explainer, side)(INPUTS, TARGETS)
    assert all(len(output.target_names) < len(output.targets) for output in ours)
    separate(monkeypatch)
    assert_equal(ours, explainer(INPUTS, TARGETS))


@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_special_tokens_among_joined_targets(llama_pair, monkeypatch, granularity):
    """They belong to no element; what the others do to them is nowhere, what they do to others is unassigned."""
    tokenizer = llama_pair[1]
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    end = tokenizer.eos_token_id
    targets = [
        [*ids(" unbelievable"), end, *ids(" yesterday")],
        [end, *ids(" unbelievable and")],
        [*ids(" yesterday"), end],
    ]
    options = {"granularity": granularity, "granularity_aggregation_strategy": "sum", "return_convergence_delta": True}
    explainer = fastshap.GradientShap(*llama_pair, n_perturbations=6, batch_size=64, **options)
    prompts = [ids(text) for text in INPUTS]
    ours = explainer(prompts, targets)
    assert ours[0].unassigned.abs().max() > 0
    separate(monkeypatch)
    assert_equal(ours, explainer(prompts, targets))


def test_tokens_as_elements_are_not_joined(llama_pair, monkeypatch):
    explainer = fastshap.GradientShap(*llama_pair, n_perturbations=4, granularity="token")
    ours = explainer(INPUTS, TARGETS)
    separate(monkeypatch)
    assert_equal(ours, explainer(INPUTS, TARGETS), tolerance=0)


@pytest.mark.parametrize("options", [{"granularity_aggregation_strategy": s} for s in ("max", "first", "signed_max")])
def test_order_strategies_are_not_joined(llama_pair, alone, backward, options):
    (output,) = fastshap.GradientShap(*llama_pair, batch_size=10, **options)(INPUTS[0], TARGETS[:1])
    assert len(backward) == len(output.targets) > len(output.target_names)


@pytest.mark.parametrize("strategy", ["mean", "sum"])
def test_absolute_scores_are_not_joined(llama_pair, alone, backward, strategy):
    """The mean of absolute values is not the absolute value of the mean."""
    explainer = fastshap.GradientShap(
        *llama_pair, batch_size=10, granularity_aggregation_strategy=strategy, reduction="abs_mean"
    )
    (output,) = explainer(INPUTS[0], TARGETS[:1])
    assert len(backward) == len(output.targets) > len(output.target_names)


@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_one_backward_pass_for_each_target_element(llama_pair, alone, backward, granularity):
    (output,) = fastshap.GradientShap(*llama_pair, batch_size=10, granularity=granularity)(INPUTS[0], TARGETS[:1])
    assert len(backward) == len(output.target_names) < len(output.targets)


@pytest.mark.parametrize("order", [1, -1])
def test_words_of_one_token_beside_words_of_several(llama_pair, order):
    """Two target words each, in one call."""
    inputs, targets = ["The film is", "The film is"][::order], [" the at", " unbelievable yesterday"][::order]
    explainer = fastshap.GradientShap(*llama_pair, batch_size=64)
    ours = explainer(inputs, targets)
    assert sorted(len(output.targets) == len(output.target_names) == 2 for output in ours) == [False, True]
    assert_equal(ours, [explainer(text, [target])[0] for text, target in zip(inputs, targets, strict=True)])


def test_different_tokens_and_equal_words_in_one_call(llama_pair, monkeypatch):
    inputs, targets = ["The film is"] * 3, [" unbelievable at", " yesterday superb", " terrible pseudointellectual"]
    explainer = fastshap.GradientShap(*llama_pair, batch_size=64, return_convergence_delta=True)
    ours = explainer(inputs, targets)
    assert len({len(output.targets) for output in ours}) == 3
    assert {len(output.target_names) for output in ours} == {2}
    assert_equal(ours, [explainer(text, [target])[0] for text, target in zip(inputs, targets, strict=True)])
    separate(monkeypatch)
    assert_equal(ours, explainer(inputs, targets))


def test_joined_targets_are_additive(llama_pair):
    """With SUM, elements and the unassigned rest are the change of the summed logits."""
    explainer = fastshap.GradientShap(
        *llama_pair,
        n_perturbations=400,
        batch_size=100,
        noise_std=0.0,
        baseline=torch.linspace(-1, 1, llama_pair[0].config.hidden_size),  # at zero the gradient of its norm is huge
        granularity_aggregation_strategy="sum",
        return_convergence_delta=True,
    )
    for output in explainer(INPUTS, TARGETS):
        total = output.attributions.nansum(1) + output.unassigned
        assert (output.convergence_delta.abs() < 0.02 * total.abs().clamp_min(1)).all()


def test_nothing_is_made_where_nothing_is_joined():
    """Many classes at once are no matrix of their number squared."""
    classes, rows = 1000, 8
    item = Item(range(5), torch.arange(classes), [False] * 5, {})
    execution = Execution(Settings(), Layout(), "torch", None, 0.0)
    samples = draw_samples(0, [1, 2, 3, 4, 5], rows, "antithetic")
    tracemalloc.start()
    try:
        (batch,) = sent([[Piece(0, 0, rows)]], [item], [samples], execution, torch.device("cpu"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.call.joined is None
    assert peak < rows * classes * 100


# Backward passes of several scores

SEVERAL = [
    {},
    {"path_density": 2.0},
    {"reduction": "abs_mean"},
    # Not with "sum", which is zero where each embedding is normalised first, as BERT does.
    {"input_x_gradient": False, "reduction": "abs_mean"},
    {"inference_mode": "softmax"},
]


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("options", SEVERAL, ids=str)
def test_shared_backward_passes_give_the_same(bert_pair, llama_pair, monkeypatch, backward, task, options):
    pair = bert_pair if task == "classification" else llama_pair
    arguments = (INPUTS, "all") if task == "classification" else (INPUTS, TARGETS)
    explainer = fastshap.GradientShap(*pair, n_perturbations=6, batch_size=6, **options)
    found, passes = {}, {}
    for limit in (0, 150, 10**6):
        monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": limit})
        backward.clear()
        found[limit], passes[limit] = explainer(*arguments), len(backward)
    assert passes[0] >= passes[150] >= passes[10**6]
    assert passes[10**6] < passes[0]
    assert_equal(found[150], found[0])
    assert_equal(found[10**6], found[0])


def one_way(kind):
    """The identity, whose backward pass a batch of gradients cannot go through."""

    class Identity(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            Identity.calls += 1
            if kind == "reads a value":
                assert gradient.abs().max().item() >= 0
            if kind == "leaves torch":
                gradient = torch.from_numpy(gradient.numpy().copy())
            if kind == "writes":
                out = torch.zeros(gradient.shape)
                out.copy_(gradient)
                gradient = out
            if kind == "asks for a pointer":
                gradient.data_ptr()
            if kind in ("refuses with a TypeError", "asserts"):
                try:
                    gradient.data_ptr()
                except RuntimeError:
                    raise (TypeError if kind[0] == "r" else AssertionError)("not a plain tensor") from None
            return gradient

    return Identity


KINDS = [
    "reads a value",
    "leaves torch",
    "writes",
    "asks for a pointer",
    "refuses with a TypeError",
    "asserts",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_models_that_cannot_share_a_backward_pass_go_without(bert_pair, llama_pair, monkeypatch, backward, task, kind):
    model, tokenizer = bert_pair if task == "classification" else llama_pair
    arguments = (INPUTS, "all") if task == "classification" else (INPUTS, TARGETS)
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 10**6})
    expected = fastshap.GradientShap(model, tokenizer, n_perturbations=4)(*arguments)
    identity = one_way(kind)
    module = model.bert.embeddings if task == "classification" else model.model.norm
    handle = module.register_forward_hook(lambda module, args, out: identity.apply(out))
    try:
        fastshap.GradientShap(model, tokenizer, n_perturbations=4)(*arguments)  # the model is tried
        explainer = fastshap.GradientShap(model, tokenizer, n_perturbations=4)
        backward.clear()
        ours = explainer(*arguments)
        first = len(backward)
        assert not explainer._budget.together
        backward.clear()
        again = explainer(*arguments)
    finally:
        handle.remove()
    assert len(backward) == first - 1  # the one that failed is not tried again
    assert_equal(ours, expected)
    assert_equal(again, expected)


def test_errors_of_the_model_itself_are_told(bert_pair, monkeypatch):
    """What fails alone too is no matter of sharing."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("broken for good")

    handle = bert_pair[0].bert.embeddings.register_forward_hook(lambda module, args, out: Broken.apply(out))
    try:
        with pytest.raises(fastshap.UnsupportedModelError, match=r"no gradients.*broken for good"):
            fastshap.GradientShap(*bert_pair, n_perturbations=4)(INPUTS, "all")
    finally:
        handle.remove()


def test_points_and_the_gradients_of_a_chunk_are_all_that_is_large(bert_pair, monkeypatch):
    model, tokenizer = bert_pair
    text, rows = INPUTS[1], 20
    length, width = len(tokenizer(text)["input_ids"]), model.config.hidden_size
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 2 * rows * length})
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=rows, n_perturbations=rows)
    explainer(text, [[0, 1, 2]])
    grad, attribute, before, new = torch.autograd.grad, fastshap.ops.attribute, [], []

    def differentiated(*args, **kwargs):
        before.append(large_tensors(rows * length * width))
        return grad(*args, **kwargs)

    def watched(*args, **kwargs):
        now = large_tensors(rows * length * width)
        new.append([shape for pointer, shape in now.items() if pointer not in before[-1]])
        return attribute(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", differentiated)
    monkeypatch.setattr(fastshap.ops, "attribute", watched)
    explainer(text, [[0, 1, 2]])
    assert new == [[(2, rows, length, width)], [(1, rows, length, width)]]
    assert (2, rows, length, width) not in before[1].values()  # the first chunk's are gone


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_callers_without_gradients(bert_pair, llama_pair, context, task):
    pair = bert_pair if task == "classification" else llama_pair
    arguments = (INPUTS, "all") if task == "classification" else (INPUTS, TARGETS)
    explainer = fastshap.GradientShap(*pair, n_perturbations=4, return_convergence_delta=True)
    expected, in_turn = explainer(*arguments), list(explainer.iter_explain(iter(INPUTS), arguments[1]))
    with context():
        explainer = fastshap.GradientShap(*pair, n_perturbations=4, return_convergence_delta=True)
        assert_equal(explainer(*arguments), expected, tolerance=0)
        streamed = list(explainer.iter_explain(iter(INPUTS), arguments[1]))
    assert_equal(streamed, in_turn, tolerance=0)  # of other calls than expected's, as windows are small at first
    assert_equal(explainer(*arguments), expected, tolerance=0)  # nothing made there is of no use here
    assert not any(output.attributions.is_inference() for output in streamed)


# Calls without a mask


@pytest.fixture
def calls(request):
    """The keyword arguments of calls of a model."""
    seen, handles = [], []

    def watch(model):
        def record(module, args, kwargs):
            if "inputs_embeds" in kwargs and kwargs["inputs_embeds"].shape[0] > 1 and torch.is_grad_enabled():
                seen.append((kwargs.get("attention_mask"), kwargs.get("position_ids")))

        handles.append(model.register_forward_pre_hook(record, with_kwargs=True))
        return seen

    yield watch
    for handle in handles:
        handle.remove()


SHORT, LONG = "not good", "not good at all, and the acting was dull"


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_only_where_lengths_differ(bert_pair, llama_pair, calls, task, side):
    pair = bert_pair if task == "classification" else llama_pair
    targets = (lambda n: 1) if task == "classification" else (lambda n: [" superb"] * n)
    explainer = fastshap.GradientShap(*pair, batch_size=8, n_perturbations=4)
    seen = calls(pair[0])
    explainer(SHORT, targets(1))
    assert explainer._layout.maskless
    if task == "generation":
        with_padding(explainer, side)
    seen.clear()
    equal = explainer([SHORT, f"{SHORT[:3]} dull"], targets(2))
    assert seen == [(None, None)]
    seen.clear()
    mixed = explainer([SHORT, LONG], targets(2))
    ((mask, positions),) = seen
    assert mask.sum(1).unique().numel() == 2
    assert (positions is None) == (task == "classification" or side == "right")
    assert_same(mixed[0].attributions, equal[0].attributions)
    explainer._layout = dataclasses.replace(explainer._layout, maskless=False)
    seen.clear()
    assert_equal(explainer([SHORT, f"{SHORT[:3]} dull"], targets(2)), equal)
    assert seen[0][0] is not None


class StrictForSequenceClassification(BertForSequenceClassification):
    """Cannot be run without a mask."""

    def forward(self, attention_mask, **inputs):
        if attention_mask is None:
            raise ValueError("no mask")
        return super().forward(attention_mask=attention_mask, **inputs)


class OtherForSequenceClassification(BertForSequenceClassification):
    """Takes the first half of the text alone where no mask says otherwise."""

    def forward(self, attention_mask=None, inputs_embeds=None, **inputs):
        if attention_mask is None:
            x = self.bert.embeddings.word_embeddings(inputs["input_ids"]) if inputs_embeds is None else inputs_embeds
            attention_mask = (torch.arange(x.shape[1]) < x.shape[1] // 2).long().expand(x.shape[:2])
        return super().forward(attention_mask=attention_mask, inputs_embeds=inputs_embeds, **inputs)


class NanForSequenceClassification(BertForSequenceClassification):
    """NaN where there is no mask."""

    def forward(self, attention_mask=None, **inputs):
        out = super().forward(attention_mask=attention_mask, **inputs)
        if attention_mask is None:
            out["logits"] = out["logits"] * torch.nan
        return out


class OtherForCausalLM(LlamaForCausalLM):
    """Does not see the first position where no mask says otherwise."""

    masked = False

    def forward(self, attention_mask=None, **inputs):
        if attention_mask is None:
            x = next(inputs[name] for name in ("inputs_embeds", "input_ids") if inputs.get(name) is not None)
            attention_mask = (torch.arange(x.shape[1]) > 0).long().expand(x.shape[:2])
        out = super().forward(attention_mask=attention_mask, **inputs)
        if self.masked:
            out.logits = out.logits.clone()
            out.logits[..., -1:] = -torch.inf
        return out


class OtherMaskedForCausalLM(OtherForCausalLM):
    """One token is never predicted, besides."""

    masked = True


NEEDY = [
    StrictForSequenceClassification,
    OtherForSequenceClassification,
    NanForSequenceClassification,
    OtherForCausalLM,
    OtherMaskedForCausalLM,
]


@pytest.mark.parametrize("kind", NEEDY)
def test_models_that_need_a_mask_get_one(bert_pair, llama_pair, calls, kind):
    generates = issubclass(kind, LlamaForCausalLM)
    plain, tokenizer = llama_pair if generates else bert_pair
    model = kind(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    inputs = [SHORT, f"{SHORT[:3]} dull"]
    targets = [" superb"] * 2 if generates else 1
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=8)
    seen = calls(model)
    explainer(inputs, targets)  # the model is tried
    seen.clear()
    ours = explainer(inputs, targets)
    assert seen
    assert all(mask is not None for mask, _ in seen)
    assert_equal(ours, fastshap.GradientShap(plain, tokenizer, batch_size=8)(inputs, targets))


@pytest.fixture(params=["gpt2", "llama"])
def last_token_pair(request, byte_tokenizer):
    """Decoders that classify by the last token, which padding on the right would hide."""
    torch.manual_seed(2)
    sizes = {"vocab_size": len(byte_tokenizer) + 1, "num_labels": 3, "pad_token_id": len(byte_tokenizer)}
    if request.param == "gpt2":
        config = GPT2Config(n_layer=1, n_head=2, n_embd=24, initializer_range=0.3, **sizes)
        return GPT2ForSequenceClassification(config).eval(), byte_tokenizer
    config = LlamaConfig(
        num_hidden_layers=1, hidden_size=24, intermediate_size=32, num_attention_heads=2, initializer_range=0.3, **sizes
    )
    return LlamaForSequenceClassification(config).eval(), byte_tokenizer


def test_classifiers_by_the_last_token(last_token_pair, calls):
    model, tokenizer = last_token_pair
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=8, n_perturbations=4, return_convergence_delta=True)
    seen = calls(model)
    texts = [SHORT, LONG, f"{SHORT[:3]} dull", "ok"]
    ours = explainer(texts, "all")
    masks = {mask is None for mask, _ in seen}
    assert masks <= {True, False}
    single = fastshap.GradientShap(model, tokenizer, batch_size=1, n_perturbations=4, return_convergence_delta=True)
    single._layout = dataclasses.replace(single._layout, maskless=False)
    assert_equal(ours, [single(text, "all")[0] for text in texts])
    seen.clear()
    explainer([SHORT] * 2, 1)
    assert all((mask is None) == explainer._layout.maskless for mask, _ in seen)


# Texts that come again


@pytest.fixture
def rows(monkeypatch):
    """Rows that are explained."""
    from fastshap.engine import run as engine

    original, counts = engine._batch_scores, []

    def counted(model, batch, *args):
        counts.append(len(batch.rows.alphas))
        return original(model, batch, *args)

    monkeypatch.setattr(engine, "_batch_scores", counted)
    return counts


OPTIONS = {"n_perturbations": 4, "return_convergence_delta": True}


def storages(output):
    return {getattr(output, name).untyped_storage().data_ptr() for name in (*FIELDS, "targets")}


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_duplicates_are_computed_once_and_come_out_the_same(bert_pair, llama_pair, rows, task):
    pair = bert_pair if task == "classification" else llama_pair
    explainer = fastshap.GradientShap(*pair, batch_size=64, **OPTIONS)
    texts, order = INPUTS, [0, 1, 0, 2, 1, 0]
    targets = [2, 1, 0] if task == "classification" else TARGETS
    expected = explainer(texts, targets)
    rows.clear()
    ours = explainer([texts[i] for i in order], [targets[i] for i in order])
    assert sum(rows) == 3 * 4
    assert_equal(ours, [expected[i] for i in order], tolerance=0)


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_outputs_of_duplicates_share_nothing(bert_pair, llama_pair, task):
    pair = bert_pair if task == "classification" else llama_pair
    explainer = fastshap.GradientShap(*pair, **OPTIONS)
    targets = 1 if task == "classification" else [TARGETS[0]] * 3
    ours = explainer([INPUTS[0]] * 3, targets)
    right = explainer(INPUTS[0], 1 if task == "classification" else TARGETS[:1])
    for one, other in itertools.combinations(ours, 2):
        assert not storages(one) & storages(other)
    for name in (*FIELDS, "targets"):
        getattr(ours[0], name).fill_(7)
    assert_equal(ours[1:], right * 2, tolerance=0)
    assert (ours[1].targets == right[0].targets).all()


def test_duplicates_changed_in_place_while_more_are_to_come(bert_pair, monkeypatch):
    """A caller may do what it likes with an output before the next window."""
    monkeypatch.setattr("fastshap.base._WINDOW", 1)
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=4)
    (right,) = explainer(INPUTS[0], 1)
    for output in explainer.iter_explain(iter([INPUTS[0]] * 4), 1):
        assert torch.equal(output.attributions, right.attributions)
        assert torch.equal(output.standard_error, right.standard_error)
        assert torch.equal(output.unassigned, right.unassigned)
        for name in ("attributions", "standard_error", "unassigned", "targets"):
            getattr(output, name).zero_()


def test_the_same_tokens_of_other_characters(bert_pair, rows):
    """The elements are those of each text; scores are computed once."""
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, **OPTIONS)
    texts = ["not good at all", "NOT Good   at\tALL", "not good at all "]
    ours = explainer(texts, 1)
    assert sum(rows) == 4
    assert [output.elements for output in ours] == [text.split() for text in texts]
    for output, text in zip(ours, texts, strict=True):
        assert_equal([output], explainer(text, 1), tolerance=0)


def test_the_same_tokens_in_other_sentences(bert_pair, rows):
    """Where the tokens make other elements, standard errors are others too: each text is computed."""
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, granularity="sentence", **OPTIONS)
    texts = ["not good.very bad", "not good. very bad", "not good. very bad"]
    ours = explainer(texts, 1)
    assert len({tuple(output.model_inputs_to_explain["input_ids"][0].tolist()) for output in ours}) == 1
    assert [len(output.elements) for output in ours] == [1, 2, 2]
    assert sum(rows) == 2 * 4
    for output, text in zip(ours, texts, strict=True):
        assert_equal([output], explainer(text, 1))


def test_the_same_text_with_other_targets(bert_pair, rows):
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, **OPTIONS)
    targets = [0, 1, [0, 1], [1, 0], 0]
    ours = explainer([INPUTS[0]] * 5, targets)
    assert sum(rows) == 4 * 4
    assert_same(ours[2].attributions, torch.cat([ours[0].attributions, ours[1].attributions]))
    assert_same(ours[3].attributions, ours[2].attributions.flip(0))
    assert torch.equal(ours[4].attributions, ours[0].attributions)


def test_the_border_between_input_and_target_matters(llama_pair):
    """The same ids, another share of them the target."""
    ids = llama_pair[1]("The film is superb yes")["input_ids"]
    explainer = fastshap.GradientShap(*llama_pair, batch_size=64, **OPTIONS)
    cuts = (2, 3, 4, 2)
    ours = explainer([ids[:cut] for cut in cuts], [ids[cut:] for cut in cuts])
    for output, cut in zip(ours, cuts, strict=True):
        assert_equal([output], explainer([ids[:cut]], [ids[cut:]]))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_duplicates_in_other_windows(bert_pair, rows, monkeypatch, window):
    monkeypatch.setattr("fastshap.base._WINDOW", window)
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, **OPTIONS)
    order = [0, 1, 0, 2, 1, 1, 0, 2]
    ours = list(explainer.iter_explain((INPUTS[i] for i in order), (i % 3 for i in order)))
    assert sum(rows) == 3 * 4
    assert_equal(ours, [explainer(INPUTS[i], i % 3)[0] for i in order])
    rows.clear()
    explainer(INPUTS[0], 0)  # what was remembered went with the call
    assert sum(rows) == 4


def test_more_texts_than_are_remembered(bert_pair, rows, monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 1)
    monkeypatch.setattr("fastshap.engine.seen.MOST", 2)
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, n_perturbations=4)
    order = [0, 1, 0, 2, 1, 0, 0]  # 0 is the more recent one when 2 comes; then 1 is gone, and then 0
    ours = list(explainer.iter_explain([INPUTS[i] for i in order], 1))
    assert sum(rows) == 5 * 4
    assert_equal(ours, [explainer(INPUTS[i], 1)[0] for i in order])


def test_duplicates_after_the_weights_have_changed(bert_pair, monkeypatch):
    """A caller may train the model between two windows."""
    monkeypatch.setattr("fastshap.base._WINDOW", 1)
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    stream = explainer.iter_explain(iter([INPUTS[0]] * 4), 1)
    next(stream)
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    *_, last = stream
    assert_equal([last], explainer(INPUTS[0], 1))


def test_duplicates_with_bad_texts_and_rounds(bert_pair, rows):
    options = {"rtol": 0.3, "max_perturbations": 32, "on_error": "record", **OPTIONS}
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, **options)
    texts = [INPUTS[0], "", INPUTS[1], " ", INPUTS[0], "", INPUTS[1]]
    ours = explainer(texts, 1)
    assert [output.error is None for output in ours] == [bool(text.strip()) for text in texts]
    good = [output for output in ours if output.error is None]
    assert sum(rows) == good[0].n_perturbations + good[1].n_perturbations
    assert_equal(good, [explainer(text, 1)[0] for text in texts if text.strip()])


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_a_text_that_is_not_finite_spoils_no_other(bert_pair, llama_pair, task):
    """Texts are summarised together; NaN stays with its own."""
    model, tokenizer = bert_pair if task == "classification" else llama_pair
    targets = [1] * 3 if task == "classification" else [" unbelievable yes"] * 3
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=64, on_error="record", **OPTIONS)
    expected = explainer(INPUTS, targets)
    (longest,) = {max(output.model_inputs_to_explain["input_ids"].shape[1] for output in expected)}

    def spoil(module, args, kwargs, out):
        mask, logits = kwargs.get("attention_mask"), out["logits"].clone()
        if mask is None or logits.shape[0] == 1:
            return out
        logits[mask.sum(1) == longest] = torch.nan
        return out | {"logits": logits} if task == "classification" else type(out)(logits=logits)

    explainer._layout = dataclasses.replace(explainer._layout, maskless=False)
    if task == "generation":
        explainer.task._way = full_logits
    handle = model.register_forward_hook(spoil, with_kwargs=True)
    try:
        ours = explainer(INPUTS, targets)
    finally:
        handle.remove()
    bad = [output.error is not None for output in ours]
    assert bad == [output.model_inputs_to_explain["input_ids"].shape[1] == longest for output in expected]
    assert_equal(
        [output for output in ours if output.error is None],
        [right for right, wrong in zip(expected, bad, strict=True) if not wrong],
    )


def test_a_text_on_which_the_model_fails_spoils_no_other(bert_pair):
    """Already where the model is asked what it predicts."""
    explainer = fastshap.GradientShap(*bert_pair, batch_size=64, on_error="record", **OPTIONS)
    lengths = []

    def fail(module, args, kwargs):
        if lengths and kwargs["inputs_embeds"].shape[1] == max(lengths):
            raise RuntimeError("too long\nfor this model")

    handle = bert_pair[0].register_forward_pre_hook(fail, with_kwargs=True)
    try:
        expected = explainer(INPUTS, 1)
        lengths += [output.model_inputs_to_explain["input_ids"].shape[1] for output in expected]
        ours = explainer(INPUTS, 1)
        explainer.on_error = "raise"
        place = f"Text {lengths.index(max(lengths))}: The model failed on this text: RuntimeError: too long$"
        with pytest.raises(fastshap.ModelFailedError, match=place) as caught:
            explainer(INPUTS, 1)
    finally:
        handle.remove()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [output.error is not None for output in ours] == [length == max(lengths) for length in lengths]
    assert_equal(
        [output for output in ours if output.error is None],
        [right for right, length in zip(expected, lengths, strict=True) if length < max(lengths)],
    )


def test_duplicates_that_are_not_finite_fail_each(bert_pair):
    model = bert_pair[0]
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=4, on_error="record")
    handle = model.register_forward_hook(lambda module, args, out: out | {"logits": out.logits * torch.nan})
    try:
        outputs = explainer([INPUTS[0], INPUTS[0], INPUTS[1]], 1)
    finally:
        handle.remove()
    assert all(output.error.startswith("NonFiniteError") for output in outputs)
    assert len({id(output) for output in outputs}) == 3


# Windows, and the next one tokenised meanwhile


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 2)
    monkeypatch.setattr("fastshap.base._FIRST_WINDOW", 2)


def tokenisers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastshap")]


def drain(found, stream):
    for output in stream:
        found.append(output)


class Unreadable(Exception):
    pass


@pytest.mark.parametrize("count", range(7))
def test_texts_that_cannot_be_read_further(bert_pair, windows, count):
    """What was read comes out first, then the iterable's own error."""

    def texts():
        for i in range(count):
            yield INPUTS[i % 3]
        raise Unreadable("disk gone")

    found = []
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=2)
    with pytest.raises(Unreadable, match="disk gone"):
        drain(found, explainer.iter_explain(texts(), 1))
    assert len(found) == count
    assert not tokenisers()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_targets_that_end_before_the_texts(bert_pair, windows, count):
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=2)
    found = []
    with pytest.raises(fastshap.InvalidArgumentError, match=rf"only {count} targets?\b"):
        drain(found, explainer.iter_explain((text for text in INPUTS * 2), (1 for _ in range(count))))
    assert [output.text for output in found] == (INPUTS * 2)[:count]


@pytest.mark.parametrize("count", range(6))
def test_targets_that_cannot_be_read_further(bert_pair, windows, count):
    def targets():
        yield from [1] * count
        raise Unreadable("disk gone")

    found = []
    with pytest.raises(Unreadable, match="disk gone"):
        drain(found, fastshap.GradientShap(*bert_pair, n_perturbations=2).iter_explain(iter(INPUTS * 2), targets()))
    assert len(found) == count


def test_a_bad_text_of_a_later_window_is_named(bert_pair, windows):
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=2)
    found = []
    with pytest.raises(fastshap.InvalidArgumentError, match="Text 5"):
        drain(found, explainer.iter_explain([*INPUTS, *INPUTS[:2], " ", "ok"], 1))
    assert len(found) == 4


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_the_next_window_is_tokenised_while_the_model_runs(bert_pair, llama_pair, windows, monkeypatch, task):
    """The model waits until the next window's tokeniser has begun: in one thread it would wait in vain."""
    model, tokenizer = bert_pair if task == "classification" else llama_pair
    explainer = fastshap.GradientShap(model, tokenizer, n_perturbations=2)
    targets = 1 if task == "classification" else TARGETS[:1] * 6
    expected = explainer(INPUTS * 2, targets)
    third, threads, waited = threading.Event(), [], []
    tokenised = explainer.task.tokenised

    def watched(*args):
        threads.append(threading.current_thread().name)
        if len(threads) == 3:
            third.set()
        return tokenised(*args)

    monkeypatch.setattr(explainer.task, "tokenised", watched)
    score = explainer._score

    def waiting(*args):
        waited.append(len(waited) == 1 and third.wait(5))
        return score(*args)

    monkeypatch.setattr(explainer, "_score", waiting)
    stream = explainer.iter_explain(iter(INPUTS * 2), targets if task == "classification" else iter(targets))
    ours = list(stream)
    assert waited == [False, True, False]
    assert threads[0] == threading.current_thread().name
    assert all(name.startswith("fastshap-tokeniser") for name in threads[1:])
    assert len(threads) == 3
    assert_equal(ours, expected)
    assert not tokenisers()


@pytest.mark.parametrize("user", ["iterable", "consumer"])
def test_callers_may_use_the_tokenizer_themselves(bert_pair, windows, monkeypatch, user):
    """Where texts are read and outputs taken, the caller's code runs; it may cut texts of its own."""
    model, tokenizer = bert_pair
    explainer = fastshap.GradientShap(model, tokenizer, n_perturbations=2)
    texts = [f"{text} and the end of it" for text in INPUTS * 3]
    expected = explainer(texts, 1)
    main, original = threading.get_ident(), type(tokenizer).set_truncation_and_padding
    used = threading.Event()

    def slow(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if threading.get_ident() != main:
            used.wait(0.3)

    monkeypatch.setattr(type(tokenizer), "set_truncation_and_padding", slow)

    def cut():
        time.sleep(0.05)
        tokenizer("a text of the caller's own", truncation=True, max_length=4)
        used.set()
        used.clear()

    def reading():
        for text in texts:
            if user == "iterable":
                cut()
            yield text

    ours = []
    for output in explainer.iter_explain(reading(), 1):
        if user == "consumer":
            cut()
        ours.append(output)
    assert [len(output.elements) for output in ours] == [len(output.elements) for output in expected]
    assert_equal(ours, expected)


def test_tokenizers_that_cannot_be_copied(bert_pair, windows, monkeypatch):
    model, tokenizer = bert_pair
    expected = fastshap.GradientShap(model, tokenizer, n_perturbations=2)(INPUTS * 2, 1)

    def refuse(self, memo):
        raise TypeError("cannot pickle")

    monkeypatch.setattr(type(tokenizer), "__deepcopy__", refuse, raising=False)
    explainer = fastshap.GradientShap(model, tokenizer, n_perturbations=2)
    assert_equal(list(explainer.iter_explain(iter(INPUTS * 2), 1)), expected)


def test_targets_from_a_generator(llama_pair, windows):
    explainer = fastshap.GradientShap(*llama_pair, n_perturbations=2)
    ours = list(explainer.iter_explain((text for text in INPUTS), (target for target in TARGETS)))
    assert_equal(ours, explainer(INPUTS, TARGETS))


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_streams_left_early(bert_pair, windows, taken, ends):
    model = bert_pair[0]
    model.train()
    model.classifier.weight.requires_grad_(False)
    state = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    try:
        stream = fastshap.GradientShap(*bert_pair, n_perturbations=2).iter_explain(iter(INPUTS * 4), 1)
        for _ in range(taken):
            next(stream)
            assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == state
        if ends == "closed":
            stream.close()
        del stream
        assert not tokenisers()
        assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == state
    finally:
        model.eval()
        model.classifier.weight.requires_grad_(True)


def test_few_windows_are_read_ahead(bert_pair, windows):
    """Memory does not grow with the number of texts: two windows at most are read that are not yet explained."""
    read = itertools.count()
    last = -1

    def texts():
        nonlocal last
        while True:
            last = next(read)
            yield INPUTS[last % 3]

    stream = fastshap.GradientShap(*bert_pair, n_perturbations=2).iter_explain(texts(), 1)
    for i in range(24):
        next(stream)
        assert last - i <= 3 * 2
    stream.close()


def test_errors_in_the_tokenisers_thread_reach_the_caller(bert_pair, windows, monkeypatch):
    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=2)
    tokenised, calls = explainer.task.tokenised, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise Unreadable("tokenizer gone")
        return tokenised(*args)

    monkeypatch.setattr(explainer.task, "tokenised", failing)
    found = []
    with pytest.raises(Unreadable, match="tokenizer gone"):
        drain(found, explainer.iter_explain(iter(INPUTS * 3), 1))
    assert len(found) == 4
    assert not tokenisers()
    assert len(explainer(INPUTS, 1)) == 3


# Precision, compiled models

CLOSE = {torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest attribution, for these weights of the same rounding


def rounded(model, dtype):
    return copy.deepcopy(model).to(dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
def test_half_precision(bert_pair, llama_pair, dtype, task, mode):
    pair = bert_pair if task == "classification" else llama_pair
    arguments = (INPUTS, "all") if task == "classification" else (INPUTS, TARGETS)
    half = rounded(pair[0], dtype)
    options = {
        "n_perturbations": 8,
        "batch_size": 16,
        "inference_mode": mode,
        "granularity_aggregation_strategy": "sum",
    }
    ours = fastshap.GradientShap(half, pair[1], **options)(*arguments)
    right = fastshap.GradientShap(rounded(half, torch.float32), pair[1], **options)(*arguments)
    for one, other in zip(ours, right, strict=True):
        assert one.attributions.dtype == one.standard_error.dtype == one.unassigned.dtype == torch.float32
        assert torch.equal(one.attributions.isfinite(), other.attributions.isfinite())
        largest = other.attributions.abs().nan_to_num().max().item()
        torch.testing.assert_close(
            one.attributions, other.attributions, atol=CLOSE[dtype] * largest, rtol=0, equal_nan=True
        )


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
def test_autocast(bert_pair, llama_pair, monkeypatch, task, mode):
    pair = bert_pair if task == "classification" else llama_pair
    arguments = (INPUTS, "all") if task == "classification" else (INPUTS, TARGETS)
    explainer = fastshap.GradientShap(*pair, n_perturbations=8, batch_size=16, inference_mode=mode)
    right = explainer(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = explainer(*arguments)
        fresh = fastshap.GradientShap(*pair, n_perturbations=8, batch_size=16, inference_mode=mode)(*arguments)
    for one, two, other in zip(ours, fresh, right, strict=True):
        largest = other.attributions.abs().nan_to_num().max().item()
        assert one.attributions.dtype == torch.float32
        assert not torch.equal(one.attributions.nan_to_num(), other.attributions.nan_to_num())
        for each in (one, two):
            torch.testing.assert_close(
                each.attributions, other.attributions, atol=0.1 * largest, rtol=0, equal_nan=True
            )


@pytest.mark.slow
def test_compiled_classifiers(bert_pair):
    """Compiled in place, as transformers does; a wrapped one is in test_engine."""
    config = BertForSequenceClassification.config_class(**bert_pair[0].config.to_dict() | {"num_hidden_layers": 1})
    check_compiled(BertForSequenceClassification(config).eval(), bert_pair[1], 1, in_place=True)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_generators(byte_tokenizer, in_place):
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    check_compiled(LlamaForCausalLM(config).eval(), byte_tokenizer, TARGETS[:1], in_place)


def check_compiled(model, tokenizer, targets, in_place):
    options = {"n_perturbations": 4, "batch_size": 4}
    expected = fastshap.GradientShap(model, tokenizer, **options)(INPUTS[:1], targets)
    compiled = model
    try:
        if in_place:
            model.compile(backend="aot_eager", dynamic=True)
        else:
            compiled = torch.compile(model, backend="aot_eager", dynamic=True)
        ours = fastshap.GradientShap(compiled, tokenizer, **options)(INPUTS[:1], targets)
    finally:
        torch.compiler.reset()
    assert_equal(ours, expected, tolerance=1e-4)


# Invariance, for generation with short heads, joined targets and several target words


def with_targets(texts):
    return texts, [f" unbelievably {text.split()[0]} yesterday, pseudointellectual." for text in texts]


@pytest.mark.parametrize("batch_size", [1, 4, 7, "auto"])
@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
def test_company_order_and_batch_size(llama_pair, batch_size, mode):
    options = {"n_perturbations": 2, "inference_mode": mode, "return_convergence_delta": True}
    alone = fastshap.GradientShap(*llama_pair, **options)(*with_targets([TEXT]))
    assert 1 < len(alone[0].target_names) < len(alone[0].targets)
    others = company(8 if batch_size == 1 else 30)
    for place in (0, len(others) // 2)[: 2 if batch_size == "auto" else 1]:
        explainer = fastshap.GradientShap(*llama_pair, batch_size=batch_size, **options)
        outputs = explainer(*with_targets([*others[:place], TEXT, *others[place:]]))
        if mode == "logits":
            assert explainer.task._way is target_logits
        assert_equal([outputs[place]], alone)
        random.Random(1).shuffle(others)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sides(llama_pair, side):
    options = {"n_perturbations": 6, "return_convergence_delta": True}
    alone = fastshap.GradientShap(*llama_pair, **options)(*with_targets([TEXT]))
    explainer = fastshap.GradientShap(*llama_pair, batch_size=16, **options)
    explainer(*with_targets([TEXT]))
    outputs = with_padding(explainer, side)(*with_targets([*company(7), TEXT]))
    assert_equal(outputs[-1:], alone)
