"""The measures equal those of captum and interpreto."""

import copy
import warnings

import numpy as np
import pytest
import torch

import fastshap
from fastshap import metrics
from fastshap.reference import normals
from fastshap.sampling import draw_samples, text_key

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from captum.metrics import infidelity, sensitivity_max
    from interpreto.attributions.metrics import Deletion, Insertion

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [
    "A gorgeous, witty film, but the ending is dull.",
    "The battery died after two days and nobody answered the phone.",
    "not good at all",
]
N = 4


@pytest.mark.parametrize(("steps", "share"), [(100, 1.0), (4, 0.5)])
@pytest.mark.parametrize("targets", [None, "all"])
def test_insertion_and_deletion_of_interpreto(default_pair, steps, share, targets):
    model, tokenizer = copy.deepcopy(default_pair)
    outputs = fastshap.GradientShap(*default_pair, 50, n_perturbations=20)(TEXTS, targets)
    judge = metrics.Faithfulness(*default_pair, replacement="mask")
    for ours, theirs in ((metrics.Insertion, Insertion), (metrics.Deletion, Deletion)):
        peer = theirs(model, tokenizer, batch_size=50, n_perturbations=steps, max_percentage_perturbed=share)
        found = judge.evaluate(outputs, ours(steps, share))
        assert found.mean == pytest.approx(peer.evaluate([one.to_interpreto() for one in outputs])[0], abs=1e-4)
        each = [peer.evaluate([one.to_interpreto()])[0] for one in outputs]
        assert found.per_text == pytest.approx(each, abs=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_of_captum(default_pair, normalize):
    """Its features are a text's elements, which are there (1) or masked (0)."""
    model, tokenizer = default_pair
    explainer = fastshap.GradientShap(model, tokenizer, 50, granularity_aggregation_strategy="sum")
    outputs = explainer(TEXTS)
    measure = metrics.Infidelity(n_perturb_samples=20, normalize=normalize)
    found = metrics.Faithfulness(model, tokenizer, replacement="mask").evaluate(outputs, measure)
    for value, output in zip(found.per_text, outputs, strict=True):
        ids = output.model_inputs_to_explain["input_ids"][0]
        key = text_key(0, ids.tolist())
        gone = np.random.default_rng([0, *key]).random((20, len(output.elements))) < 0.5

        def logit(there, ids=ids, output=output):
            rows = ids.repeat(len(there), 1)
            for row, one in zip(rows, there, strict=True):
                for member, stays in zip(output.element_tokens, one.tolist(), strict=True):
                    if not stays:
                        row[member] = tokenizer.mask_token_id
            with torch.no_grad():
                return model(input_ids=rows).logits[:, int(output.targets[0])]

        def perturbed(there, gone=gone):
            change = torch.from_numpy(gone).float()
            return change, there - change

        ones = torch.ones(1, len(output.elements))
        right = infidelity(logit, perturbed, ones, output.attributions, n_perturb_samples=20, normalize=normalize)
        assert value == pytest.approx(float(right), rel=1e-4, abs=1e-6)


def test_sensitivity_max_of_captum(bert_pair):
    """Its explanation is a plain loop over the samples, at embeddings that it moves."""
    model, tokenizer = bert_pair
    explainer = fastshap.GradientShap(model, tokenizer, 50, "all_tokens", n_perturbations=N)
    found = metrics.sensitivity_max(explainer, TEXTS, 1, perturb_radius=0.05, n_perturb_samples=3)
    for value, output in zip(found.per_text, explainer(TEXTS, 1), strict=True):
        ids = output.model_inputs_to_explain["input_ids"][0]
        x = model.get_input_embeddings()(ids).detach()
        draws = np.random.default_rng([0, *text_key(0, ids.tolist())])
        moved = [torch.from_numpy(draws.uniform(-0.05, 0.05, tuple(x.shape)).astype(np.float32)) for _ in range(3)]

        def explained(inputs, ids=ids):
            rows = inputs[0] if isinstance(inputs, tuple) else inputs
            return (torch.stack([plain_loop(model, ids, one) for one in rows]),)

        def noisy(inputs, radius, moved=moved):
            return inputs + torch.stack(moved)

        right = sensitivity_max(explained, (x[None],), noisy, n_perturb_samples=3)
        assert value == pytest.approx(float(right), rel=1e-4)
        assert torch.allclose(plain_loop(model, ids, x), output.attributions[0], rtol=1e-3, atol=1e-5)


def plain_loop(model, ids, x):
    """(L,): a forward and a backward pass of each sample alone."""
    samples = draw_samples(0, ids.tolist(), N, "antithetic")
    streams, positions = torch.tensor([samples.stream] * len(ids)), torch.arange(len(ids))
    scores = torch.zeros(len(ids))
    for alpha, draw, sign in zip(samples.alphas, samples.draws, samples.signs, strict=True):
        b = 0.1 * float(sign) * normals(streams, torch.full((len(ids),), int(draw)), positions, x.shape[1])
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model(inputs_embeds=z[None]).logits[0, 1], z)
        scores += ((x - b) * gradient).sum(1) / N
    return scores
