"""Rows of each call: what fits is found out once, and no number depends on it."""

import copy

import pytest
import torch

import fastshap
from fastshap.engine.budget import Budget
from fastshap.engine.cutting import plan
from helpers.checks import assert_equal
from helpers.texts import INPUTS, TARGETS

CPU = torch.device("cpu")
TEXTS = [*INPUTS, "A gorgeous, witty film.", "ok", "Simply wonderful."]
OPTIONS = {"n_perturbations": 8, "return_convergence_delta": True}


@pytest.fixture(params=["classification", "generation"])
def job(request, bert_pair, llama_pair):
    """A pair, texts and targets."""
    if request.param == "classification":
        return bert_pair, TEXTS, "all"
    return llama_pair, TEXTS, [" unbelievable yes", " superb yesterday"] * 3


@pytest.fixture
def sizes():
    """Rows and tokens of the calls of a model with gradients; they fail where they hold more tokens than told.

    ``tried_before``: what the model is tried out with first, while there is room.
    """
    handles = []

    def watch(model, most=None, tried_before=None):
        tried, failed, full = [], [], tried_before is None

        def forward(module, args, kwargs):
            if kwargs.get("inputs_embeds") is None or not torch.is_grad_enabled():
                return
            shape = tuple(kwargs["inputs_embeds"].shape[:2])
            tried.append(shape)
            if full and most is not None and shape[0] * shape[1] > most:
                failed.append(shape)
                raise torch.OutOfMemoryError("made up")

        handles.append(model.register_forward_pre_hook(forward, with_kwargs=True))
        if not full:
            try_out(*tried_before)
            tried.clear()
            full = True
        return tried, failed

    yield watch
    for handle in handles:
        handle.remove()


def try_out(pair, texts, targets):
    """Has the model tried as it is now, so that all it runs from here on is explanations."""
    given = targets if isinstance(targets, str | int) else targets[:1]
    fastshap.GradientShap(*pair, n_perturbations=1)(texts[:1], given)


@pytest.fixture
def memory(monkeypatch):
    """Makes this CPU a device with so many bytes free."""

    def free(number):
        monkeypatch.setattr("fastshap.engine.budget.free_memory", lambda device: number)

    return free


# Calls that do not fit


@pytest.mark.parametrize("batch_size", [16, 5, "auto"])
@pytest.mark.parametrize("most", [30, 90])
def test_what_did_not_fit_is_not_tried_again(job, sizes, batch_size, most):
    pair, texts, targets = job
    expected = fastshap.GradientShap(*pair, batch_size=16, **OPTIONS)(texts, targets)
    explainer = fastshap.GradientShap(*pair, batch_size=batch_size, **OPTIONS)
    tried, failed = sizes(pair[0], most)
    assert_equal(explainer(texts, targets), expected)
    assert len(failed) <= 10  # each halves the tokens of a call, or is of calls sent together with one that failed
    assert failed or batch_size == 5
    least = min((rows * length for rows, length in failed), default=0)
    tried.clear()
    failed.clear()
    assert_equal(explainer(texts, targets), expected)
    assert not failed
    assert all(rows * length < least for rows, length in tried) or not least
    assert_equal(explainer(texts[:1], targets if isinstance(targets, str) else targets[:1]), expected[:1])
    assert not failed


@pytest.mark.parametrize("most", [16, 23, 90])
def test_a_trial_that_does_not_fit_is_not_made_again(job, sizes, most):
    """Rows of one length share calls, with a mask; other explainers try again, as there may be room by then."""
    pair, texts, targets = job
    expected = fastshap.GradientShap(*pair, **OPTIONS)(texts, targets)
    tried, failed = sizes(pair[0], most)
    explainer = fastshap.GradientShap(*pair, **OPTIONS)
    given = targets if isinstance(targets, str) else targets[-2:]
    first = explainer(texts[-2:], given)
    assert failed
    assert_equal(first, expected[-2:])
    assert (explainer._layout.equal_lengths, explainer._layout.maskless) == (True, False)
    failed.clear()
    explainer(texts[-2:], given)
    explainer(texts[-2:], given, seed=3)
    assert not failed
    tried.clear()
    fastshap.GradientShap(*pair, **OPTIONS)(texts[-2:], given)
    assert failed  # tried again


def test_a_model_whose_rows_mix_is_refused_though_the_trial_does_not_fit(bert_pair, sizes):
    model, tokenizer = bert_pair
    sizes(model, 16)
    mixes = model.register_forward_hook(
        lambda module, args, output: setattr(output, "logits", output.logits + output.logits.flip(0))
    )
    try:
        with pytest.raises(fastshap.UnsupportedModelError, match="rows mix"):
            fastshap.GradientShap(model, tokenizer)("fine", 1)
    finally:
        mixes.remove()


@pytest.mark.parametrize("length", [1, 7, 300])
def test_a_failed_call_halves_the_tokens(length):
    budget = Budget(64, CPU)
    budget.shrink(64, length)
    assert budget.rows(length) == 32
    assert budget.rows(2 * length) == 16
    assert budget.rows(100 * length) == 1
    assert budget.fits(32, length)
    assert not budget.fits(33, length)
    assert budget.fits(1, 10**6)
    budget.shrink(64, length)  # sent before the first one failed
    assert budget.rows(length) == 32
    budget.shrink(2, 2 * length)
    assert budget.rows(length) == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(bert_pair, monkeypatch):
    explainer = fastshap.GradientShap(*bert_pair, batch_size=16)

    fails = []

    def fail(module, args, kwargs):
        if fails:
            raise RuntimeError("something else")

    handle = bert_pair[0].register_forward_pre_hook(fail, with_kwargs=True)
    explainer(TEXTS[:1], 1)
    fails.append(True)
    try:
        with pytest.raises(RuntimeError, match="something else"):
            explainer(TEXTS, 1)
    finally:
        handle.remove()
    assert explainer._budget.rows(10) == 16


@pytest.mark.parametrize("limit", [0, 10**6])
def test_out_of_memory_in_a_backward_pass(job, sizes, monkeypatch, limit):
    """Scores that shared one go apart: fewer rows would only bring more of them together."""
    pair, texts, targets = job
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": limit})
    expected = fastshap.GradientShap(*pair, batch_size=16, **OPTIONS)(texts, targets)
    grad, failed = torch.autograd.grad, []

    def small(outputs, inputs, **kwargs):
        if inputs.shape[0] > 4:
            failed.append(inputs.shape)
            raise torch.OutOfMemoryError("made up")
        return grad(outputs, inputs, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", small)
    explainer = fastshap.GradientShap(*pair, batch_size=16, **OPTIONS)
    assert_equal(explainer(texts, targets), expected)
    assert 0 < len(failed) < 10
    assert explainer._budget.together is (limit == 0)
    assert explainer._budget.rows(1000) == 1


def test_out_of_memory_without_gradients(bert_pair):
    """Predictions and convergence deltas halve their rows too."""
    expected = fastshap.GradientShap(*bert_pair, batch_size=16, **OPTIONS)(TEXTS)
    failed = []

    def forward(module, args, kwargs):
        if not torch.is_grad_enabled() and next(iter(kwargs.values())).shape[0] > 3:
            failed.append(1)
            raise torch.OutOfMemoryError("made up")

    handle = bert_pair[0].register_forward_pre_hook(forward, with_kwargs=True)
    try:
        ours = fastshap.GradientShap(*bert_pair, batch_size=16, **OPTIONS)(TEXTS)
    finally:
        handle.remove()
    assert 0 < len(failed) < 10
    assert_equal(ours, expected)


# "auto"


@pytest.mark.parametrize("lengths", [[5, 9, 5, 300, 9, 2], [3000, 1], [7]])
@pytest.mark.parametrize("shrunk", [None, (11, 9), (3, 300)])
def test_rows_are_even_where_there_is_a_choice(lengths, shrunk):
    budget = Budget("auto", CPU)
    if shrunk:
        budget.shrink(*shrunk)
    for length in lengths:
        assert budget.rows(length) == 1 or budget.rows(length) % 2 == 0
        assert budget.rows(length) >= 1
    counts = [10] * len(lengths)
    calls = list(plan(lengths, [1] * len(lengths), counts, budget, equal_lengths=False))
    for call in calls[:-1]:
        rows = sum(piece.hi - piece.lo for piece in call)
        assert rows == 1 or rows % 2 == 0


def test_the_first_call_is_small_and_later_ones_as_memory_allows(job, sizes, memory):
    pair, texts, targets = job
    expected = fastshap.GradientShap(*pair, batch_size=16, **OPTIONS)(texts, targets)
    tried, _ = sizes(pair[0], tried_before=job)
    found = {}
    for megabytes in (1, 4, 16, 10**5):
        memory(megabytes << 20)
        explainer = fastshap.GradientShap(*pair, batch_size="auto", **OPTIONS)
        tried.clear()
        assert_equal(explainer(texts, targets), expected)
        assert (tried[0][0] == 2) == (megabytes == 1)  # what is known of the model serves its later explainers
        found[megabytes] = explainer._budget._tokens, max(rows * length for rows, length in tried)
        tried.clear()
        assert_equal(explainer(texts, targets), expected)
        assert max(rows * length for rows, length in tried) <= max(found[megabytes][0], 2 * max(t[1] for t in tried))
    tokens = {megabytes: pair[0] for megabytes, pair in found.items()}
    assert tokens[1] < tokens[4] < tokens[16] <= tokens[10**5] == 2048
    assert tokens[4] == pytest.approx(4 * tokens[1], abs=4)
    assert found[10**5][1] > found[1][1]


def test_what_is_known_of_short_texts_does_not_serve_longer_ones(bert_pair, sizes, memory):
    """Attention's memory may grow with the square of the length."""
    pair = copy.deepcopy(bert_pair[0]), bert_pair[1]
    tried, _ = sizes(pair[0], tried_before=(pair, TEXTS, 1))
    memory(4 << 20)
    firsts, film = {}, "A gorgeous, witty film. " * 3
    for name, text in {"short": "ok", "long": film, "as long": film}.items():
        tried.clear()
        fastshap.GradientShap(*pair, batch_size="auto", **OPTIONS)(text, 1)
        firsts[name] = tried[0][0]
    assert firsts["short"] == firsts["long"] == 2
    assert firsts["as long"] > 2


def test_what_a_token_takes_is_what_the_graph_keeps_beside_the_weights(llama_pair, memory):
    """Twice the weights take no more memory a token."""
    model, tokenizer = llama_pair
    text, target = INPUTS[1], TARGETS[:1]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    free = 2 << 20
    memory(free)
    try_out(llama_pair, [text], target)
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto", n_perturbations=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (output,) = fastshap.GradientShap(model, tokenizer, batch_size=2, n_perturbations=2)(text, target)
    explainer(text, target)
    tokens = 2 * output.model_inputs_to_explain["input_ids"].shape[1]
    z = 4 * model.config.hidden_size
    right = 0.5 * free / (sum(kept.values()) / tokens + 3 * z)
    assert explainer._budget._tokens == pytest.approx(right, rel=0.1)


def test_more_logits_take_more_memory(byte_tokenizer, llama_pair, memory):
    """With full logits of several targets, fewer tokens share a call."""
    memory(8 << 20)
    tokens = {}
    for mode in ("logits", "softmax"):
        explainer = fastshap.GradientShap(*llama_pair, batch_size="auto", n_perturbations=4, inference_mode=mode)
        explainer(INPUTS, [" ".join(TARGETS)] * 3)
        tokens[mode] = explainer._budget._tokens
    assert tokens["softmax"] < tokens["logits"]


def test_a_device_that_is_full_from_the_start(job, sizes, memory):
    pair, texts, targets = job
    expected = fastshap.GradientShap(*pair, batch_size=16, **OPTIONS)(texts, targets)
    memory(0)
    tried, failed = sizes(pair[0], most=30, tried_before=job)
    assert_equal(fastshap.GradientShap(*pair, batch_size="auto", **OPTIONS)(texts, targets), expected)
    assert tried
    assert max(rows for rows, _ in tried) == 2
    assert len(failed) < 10


def test_the_first_call_itself_does_not_fit(bert_pair, sizes, memory):
    memory(1 << 30)
    expected = fastshap.GradientShap(*bert_pair, batch_size=16, **OPTIONS)(TEXTS, 1)
    tried, failed = sizes(bert_pair[0], most=16, tried_before=(bert_pair, TEXTS, 1))
    assert_equal(fastshap.GradientShap(*bert_pair, batch_size="auto", **OPTIONS)(TEXTS, 1), expected)
    assert failed[0] == tried[0]
    assert tried[0][0] == 2
    assert len(failed) < 10


def test_predictions_fill_their_calls(bert_pair, memory):
    """They come before any gradient, and keep nothing."""
    memory(1 << 30)
    rows = []
    handle = bert_pair[0].register_forward_pre_hook(
        lambda module, args, kwargs: (
            None if torch.is_grad_enabled() else rows.append(next(iter(kwargs.values())).shape[0])
        ),
        with_kwargs=True,
    )
    try:
        fastshap.GradientShap(*bert_pair, batch_size="auto", n_perturbations=2)(
            [f"{t} {i}" for i in range(10) for t in TEXTS]
        )
    finally:
        handle.remove()
    assert sum(rows) >= 10 * len(TEXTS)
    assert len(rows) <= 20


@pytest.mark.slow
def test_compiled_models(bert_pair, memory):
    """The hooks that count what is kept see what a compiled graph keeps."""
    model, tokenizer = bert_pair
    expected = fastshap.GradientShap(model, tokenizer, n_perturbations=8)(TEXTS[:3], 1)
    memory(2 << 20)
    try:
        compiled = torch.compile(model, backend="aot_eager", dynamic=True)
        explainer = fastshap.GradientShap(compiled, tokenizer, batch_size="auto", n_perturbations=8)
        ours = explainer(TEXTS[:3], 1)
    finally:
        torch.compiler.reset()
    assert explainer._budget.measured
    assert 1 < explainer._budget._tokens < 2048
    assert_equal(ours, expected, tolerance=1e-4)


def test_nothing_is_measured_where_a_number_was_asked_for(bert_pair, memory, sizes):
    memory(1000)
    tried, _ = sizes(bert_pair[0], tried_before=(bert_pair, TEXTS, 1))
    fastshap.GradientShap(*bert_pair, batch_size=6, n_perturbations=12)(TEXTS, 1)
    assert {rows for rows, _ in tried} == {6}


def test_autocasts_copies_of_weights_are_no_activations(bert_pair, memory, monkeypatch):
    """They are kept for the backward pass, and do not grow with the rows."""
    model, found = copy.deepcopy(bert_pair[0]).requires_grad_(False), []
    for rows in (2, 20):
        memory(2**22)
        budget = Budget("auto", CPU)
        budget.measured = False
        z = torch.zeros(rows, 10, model.config.hidden_size, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16), budget.watch(model, z):
            model(inputs_embeds=z)
        assert budget.measured
        found.append(budget._tokens)
    assert found[0] == pytest.approx(found[1], rel=0.05)
