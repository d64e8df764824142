"""Exact replay: interpreto's own random draws through our operators give its numbers."""

import copy

import interpreto
import numpy as np
import pytest
import torch

import fastshap
from fastshap.sampling import Samples

pytestmark = pytest.mark.filterwarnings("ignore")

STRATEGIES = list(fastshap.GranularityAggregationStrategy)
GRANULARITIES = list(interpreto.Granularity)
N = 6


@pytest.fixture
def replay(monkeypatch):
    """Makes fastshap draw what interpreto draws after torch.manual_seed(7): a text after the other, on the CPU."""

    def install(lengths, dim):
        torch.manual_seed(7)
        draws = [(torch.randn(N, length, dim), torch.rand(N, 1, 1).flatten().numpy()) for length in lengths]

        def draw_all(seed, texts, n, sampling, *others):
            assert [len(input_ids) for input_ids in texts] == lengths
            return [
                Samples((text, 0, 0), draws[text][1], np.arange(n), *np.ones((2, n), np.float32))
                for text in range(len(texts))
            ]

        def normals(streams, draw, positions, width):
            rows = zip(streams[:, 0].tolist(), draw.tolist(), positions.tolist(), strict=True)
            return torch.stack([draws[text][0][i, p] for text, i, p in rows]).clone()

        monkeypatch.setattr("fastshap.engine.rounds.draw_all", draw_all)
        monkeypatch.setattr("fastshap.reference.rows.normals", normals)

    return install


def compare(pair, texts, targets, replay, granularity, strategy, mode="LOGITS", times_input=True):
    model, tokenizer = pair
    theirs = interpreto.GradientShap(
        copy.deepcopy(model),
        copy.deepcopy(tokenizer),
        batch_size=N,
        n_perturbations=N,
        granularity=interpreto.Granularity[granularity.name],
        granularity_aggregation_strategy=interpreto.commons.granularity.GranularityAggregationStrategy[strategy.name],
        inference_mode=interpreto.attributions.InferenceModes[mode],
        input_x_gradient=times_input,
        device=torch.device("cpu"),
    )
    torch.manual_seed(7)
    expected = theirs(texts, targets)
    lengths = [output.model_inputs_to_explain["input_ids"].shape[1] for output in expected]
    replay(lengths, model.config.hidden_size)
    ours = fastshap.GradientShap(
        model,
        tokenizer,
        batch_size=5,
        n_perturbations=N,
        granularity=theirs.granularity,
        granularity_aggregation_strategy=theirs.granularity_aggregation_strategy,
        inference_mode=theirs.inference_wrapper.mode,
        input_x_gradient=times_input,
        baseline=1e-6,
        reduction="abs_mean",
        sampling="iid",
    )(texts, targets)
    assert len(ours) == len(expected)
    for mine, other in zip(ours, expected, strict=True):
        a, b = mine.attributions, other.attributions
        assert a.shape == b.shape
        assert torch.equal(a.isnan(), b.isnan())
        assert not b.isnan().all()
        torch.testing.assert_close(mine.targets.flatten(), other.targets.flatten())
        error = (a - b).abs().nan_to_num().max() / b.abs().nan_to_num().max()
        assert error < 1e-4, f"relative difference {error:.2e}"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
def test_classification(bert_pair, texts, replay, granularity, strategy):
    compare(bert_pair, texts, None, replay, granularity, strategy)


PROMPTS = ["The film was long. I liked it, though.", "Nobody answered."]
ENDINGS = ["Would you watch it again? Of course, gladly!", "The unbelievably dull ending, simply."]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
def test_generation(llama_pair, replay, granularity, strategy):
    compare(llama_pair, PROMPTS, ENDINGS, replay, granularity, strategy)


@pytest.mark.parametrize("times_input", [True, False])
@pytest.mark.parametrize("mode", ["LOGITS", "SOFTMAX", "LOG_SOFTMAX"])
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_modes_and_input_x_gradient(bert_pair, llama_pair, texts, replay, task, mode, times_input):
    word, signed = fastshap.Granularity.WORD, fastshap.GranularityAggregationStrategy.SIGNED_MAX
    if task == "classification":
        every = torch.tensor([[0, 2]] * len(texts))
        compare(bert_pair, texts, every, replay, word, signed, mode, times_input)
    else:
        compare(llama_pair, PROMPTS, ENDINGS, replay, word, signed, mode, times_input)
