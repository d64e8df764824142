"""CUDA graphs on a GPU: the same numbers, on any stream, and a process that is as it was where recording fails."""

import contextlib
import copy
import threading
import warnings

import families
import pytest
import torch

import fastshap
from fastshap.engine import graphs
from fastshap.ops.transfer import to_host

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
BOUND = 1e-5  # of the largest score
TEXTS = ["not good at all", "so very good indeed", "a dull slow film", "good good good good"]  # of one length


@pytest.fixture(scope="module")
def gpu():
    assert torch.cuda.is_available(), "these tests need a CUDA device, and torch.cuda.is_available() is False"
    return torch.device("cuda", 0)


@pytest.fixture
def model_there(gpu, default_pair):
    return copy.deepcopy(default_pair[0]).to(gpu), default_pair[1]


def both(pair, **options):
    return [fastshap.GradientShap(*pair, "auto", cuda_graphs=wanted, **options) for wanted in (True, False)]


def recorded(explainer):
    return [one for one in explainer._graphs._known.values() if isinstance(one, graphs._Graph)]


def trusted(explainer):
    return [one for one in recorded(explainer) if one.is_trusted]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.predicted_label == b.predicted_label
        assert torch.equal(a.targets, b.targets)
    assert families.apart(ours, theirs) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (None, {}),
        (1, {}),
        ("all", {"inference_mode": "softmax"}),
        ("negative", {"perturb_special_tokens": False, "baseline": "[MASK]", "reduction": "abs_mean"}),
        (1, {"return_convergence_delta": True}),
        (1, {"baseline": fastshap.BaselineSet(["dull", "good"])}),
    ],
    ids=str,
)
def test_graphs_change_no_number(model_there, dtype, target, options):
    ours, plain = both((model_there[0].to(dtype), model_there[1]), **options)
    for text in TEXTS * 2:
        same(ours([text], target), plain([text], target))
    assert (
        trusted(ours) or dtype != torch.float32
    )  # in half precision a mask may lead to another kernel (docs/adr/0020)


@pytest.mark.parametrize(
    ("task", "family", "name"),
    [
        pytest.param(*case, id="-".join(case[:2]))
        for case in families.cases()
        if families.cell_of(*case[:2]).startswith("yes")
    ],
)
def test_every_family_with_graphs(gpu, task, family, name, record_property):
    """The same scores, by a graph or, where the model reads values on the host, without; and nothing is left behind."""
    model, words = families.made(task, family, name)
    texts, targets, options = families.asked(task)
    common = {"n_perturbations": families.SAMPLES, "granularity": "all_tokens", **options}
    ours, plain = both((model.to(gpu), words), **common)
    one = targets if targets is None or task == "zero_shot" else targets[:1]
    state = torch.cuda.get_rng_state(gpu)
    others = families.as_long_as(task, texts[0])
    for text in [texts[0], *others, texts[0]] * 2:
        same(ours([text], one), plain([text], one))
    record_property("graphs", len(trusted(ours)))
    assert torch.equal(torch.cuda.get_rng_state(gpu), state)
    torch.rand(1, device=gpu)


def test_a_recording_that_fails_leaves_nothing_behind(gpu, model_there, default_pair, monkeypatch):
    model, tokenizer = model_there
    kind, forward, reads = type(model), type(model).forward, [0]

    def reading(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        reads[0] += float(out.logits.sum()) > 0  # a value on the host
        return out

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", reading)
        ours, plain = both((model, tokenizer))
        state, stream = torch.cuda.get_rng_state(gpu), torch.cuda.current_stream(gpu)
        for text in TEXTS * 2:
            same(ours([text], 1), plain([text], 1))
        assert not recorded(ours)
        assert ours._graphs._failures == 1
    assert torch.cuda.current_stream(gpu) == stream
    assert torch.equal(torch.cuda.get_rng_state(gpu), state)
    first = torch.rand(3, device=gpu)
    torch.cuda.set_rng_state(state, gpu)
    assert torch.equal(torch.rand(3, device=gpu), first)
    # Memory that another stream has used comes back to the allocator.
    side = torch.cuda.Stream(gpu)
    torch.cuda.synchronize(gpu)
    before = torch.cuda.memory_reserved(gpu)
    for _ in range(50):
        held = torch.empty(64 << 20, dtype=torch.uint8, device=gpu)
        held.record_stream(side)
        del held
        torch.cuda.synchronize(gpu)
    assert torch.cuda.memory_reserved(gpu) - before <= 3 * (64 << 20)
    # Other models are recorded as before.
    ours, plain = both((copy.deepcopy(default_pair[0]).to(gpu), tokenizer))
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))
    assert trusted(ours)


def test_threads_on_streams_of_their_own(gpu, model_there):
    ours, plain = both(model_there)
    texts = [f"{text} {more}" for text in TEXTS for more in ("film", "dull film", "slow dull film")]
    right = [plain([text], 1)[0] for text in texts]
    for text in texts * 3:
        ours([text], 1)
    assert trusted(ours)
    found = {}

    def work(number):
        with torch.cuda.stream(torch.cuda.Stream(gpu)):
            found[number] = [ours([text], 1)[0] for text in texts for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs in found.values():
        same(outputs, [one for one in right for _ in range(3)])
    assert len(found) == 4


def test_weights_that_change(gpu, model_there):
    model, _ = model_there
    ours, plain = both(model_there)
    for _ in range(2):
        for text in TEXTS:
            same(ours([text], 1), plain([text], 1))
        assert trusted(ours)
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    model.to("cpu").to(gpu)  # to other places
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))


def test_a_replay_does_not_wait(gpu, model_there, monkeypatch):
    ours, _ = both(model_there)
    for text in TEXTS:
        ours([text], 1)
    assert trusted(ours)

    def fetching(tensors):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_host(tensors)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    for module in ("fastshap.engine.rounds", "fastshap.engine.run", "fastshap.tasks.classification"):
        monkeypatch.setattr(f"{module}.to_host", fetching)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        ours([TEXTS[0]], 1)


def test_few_texts_and_a_queue(gpu, model_there):
    ours, plain = both(model_there)
    for some in (TEXTS[:2], TEXTS[2:], TEXTS):
        same(ours(some), plain(some))
    assert trusted(ours)
    with fastshap.Batcher(ours) as batcher:
        waiting = [batcher.submit(text) for text in TEXTS * 5]
        same([one.result() for one in waiting], plain(TEXTS * 5))
