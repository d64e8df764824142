"""CUDA graphs without a GPU: a stand-in for the recorder runs the recorded step again. Which calls become graphs, that their
inputs are their own, and that everything goes back to the plain way where it must. What a GPU does is in test_graphs_gpu.py.
"""

import contextlib

import pytest
import torch

import fastshap
from fastshap.engine import graphs
from fastshap.engine.graphs import Graphs


class Rerun:
    """Fills the tensors that a recording gave by running its step again."""

    starts = records = 0

    def __init__(self, device):
        self.device = device

    def record(self, step):
        type(self).records += 1
        out = tuple(one.clone() for one in step())

        def start():
            type(self).starts += 1
            for mine, found in zip(out, step(), strict=True):
                mine.copy_(found)

        return start, out

    @contextlib.contextmanager
    def alone(self):
        yield


@pytest.fixture
def recorder(monkeypatch):
    kind = type("Rerun", (Rerun,), {"starts": 0, "records": 0})
    monkeypatch.setattr(graphs, "Recorder", kind)
    monkeypatch.setattr(graphs, "may_record", lambda device: True)
    monkeypatch.setattr(Graphs, "__init__", _wanted)
    return kind


def _wanted(self, wanted, device, devices=()):
    self._wanted, self._state = wanted, None
    self._forget()


TEXTS = ["not good at all", "so very good indeed", "a dull slow film", "good good good good"]  # of one length


def pair(default_pair, **options):
    model, tokenizer = default_pair
    return [fastshap.GradientShap(model, tokenizer, "auto", cuda_graphs=wanted, **options) for wanted in (True, False)]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.elements == b.elements
        assert a.target_names == b.target_names
        assert a.predicted_label == b.predicted_label
        torch.testing.assert_close(a.attributions, b.attributions, rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(a.standard_error, b.standard_error, rtol=1e-4, atol=1e-6, equal_nan=True)
        if b.convergence_delta is not None:
            torch.testing.assert_close(a.convergence_delta, b.convergence_delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (None, {}),
        (1, {}),
        ("all", {"inference_mode": "softmax"}),
        ("negative", {"perturb_special_tokens": False, "baseline": "[MASK]", "reduction": "abs_mean"}),
        (1, {"rtol": 0.3, "max_perturbations": 40, "path_density": "auto"}),
        (1, {"return_convergence_delta": True, "granularity": "sentence"}),
        (1, {"baseline": fastshap.BaselineSet(["dull", "good"])}),
        (fastshap.Contrast("positive", "negative"), {"sampling": "iid"}),
    ],
    ids=str,
)
def test_graphs_change_no_number(default_pair, recorder, target, options):
    ours, plain = pair(default_pair, **options)
    for text in TEXTS:
        same(ours([text], target), plain([text], target))
    assert recorder.records > 0
    assert recorder.starts > 2 * recorder.records  # two checks each, and then in earnest


@pytest.mark.parametrize("pairs", ["llama_pair"])
def test_generations(request, recorder, pairs):
    model, tokenizer = request.getfixturevalue(pairs)
    ours, plain = pair((model, tokenizer), inference_mode="softmax")
    for seed in range(4):
        arguments = ["Nobody answered."], ["The ending."]
        same(ours(*arguments, seed=seed), plain(*arguments, seed=seed))
    assert recorder.records > 0
    assert recorder.starts > 2 * recorder.records


def test_the_first_texts_of_a_length_run_the_plain_way(default_pair, recorder):
    ours, _ = pair(default_pair)
    ours([TEXTS[0]], 1)  # shows how much memory a call takes
    found = []
    for text in TEXTS:
        before = recorder.starts
        ours([text], 0)
        found.append((recorder.records, recorder.starts - before))
    assert recorder.records == 1
    assert found[-1] == (1, 1)  # by its graph alone
    ours(["another length, " * 3], 0)
    assert recorder.records == 1


def test_progress_is_told_the_same(default_pair, recorder):
    ours, plain = pair(default_pair)
    for text in TEXTS:
        told = [], []
        for explainer, mine in zip((ours, plain), told, strict=True):
            explainer([text], 1, progress=lambda done, total, mine=mine: mine.append(done))
        assert told[0][-1] == told[1][-1] == 1
        assert len(told[0]) == len(told[1])


def test_calls_share_graphs_whatever_their_seed_or_grouping(default_pair, recorder):
    ours, plain = pair(default_pair)
    for i, text in enumerate(TEXTS):
        its = {"seed": i, "granularity": ["word", "sentence", "all_tokens", "token"][i]}
        same(ours([text], 1, **its), plain([text], 1, **its))
    assert recorder.records == 1


@pytest.mark.parametrize(
    "changes", [{"reduction": "abs_mean"}, {"inference_mode": "softmax"}, {"noise_std": 0.02}, {"baseline": 0.1}]
)
def test_what_changes_operators_has_graphs_of_its_own(default_pair, recorder, changes):
    ours, plain = pair(default_pair)
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))
        same(ours([text], 1, **changes), plain([text], 1, **changes))
    assert recorder.records == 2


def test_functions_of_the_users_run_the_plain_way(default_pair, recorder):
    scale = [1.0]
    ours, plain = pair(default_pair, inference_mode=lambda logits: logits * scale[0])
    for text in TEXTS * 2:
        scale[0] += 1
        same(ours([text], 1), plain([text], 1))
    assert recorder.records == 0


def test_a_graph_that_gives_other_scores_is_not_used(default_pair, recorder, monkeypatch):
    record = recorder.record

    def wrong(self, step):
        start, out = record(self, step)

        def other():
            start()
            out[0].mul_(1.001)

        return other, out

    monkeypatch.setattr(recorder, "record", wrong)
    ours, plain = pair(default_pair)
    for text in TEXTS * 2:
        same(ours([text], 1), plain([text], 1))
    assert recorder.records == 1


def test_a_graph_that_keeps_its_first_inputs_is_not_used(default_pair, recorder, monkeypatch):
    """It agrees for the text that it was recorded with, and not for the next."""
    record = recorder.record

    def frozen(self, step):
        _, out = record(self, step)
        return lambda: None, out

    monkeypatch.setattr(recorder, "record", frozen)
    ours, plain = pair(default_pair)
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))
    assert recorder.records == 1


def test_operators_that_add_in_any_order(default_pair, recorder, monkeypatch):
    """Where plain calls differ from each other, graphs may as much, and not more."""
    scores, count = graphs_run()._batch_scores, iter(range(10**6))

    def noisy(*arguments):
        return scores(*arguments) * (1 + 1e-3 * (next(count) % 3))

    monkeypatch.setattr(graphs_run(), "_batch_scores", noisy)
    ours, _ = pair(default_pair)
    for text in TEXTS:
        ours([text], 1)
    assert [one.checks for one in ours._graphs._known.values() if not isinstance(one, str)] == [0]
    record = recorder.record

    def wrong(self, step):
        start, out = record(self, step)

        def other():
            start()
            out[0].mul_(1.01)

        return other, out

    monkeypatch.setattr(recorder, "record", wrong)
    ours, _ = pair(default_pair)
    for text in TEXTS:
        ours([text], 1)
    assert not [one for one in ours._graphs._known.values() if not isinstance(one, str)]


def test_what_cannot_be_recorded_is_not_tried_again(default_pair, recorder, monkeypatch):
    def refuses(self, step):
        type(self).records += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "record", refuses)
    ours, plain = pair(default_pair)
    for text in [*TEXTS, *(one + " again" for one in TEXTS)]:
        same(ours([text], None), plain([text], None))
    assert recorder.records == 1


def test_other_weights_take_other_graphs(default_pair, recorder):
    import copy

    model, tokenizer = copy.deepcopy(default_pair[0]), default_pair[1]
    ours, plain = pair((model, tokenizer))
    for _ in range(2):
        for text in TEXTS:
            same(ours([text], 1), plain([text], 1))
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    assert recorder.records == 2
    handle = model.register_forward_hook(lambda *_: None)  # no view can be made: its own modules run
    before = recorder.starts
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))
    assert recorder.starts == before
    handle.remove()


def test_few_texts_run_by_their_graphs_and_many_together(default_pair, recorder):
    ours, plain = pair(default_pair)
    texts = [*TEXTS, "good"]
    ours(["good good"], 1)  # shows how much memory a call takes
    for count in (2, 3):
        for seed in range(2):
            same(ours(texts[:count], 1, seed=seed), plain(texts[:count], 1, seed=seed))
    before = recorder.starts
    same(ours(texts, 1), plain(texts, 1))
    assert recorder.starts == before + len(TEXTS)  # one text's length is new
    before = recorder.starts
    many = [f"{text} {i}" for i, text in enumerate(texts * 3)] + TEXTS
    same(ours(many, 1), plain(many, 1))
    assert recorder.starts == before


def test_a_queue_uses_them(default_pair, recorder):
    ours, plain = pair(default_pair)
    with fastshap.Batcher(ours) as batcher:
        outputs = [batcher.submit(text, 1).result() for text in TEXTS]
    assert recorder.starts > 0
    same(outputs, plain(TEXTS, 1))


def test_so_many_graphs_at_most(default_pair, recorder, monkeypatch):
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 2)
    ours, plain = pair(default_pair)
    for count in (1, 2, 3, 4):
        for _ in range(3):
            text = " ".join(["good"] * count)
            same(ours([text], 1), plain([text], 1))
    assert recorder.records == 2


def test_memory_that_runs_out_takes_the_graphs_first(default_pair, recorder, monkeypatch):
    ours, plain = pair(default_pair)
    for text in TEXTS:
        ours([text], 1)
    points, failed = graphs_run()._points, []

    def short(model, batch, execution):
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return points(model, batch, execution)

    monkeypatch.setattr(graphs_run(), "_points", short)
    text = "one more text, of another length"
    same(ours([text], 1), plain([text], 1))
    assert failed
    assert not any(isinstance(one, graphs._Graph) for one in ours._graphs._known.values())
    assert ours._graphs._full  # no more are recorded
    assert ours._budget._fitting is None  # calls stay as large as they were


def graphs_run():
    from fastshap.engine import run

    return run


def test_copies_start_without_graphs(default_pair, recorder):
    import copy

    ours, plain = pair(default_pair)
    for text in TEXTS:
        ours([text], 1)
    own = copy.copy(ours)
    assert own._graphs._wanted
    assert not own._graphs._known
    same(own([TEXTS[0]], 1), plain([TEXTS[0]], 1))


def test_without_a_gpu_the_error_says_so(default_pair):
    model, tokenizer = default_pair
    with pytest.raises(fastshap.InvalidArgumentError, match="one NVIDIA GPU"):
        fastshap.GradientShap(model, tokenizer, cuda_graphs=True)
    with pytest.raises(fastshap.InvalidTypeError, match="cuda_graphs"):
        fastshap.GradientShap(model, tokenizer, cuda_graphs="yes")
    with pytest.raises(fastshap.InvalidArgumentError, match="cuda_graphs"):
        fastshap.GradientShap(model, tokenizer)(TEXTS[0], cuda_graphs=True)
