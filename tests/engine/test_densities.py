"""Path densities that are numbers, or learned: what is drawn, that nothing is biased, and that it stays a pure function."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import fastshap
from fastshap import sampling
from fastshap.cli import app
from fastshap.engine import learned
from fastshap.sampling import Samples, draw_all, draw_samples
from fastshap.settings import Settings
from helpers.checks import assert_equal
from helpers.texts import INPUTS, TARGETS, TEXT, company

NUMBERS = (4.0, 2.0, 1.0, 0.5, 3.0)


# Numbers on equal bins


@pytest.mark.parametrize("sampled", ["antithetic", "iid"])
@pytest.mark.parametrize("numbers", [(3, 2, 1), NUMBERS, (1, 100), np.linspace(0.1, 2, 1024)], ids=len)
def test_weights_keep_the_expectation(sampled, numbers):
    runs = [draw_samples(seed, [4, 9], 10, sampled, path_density=numbers) for seed in range(1000)]
    alphas, weights = (
        np.concatenate([getattr(run, name) for run in runs]).astype(np.float64) for name in ("alphas", "weights")
    )
    assert ((alphas > 0) & (alphas < 1)).all()
    for power in (0, 1, 2, 3):
        terms = weights * alphas**power
        assert abs(terms.mean() - 1 / (power + 1)) < 5 * terms.std() / len(alphas) ** 0.5 + 1e-7
    share = np.asarray(numbers, np.float64) / np.sum(numbers)
    inside = np.histogram(alphas, len(share), (0, 1))[0] / len(alphas)
    assert np.abs(inside - share).max() < 5 * np.sqrt(share.max() / len(alphas))


def test_positions_are_the_inverse_of_the_distribution_function():
    """The same random words as without a density: its distribution function leads back to them."""
    for sampled in ("antithetic", "iid"):
        plain, dense = (draw_samples(3, [4, 9], 50, sampled, path_density=which) for which in (None, NUMBERS))
        ends = np.concatenate([[0], np.cumsum(NUMBERS) / np.sum(NUMBERS)])
        back = np.interp(dense.alphas.astype(np.float64), np.linspace(0, 1, 6), ends)
        np.testing.assert_allclose(back, plain.alphas, atol=1e-6)
        own = np.array(NUMBERS)[(dense.alphas * 5).astype(int)]
        np.testing.assert_allclose(dense.weights, np.mean(NUMBERS) / own, rtol=1e-6)
        assert (dense.draws == plain.draws).all()
        assert dense.stream == plain.stream


def test_positions_stay_inside_at_the_ends():
    """The smallest and the largest uniform number, in bins as thin and as thick as they may be."""
    uniform = np.array([[2.0**-24, 1 - 2.0**-24]])
    for numbers in ([1, 999], [999, 1], [1000] * 1023 + [1]):
        alphas, weights = sampling.piecewise(uniform, np.array([numbers], float))
        alphas = np.minimum(alphas, sampling._BELOW_ONE).astype(np.float32)
        assert ((alphas > 0) & (alphas < 1)).all()
        assert np.isfinite(weights).all()


def test_equal_numbers_are_the_uniform_density():
    for bins in (2, 7, 32):
        dense, plain = (
            draw_samples(3, [4, 9], 50, "antithetic", path_density=(2.0,) * bins),
            draw_samples(3, [4, 9], 50, "antithetic"),
        )
        np.testing.assert_allclose(dense.alphas, plain.alphas, rtol=1e-6)
        np.testing.assert_allclose(dense.weights, 1, rtol=1e-6)


def test_each_text_may_have_a_density_of_its_own():
    texts, densities = [[1, 2], [3, 4, 5], [6]], np.random.default_rng(0).uniform(0.1, 2, (3, 32))
    together = draw_all(0, texts, 10, "antithetic", 2, densities)
    for text, density, samples in zip(texts, densities, together, strict=True):
        alone = draw_samples(0, text, 10, "antithetic", 2, tuple(density))
        assert np.array_equal(samples.alphas, alone.alphas)
        assert np.array_equal(samples.weights, alone.weights)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([3, 2, 1], (3.0, 2.0, 1.0)),
        ("3,2,1", (3.0, 2.0, 1.0)),
        ("0.5", 0.5),
        ("auto", "auto"),
        (np.array([1, 2]), (1.0, 2.0)),
        (torch.tensor([1.0, 2.0]), (1.0, 2.0)),
    ],
    ids=str,
)
def test_what_is_kept_and_written(given, kept):
    settings = Settings(path_density=given, rtol=0.1)
    assert settings.path_density == kept
    plain = json.loads(json.dumps(settings.to_plain()))
    assert plain["path_density"] == (list(kept) if isinstance(kept, tuple) else kept)
    assert Settings.from_plain(plain) == settings


def test_numbers_from_python_files_and_the_shell(bert_pair, tmp_path):
    from typer.testing import CliRunner

    (output,) = fastshap.GradientShap(*bert_pair, path_density=[3, 2, 1])(TEXT)
    assert output.path_density == output.settings.path_density == (3.0, 2.0, 1.0)
    assert not torch.equal(output.attributions, fastshap.GradientShap(*bert_pair)(TEXT)[0].attributions)
    again = fastshap.AttributionOutput.from_json(output.to_json())
    assert again.path_density == (3.0, 2.0, 1.0)
    assert fastshap.reproduce(again, *bert_pair).same
    fastshap.write_parquet([output], tmp_path / "one.parquet")
    assert next(fastshap.read_parquet(tmp_path / "one.parquet")).path_density == (3.0, 2.0, 1.0)
    for said, kept in (("3,2,1", [3, 2, 1]), ("0.5", 0.5)):
        done = CliRunner().invoke(app, ["explain", "fine", "--json", "--path-density", said, "--n-perturbations", "2"])
        assert json.loads(done.stdout)["settings"]["path_density"] == kept
    done = CliRunner().invoke(app, ["explain", "fine", "--path-density", "auto"])
    assert done.exit_code == 2
    assert "needs rtol" in done.output


# Learned from rounds

LEARNING = [
    {"rtol": 0.1},
    {"rtol": 0.2, "sampling": "iid"},
    {"rtol": 0.3, "n_perturbations": 7, "max_perturbations": 35, "return_convergence_delta": True},
]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        pytest.param(
            task, options, id=f"{task} {options}", marks=() if (task == "generation") == (i == 1) else pytest.mark.slow
        )
        for i, options in enumerate(LEARNING)
        for task in ("classification", "generation")
    ],
)
def test_auto_depends_on_seed_and_tokens_alone(default_pair, llama_pair, task, options):
    """Alone, in a batch, in batches of other sizes and padded on the left: the same."""
    pair, texts, targets = default_pair, [*company(3), TEXT], "positive"
    if task == "generation":
        pair, texts, targets = llama_pair, INPUTS, TARGETS
    options = {"path_density": "auto", "max_perturbations": 60} | options
    together = fastshap.GradientShap(*pair, 16, **options)(texts, targets)
    assert max(output.rounds for output in together) > 1
    plain = fastshap.GradientShap(*pair, 16, **options)(texts, targets, path_density=None)
    assert any(
        not torch.equal(one.attributions, other.attributions) for one, other in zip(together, plain, strict=True)
    )
    for batch_size in (1, 3, "auto"):
        assert_equal(fastshap.GradientShap(*pair, batch_size, **options)(texts, targets), together)
    for i, text in enumerate(texts):
        own = targets if task == "classification" else targets[i : i + 1]
        assert_equal(fastshap.GradientShap(*pair, 16, **options)([text], own), [together[i]])
    if task == "generation":
        explainer = fastshap.GradientShap(*pair, 16, **options)
        explainer(texts[0], targets[:1])
        explainer._layout = dataclasses.replace(explainer._layout, padding_side="left")
        assert_equal(explainer(texts, targets), together)


def test_auto_is_reproduced(default_pair):
    (output,) = fastshap.GradientShap(*default_pair, rtol=0.05, path_density="auto")(TEXT)
    assert output.rounds > 1
    assert output.path_density == "auto"
    read = fastshap.AttributionOutput.from_json(output.to_json())
    assert fastshap.reproduce(read, *default_pair).same


def test_auto_needs_rounds(bert_pair):
    with pytest.raises(fastshap.InvalidArgumentError, match=r"needs rtol.*fit_path_density"):
        fastshap.GradientShap(*bert_pair, path_density="auto")
    explainer = fastshap.GradientShap(*bert_pair, path_density="auto", rtol=0.3)
    with pytest.raises(fastshap.InvalidArgumentError, match="needs rtol"):
        explainer(TEXT, rtol=None, max_perturbations=None)
    fastshap.warm_up(explainer)
    assert explainer(TEXT)[0].path_density == "auto"


def test_small_rounds_stay_uniform_until_something_is_known(bert_pair):
    """One sample is no pair, and says nothing."""
    options = {"n_perturbations": 1, "rtol": 0.01, "max_perturbations": 8}
    one, other = (fastshap.GradientShap(*bert_pair, **options, path_density=which)(TEXT) for which in ("auto", None))
    assert torch.equal(one[0].attributions, other[0].attributions)


def of_seeds(pair, sampled, seeds, rounds, path_density):
    """(seeds, L) float64: token scores of so many rounds of six samples, whatever they come to."""
    never = {"rtol": 1e-9, "max_perturbations": 6 * rounds, "n_perturbations": 6}
    explainer = fastshap.GradientShap(*pair, 64, "all_tokens", sampling=sampled, path_density=path_density, **never)
    outputs = [explainer("not good at all", 1, seed=seed)[0] for seed in seeds]
    assert {output.rounds for output in outputs} == {rounds}
    return torch.cat([output.attributions for output in outputs]).double()


def worst(scores, expected, its_error):
    """The largest error of a mean over seeds, in standard errors."""
    error = torch.hypot(scores.std(0) / len(scores) ** 0.5, its_error)
    return float(((scores.mean(0) - expected).abs() / error).max())


SEEDS = 100  # as few as show a bias


@pytest.fixture(scope="module")
def long_run(default_pair):
    output = fastshap.GradientShap(*default_pair, 256, "all_tokens", n_perturbations=20_000, seed=-1)(
        "not good at all", 1
    )[0]
    return output.attributions[0].double(), output.standard_error[0].double()


@pytest.mark.parametrize("count", [SEEDS, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampled", ["antithetic", "iid"])
def test_auto_is_unbiased(default_pair, long_run, sampled, count):
    """Over seeds, the mean of a fixed number of rounds is that of a long uniform run."""
    scores = of_seeds(default_pair, sampled, range(count), 3, "auto")
    assert worst(scores, *long_run) < 4


def test_a_bias_would_be_seen(default_pair, long_run, monkeypatch):
    """The same test without the weights, and with a density that looks at the round that it is for."""
    place = sampling.piecewise
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "piecewise", lambda *given: (place(*given)[0], np.ones(given[0].shape)))
        assert worst(of_seeds(default_pair, "antithetic", range(SEEDS), 3, "auto"), *long_run) > 4


def test_numbers_are_unbiased(default_pair, long_run):
    for sampled in ("antithetic", "iid"):
        assert worst(of_seeds(default_pair, sampled, range(60), 2, NUMBERS), *long_run) < 4


def test_auto_is_denser_where_scores_vary(default_pair):
    """And so needs fewer rounds than uniform positions, where the noise decides; each weight is at most 10."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastshap.engine.rounds.draw_all", lambda *given: seen.append(draw_all(*given)[0]) or [seen[-1]])
        fastshap.GradientShap(*default_pair, 64, rtol=1e-9, max_perturbations=200, path_density="auto")(
            "not good at all", 1
        )
    assert len(seen) == 20
    assert (seen[0].weights == 1).all()
    assert seen[-1].weights.max() > 2 * seen[-1].weights.min()
    assert max(samples.weights.max() for samples in seen) <= 10
    early, late = ((samples.alphas < 0.25).mean() for samples in (seen[0], seen[-1]))
    assert late < early  # the gradients of the packaged model are small near the text


# The fit


def along(variance, alphas, rng):
    """(1, n, 8) scores of pairs whose means vary so."""
    half = rng.standard_normal((1, len(alphas) // 2, 8)).repeat(2, 1)
    return torch.from_numpy(half * np.sqrt(variance(alphas))[:, None])


@pytest.mark.parametrize("pairs", [True, False])
def test_a_known_density_is_found(pairs):
    """V is 100 times as large in the first half of the path: ten times the density there."""
    rng, seen = np.random.default_rng(0), learned.Learned(pairs)
    for density in (None, (1.0, 2.0), (9.0, 1.0)):
        samples = draw_samples(0, [1], 400, "antithetic", path_density=density)
        plain = along(lambda a: np.where(a < 0.5, 100, 1), samples.alphas, rng)
        scores = plain * torch.from_numpy(samples.weights)[:, None]
        seen.add(samples, learned.spreads(scores, samples, pairs).numpy())
    found = learned.density([seen.variance(np.ones((1, 8)))])
    assert found.mean() == pytest.approx(1)
    share = (np.array([10.0] * 16 + [1.0] * 16) / 5.5)[[*range(12), *range(20, 32)]]
    floor = learned._FLOOR
    np.testing.assert_allclose(found[[*range(12), *range(20, 32)]], (1 - floor) * share + floor, rtol=0.15)


def test_what_the_mean_does_along_the_path_is_no_variance():
    """Strata remove it. So for scores without noise there is nothing to gain, and the density stays near the uniform one."""
    samples = draw_samples(0, [1], 400, "antithetic")
    scores = torch.from_numpy(np.exp(-20 * np.square(samples.alphas.astype(float) - 0.3)))[None, :, None].expand(
        1, -1, 4
    )
    assert float(learned.spreads(scores, samples, True).square().mean()) < 0.01 * float(scores.square().sum(2).mean())


def test_each_target_counts_by_its_size():
    samples, rng = draw_samples(0, [1], 40, "antithetic"), np.random.default_rng(0)
    scores = along(lambda a: np.where(a < 0.5, 100, 1), samples.alphas, rng)
    large, small = learned.Learned(True), learned.Learned(True)
    both = torch.cat([scores, scores.flip(1)])
    large.add(samples, learned.spreads(both, samples, True).numpy())
    small.add(samples, learned.spreads(both * torch.tensor([1e-3, 1e3])[:, None, None], samples, True).numpy())
    one = large.variance(np.ones((2, 8)))
    np.testing.assert_allclose(small.variance(np.array([1e-3, 1e3])[:, None] * np.ones((2, 8))), one, rtol=1e-6)


@pytest.mark.parametrize("scores", [0.0, np.nan, np.inf])
def test_scores_that_say_nothing_leave_the_density_uniform(scores):
    samples = draw_samples(0, [1], 10, "antithetic")
    seen = learned.Learned(True)
    given = torch.full((1, 10, 3), scores)
    seen.add(samples, learned.spreads(given, samples, True).numpy())
    assert (learned.density([seen.variance(np.full((1, 3), scores, np.float32))]) == 1).all()


def test_many_samples_are_compared_in_blocks():
    samples = draw_samples(0, [1], 2 * learned._BLOCK + 90, "antithetic")
    scores = torch.randn(2, len(samples.alphas), 3, generator=torch.Generator().manual_seed(0))
    assert learned.spreads(scores, samples, True).shape == (2, learned._BLOCK + 45)


@pytest.mark.parametrize("sampled", ["antithetic", "iid"])
def test_a_small_change_of_scores_changes_the_density_a_little(sampled):
    """Nothing flips: rounding of float32 stays rounding."""
    samples = draw_samples(0, [1], 10, sampled)
    assert isinstance(samples, Samples)
    scores = torch.randn(1, 10, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for change in (0, 1e-6):
        seen = learned.Learned(sampled == "antithetic")
        seen.add(
            samples,
            learned.spreads(
                scores * (1 + change * torch.randn(scores.shape)), samples, sampled == "antithetic"
            ).numpy(),
        )
        found.append(learned.density([seen.variance(scores.mean(1).numpy())]))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_fit_path_density(bert_pair, default_pair, llama_pair):
    explainer = fastshap.GradientShap(*default_pair, "auto", rtol=0.3, path_density="auto")
    texts = company(4)
    found = fastshap.fit_path_density(explainer, texts)
    assert len(found) == learned.BINS
    assert all(isinstance(one, float) and one >= learned._FLOOR for one in found)
    assert sum(found) / len(found) == pytest.approx(1, abs=1e-3)
    assert found == fastshap.fit_path_density(explainer, texts, n_perturbations=200)
    assert found != fastshap.fit_path_density(explainer, texts[:2])
    assert explainer(texts[0], rtol=None, max_perturbations=None, path_density=found)[0].path_density == found
    assert len(
        fastshap.fit_path_density(
            fastshap.GradientShap(*llama_pair, inference_mode="softmax"), INPUTS, TARGETS, n_perturbations=20
        )
    ) == len(found)
    failing = fastshap.GradientShap(*bert_pair, on_error="record")
    assert len(fastshap.fit_path_density(failing, ["", "fine"], n_perturbations=20)) == len(found)
    with pytest.raises(fastshap.InvalidArgumentError, match="at least 20"):
        fastshap.fit_path_density(failing, ["fine"], n_perturbations=2)
    with pytest.raises(fastshap.InvalidTypeError, match="takes a GradientShap"):
        fastshap.fit_path_density("a model", ["fine"])
    with pytest.raises(fastshap.InvalidArgumentError, match="No text could be explained"):
        fastshap.fit_path_density(failing, ["", " "])
