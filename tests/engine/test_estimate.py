"""Standard errors, intervals, rounds and when they stop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from bench.models import Subject
from bench.studies.estimators import antithetic, at_positions, expectation, iid, pool
from bench.studies.intervals import STOPPED, TIED, OfOneText, coverage, stopped, summarised
from fastshap import GradientShap, GranularityAggregationStrategy, InvalidArgumentError
from fastshap.engine.estimate import (
    Running,
    degrees_of_freedom,
    error_between,
    selected_error,
    student_quantile,
    summaries,
)
from fastshap.reference import moments
from fastshap.text.groups import Grouping

TEXTS = ["not good at all", "A gorgeous, witty film, but the ending is dull.", "fine"]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 24, 63, 300, 301, 1000, 10**9])
def test_quantiles_against_scipy(freedom):
    for probability in (0.55, 0.9, 0.975, 0.995):
        expected = scipy.stats.t.ppf(probability, freedom)
        assert math.isclose(student_quantile(probability, freedom), expected, rel_tol=1e-9)


def test_errors_by_hand():
    """Four samples: pair means 1 and 4, so the variance of a pair is 9 / 2 and of the mean of two 9 / 4."""
    samples = torch.tensor([0.0, 2.0, 3.0, 5.0])[:, None]
    assert error_within(samples, "antithetic").item() == pytest.approx(1.5)
    assert error_within(samples, "iid").item() == pytest.approx(np.std([0, 2, 3, 5], ddof=1) / 2)
    # A fifth stands alone: it adds the variance of all five to that of the sum of four, (4 * 1.5)^2.
    odd = torch.tensor([0.0, 2.0, 3.0, 5.0, 4.0])[:, None]
    assert error_within(odd, "antithetic").item() == pytest.approx(math.sqrt(36 + np.var([0, 2, 3, 5, 4], ddof=1)) / 5)
    assert error_within(samples[:3], "iid").isnan().all()
    assert error_between(torch.tensor([[1.0], [3.0], [5.0], [7.0]])).item() == pytest.approx(
        np.std([1, 3, 5, 7], ddof=1) / 2
    )


def error_within(samples, sampling):
    """Of samples (..., n, G)."""
    _, error = moments(samples.reshape(-1, *samples.shape[-2:]), sampling == "antithetic")
    return error.view(*samples.shape[:-2], samples.shape[-1])


def test_degrees_of_freedom():
    assert [degrees_of_freedom(n, 1, "antithetic") for n in (1, 3, 4, 5, 10)] == [0, 0, 1, 1, 4]
    assert [degrees_of_freedom(n, 1, "iid") for n in (3, 4, 10)] == [0, 1, 7]
    assert [degrees_of_freedom(10, rounds, "antithetic") for rounds in (2, 3, 4, 9)] == [8, 12, 3, 8]


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        ("classification", "mean"),
        ("generation", "sum"),
        pytest.param("classification", "sum", marks=pytest.mark.slow),
        pytest.param("generation", "mean", marks=pytest.mark.slow),
    ],
)
def test_errors_of_groups_against_the_spread_of_many_runs(bert_pair, llama_pair, strategy, task):
    """Independent samples, so the estimate is unbiased: what the tokens of a group have in common has to be in it."""
    pair, targets = (bert_pair, 1) if task == "classification" else (llama_pair, "It is dull.")
    options = {"n_perturbations": 8, "sampling": "iid", "granularity": "sentence", "batch_size": 256}
    options |= {"granularity_aggregation_strategy": strategy, "noise_std": 0.3}
    explainer = GradientShap(*pair, **options)
    runs = [explainer("Nobody answered me.", targets, seed=seed)[0] for seed in range(150)]
    scores = torch.stack([run.attributions for run in runs])
    variances = torch.stack([run.standard_error for run in runs]).square().mean(0)
    assert runs[0].standard_error.shape == runs[0].attributions.shape
    seen = ~scores[0].isnan()
    assert torch.equal(seen, ~variances.isnan())
    assert ((variances.sqrt() / scores.std(0))[seen] - 1).abs().max() < 0.3


def order(strategy, *members):
    """The elements of a classifier's text, for an order strategy."""
    count = sum(map(len, members))
    encoded = SimpleNamespace(offsets=[(0, 0)] * count, special=[True] * count, parts=())
    encoded = type("Text", (SimpleNamespace,), {"__len__": lambda self: count})(**vars(encoded))
    return Grouping(
        encoded, "word", GranularityAggregationStrategy[strategy], given=(list(members), [""] * len(members))
    )


def test_first_and_last_carry_their_tokens_error(bert_pair, llama_pair):
    for pair, target in ((bert_pair, 1), (llama_pair, "unbelievably overproduced ending.")):
        text = "unbelievably overproduced film"
        options = {"n_perturbations": 12}
        (tokens,) = GradientShap(*pair, granularity="token", **options)(text, target)
        for strategy in ("first", "last"):
            (words,) = GradientShap(*pair, granularity_aggregation_strategy=strategy, **options)(text, target)
            seen = ~words.attributions.isnan()
            assert torch.equal(seen, ~words.standard_error.isnan())
            for score, error in zip(words.attributions[seen], words.standard_error[seen], strict=True):
                assert any(tokens.standard_error[i, j] == error for i, j in (tokens.attributions == score).nonzero())


def test_errors_of_what_is_selected_by_hand():
    """Two tokens that may be the right one: their intervals hold jointly (97.5 % each), and one may lie across zero."""
    normal = scipy.stats.norm
    jointly = normal.ppf(1 - 0.025 / 2) / normal.ppf(0.975)
    tokens, error = torch.tensor([[3.0, -2.9, 0.1]]), torch.tensor([[0.2, 0.3, 0.4]])
    once = scipy.stats.t.ppf(0.975, 9)

    def of(strategy, tokens=tokens, error=error):
        return selected_error(order(strategy, [0, 1, 2]), tokens, error, 9).item()

    assert of("MAX") == pytest.approx(0.2)  # no other is near
    assert of("MIN") == pytest.approx(0.3)
    assert of("SIGNED_MAX") == pytest.approx((3.0 + 2.9) / once + 0.3 * jointly)
    near = torch.tensor([[3.0, 2.9, 0.1]])
    assert of("MAX", near) == of("SIGNED_MAX", near) == pytest.approx(max(0.2 * jointly, 0.3 * jointly - 0.1 / once))
    assert of("SIGNED_MAX", -near) == of("MIN", -near) == of("MAX", near)
    clear = torch.tensor([[3.0, -1.0, 0.1]])
    assert of("SIGNED_MAX", clear) == pytest.approx(0.2)
    assert math.isnan(selected_error(order("MAX", [0, 1, 2]), tokens, error, 0).item())


def test_errors_of_what_is_selected_go_to_their_own_element_and_target(llama_pair):
    """Each element's is that of its own block of token scores: the target's tokens times its own."""
    for strategy in ("max", "min", "signed_max"):
        explainer = OfOneText(*llama_pair, 64, "word", strategy, n_perturbations=12)
        grouping, scores = explainer.of("unbelievably overproduced film", "witty ending.", 1)
        (summary,) = summarised(grouping, scores, "antithetic")
        found = selected_error(grouping, summary.tokens, summary.error, 5)
        assert found.isnan().sum() == grouping.reduce(summary.tokens).isnan().sum() > 0
        for t, rows in enumerate(grouping._target_members):
            for g in (~found[t].isnan()).nonzero().flatten().tolist():
                block = [one[rows][:, grouping.members[g]].reshape(1, -1) for one in (summary.tokens, summary.error)]
                alone = selected_error(order(strategy.upper(), list(range(block[0].shape[1]))), *block, 5)
                assert alone.item() == pytest.approx(found[t, g].item())


@pytest.mark.parametrize("rounds", [4, 10])
@pytest.mark.parametrize("strategy", ["MAX", "SIGNED_MAX"])
def test_intervals_of_what_is_selected_hold_the_truth(strategy, rounds):
    """Ten tokens that tie, and two of opposite sign; the selected token's own error holds it in 81 % or 60 %."""
    truth = torch.tensor([3.0] * 10 if strategy == "MAX" else [3.0, -2.9999, 0.0])
    grouping = order(strategy, list(range(len(truth))))
    draw = torch.Generator().manual_seed(0)
    quantile, held = student_quantile(0.975, rounds - 1), 0
    for _ in range(400):
        samples = truth + torch.randn(rounds, 1, len(truth), generator=draw)
        tokens, error = samples.mean(0), error_between(samples)
        half = quantile * selected_error(grouping, tokens, error, rounds - 1)
        held += bool((grouping.reduce(tokens) - 3).abs() <= half)
    assert held >= 372


def test_too_few_samples_have_no_error(bert_pair):
    for n in (1, 2, 3):
        (output,) = GradientShap(*bert_pair, n_perturbations=n)("not good", 1)
        assert output.standard_error.isnan().all()
        assert output.degrees_of_freedom == 0
        assert all(end.isnan().all() for end in output.interval())


def test_intervals(bert_pair):
    (output,) = GradientShap(*bert_pair)("not good", 1)
    low, high = output.interval(0.9)
    half = scipy.stats.t.ppf(0.95, 4) * output.standard_error
    torch.testing.assert_close(high - output.attributions, half)
    torch.testing.assert_close(output.attributions - low, half)
    for bad in (0, 1, 2.0):
        with pytest.raises(InvalidArgumentError, match="confidence"):
            output.interval(bad)


def test_rounds_are_independent_and_averaged(bert_pair, monkeypatch):
    """Five rounds: the mean of five runs whose draws differ by the round alone, and the spread between them."""
    options = {"n_perturbations": 6, "granularity_aggregation_strategy": "sum"}
    (together,) = GradientShap(*bert_pair, rtol=1e-9, max_perturbations=30, **options)("not good at all", 1)
    assert (together.rounds, together.n_perturbations, together.converged) == (5, 30, False)
    from fastshap.sampling import draw_all

    rounds = []
    for k in range(5):
        monkeypatch.setattr("fastshap.engine.rounds.draw_all", lambda *a, k=k: draw_all(*a[:4], k))
        rounds.append(GradientShap(*bert_pair, **options)("not good at all", 1)[0].attributions)
    rounds = torch.stack(rounds)
    torch.testing.assert_close(together.attributions, rounds.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.standard_error, rounds.std(0) / 5**0.5, atol=1e-5, rtol=1e-4)
    assert together.degrees_of_freedom == 4
    assert not torch.allclose(rounds[0], rounds[1])


def test_rounds_stop_when_all_errors_are_small(default_pair):
    explainer = GradientShap(*default_pair, n_perturbations=8, rtol=0.1, batch_size="auto")
    outputs = explainer(TEXTS, "all")
    for output in outputs:
        assert output.converged
        assert output.n_perturbations == 8 * output.rounds
        bound = 0.1 * output.attributions.abs().amax(1, keepdim=True)
        assert (output.standard_error <= bound).all()
    assert len({output.rounds for output in outputs}) > 1


def test_no_error_of_few_degrees_of_freedom_is_taken_for_small(default_pair):
    """Pairs that lie close together by chance would end the rounds, and shift the scores."""
    for sampling, n, rounds in (("antithetic", 4, 4), ("antithetic", 5, 4), ("antithetic", 10, 2), ("iid", 5, 4)):
        explainer = GradientShap(*default_pair, n_perturbations=n, sampling=sampling, rtol=100)
        assert explainer("not good at all", 1)[0].rounds == rounds
    few = GradientShap(*default_pair, n_perturbations=5, rtol=100, max_perturbations=15)("not good at all", 1)[0]
    assert (few.rounds, few.converged) == (3, False)
    assert GradientShap(*default_pair, n_perturbations=20, rtol=100)("not good at all", 1)[0].rounds == 1


def test_opposite_signs_that_tie_do_not_converge(default_pair):
    options = {"granularity": "sentence", "rtol": 0.2, "n_perturbations": 20, "max_perturbations": 400}
    for strategy, converges in (("signed_max", False), ("max", True), ("min", True)):
        (output,) = GradientShap(*default_pair, granularity_aggregation_strategy=strategy, **options)(TIED, 1)
        assert output.converged is converges
        low, high = output.interval()
        assert (low.item() < 0 < high.item()) is not converges


def test_stopping_shifts_scores_little():
    """Normal rounds about 1, stopped at 0.5: errors of one degree of freedom would make the mean 11 % too large."""
    draw = torch.Generator().manual_seed(0)
    grouping, means = order("MEAN", [0]), []
    for _ in range(200):
        running = Running(grouping, "antithetic")
        while running.rounds < 64:
            scores = 1 + torch.randn(1, 4, 1, generator=draw)
            running.add(4, summaries([running], [scores])[0].moments)
            if running.meets(0.5):
                break
        means.append(running.attributions.item())
    assert np.mean(means) < 1.05


def test_company_changes_nothing_under_rtol(default_pair):
    explainer = GradientShap(*default_pair, n_perturbations=8, rtol=0.05, batch_size="auto")
    texts = [f"{text} {i}" for text in TEXTS for i in range(8)]
    for text, output in zip(texts, explainer(texts, 1), strict=True):
        (alone,) = explainer(text, 1)
        assert alone.n_perturbations == output.n_perturbations
        assert (alone.attributions - output.attributions).abs().max() <= 1e-5 * alone.attributions.abs().max()


def test_the_most_samples_are_kept_to(bert_pair, llama_pair):
    (output,) = GradientShap(*bert_pair, n_perturbations=7, rtol=1e-6, max_perturbations=20)("fine", 1)
    assert (output.n_perturbations, output.rounds, output.converged) == (14, 2, False)
    (output,) = GradientShap(*llama_pair, n_perturbations=4, rtol=1e-6, max_perturbations=4)("fine", "film")
    assert (output.n_perturbations, output.converged) == (4, False)
    assert GradientShap(*bert_pair, rtol=0.1).max_perturbations == 640
    assert GradientShap(*bert_pair)("fine", 1)[0].converged is None


def test_the_delta_counts_every_round(bert_pair):
    options = {"n_perturbations": 8, "rtol": 1e-9, "max_perturbations": 80, "granularity": "all_tokens"}
    (output,) = GradientShap(*bert_pair, return_convergence_delta=True, **options)("not good at all", 1)
    assert output.rounds == 10
    (few,) = GradientShap(*bert_pair, return_convergence_delta=True, n_perturbations=8)("not good at all", 1)
    assert output.convergence_delta.abs() < few.convergence_delta.abs()


def test_non_finite_scores_end_the_rounds(bert_pair):
    explainer = GradientShap(*bert_pair, rtol=0.05, inference_mode=lambda z: z / 0 * 0, on_error="record")
    assert "NonFiniteError" in explainer("fine")[0].error


def pooled_coverage(values, design, n, rounds, replicates, seed):
    """Shares of 95 % intervals that hold the expectation, and the ratio of the estimated to the true error."""
    rng = np.random.default_rng(seed)
    alphas, noise, side, _ = design(rng, replicates * rounds, n, values.shape[1])
    samples = torch.tensor(at_positions(values, alphas, noise, side)).unflatten(0, (replicates, rounds))  # (P, R, n, L)
    sampling = "iid" if design is iid else "antithetic"
    means = samples.mean(2)
    if rounds >= 4:
        errors = torch.stack([error_between(run) for run in means])
    else:
        errors = error_within(samples, sampling).square().sum(1).sqrt() / rounds
    truth = torch.tensor(expectation(values))
    off = (means.mean(1) - truth).abs()
    half = student_quantile(0.975, degrees_of_freedom(n, rounds, sampling)) * errors
    return float((off <= half).double().mean()), float((errors.square().mean(0) / off.square().mean(0)).sqrt().mean())


@pytest.mark.slow
@pytest.mark.parametrize("which", ["embedded", "minilm"])
def test_coverage(which):
    """One run: at least 90 %; four, eight and sixteen rounds: 93 to 97 %."""
    from bench.models import subject

    subjects: Subject = subject(which, 4)
    pools = [pool(subjects, i, 0.1, 24, 25, 1) for i in range(4)]
    for kind in ("signed", "abs_mean"):
        for design in (antithetic, iid):
            for n, rounds in ((4, 1), (10, 1), (20, 1), (50, 1), (10, 2), (10, 4), (10, 8), (10, 16)):
                found = [pooled_coverage(p[kind], design, n, rounds, 600, i) for i, p in enumerate(pools)]
                share, ratio = np.mean([c for c, _ in found]), np.mean([r for _, r in found])
                print(f"{which} {kind} {design.__name__} n={n} rounds={rounds}: {share:.3f}, error x {ratio:.2f}")
                assert share >= 0.9 if rounds < 4 else 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["signed_max", "max", "min"])
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_coverage_of_what_is_selected(default_pair, llama_pair, task, strategy):
    """A sentence whose strongest words tie with opposite signs, and words over a target's tokens: at least 90 % everywhere."""
    pair, granularity = (default_pair, "sentence") if task == "classification" else (llama_pair, "word")
    text = (TIED, 1) if task == "classification" else ("unbelievably overproduced film", "unbelievably witty ending.")
    for sampling in ("antithetic", "iid"):
        for n, most in ((10, 16), (20, 1), (50, 1)):
            explainer = OfOneText(*pair, 256, granularity, strategy, n_perturbations=n, sampling=sampling, seed=5)
            pool = explainer.of(*text, 500)
            for rounds in (1, 4, 8, 16)[: 4 if most > 1 else 1]:
                found = coverage(*pool, sampling, rounds, 500)
                print(f"{strategy} {task} {sampling} n={n} rounds={rounds}: {found}")
                assert found["least"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("sampling", "n", "rtol"), [("antithetic", 5, 0.1), ("iid", 5, 0.1), ("antithetic", 4, 0.5)])
def test_the_bias_of_stopping(default_pair, sampling, n, rtol):
    """On average below 0.5 % of the largest score; at rtol 0.1 no text above 1.5 %."""
    explainer = OfOneText(*default_pair, 256, n_perturbations=n, sampling=sampling, seed=11)
    found = [stopped(*explainer.of(text, 1, 1000), sampling, rtol, 1000)["bias, %"] for text in STOPPED]
    print(f"{sampling} n={n} rtol={rtol}: {found}")
    assert abs(np.mean(found)) < 0.5
    assert np.abs(found).max() < 1.5
