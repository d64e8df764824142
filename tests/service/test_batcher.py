"""The queue in front of an explainer: company, lanes, deadlines, overload."""

import threading
import time
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace

import pytest
import torch

import fastshap
from fastshap.service import batcher as queue
from fastshap.service.lanes import Lanes

TEXTS = [
    "A gorgeous, witty film.",
    "Dull.",
    "The ending is bad, but the actors are good and the music is better than that.",
    "I would not see it twice",
    "Nothing works here: not the plot, not the people, not one of the jokes.",
    "Fine.",
]
LONG = " ".join(TEXTS * 7)
OPTIONS = [
    ({}, None),
    ({"n_perturbations": 6, "seed": 3}, "negative"),
    ({"granularity": "token", "n_perturbations": 7}, "all"),
    ({"granularity": "sentence", "granularity_aggregation_strategy": "max"}, 1),
    ({"rtol": 0.2, "max_perturbations": 400}, None),
    ({"baseline": "[MASK]", "noise_std": 0.02}, ["positive", "negative"]),
    ({"sampling": "iid", "return_convergence_delta": True}, None),
    ({"reduction": "abs_mean", "path_density": 0.5}, None),
    ({"path_density": "auto", "rtol": 0.3, "max_perturbations": 100, "return_convergence_delta": True}, None),
]


@pytest.fixture(scope="module")
def pair():
    return fastshap.load_default_model()


@pytest.fixture
def explainer(pair):
    return fastshap.GradientShap(*pair, batch_size="auto")


@pytest.fixture
def batcher(explainer):
    with fastshap.Batcher(explainer) as batcher:
        yield batcher


def difference(one, other):
    """Of scores and errors, in terms of the largest score."""
    assert one.elements == other.elements
    assert one.target_names == other.target_names
    assert one.rounds == other.rounds
    size = float(other.attributions.abs().max())
    pairs = [(one.attributions, other.attributions), (one.standard_error, other.standard_error)]
    if other.convergence_delta is not None:
        pairs += [(one.convergence_delta, other.convergence_delta), (one.baseline_value, other.baseline_value)]
    return max(float((a - b).abs().nan_to_num().max()) for a, b in pairs) / size


def test_answers_do_not_depend_on_company_and_are_those_of_explain(explainer, batcher):
    """Requests of all kinds at once, the same one after the other, and the explainer itself."""
    asked = [(text, *options) for options in OPTIONS for text in TEXTS]
    together = [batcher.submit(text, target, **options) for text, options, target in asked]
    together = [future.result(60) for future in together]
    for (text, options, target), found in zip(asked[::2], together[::2], strict=True):
        alone = batcher.submit(text, target, **options).result(60)
        (plain,) = explainer.explain([text], None if target is None else [target], **options)
        assert difference(found, alone) < 1e-5
        assert difference(found, plain) < 1e-5
        assert found.settings.to_plain() == plain.settings.to_plain()
        assert found.predicted_label == plain.predicted_label
    for found in together[-len(TEXTS) :]:
        assert found.n_perturbations <= 100
        assert found.convergence_delta is not None


def test_an_output_of_a_batcher_reproduces(pair, batcher):
    output = batcher.submit(TEXTS[0], n_perturbations=12, seed=5).result(60)
    again = fastshap.reproduce(output, *pair)
    assert again.relative_difference < 1e-5
    assert not again.changed


def test_texts_of_several_settings_share_calls(explainer, monkeypatch):
    from fastshap.engine import stream

    rows = []
    own = stream.token_scores

    def counted(models, items, samples, *rest):
        rows.append(len(items))
        return own(models, items, samples, *rest)

    monkeypatch.setattr(stream, "token_scores", counted)
    with fastshap.Batcher(explainer) as batcher:
        with explainer._desk.at_work():  # so that all have come when the first turn begins
            futures = [
                batcher.submit(text, target, seed=seed, n_perturbations=4 + 2 * seed, granularity=granularity)
                for seed, (text, target, granularity) in enumerate(
                    [(TEXTS[0], 0, "word"), (TEXTS[1], 1, "token"), (TEXTS[2], None, "sentence")]
                )
            ]
            time.sleep(0.1)
        wait(futures, 60)
    assert [future.result().n_perturbations for future in futures] == [4, 6, 8]
    assert max(rows) >= 2


def test_a_bad_text_fails_alone(batcher):
    good = [batcher.submit(text) for text in TEXTS]
    empty, unknown = batcher.submit("  "), batcher.submit(3.5)
    assert len([future.result(60) for future in good]) == len(TEXTS)
    assert isinstance(empty.exception(60), fastshap.InvalidArgumentError)
    assert isinstance(unknown.exception(60), fastshap.InvalidTypeError)


def test_a_model_that_fails_on_one_text_fails_no_other(pair):
    model, tokenizer = pair
    seen = []

    def mode(logits):
        seen.append(len(logits))
        if logits.requires_grad and bool((logits[:, 0] > logits[:, 1]).any()):  # rows of negative texts
            raise RuntimeError("a broken kernel")
        return logits

    explainer = fastshap.GradientShap(
        model, tokenizer, batch_size="auto", inference_mode=mode, noise_std=0.0, baseline=None
    )
    texts = ["A gorgeous, witty film.", "Terrible, awful, dull and boring.", "I loved it, a wonderful film."]
    with fastshap.Batcher(explainer) as batcher:
        results = [batcher.submit(text, 1) for text in texts]
        errors = [future.exception(60) for future in results]
    assert isinstance(errors[1], fastshap.ModelFailedError)
    assert "a broken kernel" in str(errors[1])


def test_options_and_targets_are_checked_at_once(batcher):
    with pytest.raises(fastshap.InvalidArgumentError, match="n_perturbations"):
        batcher.submit("A film.", n_perturbations=0)
    with pytest.raises(fastshap.InvalidArgumentError, match="did you mean n_perturbations"):
        batcher.submit("A film.", n_perturbation=3)
    with pytest.raises(fastshap.InvalidArgumentError, match="deadline"):
        batcher.submit("A film.", deadline=-1)
    with pytest.raises(fastshap.InvalidArgumentError, match="no label"):
        batcher.submit("A film.", "purple").result(60)


def test_short_texts_do_not_wait_for_long_ones(batcher):
    batcher.submit("A film.").result(60)  # the model is tried
    ended = []
    long = batcher.submit(LONG, n_perturbations=100)
    long.add_done_callback(lambda _: ended.append("long"))
    time.sleep(0.3)
    began = time.monotonic()
    short = [batcher.submit(text) for text in TEXTS]
    for future in short:
        future.add_done_callback(lambda _: ended.append("short"))
    wait(short, 60)
    took = time.monotonic() - began
    long.result(120)
    assert ended == ["short"] * len(short) + ["long"]
    assert time.monotonic() - began > took


def test_a_deadline_drops_what_is_left(batcher):
    batcher.submit("A film.").result(60)
    late = batcher.submit(LONG, n_perturbations=2000, deadline=0.3)
    began = time.monotonic()
    error = late.exception(60)
    assert isinstance(error, fastshap.DeadlineExceededError)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - began < 10
    assert batcher.submit("A film.").result(60).error is None
    assert batcher.load == (0, 0)


def test_cancelling_drops_what_is_left(batcher):
    batcher.submit("A film.").result(60)
    given_up = batcher.submit(LONG, n_perturbations=2000)
    time.sleep(0.3)
    assert given_up.cancel()
    with pytest.raises(CancelledError):
        given_up.result(1)
    assert batcher.submit("A film.").result(60).error is None
    assert batcher.load == (0, 0)


def test_a_full_queue_refuses_at_once(explainer):
    with fastshap.Batcher(explainer, max_queued_tokens=2000) as batcher:
        first = batcher.submit(LONG, n_perturbations=40)  # what is more than all fits an empty queue
        with pytest.raises(fastshap.OverloadedError, match="queue is full") as refused:
            batcher.submit(LONG)
        assert refused.value.retry_after > 0
        assert first.result(120).error is None
        assert batcher.submit("A film.").result(60).error is None
    for wrong in (0, True, 2.5):
        with pytest.raises(fastshap.FastshapError, match="max_queued_tokens"):
            fastshap.Batcher(explainer, max_queued_tokens=wrong)


def test_closing_answers_what_was_accepted(explainer):
    before = threading.active_count()
    batcher = fastshap.Batcher(explainer)
    futures = [batcher.submit(text) for text in TEXTS[:2]]
    batcher.close()
    assert all(future.result(0).error is None for future in futures)
    with pytest.raises(fastshap.ClosedError):
        batcher.submit("A film.")
    assert threading.active_count() == before


def test_closing_with_a_timeout_gives_up(explainer):
    batcher = fastshap.Batcher(explainer)
    future = batcher.submit(LONG, n_perturbations=5000)
    batcher.close(timeout=0.5)
    assert isinstance(future.exception(0), fastshap.ClosedError)


def test_the_model_is_left_as_it_was(pair):
    model, tokenizer = pair
    model.train()
    try:
        with fastshap.Batcher(fastshap.GradientShap(model, tokenizer)) as batcher:
            batcher.submit(TEXTS[0]).result(60)
            assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
    finally:
        model.eval()


def test_watch_tells_what_happens(explainer):
    told = {}
    with fastshap.Batcher(explainer, watch=lambda name, value: told.setdefault(name, []).append(value)) as batcher:
        [future.result(60) for future in [batcher.submit(text) for text in TEXTS]]
    assert told["samples"] == [10] * len(TEXTS)
    assert len(told["wait_seconds"]) == len(told["compute_seconds"]) == len(TEXTS)


def test_pairs_ids_and_generation(batcher, pair):
    _, tokenizer = pair
    ids = tokenizer(TEXTS[0])["input_ids"]
    text, tokens = batcher.submit(TEXTS[0]), batcher.submit(ids)
    assert torch.allclose(text.result(60).attributions, tokens.result(60).attributions, atol=1e-6)


def test_the_ends_of_paths_run_in_the_turn_of_the_gradients(pair, monkeypatch):
    explainer = fastshap.GradientShap(*pair, batch_size="auto", return_convergence_delta=True)
    turns = []
    ready = threading.Event()
    with fastshap.Batcher(explainer, watch=lambda name, _: turns.append(name)) as batcher:
        batcher.submit("Wait.").result(60)  # alone, by a way of its own
        monkeypatch.setattr(batcher, "_taken", lambda room, taken=batcher._taken: ready.wait(60) and taken(room))
        futures = [batcher.submit(text) for text in TEXTS[:2]]
        turns.clear()
        ready.set()
        found = [future.result(60) for future in futures]
    assert turns.count("call_tokens") == 1
    expected = explainer(TEXTS[:2])
    for one, other in zip(found, expected, strict=True):
        assert difference(one, other) < 1e-5


def test_the_ends_of_several_rounds_run_together(pair):
    explainer = fastshap.GradientShap(*pair, batch_size="auto", return_convergence_delta=True)
    options = {"n_perturbations": 4, "rtol": 1e-9, "max_perturbations": 24}
    told = []
    with fastshap.Batcher(explainer, watch=lambda *one: told.append(one)) as batcher:
        found = batcher.submit(TEXTS[0], **options).result(60)
    calls = [value for name, value in told if name == "call_tokens"]
    length = calls[0] / 4
    assert calls == [4 * length] * 6 + [25 * length]  # six rounds, and the text and 24 baselines
    (expected,) = explainer(TEXTS[0], **options)
    assert difference(found, expected) < 1e-5
    assert found.rounds == 6


def test_texts_that_are_read_fill_the_queue(explainer, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments, isolated=queue.isolated):
        reading.set()
        assert go_on.wait(60)
        return isolated(*arguments)

    with fastshap.Batcher(explainer, max_queued_tokens=100) as batcher:
        monkeypatch.setattr(queue, "isolated", slow)
        first = batcher.submit(TEXTS[0])
        assert reading.wait(60)
        assert batcher.load.requests == 1
        assert 0 < batcher.load.tokens <= 100
        with pytest.raises(fastshap.OverloadedError):
            batcher.submit(TEXTS[2])
        go_on.set()
        assert first.result(60).error is None
        assert batcher.load == (0, 0)


def test_what_waits_ends_in_time_too(explainer, monkeypatch):
    monkeypatch.setattr(queue, "_TURNS_AHEAD", 0)  # one text is read at a time
    with fastshap.Batcher(explainer) as batcher:
        batcher.submit("A film.").result(60)
        long = batcher.submit(LONG, n_perturbations=2000)
        while batcher._waiting:
            time.sleep(0.01)
        late, dropped = batcher.submit(TEXTS[0], deadline=0.2), batcher.submit(TEXTS[1])
        assert dropped.cancel()
        with pytest.raises(fastshap.DeadlineExceededError):
            late.result(10)
        assert not batcher._waiting
        assert sum(batcher._queued) == pytest.approx(0)
        assert not long.done()
        long.cancel()


class Fake:
    """A text with so many rows of so many tokens."""

    def __init__(self, name, rows, length):
        self.name, self.rows, self.ran, self.row, self.kind = name, rows, 0.0, length, "gradients"
        self.item = SimpleNamespace(input_ids=[0] * length)

    @property
    def work(self):
        return self.rows * self.row


def run(lanes, room, turns):
    """The names of texts in the order in which they end, with the turn."""
    ended = []
    for turn in range(turns):
        if not len(lanes):
            break
        for text, rows in lanes.next(room):
            assert 0 < rows <= text.rows
            text.rows -= rows
            text.ran += rows * text.row
            if not text.rows:
                lanes.remove({text})
                ended.append((text.name, turn))
    return ended


def test_short_texts_of_one_length_run_together():
    lanes = Lanes()
    for name, length in [("a", 10), ("b", 14), ("c", 10), ("d", 14), ("e", 10)]:
        lanes.add(Fake(name, 10, length))
    assert run(lanes, 300, 9) == [("a", 0), ("c", 0), ("e", 0), ("b", 1), ("d", 1)]


def test_long_texts_get_a_share_while_short_ones_come():
    lanes = Lanes()
    long = Fake("long", 100, 100)  # ten turns of work
    lanes.add(long)
    ended = []
    for turn in range(60):
        for i in range(3):
            lanes.add(Fake(f"{turn}.{i}", 10, 30))  # nine tenths of a turn
        ended += run(lanes, 1000, 1)
        if not long.rows:
            break
    assert 30 < turn < 45  # a quarter of each turn, and no more
    assert len(ended) > 2 * turn


def test_long_texts_have_all_there_is_when_alone():
    lanes = Lanes()
    lanes.add(Fake("first", 100, 100))
    lanes.add(Fake("second", 100, 100))
    assert run(lanes, 1000, 30) == [("first", 9), ("second", 19)]


def test_a_row_that_is_more_than_a_turn_runs_all_the_same():
    lanes = Lanes()
    lanes.add(Fake("huge", 3, 5000))
    lanes.add(Fake("short", 10, 10))
    ended = run(lanes, 1000, 60)
    assert ended[0][0] == "short"
    assert ended[-1][0] == "huge"
