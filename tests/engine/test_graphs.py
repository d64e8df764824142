"""CUDA graphs without a GPU: a stand-in for the recorder runs the recorded step again. Which calls become graphs, that their
inputs are their own, and that everything goes back to the plain way where it must. What a GPU does is in test_graphs_gpu.py.
"""

import contextlib
import copy
import dataclasses

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

    def record(self, step, warm_up):
        type(self).records += 1
        warm_up()
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
    self._begin(wanted)


TEXTS = ["not good at all", "so very good indeed", "a dull slow film", "good good good good"]  # of one length


def pair(default_pair, **options):
    model, tokenizer = default_pair
    return [fastshap.GradientShap(model, tokenizer, "auto", cuda_graphs=wanted, **options) for wanted in (True, False)]


def trusted(explainer):
    return [one for one in explainer._graphs._known.values() if isinstance(one, graphs._Graph) and one.is_trusted]


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
    for prompt in ["Nobody answered.", "Nobody wondered.", "Nobody answered."] * 2:
        arguments = [prompt], ["The ending."]
        same(ours(*arguments), plain(*arguments))
    assert trusted(ours)


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

    def wrong(self, step, warm_up):
        start, out = record(self, step, warm_up)

        def other():
            start()
            out[0].mul_(1.001)

        return other, out

    monkeypatch.setattr(recorder, "record", wrong)
    ours, plain = pair(default_pair)
    for text in TEXTS * 2:
        same(ours([text], 1), plain([text], 1))
    for text in TEXTS:  # nor is one of another length recorded
        same(ours([f"{text} film"], 1), plain([f"{text} film"], 1))
    assert recorder.records == 1


def test_a_graph_that_keeps_its_first_inputs_is_not_used(default_pair, recorder, monkeypatch):
    """It agrees for the text that it was recorded with, and not for the next."""
    record = recorder.record

    def frozen(self, step, warm_up):
        _, out = record(self, step, warm_up)
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
    assert [one.is_trusted for one in ours._graphs._known.values() if not isinstance(one, str)] == [True]
    record = recorder.record

    def wrong(self, step, warm_up):
        start, out = record(self, step, warm_up)

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
    default_pair = copy.deepcopy(default_pair[0]), default_pair[1]

    def refuses(self, step, warm_up):
        type(self).records += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "record", refuses)
    ours, plain = pair(default_pair)
    for text in [*TEXTS, *(one + " again" for one in TEXTS)]:
        same(ours([text], None), plain([text], None))
    assert recorder.records == 1
    for text in TEXTS:  # calls of another kind may do
        same(ours([text], 1, inference_mode="softmax"), plain([text], 1, inference_mode="softmax"))
    assert recorder.records == 2
    for _ in range(20):
        with torch.no_grad():
            next(ours.model.parameters()).add_(1e-3)
        for text in TEXTS:
            ours([text], 1)
    assert recorder.records == graphs._MOST_FAILED


def test_other_weights_take_other_graphs(default_pair, recorder):
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
    for some in (texts[:2], texts[1:3], texts[:2]):
        same(ours(some, 1), plain(some, 1))
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
    before = recorder.records
    for text in TEXTS * 2:
        same(ours([text], 1), plain([text], 1))
    assert recorder.records == before  # no more are recorded
    assert ours._budget._fitting is None  # calls stay as large as they were


def graphs_run():
    from fastshap.engine import run

    return run


def test_one_text_again_and_again_proves_nothing(default_pair, recorder, monkeypatch):
    """A graph that keeps its first text's ids agrees for that text, whatever the seed."""
    keep = graphs._cloned
    monkeypatch.setattr(graphs, "_cloned", lambda batch: dataclasses.replace(keep(batch), input_ids=batch.input_ids))
    tensors = graphs.tensors_of
    monkeypatch.setattr(
        graphs, "tensors_of", lambda batch: {k: v for k, v in tensors(batch).items() if k != "input_ids"}
    )
    monkeypatch.setattr(graphs, "outside_of", lambda step, model, given: step())
    ours, plain = pair(default_pair)
    for seed in range(5):
        same(ours([TEXTS[0]], 1, seed=seed), plain([TEXTS[0]], 1, seed=seed))
    assert not trusted(ours)
    for text in TEXTS[1:]:
        same(ours([text], 1), plain([text], 1))
    assert not trusted(ours)


def test_an_error_in_a_check_leaves_no_trust(default_pair, recorder, monkeypatch):
    ours, plain = pair(default_pair)
    for text in TEXTS[:2]:
        ours([text], 1)
    replay = graphs._Graph.replay

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(graphs._Graph, "replay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours([TEXTS[2]], 1)
    assert not trusted(ours)
    monkeypatch.setattr(graphs._Graph, "replay", replay)
    for text in TEXTS:
        same(ours([text], 1), plain([text], 1))
    assert trusted(ours)


def test_what_a_call_keeps_aside_is_compared_too(default_pair, recorder, monkeypatch):
    record = recorder.record

    def wrong(self, step, warm_up):
        start, out = record(self, step, warm_up)

        def other():
            start()
            for tensor in out[1:]:
                tensor.neg_()

        return other, out

    monkeypatch.setattr(recorder, "record", wrong)
    ours, plain = pair(default_pair)
    for text in TEXTS * 2:
        same(ours([text]), plain([text]))
    assert not trusted(ours)


class Remembers(torch.nn.Module):
    """Keeps a table for the last length, as some models do; not a buffer."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.table = inner, None

    def forward(self, x, *arguments, **named):
        if self.table is None or len(self.table) != x.shape[1]:
            self.table = torch.linspace(0.5, 1.5, x.shape[1])[:, None]
        return self.inner(x * self.table, *arguments, **named)


def test_a_table_that_a_module_keeps_is_refused(default_pair, recorder):
    model, tokenizer = copy.deepcopy(default_pair[0]), default_pair[1]
    layers = model.bert.encoder.layer
    layers[0].attention.output.dense = Remembers(layers[0].attention.output.dense)
    ours, plain = pair((model, tokenizer))
    for text in [*TEXTS, "good", *TEXTS]:
        same(ours([text], 1), plain([text], 1))
    assert recorder.records > 0
    assert not trusted(ours)


def test_tasks_from_elsewhere_run_the_plain_way(default_pair, recorder):
    from fastshap.tasks.classification import ClassificationTask

    class Own(ClassificationTask):
        name = "own_task_of_graphs"

        def scores(self, model, call):
            return super().scores(model, call) * self.settings.threshold

    ours, plain = pair(default_pair, task=Own)
    for threshold in (0.1, 0.9) * 4:
        same(ours([TEXTS[0]], 1, threshold=threshold), plain([TEXTS[0]], 1, threshold=threshold))
    assert recorder.records == 0


def test_a_hook_that_comes_while_a_text_is_under_way(default_pair, recorder):
    """The execution of a text under way is of an earlier turn."""
    model, tokenizer = copy.deepcopy(default_pair[0]), default_pair[1]
    ours, plain = pair((model, tokenizer), n_perturbations=12)
    for text in TEXTS:
        ours([text], 1)
    with ours._desk.at_work() as view, ours.task.running_on(view):
        execution = ours._execution
    assert execution.graphs.is_open(torch.device("cpu"))
    handle = model.register_forward_hook(lambda module, args, out: None)
    same(ours([TEXTS[0]], 1), plain([TEXTS[0]], 1))
    assert not execution.graphs.is_open(torch.device("cpu"))
    handle.remove()


def test_an_operator_that_fails_in_a_recording_changes_no_plain_call(default_pair, recorder, monkeypatch):
    record = recorder.record
    together = graphs_run()._together

    def fails(self, step, warm_up):
        with monkeypatch.context() as patch:
            patch.setattr(graphs_run(), "_together", lambda *_: 1 / 0)
            return record(self, step, warm_up)

    monkeypatch.setattr(recorder, "record", fails)
    ours, _ = pair(default_pair)
    for text in TEXTS:
        ours([text], "all")
    assert recorder.records == 1
    assert graphs_run()._together is together
    assert ours._budget.together


def test_memory_that_runs_out_in_a_call_of_one_row(default_pair, recorder, monkeypatch):
    model, tokenizer = default_pair
    ours = fastshap.GradientShap(model, tokenizer, 1, cuda_graphs=True)
    plain = fastshap.GradientShap(model, tokenizer, 1)
    for text in TEXTS:
        ours([text], 1)
    points, failed = graphs_run()._points, []

    def short(model, batch, execution):
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return points(model, batch, execution)

    monkeypatch.setattr(graphs_run(), "_points", short)
    same(ours(["one more text"], 1), plain(["one more text"], 1))
    assert failed
    assert ours._budget._fitting is None


def test_copies_start_without_graphs(default_pair, recorder):
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
