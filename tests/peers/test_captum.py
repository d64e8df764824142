"""captum's GradientShap with noise 0 and the same path positions gives the same signed scores."""

import captum.attr
import numpy as np
import pytest
import torch

import fastshap
from fastshap.sampling import draw_samples

pytestmark = pytest.mark.filterwarnings("ignore")


def captum_scores(model, forward, ids, alphas, target, monkeypatch):
    """(L,): captum weights the input by the position where we weight the baseline."""
    embeddings = model.get_input_embeddings()(torch.tensor([ids])).detach()
    positions = 1 - alphas.astype(np.float64)
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: positions.copy())
    scores = captum.attr.GradientShap(forward).attribute(
        embeddings, torch.zeros_like(embeddings), n_samples=len(alphas), stdevs=0.0, target=target
    )
    monkeypatch.undo()
    return scores.sum(-1)[0]


@pytest.mark.parametrize("sampling", ["iid", "antithetic"])
def test_classification(bert_pair, texts, monkeypatch, sampling):
    model, tokenizer = bert_pair
    explainer = fastshap.GradientShap(
        model, tokenizer, granularity="all_tokens", noise_std=0, n_perturbations=12, sampling=sampling
    )
    for output in explainer(texts, 2):
        ids = output.model_inputs_to_explain["input_ids"][0].tolist()
        alphas = draw_samples(0, ids, 12, sampling).alphas
        theirs = captum_scores(model, lambda x: model(inputs_embeds=x).logits, ids, alphas, 2, monkeypatch)
        assert (output.attributions[0] - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_generation(llama_pair, monkeypatch):
    model, tokenizer = llama_pair
    explainer = fastshap.GradientShap(model, tokenizer, granularity="all_tokens", noise_std=0, n_perturbations=12)
    (output,) = explainer("Nobody answered.", "The ending is dull.")
    ids = output.model_inputs_to_explain["input_ids"][0].tolist()
    alphas = draw_samples(0, ids, 12, "antithetic").alphas
    first = len(ids) - len(output.targets)
    for k, token in enumerate(output.targets.tolist()):

        def forward(x, k=k):
            return model(inputs_embeds=x).logits[:, first + k - 1]

        theirs = captum_scores(model, forward, ids, alphas, token, monkeypatch)
        seen = slice(0, first + k)
        ours = output.attributions[k]
        assert ours[first + k :].isnan().all()
        assert (ours[seen] - theirs[seen]).abs().max() < 1e-4 * theirs.abs().max()
