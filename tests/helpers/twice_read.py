"""What an encoder with a decoder makes of embeddings that it reads twice, without fastshap: its look-ups are replaced."""

import contextlib

import torch

from fastshap.reference import normals
from fastshap.sampling import draw_samples


@contextlib.contextmanager
def reading(model, z, ids):
    """While it runs on ``ids`` (1, L), every look-up of tokens gives rows of z (L, D), or of the table for the decoder's start.

    The encoder looks up the ids, and the decoder the ids that the model itself made of these.
    """
    table = model.get_input_embeddings().weight
    made = []

    def looked_up(module, arguments, output):
        (own,) = arguments
        made.append(own)
        if len(made) == 1:
            assert own.equal(ids)
            return z[None]
        assert own[:, 1:].equal(ids[:, :-1])
        # mBART and PLBart, which have no token to start with, put the last token before the first.
        wraps = type(model).__name__.startswith(("MBart", "PLBart"))
        return torch.cat([z[-1:] if wraps else output[0, :1].detach(), z[:-1]])[None]

    tables = [one for one in model.modules() if isinstance(one, torch.nn.Embedding) and one.weight is table]
    handles = [one.register_forward_hook(looked_up) for one in tables]
    try:
        yield
        assert len(made) == 2
    finally:
        for handle in handles:
            handle.remove()


def by_a_loop(model, output, score):
    """(L,) expected gradients of a number that ``score`` makes of what the model gives, for one text alone.

    Args:
        score: gets a function that runs the model at some of the text's tokens, by default all.
    """
    ids = output.model_inputs_to_explain["input_ids"][0]
    x = model.get_input_embeddings()(ids).detach()
    its = draw_samples(output.seed, ids.tolist(), output.settings.n_perturbations, "antithetic")
    streams, places = torch.tensor([its.stream] * len(ids)), torch.arange(len(ids))
    total = torch.zeros(len(ids))
    for alpha, draw, sign in zip(its.alphas, its.draws, its.signs, strict=True):
        b = output.noise_std * float(sign) * normals(streams, torch.full((len(ids),), int(draw)), places, x.shape[1])
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()

        def run(some=slice(None), z=z):
            own = ids[some][None]
            with reading(model, z[some], own):
                return model(input_ids=own, attention_mask=torch.ones_like(own))

        (gradient,) = torch.autograd.grad(score(run), z)
        total += ((x - b) * gradient).sum(1) / len(its.alphas)
    return total
