"""GradientSHAP as a plain loop: each sample alone, a forward and a backward pass."""

import torch

from fastshap.reference import normals
from fastshap.sampling import draw_samples


def token_scores(model, ids, score, n, noise_std=0.1):
    """(L,) of a text's tokens, with a zero baseline and seed 0.

    Args:
        score: makes a number of a point (L, D).
    """
    ids = torch.as_tensor(ids)
    x = model.get_input_embeddings()(ids).detach()
    samples = draw_samples(0, ids.tolist(), n, "antithetic")
    streams, positions = torch.tensor([samples.stream] * len(ids)), torch.arange(len(ids))
    scores = torch.zeros(len(ids))
    for alpha, draw, sign in zip(samples.alphas, samples.draws, samples.signs, strict=True):
        b = noise_std * float(sign) * normals(streams, torch.full((len(ids),), int(draw)), positions, x.shape[1])
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        (gradient,) = torch.autograd.grad(score(z), z)
        scores += ((x - b) * gradient).sum(1) / n
    return scores


def apart(ours, right):
    """The largest difference, as a share of the largest score."""
    return float((ours - right).abs().max() / right.abs().max())
