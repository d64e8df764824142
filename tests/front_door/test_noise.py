"""The warning that scores are noise: when it comes, what it says would help, and what it leaves alone."""

import inspect
import itertools
import pickle
import re
import tracemalloc
import warnings

import pytest
import torch

import fastshap
from fastshap.output.noise import Noise, samples_for

NOISY = {"n_perturbations": 4, "noise_std": 3.0, "sampling": "iid", "seed": 5}
TEXTS = ["not good at all", "A gorgeous film.", "The ending is dull.", "fine"]


@pytest.fixture
def explainer(default_pair):
    return fastshap.GradientShap(*default_pair, "auto", **NOISY)


def said(caught):
    return [str(one.message) for one in caught if issubclass(one.category, fastshap.NoiseWarning)]


def lowest(outputs):
    return min(float(output.reliability.min()) for output in outputs)


def test_one_warning_a_call_that_counts(explainer):
    with pytest.warns(fastshap.NoiseWarning) as caught:
        outputs = explainer(TEXTS, "all")
    (message,) = said(caught)
    noisy = sum(float(output.reliability.min()) < 0.5 for output in outputs)
    assert 0 < noisy <= 4
    assert f"for {noisy} of the 4 texts: reliability below 0.5, the lowest {lowest(outputs):.2f}." in message
    assert caught[0].filename == __file__  # the line that made the call


def test_none_where_scores_are_steady(default_pair):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (output,) = fastshap.GradientShap(*default_pair)("A gorgeous film.")
        few = fastshap.GradientShap(*default_pair, n_perturbations=3)("A gorgeous film.")  # nothing is known of them
    assert float(output.reliability[0]) > 0.9
    assert bool(few[0].reliability.isnan().all())


def test_what_helps_is_measured(explainer):
    with pytest.warns(fastshap.NoiseWarning) as caught:
        outputs = explainer(TEXTS)
    (message,) = said(caught)
    number = int(re.search(r"on text (\d)", message)[1])
    assert number == next(i for i, output in enumerate(outputs) if float(output.reliability[0]) < 0.5)
    now = float(outputs[number].reliability[0])
    for name, option in (
        ("inference_mode='softmax'", {"inference_mode": "softmax"}),
        ("noise_std=0.6", {"noise_std": 0.6}),
    ):
        (there,) = explainer(TEXTS[number], outputs[number].targets.tolist(), **option)
        share = float(there.reliability[0])
        assert (f"{name} gives {share:.2f}" in message) == (share >= now + 0.1)
    shares = [float(one) for one in re.findall(r"gives ([\d.]+\d)", message)]
    assert shares == sorted(shares, reverse=True)


def test_nothing_that_does_not_help_is_recommended(llama_pair):
    """Noise cannot be less than none, and a mode of one's own is nobody's to replace."""

    def mine(logits):
        return logits * 1

    explainer = fastshap.GradientShap(
        *llama_pair, "auto", n_perturbations=4, noise_std=0.0, inference_mode=mine, sampling="iid"
    )
    prompts = ["The film is", "A plot that", "Nobody seems to", "What a"]
    with pytest.warns(fastshap.NoiseWarning) as caught:
        explainer(prompts, ["not good at all"] * 4)
    (message,) = said(caught)
    assert "helps" not in message
    assert "softmax" not in message
    assert "noise_std" not in message


def test_how_many_samples_it_would_take(default_pair):
    (few,) = fastshap.GradientShap(*default_pair, n_perturbations=40, sampling="iid", noise_std=1.0)(TEXTS[:1])
    now = float(few.reliability[0])
    assert 0.1 < now < 0.95
    wanted = 0.5 * (1 + now)
    count = samples_for(wanted, few, 0)
    shares = [
        float(explained.reliability[0])
        for seed in range(6)
        for explained in fastshap.GradientShap(
            *default_pair, "auto", n_perturbations=int(count), sampling="iid", noise_std=1.0, seed=seed
        )(TEXTS[:1])
    ]
    assert sum(shares) / 6 == pytest.approx(wanted, abs=0.15)


def test_it_is_measured_once(explainer, monkeypatch):
    asked = []
    again = type(explainer)._again
    monkeypatch.setattr(type(explainer), "_again", lambda self, *given: asked.append(given) or again(self, *given))
    for explain in (explainer, lambda texts: list(explainer.iter_explain(texts))):
        with pytest.warns(fastshap.NoiseWarning) as caught:
            explain(TEXTS)
        assert len(said(caught)) == 1
        assert len(asked) == 2  # softmax and less noise, for the first call
    assert "a text of an earlier call" in said(caught)[0]


def test_another_baseline_is_measured_anew(explainer):
    with pytest.warns(fastshap.NoiseWarning):
        explainer(TEXTS)
    for baseline in (
        1.0,
        "[MASK]",
        torch.full((explainer.model.config.hidden_size,), 0.5),
        fastshap.BaselineSet(["dull"]),
    ):
        for said_of in ("measured on text|Measured on text", "a text of an earlier call"):
            with pytest.warns(fastshap.NoiseWarning, match=said_of):
                explainer(TEXTS, baseline=baseline)


def test_few_antithetic_samples_are_not_called_noise(default_pair):
    """Their standard errors are too large, above all with a density: the truth is 0.77 there."""
    few = fastshap.GradientShap(*default_pair, n_perturbations=4, path_density=2.0)
    with pytest.warns(fastshap.NoiseWarning, match="may be mostly noise .* n_perturbations=20 tells more"):
        few("A gorgeous, witty film.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few("A gorgeous, witty film.", n_perturbations=20)


def test_many_outputs_are_told_as_one_by_one(default_pair, llama_pair):
    """Those of other shapes, with what a target cannot see, without standard errors, and errors."""
    explainer = fastshap.GradientShap(*default_pair, "auto", on_error="record", **NOISY)
    outputs = [*explainer(TEXTS, "all"), *explainer(["", "fine"]), *explainer(TEXTS[:2], n_perturbations=2)]
    outputs += fastshap.GradientShap(*llama_pair, n_perturbations=6)(TEXTS, ["is dull"] * 4)
    together, alone = Noise(), Noise()
    together.add(outputs)
    for output in outputs:
        alone.add([output])
    seen = [(one._head(), one._first[0], one._first[2]) for one in (together, alone)]
    assert seen[0] == seen[1]
    assert together._noisy == sum(bool((output.reliability < 0.5).any()) for output in outputs) > 0


def test_failed_texts_do_not_count(default_pair):
    explainer = fastshap.GradientShap(*default_pair, "auto", on_error="record", **NOISY)
    with pytest.warns(fastshap.NoiseWarning, match=r"of the 4 texts.*on text [2-5]"):
        explainer(["", " ", *TEXTS])


def test_a_copy_knows_it_too(explainer, monkeypatch):
    with pytest.warns(fastshap.NoiseWarning):
        explainer(TEXTS)
    monkeypatch.setattr(type(explainer), "_again", lambda *_: pytest.fail("measured again"))
    with pytest.warns(fastshap.NoiseWarning, match="earlier call"):
        pickle.loads(pickle.dumps(explainer))(TEXTS)


def rows_of(explainer, filters):
    """Rows of the model's calls."""
    rows = []
    hook = explainer.model.bert.encoder.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for one in filters:
                warnings.filterwarnings(*one)
            with warnings.catch_warnings(record=True) as caught:
                explainer(TEXTS)
    finally:
        hook.remove()
    return sum(rows), said(caught)


def test_where_filters_ignore_it_nothing_is_measured(default_pair):
    def fresh():
        return fastshap.GradientShap(*default_pair, "auto", **NOISY)

    fresh()(TEXTS)  # the model is tried
    usual, heard = rows_of(fresh(), [("always",)])
    quiet = [
        ("ignore", "", fastshap.NoiseWarning),
        ("ignore", "", UserWarning),
        ("ignore", "Scores are mostly noise"),
        ("ignore", "", Warning, __name__),
    ]
    for one in quiet:
        least, unheard = rows_of(fresh(), [("always",), one])
        assert (len(heard), unheard) == (1, [])
        assert 0 < least < usual <= least + 2 * 4 + 64  # two candidates of four samples, and the trial of a mode
    assert rows_of(fresh(), [("ignore", "something else")])[1] != []


def test_measuring_leaves_everything_as_it_was(default_pair):
    model, tokenizer = default_pair
    noisy = fastshap.GradientShap(model, tokenizer, "auto", **NOISY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastshap.NoiseWarning)
        quiet = fastshap.GradientShap(model, tokenizer, "auto", **NOISY)
        expected = quiet(TEXTS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.warns(fastshap.NoiseWarning):
        found = noisy(TEXTS, progress=lambda done, total: steps.append((done, total)))
    assert [one.to_json() for one in found] == [one.to_json() for one in expected]
    assert torch.equal(torch.get_rng_state(), state)
    assert noisy.padding == quiet.padding
    assert steps[-1] == (4, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert noisy.settings.inference_mode is fastshap.InferenceModes.LOGITS
    with pytest.warns(fastshap.NoiseWarning):  # and the numbers of later calls stay
        assert [one.to_json() for one in noisy(TEXTS)] == [one.to_json() for one in expected]


def test_a_call_never_fails_by_it(explainer, monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(type(explainer), "_again", broken)
    with pytest.warns(fastshap.NoiseWarning) as caught:
        assert len(explainer(TEXTS)) == 4
    (message,) = said(caught)
    assert "measured" not in message.casefold()
    assert "memory" not in message


def test_a_stream_warns_once(explainer):
    texts = itertools.islice(itertools.cycle(TEXTS), 600)
    with pytest.warns(fastshap.NoiseWarning) as caught:
        assert sum(1 for _ in explainer.iter_explain(texts, progress=False)) == 600
    (message,) = said(caught)
    assert re.search(r"for (the first text|\d+ of the first \d+ texts):", message)


def test_a_tally_does_not_grow(explainer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = explainer(TEXTS)
    noise = Noise()
    noise.add(outputs)
    tracemalloc.start()
    for _ in range(2000):
        noise.add(outputs)
    kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, inspect.getfile(Noise))])
    tracemalloc.stop()
    assert sum(trace.size for trace in kept.traces) < 5_000


def test_warming_up_says_nothing(explainer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastshap.warm_up(explainer)


def test_jobs_warn_once_and_count(loaded_once, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    source = tmp_path / "texts.csv"
    source.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)) + "9,\n")
    monkeypatch.setattr(fastshap.GradientShap, "_again", lambda *_: pytest.fail("a job measures nothing"))
    with pytest.warns(fastshap.NoiseWarning) as caught:
        summary = fastshap.jobs.run(source, tmp_path / "out", runner="local", **NOISY)
    (message,) = said(caught)
    outputs = list(fastshap.jobs.read(tmp_path / "out"))
    noisy = sum(output.error is None and float(output.reliability.min()) < 0.5 for output in outputs)
    assert summary.noisy == noisy > 0
    assert f"{noisy} of 5 rows" in message
    assert summary.plain()["noisy"] == noisy
    assert any(line.startswith("mostly noise") and f" {noisy} " in line for line in summary.lines())
    assert f"{noisy} of them mostly noise" in str(summary)


def test_a_batch_has_a_column_and_no_warning(loaded_once):
    pytest.importorskip("pyarrow")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = fastshap.BatchExplainer(keep=(), **NOISY)({"text": [TEXTS[0], ""]})
    known, unknown = table.column("reliability").to_pylist()
    assert 0 <= known[0] <= 1
    assert unknown is None


@pytest.mark.filterwarnings("default::fastshap.NoiseWarning")
def test_the_shell_says_it_in_a_line_and_colours_on_demand(loaded_once, tmp_path):
    from typer.testing import CliRunner

    from fastshap.cli import app

    options = ["--n-perturbations", "4", "--noise-std", "3", "--sampling", "iid", "--seed", "5"]
    done = CliRunner().invoke(app, ["explain", *options, TEXTS[0]])
    assert done.exit_code == 0
    assert "reliability" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("fastshap: Scores are mostly noise for the first text")
    for switch, checked in (([], 0), (["--uncertain"], 1)):
        CliRunner().invoke(app, ["explain", *options, *switch, "--html", str(tmp_path / "page.html"), TEXTS[0]])
        assert (tmp_path / "page.html").read_text().count(" checked>") == checked
    steady = CliRunner().invoke(app, ["explain", "A gorgeous, witty film, but the ending is dull."])
    assert steady.stderr == ""
