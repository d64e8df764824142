"""Both samplings follow their definitions and have the right expectation."""

import itertools

import numpy as np
import pytest
import torch

import fastshap
from fastshap.engine import run as engine
from fastshap.engine.packing import Item
from fastshap.models.view import Desk
from fastshap.sampling import draw_samples


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 64])
def test_antithetic_strata_and_pairs(n):
    samples = draw_samples(5, [1, 2, 3], n, "antithetic")
    assert ((samples.alphas > 0) & (samples.alphas < 1)).all()
    assert (np.arange(n) / n <= samples.alphas + 1e-6).all()
    assert (samples.alphas <= (np.arange(n) + 1) / n + 1e-6).all()
    for k in range(n // 2):
        assert samples.draws[2 * k] == samples.draws[2 * k + 1] == k
        assert samples.signs[2 * k] == -samples.signs[2 * k + 1] == 1
    if n % 2:
        assert samples.draws[-1] == n // 2


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_iid_draws_are_all_different(n):
    samples = draw_samples(5, [1, 2, 3], n, "iid")
    assert len(set(samples.draws)) == n
    assert (samples.signs == 1).all()


@pytest.mark.parametrize("sampling", ["antithetic", "iid"])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_positions_are_uniform(sampling, n):
    alphas = np.concatenate([draw_samples(seed, [4, 9], n, sampling).alphas for seed in range(1000)]).astype(np.float64)
    for power in (1, 2, 3):
        error = abs((alphas**power).mean() - 1 / (power + 1))
        assert error < 5 * (alphas**power).std() / len(alphas) ** 0.5


@pytest.mark.parametrize("sampling", ["antithetic", "iid"])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_members_are_uniform_and_independent(sampling, count):
    """Of the stratum, of a pair's other sample, of the noise's sign; large sets too."""
    drawn = np.stack([draw_samples(seed, [4, 9], 10, sampling, baselines=count).members for seed in range(4000)])
    assert ((drawn >= 0) & (drawn < count)).all()
    for one in [*drawn.T, drawn.ravel()]:
        share = np.bincount(one, minlength=count) / len(one)
        assert (abs(share - 1 / count) < 5 * (1 / count / len(one)) ** 0.5).all()
    both = np.mean(drawn[:, ::2] == drawn[:, 1::2])
    assert abs(both - 1 / count) < 5 * (1 / count / drawn[:, ::2].size) ** 0.5
    large = draw_samples(3, [4, 9], 500, sampling, baselines=2**31 - 1).members
    assert 0 <= large.min() < 2**26
    assert 2**31 - 2**26 < large.max() < 2**31 - 1


@pytest.mark.parametrize("sampling", ["antithetic", "iid"])
@pytest.mark.parametrize("width", [0.05, 0.3, 1.0, 5.0])
def test_weights_keep_the_expectation_under_a_density(sampling, width):
    """Weighted moments of the positions are those of uniform ones; and the density is the one that is written down."""
    runs = [draw_samples(seed, [4, 9], 10, sampling, path_density=width) for seed in range(1000)]
    alphas, weights = (
        np.concatenate([getattr(run, name) for run in runs]).astype(np.float64) for name in ("alphas", "weights")
    )
    assert ((alphas > 0) & (alphas < 1)).all()
    for power in (0, 1, 2, 3):
        terms = weights * alphas**power
        assert abs(terms.mean() - 1 / (power + 1)) < 5 * terms.std() / len(alphas) ** 0.5
    expected = (1 + width) / width**2 * ((1 - alphas) ** 2 + (width * alphas) ** 2) ** 1.5
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_positions_depend_on_seed_tokens_round_and_n():
    base = draw_samples(0, [1, 2], 4, "iid").alphas
    assert not np.array_equal(base, draw_samples(1, [1, 2], 4, "iid").alphas)
    assert not np.array_equal(base, draw_samples(0, [1, 3], 4, "iid").alphas)
    assert not np.array_equal(base, draw_samples(0, [1, 2], 4, "iid", round_=1).alphas)
    assert not np.array_equal(base, draw_samples(0, [1, 2], 5, "iid").alphas[:4])
    assert np.array_equal(base, draw_samples(0, [1, 2], 4, "iid").alphas)


@pytest.mark.parametrize("count", [300, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reduction", ["sum", "abs_mean"])
def test_small_n_has_the_expectation_of_large_n(bert_pair, reduction, count):
    """The mean of many runs at n = 1, 2, 3 meets that of many i.i.d. samples, within five standard errors of both."""
    model, tokenizer = bert_pair
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=256, noise_std=0.3, reduction=reduction)
    ids = tokenizer("not good")["input_ids"]
    item = Item(ids, torch.tensor([1]), [False] * len(ids), {})

    def runs(sampling, n, times, density=None):
        samples = [draw_samples(seed, ids, n, sampling, path_density=density) for seed in range(times)]
        with Desk(model).at_work() as frozen:
            scored = engine.token_scores([frozen], [item] * times, samples, explainer.task.scores, explainer._execution)
            scores = [scores.mean(1) for _, scores in sorted(itertools.chain(*scored), key=lambda pair: pair[0])]
        return torch.cat(scores).double()  # (times, L)

    reference = runs("iid", 1, 5 * count)
    for n, path_density, sampling in itertools.product((1, 2, 3), (None, 0.3), ("antithetic", "iid")):
        scores = runs(sampling, n, count, path_density)
        error = scores.mean(0) - reference.mean(0)
        variance = scores.var(0) / len(scores) + reference.var(0) / len(reference)
        assert (error.abs() < 5 * variance.sqrt()).all(), (n, path_density, sampling)


def test_global_random_state_is_left_alone(bert_pair):
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fastshap.GradientShap(*bert_pair)(["not good at all", "fine"])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
