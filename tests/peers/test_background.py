"""captum's GradientShap and shap's GradientExplainer with several baselines have the expectation of a BaselineSet."""

import warnings

import captum.attr
import numpy as np
import pytest
import torch

import fastshap

with warnings.catch_warnings():  # what shap's plotting says at import is not ours
    warnings.simplefilter("ignore")
    import shap

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = "not good at all"
RUNS, SAMPLES = 36, 60
BACKGROUND = ["An ordinary film.", "ok", "It is what it is, and so on and on."]


@pytest.fixture(scope="module")
def members(bert_pair):
    """(k, L, D): background texts, cut and filled by hand."""
    model, tokenizer = bert_pair
    length = len(tokenizer(TEXT)["input_ids"])
    ids = [(tokenizer(text)["input_ids"] + [tokenizer.pad_token_id] * length)[:length] for text in BACKGROUND]
    return model.get_input_embeddings()(torch.tensor(ids)).detach()


class Embedded(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x).logits


def embedded(pair):
    return pair[0].get_input_embeddings()(torch.tensor([pair[1](TEXT)["input_ids"]])).detach()


def captum_runs(pair, members):
    """captum weights the baseline by 1 - a and would put noise on the input: there is none."""
    for seed in range(RUNS):
        np.random.seed(seed)
        torch.manual_seed(seed)
        explain = captum.attr.GradientShap(lambda x: pair[0](inputs_embeds=x).logits)
        yield explain.attribute(embedded(pair), members, n_samples=SAMPLES, stdevs=0.0, target=1).sum(-1)[0].detach()


def shap_runs(pair, members):
    explain = shap.GradientExplainer(Embedded(pair[0]), members)
    for seed in range(RUNS):
        values = explain.shap_values(embedded(pair), nsamples=SAMPLES, rseed=seed)
        yield torch.tensor(values[0, ..., 1].sum(-1))


def our_runs(pair, baseline, seeds):
    options = {"granularity": "all_tokens", "noise_std": 0.0, "n_perturbations": SAMPLES, "baseline": baseline}
    explain = fastshap.GradientShap(*pair, batch_size=SAMPLES, **options)
    for seed in seeds:
        yield explain(TEXT, 1, seed=seed)[0].attributions[0]


def apart(one, other):
    """The largest difference of two means over runs, in standard errors."""
    one, other = (torch.stack([*runs]).double() for runs in (one, other))
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    return float(((one.mean(0) - other.mean(0)).abs() / error).max())


PEERS = {"captum": captum_runs, "shap": shap_runs}
KINDS = {"texts": lambda members: BACKGROUND, "embeddings": lambda members: members}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peer", PEERS)
def test_one_expectation(bert_pair, members, peer, kind):
    baseline = fastshap.BaselineSet(KINDS[kind](members))
    assert apart(our_runs(bert_pair, baseline, range(RUNS)), PEERS[peer](bert_pair, members)) < 4


WRONG = {
    "a member is missing": lambda members: members[:2],
    "a member counts twice": lambda members: members[[0, 1, 2, 2]],
    "their mean": lambda members: members.mean(0, keepdim=True),
    "positions the other way round": lambda members: members.flip(1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_expectation_is_found(bert_pair, members, wrong):
    baseline = fastshap.BaselineSet(WRONG[wrong](members))
    assert apart(our_runs(bert_pair, baseline, range(RUNS)), captum_runs(bert_pair, members)) > 5
