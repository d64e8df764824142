"""The benchmark's own arithmetic: counts, lines, errors, resuming, and verdicts."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from bench.compare import equal_error, long_list, pictures, tables, timing, verdicts, workloads
from bench.compare.command import QUICK, Store, machine, main, measure_workload, versions
from bench.compare.peers import TOOLS, tools_for
from bench.compare.work import counted, work_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def texts():
    """Six short texts, so that interpreto's rows can be counted by hand."""
    return workloads.small("a", texts=6)


@pytest.fixture(scope="module")
def language():
    return workloads.small("d")


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(("batch_size", "rows"), [(4, 72), (10, 60), (20, 120), (60, 360)])
def test_interpreto_walks_the_whole_batch_back_for_each_text(texts, batch_size, rows):
    """60 are needed; at 4 rows a call half the calls hold rows of two texts, in turn 4 + 4 + 2 and 2 + 4 + 4."""
    runner = TOOLS["interpreto"].prepare(texts)
    found = work_of(TOOLS["interpreto"], runner, texts, batch_size)
    assert (found["rows_needed"], found["rows_backpropagated"]) == (60, rows)


@pytest.mark.parametrize("name", ["fastshap", "fastshap abs_mean", "captum by hand", "shap", "floor"])
def test_the_others_walk_each_row_back_once(texts, name):
    tool = TOOLS[name]
    found = work_of(tool, tool.prepare(texts), texts, tool.grid(texts)[-1])
    assert found["rows_backpropagated"] == found["rows_needed"] == 60
    assert found["model_calls"] > 0


def test_every_target_token_is_walked_back_once(language):
    for name in ("fastshap abs_mean", "interpreto", "captum by hand", "shap", "floor"):
        tool = TOOLS[name]
        found = work_of(tool, tool.prepare(language), language, tool.grid(language)[0])
        assert found["rows_backpropagated"] == found["rows_needed"] == 2 * 4 * 6, name
    by_group = TOOLS["floor, one backward a group"]
    found = work_of(by_group, by_group.prepare(language), language, 288)
    assert found["rows_backpropagated"] == found["rows_needed"] == 4 * sum(language.target_groups) < 2 * 4 * 6


def test_padding_and_operators_are_seen(texts):
    model = texts.model
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    z = model.get_input_embeddings()(ids).detach()
    with counted(model, lambda: None) as counter:
        for _ in range(2):
            point = (z * 2).requires_grad_()
            logits = model(inputs_embeds=point, attention_mask=(ids > 0).long()).logits
            torch.autograd.grad(logits[:, 0].sum(), point)
        with torch.no_grad():
            model(input_ids=ids[:1])
    assert (counter.calls, counter.rows, counter.rows_back, counter.rows_without_gradient) == (2, 4, 4, 1)
    assert counter.padding / counter.cells == 2 / 8
    # sum before the backward pass, then mul, gt and the mask's copy to int64 before the next call.
    assert counter.between == 4
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.base_model)


def test_a_batched_backward_and_tensor_backward_count(texts):
    model = texts.model
    z = model.get_input_embeddings()(torch.tensor([[1, 2, 3]] * 4)).detach()
    with counted(model, lambda: None) as counter:
        logits = model(inputs_embeds=z.requires_grad_()).logits
        torch.autograd.grad(logits, z, torch.ones(3, *logits.shape), is_grads_batched=True, retain_graph=True)
        assert counter.rows_back == 3 * 4
        logits.sum().backward()
    assert counter.rows_back == 4 * 4
    assert z.grad is not None


# ------------------------------------------------------------------ what the tools are given


def test_tools_explain_the_same_tokens_and_targets(language):
    shapes = {}
    for tool in tools_for(language):
        if tool.quantity:
            scores = tool.prepare(language, tokens=True).run(4, 2, 0)
            shapes[tool.name] = [score.shape for score in scores]
    assert len(shapes) == 6
    assert set(map(tuple, shapes.values())) == {((6, 14), (6, 14))}


def test_every_tool_explains_probabilities_where_asked(language):
    """Far less than logits, as they are of one in many tokens."""
    chances = language.with_probabilities()
    for tool in tools_for(language):
        if tool.quantity:
            ours, theirs = (tool.prepare(one, tokens=True).run(4, 2, 0) for one in (chances, language))
            assert max(np.nan_to_num(s).max() for s in ours) < 0.5 * max(np.nan_to_num(s).max() for s in theirs)


def test_few_targets_keep_their_tokens(language):
    one = language.few_targets(1)
    for short, whole, target in zip(one.ids, language.ids, one.targets, strict=True):
        assert whole[: len(short)] == short
        assert target == short[-1:]
    assert [len(output) for output in TOOLS["interpreto"].prepare(one).run(4, 2, 0)] == [1, 1]


def test_some_texts_are_spread_by_length(texts):
    lengths = [len(ids) for ids in texts.some(3).ids]
    everything = sorted(len(ids) for ids in texts.ids)
    assert sorted(lengths) == [everything[0], everything[2], everything[-1]]


def test_cut_is_exact_or_nothing(texts):
    tokenizer = texts.tokenizer
    text = " ".join(texts.texts)
    for wanted in range(3, 20):
        here = workloads.cut(text, tokenizer, wanted)
        assert here is None or (len(tokenizer(here)["input_ids"]) == wanted and text.startswith(here))


# ------------------------------------------------------------------ arithmetic


def test_straight_line():
    line = long_list.straight_line([1, 2, 3, 4], [3, 5, 7, 9])
    assert line.per_text == pytest.approx(2)
    assert line.start == pytest.approx(1)
    assert line.largest_deviation == pytest.approx(0, abs=1e-9)
    # 0, 1, 0, 1 have the line 0.2 + 0.2 x
    bent = long_list.straight_line([0, 1, 2, 3], [10, 11, 10, 11])
    assert bent.largest_deviation == pytest.approx(0.6 / 10.4)


def test_burst_ends():
    """Three windows of texts: 2, 4 and 2 of them, and a short break within the second."""
    assert long_list.burst_ends([1.0, 1.01, 3.0, 3.01, 3.1, 3.11, 5.0, 5.01]) == [2, 6, 8]


def synthetic(runs, n, spread, seed):
    """Two texts of expectations 1 and 10, errors of ``spread``/sqrt(n) times that in every token."""
    random = np.random.default_rng(seed)
    return equal_error.Runs(
        n, [size * (1 + spread / math.sqrt(n) * random.standard_normal((runs, 2, 500))) for size in (1.0, 10.0)]
    )


def test_error_of_known_variance():
    groups = [synthetic(40, 10, 1.0, 0), synthetic(40, 40, 1.0, 1)]
    means, own = equal_error.expectation(groups)
    # 2,000 samples in all: the mean's variance is 1/2000 of a sample's
    assert own[0] == pytest.approx(1 / 2000, rel=0.05)
    assert own[1] == pytest.approx(100 / 2000, rel=0.05)
    for runs in groups:
        errors = equal_error.square_errors(runs, means, own)
        assert errors == pytest.approx([1 / runs.n, 1 / runs.n], rel=0.05)


def test_steady_runs_count_more():
    """Runs of a hundredth of the variance: the others hardly matter, however many they are."""
    means, own = equal_error.expectation([synthetic(4, 10, 0.1, 0), synthetic(40, 10, 1.0, 1)])
    assert own[0] == pytest.approx(1 / (4000 + 400), rel=0.1)
    assert float(((means[0] - 1) ** 2).mean()) == pytest.approx(own[0], rel=0.15)


def test_error_is_not_stated_where_the_expectation_is_unknown():
    wild = synthetic(5, 1, 30.0, 0)
    means, own = equal_error.expectation([wild])
    assert all(map(math.isnan, equal_error.square_errors(wild, means, own)))


def test_samples_for_ten_percent():
    record = measured_errors({"10": 0.2, "40": 0.05})
    assert record["samples"] == pytest.approx(20)
    beyond = measured_errors({"10": 0.4, "40": 0.2})
    assert beyond["samples"] == pytest.approx(160)


def measured_errors(errors):
    return {"samples": equal_error.calls_for({int(n): [error**2] for n, error in errors.items()})}


def test_agreement_sees_another_expectation():
    ours, theirs = [synthetic(20, 10, 1.0, 0)], [synthetic(20, 10, 1.0, 1)]
    names = ("fastshap", "fastshap path_density=1", "captum noisy baselines", "shap")
    drawn = dict.fromkeys(names, ours) | {"fastshap abs_mean": ours, "interpreto": theirs}
    assert max(equal_error.agreement(drawn).values()) < 2
    shifted = [equal_error.Runs(10, [scores + 0.5 for scores in theirs[0].scores])]
    assert equal_error.agreement(drawn | {"interpreto": shifted})["fastshap abs_mean and interpreto"] > 4


def test_rounds_left_out():
    assert timing.summary([2.0, None, 4.0])["median"] == 3
    found = timing.ratios([2.0, 3.0, 9.0], [1.0, None, 3.0])
    assert found == {"median": 2.5, "min": 2.0, "max": 3.0}


# ------------------------------------------------------------------ resuming


def test_what_is_measured_is_not_measured_again(tmp_path):
    path, calls = tmp_path / "partial.json", []

    def run():
        calls.append(1)
        return {"seconds": 1.5}

    assert Store(path, "x").part("a/time", run) == {"seconds": 1.5}
    assert Store(path, "x").part("a/time", run) == {"seconds": 1.5}
    assert len(calls) == 1
    Store(path, "x", fresh=True).part("a/time", run)
    Store(path, "another stamp").part("a/time", run)
    assert len(calls) == 3
    assert json.loads(path.read_text())["parts"].keys() == {"a/time"}


def test_a_run_that_breaks_off_keeps_what_it_has(tmp_path):
    store = Store(tmp_path / "partial.json", "x")
    store.part("a/sweep", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        store.part("a/time", lambda: 1 / 0)
    assert Store(tmp_path / "partial.json", "x").parts.keys() == {"a/sweep"}


# ------------------------------------------------------------------ verdicts


def parts(ours, interpreto, floor=1.0):
    """What a workload's parts look like, made of seconds."""
    seconds = {"fastshap": ours, "interpreto": interpreto, "floor": floor, "captum by hand": ours}
    return {
        "time": {
            "ratios": {
                a: {b: dict.fromkeys(("median", "min", "max"), seconds[a] / seconds[b]) for b in seconds}
                for a in seconds
            }
        }
    }


def test_the_report_says_met_and_not_met():
    """By what has been reached since, where that is more than was aimed at."""
    lines = tables.target_table({"a": parts(0.85, 3.0), "b": parts(1.0, 1.1), "c": parts(1.0, 1.2)})
    verdict = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines[2:]}
    assert "| at most 1.12 | 0.9 | 0.85 | met |" in verdict["a", "fastshap / floor"]
    assert "| at most 1.06 | 0.9 | 1.00 | **not met** |" in verdict["b", "fastshap / floor"]
    assert "| 3.53 | met |" in verdict["a", "interpreto / fastshap"]
    assert "| at least 1 | 1.15 | 1.10 | **not met** |" in verdict["b", "interpreto / fastshap"]
    assert "| at least 1.3 |  | 1.20 | **not met** |" in verdict["c", "interpreto / fastshap"]
    assert "| – | not measured |" in verdict["d", "interpreto / fastshap"]


def methods(ours, theirs):
    def its(samples):
        return {"samples": samples, "seconds": samples, "seconds_per_sample": 1.0, "reference_error": 0.04}

    names = ("captum", "captum noisy baselines", "shap", "interpreto")
    return {name: its(theirs) for name in names} | {"fastshap": its(ours), "fastshap abs_mean": its(ours)}


def test_equal_error_is_stated_where_both_expectations_are_known():
    found = methods(10.0, 35.0)
    figure, signed = {"error": {"methods": found}}, verdicts.equal_error("signed")
    assert signed(figure) == 3.5
    found["shap"] |= {"seconds": 20.0, "reference_error": 0.06}
    assert signed(figure) == 3.5
    found["shap"]["reference_error"] = 0.05
    assert signed(figure) == 2
    found["fastshap"]["reference_error"] = 0.06
    assert signed(figure) is None
    lines = tables.target_table({"p": figure})
    assert "| – | not known |" in next(line for line in lines if "| p | seconds to equal error, signed" in line)
    del found["fastshap"]["seconds"]
    assert signed(figure) is None


def work(share, operators, targets=1):
    return {"backpropagated_over_needed": share, "operators_per_call": operators, "targets": targets}


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (0, {"a": {"work": {"fastshap": work(1.0, 4.0)}}}),
        (1, {"a": {"work": {"fastshap": work(1.2, 4.0)}}}),
        (1, {"a": {"work": {"fastshap": work(1.0, 5.5)}}}),
        (0, {"c": {"work": {"fastshap": work(1.0, 10.0, targets=6)}}}),
        (1, {"c": {"work": {"fastshap": work(1.0, 10.5, targets=6)}}}),
        (0, {"a": {"work": {"interpreto": work(2.0, 99.0)}}}),
        (0, {"e": {"list": {"padding_share": 0.09, "errors": 0}}}),
        (1, {"e": {"list": {"padding_share": 0.11, "errors": 0}}}),
        (1, {"e": {"list": {"padding_share": 0.01, "errors": 1}}}),
        (0, {"b": {"error": {"agreement": {"x and y": 3.0}, "methods": {}}}}),
        (1, {"b": {"error": {"agreement": {"x and y": 5.0}, "methods": {}}}}),
        (0, {"a": {"error": {"agreement": {}, "methods": methods(10.0, 21.0)}}}),
        (1, {"a": {"error": {"agreement": {}, "methods": methods(10.0, 19.0)}}}),
    ],
)
def test_what_makes_a_quick_run_fail(wrong, found):
    assert len(verdicts.failures(found)) == wrong


# ------------------------------------------------------------------ the command


def test_a_quick_run_of_the_list(tmp_path, capsys):
    assert main(["--quick", "--only", "e", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "No figures to quote" in text
    assert "480 short texts" in text
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["quick"] is True
    assert record["workloads"]["e"]["list"]["errors"] == 0
    assert {"cpu", "threads"} <= record["machine"].keys()
    assert {"torch", "interpreto", "captum", "shap"} <= record["versions"].keys()
    assert (tmp_path / "comparison.md").read_text().strip() == text.strip()


def test_pictures_are_the_same_each_time(tmp_path):
    """Of a workload measured as the command does it, with the least of everything."""
    few = {
        "sweep_texts": 2,
        "rounds": 1,
        "work_texts": 1,
        "error_texts": 1,
        "error_sizes": (2, 3),
        "error_independent": 3,
    }
    plan = dataclasses.replace(QUICK, error_runs=4, **{name: {"b": value} for name, value in few.items()})
    load = lambda name: dataclasses.replace(workloads.small(name).some(2), n=3)  # noqa: E731
    found = {"b": measure_workload("b", load, plan, Store(None, ""))}
    assert {"sweep", "time", "targets", "work", "memory", "error"} == found["b"].keys()
    record = {
        "workloads": found,
        "machine": machine(),
        "versions": versions(),
        "commit": "abc1234",
        "date": "2026-01-31",
    }
    first, second = tmp_path / "1", tmp_path / "2"
    for directory in (first, second):
        directory.mkdir()
        assert [path.suffix for path in pictures.draw(record, directory)] == [".svg", ".svg"]
    for name in ("comparison_time.svg", "comparison_error.svg"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert b"<path" in (first / name).read_bytes()
        assert b"commit abc1234, 2026-01-31" in (first / name).read_bytes()


def test_a_workload_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "a,z"])
    assert "no workload 'z'" in capsys.readouterr().err
