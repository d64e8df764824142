"""Copies of a model that share its work: the same numbers, the same errors, and nothing left behind."""

import copy
import threading

import pytest
import torch

import fastshap
from fastshap.engine import run as engine
from fastshap.models.replicas import Replicas
from fastshap.reference import rows as reference_rows
from helpers.checks import assert_equal
from helpers.texts import INPUTS

TEXTS = [*INPUTS, "ok"]
OPTIONS = {"n_perturbations": 6, "return_convergence_delta": True, "batch_size": 4}
TWO, THREE = ["cpu", "cpu"], ["cpu"] * 3


@pytest.fixture(params=["classification", "generation"])
def job(request, bert_pair, llama_pair):
    """A pair, a copy of its own for each test, with texts and targets."""
    model, tokenizer = bert_pair if request.param == "classification" else llama_pair
    if request.param == "classification":
        return (copy.deepcopy(model), tokenizer), TEXTS, "all"
    return (copy.deepcopy(model), tokenizer), TEXTS, [" unbelievable yes", " superb yesterday"] * 2


@pytest.fixture
def few_ahead(monkeypatch):
    """Two calls are handed out at a time, so that few texts are enough for several replicas."""
    monkeypatch.setattr("fastshap.engine.run._CALLS_AHEAD_OF_EACH", {"cpu": 2})


def explainers(pair, devices, **options):
    return fastshap.GradientShap(*pair, **OPTIONS | options), fastshap.GradientShap(
        *pair, device=devices, **OPTIONS | options
    )


def threads():
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


@pytest.mark.parametrize(
    ("devices", "batch_size"), [(TWO, 4), (THREE, 1), (tuple(TWO), "auto"), ([torch.device("cpu")] * 2, 5)], ids=str
)
def test_the_same_numbers_as_one(job, few_ahead, devices, batch_size):
    pair, texts, targets = job
    one, several = explainers(pair, devices, batch_size=batch_size)
    before = threads()
    assert_equal(several(texts, targets), one(texts, targets))
    assert threads() == before


def test_the_same_noise(job, few_ahead, monkeypatch):
    pair, texts, targets = job
    noise, generate = {}, reference_rows.normals
    current = noise.setdefault("one", {})

    def recording(streams, draws, positions, dim):
        out = generate(streams, draws, positions, dim)
        keys = zip(streams.tolist(), draws.tolist(), positions.tolist(), strict=True)
        for (stream, draw, position), vector in zip(keys, out, strict=True):
            current[(*stream, draw, position)] = vector.numpy().tobytes()
        return out

    monkeypatch.setattr(reference_rows, "normals", recording)
    one, several = explainers(pair, TWO)
    one(texts, targets)
    current = noise.setdefault("several", {})
    several(texts, targets)
    assert noise["one"]
    assert noise["one"] == noise["several"]


SETTINGS = [
    {"rtol": 0.4, "max_perturbations": 30},
    {"inference_mode": "log_softmax"},
    {"reduction": "abs_mean", "return_convergence_delta": False},
    {"path_density": 0.5, "perturb_special_tokens": False},
    {"granularity_aggregation_strategy": "max"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_settings(job, few_ahead, options):
    pair, texts, targets = job
    one, several = explainers(pair, TWO, **options)
    assert_equal(several(texts, targets), one(texts, targets))


def test_predicted_classes_streams_and_errors(bert_pair, few_ahead, monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 3)
    one, several = explainers(bert_pair, TWO, on_error="record")
    texts = [*TEXTS[:2], "", *TEXTS, " ", TEXTS[0]]
    ours, right = list(several.iter_explain(iter(texts))), one(texts)
    assert [output.error for output in ours] == [output.error for output in right]
    assert [output.error is None for output in ours] == [bool(text.strip()) for text in texts]
    good = [[output for output in outputs if output.error is None] for outputs in (ours, right)]
    assert [output.classes.tolist() for output in good[0]] == [output.classes.tolist() for output in good[1]]
    assert_equal(*good)
    raising = fastshap.GradientShap(*bert_pair, device=TWO)
    with pytest.raises(fastshap.InvalidArgumentError, match="Text 2"):
        raising(texts)


def test_generated_targets(llama_pair, few_ahead):
    one, several = explainers(llama_pair, TWO)
    options = {"max_new_tokens": 3}
    ours, right = several(INPUTS, generation_kwargs=options), one(INPUTS, generation_kwargs=options)
    assert [output.targets.tolist() for output in ours] == [output.targets.tolist() for output in right]
    assert_equal(ours, right)


def test_the_callers_autocast_holds_in_all(job, few_ahead):
    pair, texts, targets = job
    one, several = explainers(pair, TWO)
    plain = one(texts, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, right = several(texts, targets), one(texts, targets)
    assert_equal(ours, right)
    for output, other in zip(right, plain, strict=True):
        assert not torch.equal(output.attributions.nan_to_num(), other.attributions.nan_to_num())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(job, few_ahead, context):
    pair, texts, targets = job
    one, several = explainers(pair, TWO)
    expected = one(texts, targets)
    with context():
        assert_equal(several(texts, targets), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(job, few_ahead, dtype):
    (model, tokenizer), texts, targets = job
    one, several = explainers((model.to(dtype), tokenizer), TWO)
    assert_equal(several(texts, targets), one(texts, targets))


# Who does the work


@pytest.fixture
def work(monkeypatch):
    """Model and thread of each call with gradients. The first calls wait for each other, as many as there are replicas."""
    original, done = engine._batch_scores, []
    meet = threading.Barrier(1)

    def run(model, batch, *args):
        done.append((id(model), threading.current_thread().name))
        if len(done) <= meet.parties:
            meet.wait(10)
        return original(model, batch, *args)

    def meeting(count):
        nonlocal meet
        meet = threading.Barrier(count)
        done.clear()
        return done

    monkeypatch.setattr(engine, "_batch_scores", run)
    return meeting


@pytest.mark.parametrize("devices", [TWO, THREE])
def test_all_work_at_the_same_time(job, few_ahead, work, devices):
    """Each waits for the others in its first call: one after the other they would wait in vain."""
    pair, texts, targets = job
    _, several = explainers(pair, devices)
    done = work(len(devices))
    before = threads()
    several(texts, targets)
    models = {model for model, _ in done}
    assert len(models) == len(devices)
    assert id(several._desk._view()._model) in models
    assert len({thread for _, thread in done}) == len(devices)
    assert threading.main_thread().name not in {thread for _, thread in done}
    assert threads() == before


def test_one_device_needs_no_thread_and_no_copy(bert_pair, work):
    for device in ("cpu", ["cpu"], "auto", None):
        done = work(1)
        explainer = fastshap.GradientShap(*bert_pair, device=device, batch_size=4)
        explainer(TEXTS, 1)
        assert {model for model, _ in done} == {id(explainer._desk._view()._model)}
        assert {thread for _, thread in done} == {threading.main_thread().name}
        assert explainer._replicas.models(bert_pair[0]) == [bert_pair[0]]


def test_models_are_not_copied_anew_for_each_call(bert_pair, few_ahead, monkeypatch):
    copies = []

    class Copier:
        @staticmethod
        def deepcopy(*arguments):
            copies.append(1)
            return copy.deepcopy(*arguments)

    monkeypatch.setattr("fastshap.models.replicas.copy", Copier)
    explainer = fastshap.GradientShap(*bert_pair, device=THREE, **OPTIONS)
    assert not copies
    explainer(TEXTS)
    explainer(TEXTS, 1)
    list(explainer.iter_explain(TEXTS))
    assert len(copies) == 2


def test_a_copys_weights_go_straight_to_its_device(bert_pair, monkeypatch):
    """None is copied where the model is, which may have no room for it; what is tied stays tied."""
    model = copy.deepcopy(bert_pair[0])
    model.bert.pooler.dense.bias = model.classifier.further = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
    replicas = Replicas(model, [torch.device("meta")])
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda *_: pytest.fail("a weight was copied in place"))
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *_: pytest.fail("a tensor was copied in place"))
    _, there = replicas.models(model)
    assert {tensor.device.type for tensor in (*there.parameters(), *there.buffers())} == {"meta"}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert there.bert.pooler.dense.bias is there.classifier.further
    assert len([*there.parameters()]) == len([*model.parameters()])


def test_weights_are_read_once_a_call(bert_pair, few_ahead, monkeypatch):
    """A change through .data is noticed by the next call, any other by the next window of texts."""
    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    one, several = explainers((model, tokenizer), TWO)
    read, values = [], Replicas._values
    monkeypatch.setattr(Replicas, "_values", lambda self: read.append(1) or values(self))
    monkeypatch.setattr("fastshap.base._WINDOW", 2)
    several(TEXTS)
    assert len(read) == 1
    weight = model.classifier.weight
    weight.data = 2 * weight.data
    assert_equal(several(TEXTS, 1), one(TEXTS, 1))
    read.clear()
    outputs = several.iter_explain(TEXTS, 1)
    first = next(outputs)
    with torch.no_grad():
        weight.mul_(3)
    assert_equal([first, *outputs][-1:], one(TEXTS, 1)[-1:])
    assert len(read) == 2


# Errors


class Broken(Exception):
    pass


@pytest.mark.parametrize("who", ["model", "copy"])
def test_errors_of_one(job, few_ahead, work, who):
    """The model's own reach the caller; where only a copy fails, the texts are not at fault, and the model explains them."""
    pair, texts, targets = job
    one, several = explainers(pair, TWO)
    expected = one(texts, targets)
    work(2)
    assert_equal(several(texts, targets), expected)
    broken = several._replicas._copies[0] if who == "copy" else pair[0]
    fails = []
    handle = broken.register_forward_pre_hook(fail_with(Broken("on purpose"), fails))
    work(2)
    several(texts, targets)  # a model with a hook is another one: it is tried again
    fails.append(True)
    before, state = threads(), [p.requires_grad for p in pair[0].parameters()]
    work(2)
    if who == "copy":
        assert_equal(several(texts, targets), expected)
    else:
        with pytest.raises(fastshap.ModelFailedError, match="on purpose") as caught:
            several(texts, targets)
        assert isinstance(caught.value.__cause__, Broken)
    handle.remove()
    assert threads() == before
    assert [p.requires_grad for p in pair[0].parameters()] == state
    work(2)
    assert_equal(several(texts, targets), expected)


def fail_with(error, when=(True,)):
    def fail(module, args):
        if when:
            raise error

    return fail


def test_copies_that_run_out_of_memory(job, few_ahead):
    """Rows are halved for all, since they share what is known to fit."""
    pair, texts, targets = job
    one, several = explainers(pair, TWO, batch_size=8)
    expected = one(texts, targets)
    several(texts[:1], targets if isinstance(targets, str) else targets[:1])
    failed, little = [], []

    def full(module, args, kwargs):
        if little and kwargs["inputs_embeds"].shape[0] > 3:
            failed.append(1)
            raise torch.OutOfMemoryError("made up")

    for model in (pair[0], *several._replicas._copies):
        model.register_forward_pre_hook(full, with_kwargs=True)
    several(texts[:1], targets if isinstance(targets, str) else targets[:1])  # a model with a hook is tried again
    little.append(True)
    assert_equal(several(texts, targets), expected)
    assert 0 < len(failed) < 12
    failed.clear()
    assert_equal(several(texts, targets), expected)
    assert not failed


def test_other_callers_wait_their_turn(job, few_ahead):
    pair, texts, targets = job
    one, several = explainers(pair, TWO)
    expected, found = one(texts, targets), {}

    def explain(i, explainer):
        found[i] = explainer(texts, targets)

    callers = [threading.Thread(target=explain, args=(i, e)) for i, e in enumerate((several, one, several))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(found) == 3
    for outputs in found.values():
        assert_equal(outputs, expected)


def test_a_stream_left_early_leaves_no_thread(bert_pair, few_ahead, monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 2)
    before = threads()
    stream = fastshap.GradientShap(*bert_pair, device=TWO, n_perturbations=4).iter_explain(iter(TEXTS), 1)
    next(stream)
    stream.close()
    assert threads() == before
    assert all(p.requires_grad for p in bert_pair[0].parameters())


# Copies are kept equal


def in_place(model):
    with torch.no_grad():
        head_of(model).weight.mul_(1.5)


def under_inference_mode(model):
    with torch.inference_mode():
        head_of(model).weight.mul_(1.5)


def behind_autograd(model):
    head_of(model).weight.data.mul_(1.5)


def turned(model):
    """Each weight's sign, behind autograd."""
    head_of(model).weight.data.neg_()


def loaded(model):
    model.load_state_dict({k: v * 1.25 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assigned(model):
    state = {k: v * 1.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def replaced(model):
    with torch.no_grad():
        head_of(model).weight = torch.nn.Parameter(head_of(model).weight * 1.5)


def trained(model):
    """A step of an optimiser."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def halved(model):
    model.half()


def converted(model):
    model.to(torch.bfloat16)


def rounded(model):
    model.to(torch.bfloat16).to(torch.float32)


def hooked(model):
    head_of(model).register_forward_hook(lambda module, args, out: 1.5 * out)


def head_of(model):
    return getattr(model, "classifier", None) or model.lm_head


CHANGES = [
    in_place,
    under_inference_mode,
    behind_autograd,
    loaded,
    assigned,
    replaced,
    trained,
    halved,
    converted,
    rounded,
    hooked,
    turned,
]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_see_what_changed(job, few_ahead, work, change):
    pair, texts, targets = job
    one, several = explainers(pair, TWO, return_convergence_delta=False)
    work(1)
    before = several(texts, targets)
    change(pair[0])
    work(2)
    ours = several(texts, targets)
    work(1)
    right = one(texts, targets)
    assert any(
        not torch.allclose(a.attributions, b.attributions, rtol=1e-3, equal_nan=True)
        for a, b in zip(right, before, strict=True)
    )
    assert_equal(ours, right)


def test_many_changes_that_free_and_take_memory(bert_pair, few_ahead):
    """The addresses of tensors come again."""
    pair = copy.deepcopy(bert_pair[0]), bert_pair[1]
    one, several = explainers(pair, TWO, n_perturbations=4)
    for i in range(6):
        pair[0].half().float()
        with torch.no_grad():
            head_of(pair[0]).weight.data = head_of(pair[0]).weight.data * (1 + i % 2)
        assert_equal(several(TEXTS[:3], 1), one(TEXTS[:3], 1))


def test_small_changes_in_half_precision(bert_pair, few_ahead, work):
    """A step of training through .data."""
    model = copy.deepcopy(bert_pair[0]).to(torch.bfloat16)
    one, several = explainers((model, bert_pair[1]), TWO, return_convergence_delta=False)
    work(1)
    before = several(TEXTS, 1)
    with torch.no_grad():
        row = model.classifier.weight.data[1]
        row[:2] += 0.05 * row.abs().max()
    work(2)
    ours = several(TEXTS, 1)
    work(1)
    right = one(TEXTS, 1)
    assert not torch.equal(right[0].attributions, before[0].attributions)
    assert_equal(ours, right)


# What can be asked for


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ([], "empty list"),
        ((), "empty list"),
        ("nonsense", "'nonsense'"),
        (["cpu", "nonsense"], "'nonsense'"),
        (["cpu", None], "got None"),
        (["cpu", "auto"], "'auto'"),
        ([["cpu"]], r"got \['cpu'\]"),
        ({"cpu"}, r"got {'cpu'}"),
        (3.5, "got 3.5"),
        ("cuda:99", "'cuda:99'"),
    ],
)
def test_devices_that_cannot_be_used(bert_pair, device, message):
    with pytest.raises(fastshap.InvalidArgumentError, match=message) as caught:
        fastshap.GradientShap(*bert_pair, device=device)
    assert "device" in str(caught.value)
    assert bert_pair[0].device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_auto_without_gpus_is_the_cpu(bert_pair):
    explainer = fastshap.GradientShap(*bert_pair, device="auto", **OPTIONS)
    assert explainer._replicas.models(bert_pair[0]) == [bert_pair[0]]
    assert_equal(explainer(TEXTS, 1), fastshap.GradientShap(*bert_pair, **OPTIONS)(TEXTS, 1), tolerance=0)
