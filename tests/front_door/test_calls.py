"""One call: progress, outputs as texts are done, options for this call alone, models by name and as pipelines."""

import copy
import dataclasses
import io
import os
import select
import sys
import threading
import types

import pytest
import torch
from transformers import pipeline

import fastshap
from fastshap import GradientShap, InvalidArgumentError, InvalidTypeError, one_call
from fastshap.output.progress import Progress

TEXTS = ["A gorgeous, witty film.", "not good at all", "The battery died after two days.", "Simply wonderful."]
FEW = {"n_perturbations": 4, "batch_size": 2}


@pytest.fixture
def rows(default_pair):
    """Rows of each model call."""
    seen = []
    handle = default_pair[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("input_ids", kwargs.get("inputs_embeds")))),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


# Progress


@pytest.mark.parametrize("rtol", [None, 0.3])
def test_a_function_is_told_of_every_step(default_pair, rtol):
    told = []
    outputs = GradientShap(*default_pair, rtol=rtol, **FEW)(TEXTS, progress=lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert {step[1] for step in told} == {len(TEXTS)}
    assert done == sorted(done)
    assert done[-1] == len(TEXTS)
    assert len(told) > 2 * len(TEXTS)
    assert all(output.error is None for output in outputs)


def test_progress_moves_within_one_text(llama_pair, monkeypatch):
    """Also while a language model's single text is explained: at each backward pass."""
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 0})  # as for a larger model: a score a pass
    told = []
    explainer = GradientShap(*llama_pair, granularity="token", **FEW)
    explainer("The film is", generation_kwargs={"max_new_tokens": 12}, progress=lambda *step: told.append(step))
    assert told[0] == (0.2, 1)  # generated
    assert len([done for done, _ in told if 0.2 < done < 1]) >= 10
    assert told[-1] == (1, 1)


def test_progress_of_texts_that_come_again_and_bad_ones(default_pair):
    told = []
    explainer = GradientShap(*default_pair, on_error="record", **FEW)
    explainer([TEXTS[0], "", TEXTS[0]], progress=lambda *step: told.append(step))
    assert told[-1] == (3, 3)
    told.clear()
    list(explainer.iter_explain(iter(TEXTS), progress=lambda *step: told.append(step)))
    assert told[-1] == (4, None)
    told.clear()
    rows = default_pair[1](TEXTS, padding=True, return_tensors="pt")
    list(explainer.iter_explain([rows], progress=lambda *step: told.append(step)))  # one entry, several texts
    assert told[-1] == (4, None)


def test_what_a_progress_function_raises_ends_the_call(default_pair):
    def stop(done, total):
        raise KeyboardInterrupt

    explainer = GradientShap(*default_pair, **FEW)
    with pytest.raises(KeyboardInterrupt):
        explainer(TEXTS, progress=stop)
    assert all(parameter.requires_grad for parameter in default_pair[0].parameters())
    assert len(explainer(TEXTS)) == 4
    for method in (explainer, explainer.iter_explain):
        with pytest.raises(InvalidTypeError, match="progress must be None"):
            method(TEXTS, progress="bar")


def test_numbers_do_not_depend_on_progress(default_pair):
    explainer = GradientShap(*default_pair, **FEW)
    for plain, told in zip(explainer(TEXTS), explainer(TEXTS, progress=lambda *step: None), strict=True):
        assert torch.equal(plain.attributions, told.attributions)


def test_bars(default_pair, monkeypatch, capsys):
    explainer = GradientShap(*default_pair, **FEW)
    explainer(TEXTS)
    assert capsys.readouterr().err == ""  # no terminal
    explainer(TEXTS, progress=True)
    assert "4" in capsys.readouterr().err
    explainer(TEXTS, progress=False)
    assert capsys.readouterr().err == ""


def terminal(monkeypatch):
    """Standard error as a terminal, and what was written to it. No fixture: pytest puts its own back before a test."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_on_a_terminal_a_bar_comes_after_a_second(monkeypatch):
    screen = terminal(monkeypatch)
    with Progress(None, 10) as progress:
        progress._timer.cancel()
        progress.begin(10)
        progress.add(3)
        assert screen.getvalue() == ""
        progress._start -= 2  # a moment later
        progress.add(0)
        progress._bar.mininterval = 0
        progress.add(0.25)
        assert "3/10 texts [00:02]" in screen.getvalue()  # whole texts
        progress.end()
        assert "10/10 texts" in screen.getvalue()
        shown = len(screen.getvalue())
        progress.hide()
        progress.add(0)
        assert screen.getvalue()[shown:].strip("\r ") == ""  # the line is the user's
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.daemon]


@pytest.mark.parametrize(
    ("total", "shown"), [(20, "12/20 texts [00:05<00:01, 5.6 texts/s]"), (None, "12 texts [00:05, 5.6 texts/s]")]
)
def test_a_bar_tells_no_rate_before_it_is_known(monkeypatch, total, shown):
    screen, now = terminal(monkeypatch), [1000.0]
    for clock in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(clock, lambda: now[0])
    with Progress(True, total) as progress:
        progress._timer.cancel()
        progress.begin(1)
        now[0] += 3  # the model warms up
        progress.end()
        progress._bar.mininterval = 0
        progress.begin(3)
        now[0] += 0.5
        progress.end()
        assert "texts/s" not in screen.getvalue()
        progress.begin(20)
        now[0] += 1.5
        progress.add(5)
        progress.add(3.25)
    assert shown in screen.getvalue()


def test_a_bar_is_there_though_nothing_is_reported(monkeypatch):
    screen = terminal(monkeypatch)
    monkeypatch.setattr("fastshap.output.progress._QUIET", 0.02)
    with Progress(None, 2) as progress:
        progress._timer.join(20)
        assert "0/2" in screen.getvalue()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_a_terminal_that_says_it_has_no_columns(monkeypatch):
    main, other = os.openpty()  # of no size, unless one is set
    with os.fdopen(other, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with Progress(True, 10) as progress:
            progress._timer.cancel()
            progress.begin(10)
            progress.add(3)
            screen.flush()
            assert select.select([main], [], [], 0)[0], "nothing was shown"
            assert b"/10 texts [" in os.read(main, 4096)
        monkeypatch.undo()
    os.close(main)


def test_one_quick_text_shows_no_bar(default_pair, monkeypatch):
    screen = terminal(monkeypatch)
    monkeypatch.setattr("fastshap.output.progress._QUIET", 1000.0)
    GradientShap(*default_pair, **FEW)(TEXTS[0])
    assert screen.getvalue() == ""


def test_notebooks_show_a_bar(monkeypatch):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert Progress()._shown is False
    assert Progress(None)._shown
    shell.config.clear()  # IPython in a shell
    assert not Progress(None)._shown
    monkeypatch.setattr(sys, "stderr", None)
    assert not Progress(None)._shown


# Outputs as texts are done


def test_an_output_comes_when_its_text_is_done(default_pair, rows):
    """No output waits for more texts than there were before it, but for one."""
    explainer = GradientShap(*default_pair, **FEW)
    explainer("fine", 1)  # tried
    rows.clear()
    for i, _ in enumerate(explainer.iter_explain((f"{text} {k}" for k in range(8) for text in TEXTS), 1)):
        assert sum(rows) <= 5 * (2 * i + 1)  # the text itself, for its prediction, and four perturbed rows
    assert sum(rows) == 5 * 32


def test_larger_models_have_fewer_texts_under_way(default_pair, monkeypatch, rows):
    monkeypatch.setattr("fastshap.engine.work._WORK", {"cpu": 0})
    monkeypatch.setattr("fastshap.engine.work.ENOUGH_TOKENS", 40)  # two short texts of four rows
    explainer = GradientShap(*default_pair, **FEW)
    explainer("fine", 1)
    rows.clear()
    for i, _ in enumerate(explainer.iter_explain((f"{text} {k}" for k in range(8) for text in TEXTS), 1)):
        assert sum(rows) <= 5 * (i + 4)


def test_the_model_is_free_while_an_output_is_looked_at(default_pair):
    model = default_pair[0]
    explainer = GradientShap(*default_pair, **FEW)
    for output in explainer.iter_explain(iter(TEXTS), 1):
        assert all(parameter.requires_grad for parameter in model.parameters())
        other = []
        thread = threading.Thread(target=lambda text=output.text, other=other: other.extend(explainer(text, 1)))
        thread.start()
        thread.join(60)
        assert torch.equal(other[0].attributions, output.attributions)


def test_stop_iteration_in_the_users_generator_is_named(default_pair):
    explainer = GradientShap(*default_pair, **FEW)

    def texts():
        yield TEXTS[0]
        yield next(iter(()))

    found = []
    with pytest.raises(InvalidArgumentError, match=r"texts ended early, after 1: a StopIteration.*next\(\)") as caught:
        found.extend(explainer.iter_explain(texts()))
    assert isinstance(caught.value.__cause__.__cause__, StopIteration)
    with pytest.raises(InvalidArgumentError, match="texts ended early, after 1"):
        explainer(texts())
    with pytest.raises(InvalidArgumentError, match="targets ended early, after 0"):
        list(explainer.iter_explain(iter(TEXTS), (next(iter(())) for _ in TEXTS)))


@pytest.mark.parametrize("error", [OSError("disk gone"), RuntimeError("on its own")])
def test_other_errors_of_the_users_iterable_come_as_they_are(default_pair, error):
    explainer = GradientShap(*default_pair, **FEW)

    def texts():
        yield from TEXTS
        raise error

    found = []
    with pytest.raises(type(error)) as caught:
        found.extend(output.text for output in explainer.iter_explain(texts()))
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        explainer(texts())
    assert caught.value is error


# Options of one call


@pytest.mark.parametrize(
    "options",
    [
        {"n_perturbations": 7, "seed": 1, "granularity": "token"},
        {"batch_size": "auto"},
        {"inference_mode": "softmax"},
        {"baseline": 0.1, "noise_std": 0.3, "reduction": "abs_mean"},
        {"rtol": 0.3, "max_perturbations": 16},
        {"return_convergence_delta": True, "perturb_special_tokens": False, "path_density": 1.0},
    ],
    ids=str,
)
def test_options_of_one_call(bert_pair, options):
    explainer = GradientShap(*bert_pair, **FEW)
    before = explainer(TEXTS)
    expected = GradientShap(*bert_pair, **FEW | options)(TEXTS)
    for ours in (explainer(TEXTS, **options), list(explainer.iter_explain(iter(TEXTS), **options))):
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=1e-4)
            assert one.to_dict()["settings"] == other.to_dict()["settings"]
    for one, other in zip(explainer(TEXTS), before, strict=True):
        assert torch.equal(one.attributions, other.attributions)  # for that call alone


def test_options_of_a_language_models_call(llama_pair):
    options = {"seed": 3, "n_perturbations": 3}
    sampled = {"max_new_tokens": 4, "do_sample": True}
    ours = GradientShap(*llama_pair)("The film is", generation_kwargs=sampled, **options)
    expected = GradientShap(*llama_pair, **options)("The film is", generation_kwargs=sampled)
    assert ours[0].targets.tolist() == expected[0].targets.tolist()
    torch.testing.assert_close(ours[0].attributions, expected[0].attributions, atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("first", [{}, {"seed": 4}])
def test_a_call_with_options_does_not_try_the_model_anew(default_pair, rows, first):
    explainer = GradientShap(*default_pair, **FEW)
    explainer(TEXTS[0], 1, **first)
    rows.clear()
    explainer(TEXTS[0], 1, seed=5)
    assert sum(rows) == 5  # the text itself, for its prediction, and four perturbed rows
    assert explainer.seed == 0
    rows.clear()
    explainer(TEXTS[0], 1)
    assert sum(rows) == 5  # the text itself, for its prediction, and four perturbed rows


def test_what_such_a_call_learns_is_of_the_users_model(default_pair):
    """Not of the view that ran it, whose weights are gone."""
    explainer = GradientShap(*default_pair, **FEW)
    explainer(TEXTS[0], 1, seed=5)
    assert explainer._tried
    assert explainer.task.model is default_pair[0]


def test_a_call_with_options_is_the_explainers(default_pair):
    """A class of the user's own stays itself, and cuts are warned about once."""

    class Mine(GradientShap):
        def __init__(self):
            super().__init__(*default_pair, **FEW)

        def _maker(self):
            return dataclasses.replace(super()._maker(), settings=dataclasses.replace(self.settings, seed=77))

    explainer = Mine()
    (output,) = explainer(TEXTS[0], 1, n_perturbations=3)
    assert (output.seed, output.n_perturbations) == (77, 3)
    with pytest.warns(fastshap.TruncationWarning) as caught:
        assert [explainer("film " * 700, 1, n_perturbations=1)[0].truncated for _ in range(2)] == [True, True]
    assert [one.filename for one in caught] == [__file__]


def test_warnings_of_iter_explain_point_at_the_users_line(default_pair):
    with pytest.warns(fastshap.TruncationWarning) as caught:
        list(GradientShap(*default_pair, **FEW).iter_explain(["film " * 700], 1))
    assert caught[0].filename == __file__


def test_a_baseline_that_changes_afterwards(bert_pair):
    baseline = torch.zeros(36)
    explainer = GradientShap(*bert_pair, baseline=baseline, **FEW)
    baseline += 1
    assert (explainer(TEXTS[0], 1, seed=2)[0].baseline == 0).all()


def test_options_that_there_are_not(default_pair):
    explainer = GradientShap(*default_pair)
    for call in (explainer, explainer.iter_explain, lambda *a, **o: fastshap.explain(*a, **o)):
        with pytest.raises(
            InvalidArgumentError,
            match=r"no option n_perturbation \(did you mean n_perturbations\?\); there are backend, .*n_perturbations",
        ):
            call(TEXTS[0], n_perturbation=3)
    for options, said in (
        ({"target": 1}, r"target \(did you mean targets\?\)"),
        ({"n_samples": 3}, r"n_samples \(did you mean n_perturbations\?\)"),
        ({"max_new_tokens": 5}, r'max_new_tokens \(write generation_kwargs=\{"max_new_tokens": 5\}\)'),
        ({"top_k": 5}, r'top_k \(write generation_kwargs=\{"top_k": 5\}\)'),
        ({"x": 5, "sed": 1}, r"sed \(did you mean seed\?\), x"),
    ):
        with pytest.raises(InvalidArgumentError, match=rf"A call has no option {said}; there are"):
            explainer(TEXTS[0], **options)
    with pytest.raises(InvalidArgumentError, match=r"^fastshap\.explain has no option n_samples") as caught:
        fastshap.explain(TEXTS[0], n_samples=3)
    assert "own" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="n_perturbations"):
        explainer(TEXTS[0], n_perturbations=0)
    with pytest.raises(InvalidArgumentError, match="device are the explainer's own"):
        explainer(TEXTS[0], device="cpu")


def test_parameters_of_an_explainer_that_there_are_not(bert_pair):
    with pytest.raises(
        InvalidTypeError, match=r"GradientShap has no option n_perturbation \(did you mean n_pertur"
    ) as caught:
        GradientShap(*bert_pair, n_perturbation=5)
    assert isinstance(caught.value, TypeError)
    assert "self" not in str(caught.value)
    with pytest.raises(InvalidTypeError, match=r"n_samples \(did you mean n_perturbations\?\)"):
        GradientShap(*bert_pair, n_samples=5)
    with pytest.raises(InvalidTypeError, match="GradientShap: missing a required argument: 'model'"):
        GradientShap()
    with pytest.raises(InvalidTypeError, match="GradientShap: too many positional arguments"):
        GradientShap(*bert_pair, *range(20))
    with pytest.raises(InvalidTypeError, match="GradientShap: multiple values for argument 'model'"):
        GradientShap(*bert_pair, model=bert_pair[0])


def test_a_model_and_a_tokenizer_in_the_wrong_places(default_pair):
    model, tokenizer = default_pair
    with pytest.raises(InvalidTypeError, match="passed a tokenizer as targets; write tokenizer="):
        fastshap.explain(TEXTS[0], model, tokenizer)
    with pytest.raises(InvalidTypeError, match=r"got the tokenizer .*The model comes first"):
        GradientShap(tokenizer, model)
    with pytest.raises(InvalidTypeError, match="a transformers pipeline; got int"):
        GradientShap(3, tokenizer)
    for wrong in (model, "bert", 3):
        with pytest.raises(InvalidTypeError, match="must be the model's tokenizer; got"):
            GradientShap(model, wrong)
    with pytest.raises(fastshap.UnsupportedModelError, match=r"Linear has no config.*ForSequenceClassification"):
        GradientShap(torch.nn.Linear(2, 2), tokenizer)


# A model by its name, and as a pipeline


def same(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_one_call_with_the_packaged_model(default_pair):
    ours = fastshap.explain(TEXTS, targets="positive", n_perturbations=4, seed=2)
    assert isinstance(ours, fastshap.AttributionOutputs)
    same(ours, GradientShap(*default_pair, n_perturbations=4, seed=2)(TEXTS, "positive"))


def test_one_call_with_a_model_by_its_path(bert_pair, tmp_path, monkeypatch):
    loaded, load_pair = [], one_call.load_pair
    monkeypatch.setattr(one_call, "load_pair", lambda name, task: loaded.append(name) or load_pair(name, task))
    one_call._explainer.cache_clear()
    for part in bert_pair:
        part.save_pretrained(tmp_path)
    expected = GradientShap(*bert_pair, **FEW)(TEXTS)
    for name in (str(tmp_path), tmp_path):
        same(fastshap.explain(TEXTS, name, **FEW), expected)
    assert loaded == [str(tmp_path)]
    same(fastshap.explain(TEXTS, tmp_path, tokenizer=bert_pair[1], device="cpu", **FEW), expected)
    assert len(loaded) == 2
    file = tmp_path / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    fastshap.explain(TEXTS, tmp_path, **FEW)
    assert len(loaded) == 3
    one_call._explainer.cache_clear()
    with pytest.raises(InvalidArgumentError, match="could not be loaded"):
        fastshap.explain(TEXTS, tmp_path / "nowhere")


def test_one_call_with_a_model_or_a_pipeline(bert_pair, llama_pair):
    expected = GradientShap(*bert_pair, **FEW)(TEXTS)
    classifier = pipeline("text-classification", model=bert_pair[0], tokenizer=bert_pair[1])
    same(fastshap.explain(TEXTS, classifier, **FEW), expected)
    same(fastshap.explain(TEXTS, bert_pair[0], tokenizer=bert_pair[1], **FEW), expected)
    same(GradientShap(classifier, **FEW)(TEXTS), expected)
    assert GradientShap(classifier).model is bert_pair[0]
    writer = pipeline("text-generation", model=llama_pair[0], tokenizer=llama_pair[1])
    ours = fastshap.explain("The film", writer, "is dull", **FEW)
    same(ours, GradientShap(*llama_pair, **FEW)("The film", "is dull"))


def test_a_model_without_its_tokenizer(bert_pair):
    for call in (lambda: GradientShap(bert_pair[0]), lambda: fastshap.explain("fine", bert_pair[0])):
        with pytest.raises(InvalidTypeError, match="no tokenizer"):
            call()
    with pytest.raises(InvalidTypeError, match=r"fastshap\.explain"):
        GradientShap("somebody/model")


def test_loading_the_packaged_model_is_quiet(capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    fastshap.load_default_model()
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == shown


@pytest.mark.parametrize("on_error", ["raise", "record"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_progress_raises_ends_the_call(bert_pair, on_error, first):
    """As itself, not as an error of the model or of a text; the explainer can be used afterwards."""

    class Cancelled(Exception):
        pass

    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) > first:
            raise Cancelled

    explainer = fastshap.GradientShap(*bert_pair, n_perturbations=4, on_error=on_error)
    with pytest.raises(Cancelled):
        explainer(["not good at all", "fine"], 1, progress=progress)
    assert len(calls) == first + 1
    assert explainer("fine", 1)[0].error is None


def test_a_model_that_changes_between_outputs(bert_pair):
    """A text that comes again is computed again, whatever has changed since."""
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    texts = ["not good", "very fine"] * 20
    outputs = explainer.iter_explain(texts, 1)
    first = next(outputs)
    model.config.id2label = {0: "bad", 1: "good"}
    model.bert.embeddings.LayerNorm.eps = 0.5
    last = list(outputs)[-2]
    (expected,) = fastshap.GradientShap(copy.deepcopy(model), bert_pair[1], n_perturbations=4)("not good", 1)
    torch.testing.assert_close(last.attributions, expected.attributions, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first.attributions, last.attributions, rtol=1e-3)


def test_labels_are_those_of_now(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1])
    explainer("fine", "all")
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    assert explainer("fine", "all")[0].target_names == ["bad", "so-so", "good"]
    assert explainer("fine", "so-so")[0].targets.tolist() == [1]
