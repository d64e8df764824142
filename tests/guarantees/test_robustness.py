"""Whatever comes in: results or our own errors, and everything left as it was."""

import copy
import gc
import math
import os
import threading
import warnings

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastshap
from fastshap import FastshapError, GradientShap
from helpers.bad import BAD_FORMS, BAD_INPUTS, BAD_PARAMETERS
from helpers.checks import assert_unchanged, snapshot

# Run once over many more: FASTSHAP_CASES=10000 pytest tests/guarantees/test_robustness.py -k whatever
CASES = int(os.environ.get("FASTSHAP_CASES", "150"))

words = st.sampled_from(
    [
        "good",
        "not",
        "Café",
        "👍🏽",
        "👨‍👩‍👧",
        "שלום",
        "مرحبا",
        "很好。",
        "ไทย",
        "U.S.",
        "x" * 300,
        "\x00",
        "\u200b",
        "\u202e",
        "[SEP]",
        "<|end|>",
        "\ufeff",
    ]
)
texts = (
    st.text(max_size=60)
    | st.lists(words, max_size=30).map(" ".join)
    | st.lists(words, max_size=10).map("".join)
    | st.tuples(words, st.integers(1, 10_000)).map(lambda pair: f"{pair[0][:20]} " * pair[1])
    | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Mn", "Zs", "So"]), max_size=20)
)
ids = st.lists(st.integers(-1, 12_000), max_size=12)
numbers = st.sampled_from(
    [-1, 0, 0.0, 1, 2, 3, 1e-30, 0.1, 5.0, 1e30, 1e300, 10**400, math.nan, math.inf, -math.inf, True, None, "3", "x"]
)


def mostly(good, bad):
    """Good values nine times of ten."""
    return st.integers(0, 9).flatmap(lambda i: bad if i == 0 else good)


options = st.fixed_dictionaries(
    {},
    optional={
        "n_perturbations": mostly(st.integers(1, 5), numbers),
        "noise_std": mostly(st.floats(0, 2), numbers),
        "batch_size": mostly(st.integers(1, 9) | st.just("auto"), numbers),
        "seed": mostly(st.integers(-(2**63), 2**63 - 1), numbers),
        "baseline": mostly(st.floats(-2, 2) | st.none(), numbers | st.integers(1, 40).map(torch.zeros)),
        "granularity": mostly(
            st.sampled_from([*fastshap.Granularity, "word", "Sentence"]), st.text(max_size=5) | numbers
        ),
        "granularity_aggregation_strategy": mostly(
            st.sampled_from([*fastshap.GranularityAggregationStrategy]), numbers
        ),
        "inference_mode": mostly(st.sampled_from([*fastshap.InferenceModes]), st.text(max_size=5) | numbers),
        "reduction": mostly(st.sampled_from(["sum", "abs_mean"]), numbers),
        "sampling": mostly(st.sampled_from(["antithetic", "iid"]), numbers),
        "input_x_gradient": mostly(st.booleans(), numbers),
        "perturb_special_tokens": mostly(st.booleans(), numbers),
        "return_convergence_delta": mostly(st.just(False), numbers),
        "on_error": mostly(st.sampled_from(["raise", "record"]), numbers),
        "backend": mostly(st.sampled_from(["auto", "torch"]), numbers | st.just("triton")),
        "cuda_graphs": mostly(st.just(False), numbers | st.booleans()),
        "device": mostly(st.sampled_from([None, "cpu"]), numbers | st.just("cuda:7")),
    },
)
one_input = mostly(
    texts,
    ids | numbers | ids.map(torch.tensor) | st.dictionaries(st.sampled_from(["input_ids", "attention_mask"]), ids),
)
inputs = one_input | st.lists(one_input, max_size=4)
classes = mostly(
    st.none() | st.integers(0, 2) | st.sampled_from(["all", "LABEL_1"]),
    numbers | st.lists(st.integers(-1, 3), max_size=4) | st.text(max_size=4),
)


def check(pair, case, parameters, targets, **call):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastshap.TruncationWarning)
            outputs = GradientShap(*pair, **parameters)(case, targets, **call)
    except FastshapError:
        return
    for output in outputs:
        if output.error is None:
            assert output.attributions.shape == (len(output.target_names), len(output.elements))
            if output.model_task is fastshap.ModelTask.CLASSIFICATION:
                assert output.attributions.isfinite().all()
            assert output.unassigned.isfinite().all()
        else:
            assert parameters["on_error"] == "record"


@given(inputs, options, classes)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_classifier_is_asked(bert_pair, case, parameters, targets):
    check(bert_pair, case, parameters, targets)


@given(inputs, options, mostly(texts | st.lists(texts, max_size=3), ids | numbers) | st.none())
@settings(max_examples=CASES // 2, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_language_model_is_asked(llama_pair, case, parameters, targets):
    check(llama_pair, case, parameters, targets, generation_kwargs={"max_new_tokens": 3} if targets is None else None)


@pytest.fixture
def odd_pair(bert_pair):
    """A model in the middle of something: training, some layers frozen, a tokenizer with settings of its own."""
    model, tokenizer = copy.deepcopy(bert_pair)
    model.train()
    model.bert.encoder.layer[0].eval()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    tokenizer.backend_tokenizer.enable_truncation(max_length=77)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    return model, tokenizer


FAILING = [({}, *case) for case in BAD_INPUTS]
FAILING += [({}, inputs, None, error, message) for inputs, error, message in BAD_FORMS]
FAILING += [(options, "fine", None, error, message) for options, error, message in BAD_PARAMETERS]
FAILING += [
    ({"inference_mode": lambda z: z / 0 * 0}, "fine", None, fastshap.NonFiniteError, "NaN or infinite"),
    ({"inference_mode": lambda z: z[:, :1]}, "fine", 0, fastshap.InvalidArgumentError, "logits' shape"),
    ({"inference_mode": lambda z: 3}, "fine", 0, fastshap.InvalidArgumentError, "it returned int"),
    ({"inference_mode": torch.Tensor.detach}, "fine", 0, fastshap.InvalidArgumentError, "differentiable"),
    ({"inference_mode": lambda z: 1 / 0}, "fine", 0, fastshap.ModelFailedError, "ZeroDivisionError: division"),
    ({"noise_std": 1e38}, "fine", 0, fastshap.NonFiniteError, "noise_std of enormous size"),
    ({"device": "cuda:7"}, "fine", 0, fastshap.InvalidArgumentError, "device of this machine"),
    ({"input_x_gradient": "no"}, "fine", 0, fastshap.InvalidTypeError, "True or False"),
    ({"n_perturbations": torch.tensor(2.5)}, "fine", 0, fastshap.InvalidTypeError, "whole number"),
    ({"baseline": 10**400}, "fine", 0, fastshap.InvalidArgumentError, "finite"),
]


@pytest.mark.parametrize(
    ("options", "inputs", "targets", "error", "message"), FAILING, ids=lambda value: str(value)[:30]
)
def test_a_failure_changes_nothing(odd_pair, options, inputs, targets, error, message):
    before = snapshot(*odd_pair)
    with pytest.raises(error, match=message):
        GradientShap(*odd_pair, **options)(inputs, targets)
    assert_unchanged(before, snapshot(*odd_pair))


@pytest.mark.filterwarnings("ignore::fastshap.TruncationWarning")
def test_a_success_changes_nothing(odd_pair, llama_pair):
    before = snapshot(*odd_pair)
    GradientShap(*odd_pair, return_convergence_delta=True)(["not good", "fine film " * 200], "all")
    assert_unchanged(before, snapshot(*odd_pair))
    before = snapshot(*llama_pair)
    explainer = GradientShap(*llama_pair)
    explainer("not good", generation_kwargs={"max_new_tokens": 3, "do_sample": True})
    explainer(["not good", "fine"], ["at all", [5, 6]])
    with pytest.raises(FastshapError):
        explainer("fine", generation_kwargs={"max_new_tokens": -3})
    assert_unchanged(before, snapshot(*llama_pair))


def test_single_outputs_have_no_softmax(default_pair):
    model = copy.deepcopy(default_pair[0])
    model.config.num_labels = 1
    with pytest.raises(fastshap.InvalidArgumentError, match=r"single class.*LOGITS"):
        GradientShap(model, default_pair[1], inference_mode="softmax")


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_eight_threads_on_one_explainer(default_pair, count):
    """So many texts each, at once: as one after the other."""
    model, tokenizer = copy.deepcopy(default_pair)
    explainer = GradientShap(model, tokenizer, n_perturbations=2, batch_size="auto")
    work = [[f"film number {i} of {k} was {'not ' * (i % 3)}good" for i in range(count)] for k in range(8)]
    expected = [explainer(texts) for texts in work]
    found = {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: explainer(work[k])})) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        for one, other in zip(found[k], expected[k], strict=True):
            assert torch.equal(one.attributions, other.attributions)
            assert one.elements == other.elements
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_a_thousand_calls_leak_nothing(default_pair):
    explainer = GradientShap(*default_pair, batch_size="auto")
    process = psutil.Process()

    def resident(calls):
        for i in range(calls):
            explainer([f"film number {i % 7} was not good", "fine"], "all")
        gc.collect()
        return process.memory_info().rss

    resident(100)
    before = resident(100)
    after = resident(1000)
    print(f"resident memory {before / 2**20:.1f} MiB, after 1,000 calls {after / 2**20:.1f} MiB")
    assert abs(after - before) < 0.02 * before
