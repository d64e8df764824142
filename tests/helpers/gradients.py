"""What a task's scores have to be: plain loops over the same samples, one text alone."""

import numpy as np
import torch

from fastshap.reference import normals
from fastshap.sampling import draw_samples

_FURTHER = ("attention_mask", "token_type_ids")


def _given(output):
    """The ids (L,), and what else the model gets (1, L)."""
    inputs = output.model_inputs_to_explain
    return inputs["input_ids"][0], {name: inputs[name] for name in _FURTHER if name in inputs}


def by_a_loop(model, output, score):
    """(L,) expected gradients of ``score``, which makes a number of the model's output for one row."""
    ids, given = _given(output)
    x = model.get_input_embeddings()(ids).detach()
    its = draw_samples(output.seed, ids.tolist(), output.settings.n_perturbations, "antithetic")
    streams, places = torch.tensor([its.stream] * len(ids)), torch.arange(len(ids))
    total = torch.zeros(len(ids))
    for alpha, draw, sign in zip(its.alphas, its.draws, its.signs, strict=True):
        b = output.noise_std * float(sign) * normals(streams, torch.full((len(ids),), int(draw)), places, x.shape[1])
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        (gradient,) = torch.autograd.grad(score(model(inputs_embeds=z[None], **given)), z)
        total += ((x - b) * gradient).sum(1) / len(its.alphas)
    return total


def by_captum(model, output, score, monkeypatch):
    """(L,) captum's GradientShap without noise at the same positions; ``score`` makes a number of each row, (R,)."""
    import captum.attr

    ids, given = _given(output)
    alphas = draw_samples(output.seed, ids.tolist(), output.settings.n_perturbations, "antithetic").alphas
    positions = 1 - alphas.astype(np.float64)  # captum weights the input by the position, where we weight the baseline

    def forward(x):
        return score(model(inputs_embeds=x, **{name: one.expand(len(x), -1) for name, one in given.items()}))

    x = model.get_input_embeddings()(ids[None]).detach()
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "uniform", lambda low, high, size: positions.copy())
        scores = captum.attr.GradientShap(forward).attribute(
            x, torch.zeros_like(x), n_samples=len(alphas), stdevs=0.0, target=None
        )
    return scores.sum(-1)[0]


def close(ours, theirs):
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
