"""Linear models exactly, and scores that add up."""

import copy

import pytest
import torch
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

import fastshap
from fastshap.reference import normals
from fastshap.sampling import draw_samples


class LinearForSequenceClassification(PreTrainedModel):
    """logits = sum over tokens of x W."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, token_type_ids=None):
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return SequenceClassifierOutput(logits=self.classifier((x * attention_mask[..., None]).sum(1)))


@pytest.fixture(scope="module")
def linear_pair(default_pair):
    torch.manual_seed(0)
    tokenizer = default_pair[1]
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=20, num_labels=3, initializer_range=1.0)
    return LinearForSequenceClassification(config).eval(), tokenizer


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("sampling", ["antithetic", "iid"])
def test_linear_model(linear_pair, texts, n, sampling):
    model, tokenizer = linear_pair
    explainer = fastshap.GradientShap(
        model, tokenizer, granularity="all_tokens", n_perturbations=n, sampling=sampling, baseline=0.1, seed=4
    )
    for output in explainer(texts, torch.tensor([[0, 2]] * len(texts))):
        ids = output.model_inputs_to_explain["input_ids"][0]
        samples = draw_samples(4, ids.tolist(), n, sampling)
        noise = torch.zeros(len(ids), 20)
        for draw, sign in zip(samples.draws.tolist(), samples.signs.tolist(), strict=True):
            streams, draws = torch.tensor([samples.stream] * len(ids)), torch.full((len(ids),), draw)
            noise += sign * normals(streams, draws, torch.arange(len(ids)), 20) / n
        difference = model.embeddings(ids) - 0.1 - 0.1 * noise
        exact = (difference @ model.classifier.weight[[0, 2]].T).T
        error = (output.attributions - exact).abs().max() / exact.abs().max()
        assert error < 1e-5


@pytest.mark.parametrize(
    "runs",  # samples and seeds
    [((10, 24), (60, 6), (240, 2)), pytest.param(((10, 24), (60, 12), (360, 4)), marks=pytest.mark.slow)],
    ids=("some", "more"),
)
def test_completeness_residual_falls(default_pair, texts, runs):
    """|sum of scores - (F(x) - mean F(b))| falls as 1 / sqrt(n) or faster, over texts and seeds."""
    sizes = {}
    explainer = fastshap.GradientShap(*default_pair, batch_size="auto", return_convergence_delta=True)
    for n, seeds in runs:
        residuals = []
        for seed in range(seeds):
            outputs = explainer(texts, n_perturbations=n, seed=seed)
            residuals += [output.convergence_delta for output in outputs]
        sizes[n] = torch.cat(residuals).square().mean().sqrt().item()
    # 16 to 192 residuals a size: the ratios are known to about a fifth, or a sixth.
    few, more, most = sizes
    assert sizes[more] < sizes[few] / (more / few) ** 0.5 * 1.2
    assert sizes[most] < sizes[more] / (most / more) ** 0.5 * 1.3
    assert sizes[most] < sizes[few] / (most / few) ** 0.5 * 1.2


def test_delta_is_what_it_says(bert_pair):
    model, tokenizer = bert_pair
    explainer = fastshap.GradientShap(
        model, tokenizer, granularity="all_tokens", noise_std=0, n_perturbations=16, return_convergence_delta=True
    )
    (output,) = explainer("not good at all", torch.tensor([[0, 1]]))
    ids = output.model_inputs_to_explain["input_ids"]
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        difference = (model(inputs_embeds=x).logits - model(inputs_embeds=torch.zeros_like(x)).logits)[0, :2]
    torch.testing.assert_close(output.convergence_delta, output.attributions.sum(1) - difference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("granularity", list(fastshap.Granularity), ids=lambda g: g.name)
def test_sum_is_additive(bert_pair, llama_pair, texts, granularity):
    jobs = [
        (bert_pair, texts, 1),
        (llama_pair, ["Dr. Smith loved it. The ending"] * 2, ["is dull, unbelievably. So?", "ok"]),
    ]
    for pair, inputs, targets in jobs:
        total = fastshap.GradientShap(*pair, granularity="all_tokens", granularity_aggregation_strategy="sum")
        grouped = fastshap.GradientShap(*pair, granularity=granularity, granularity_aggregation_strategy="sum")
        for all_of_it, output in zip(total(inputs, targets), grouped(inputs, targets), strict=True):
            whole = all_of_it.attributions.nansum() + all_of_it.unassigned.sum()
            parts = output.attributions.nansum() + output.unassigned.sum()
            torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-5)


def test_held_special_tokens_score_nothing(bert_pair, texts):
    explainer = fastshap.GradientShap(*bert_pair, granularity="all_tokens", perturb_special_tokens=False)
    for output in explainer(texts):
        special = output.model_inputs_to_explain["special_tokens_mask"][0].bool()
        assert special.sum() == 2
        assert (output.attributions[:, special] == 0).all()
        assert (output.attributions[:, ~special] != 0).all()


def test_baselines(bert_pair):
    model, tokenizer = bert_pair
    text = "not good at all"
    explain = lambda baseline: fastshap.GradientShap(model, tokenizer, baseline=baseline)(text, 1)[0].attributions  # noqa: E731
    length = len(tokenizer(text)["input_ids"])
    number = explain(0.3)
    torch.testing.assert_close(explain(torch.full((36,), 0.3)), number)
    torch.testing.assert_close(explain(torch.full((length, 36), 0.3)), number)
    torch.testing.assert_close(explain(None), explain(0))
    # A constant is removed by BERT's first layer norm; a vector that varies is not.
    torch.testing.assert_close(explain(None), number)
    assert not torch.allclose(explain(torch.linspace(-1, 1, 36)), number, rtol=0.01)


def test_baseline_of_every_position(linear_pair):
    """A linear model tells which baseline was used: (L, D) position by position, next to a text of another length."""
    model, tokenizer = linear_pair
    ids = tokenizer("not good at all", return_tensors="pt")["input_ids"][0]
    baseline = torch.randn(len(ids), 20)
    explainer = fastshap.GradientShap(
        model, tokenizer, baseline=baseline, noise_std=0, granularity="all_tokens", on_error="record", batch_size=64
    )
    outputs = explainer(["a longer text than the other one", "not good at all"], 1)
    assert outputs[0].error is not None
    exact = (model.embeddings(ids) - baseline) @ model.classifier.weight[1]
    torch.testing.assert_close(outputs[1].attributions[0], exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(default_pair, texts, dtype):
    """Scores of a half-precision model lie near those of float32; the noise is the same."""
    model, tokenizer = copy.deepcopy(default_pair)
    wanted = fastshap.GradientShap(model, tokenizer)(texts, 1)
    ours = fastshap.GradientShap(model.to(dtype), tokenizer)(texts, 1)
    for one, right in zip(ours, wanted, strict=True):
        assert one.attributions.dtype == torch.float32
        assert (one.attributions - right.attributions).abs().max() < 0.1 * right.attributions.abs().max()
