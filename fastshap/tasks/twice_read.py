"""Encoders with a decoder that read one text twice: as it is in the encoder, and shifted by one token in the decoder.

transformers' classifiers of this kind make the decoder's ids of the text's own, and take no embeddings for both. Here both
readings come from the same embeddings z (L, D), so that a gradient with respect to z is the sum over both (docs/adr/0027). The
encoder runs by itself, and the model gets what it gave: nothing in the model is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import UnsupportedModelError
from fastshap.tasks.trial import near

_OWN = ("inputs_embeds", "input_ids", "attention_mask")
_NO_TOKEN = -1


def outputs_of(model: Any, inputs: Mapping[str, Any], start: int | None) -> Any:
    """What the model gives for a text's embeddings z (R, L, D), read twice.

    Args:
        inputs: inputs_embeds; input_ids (R, L), without which the last token is taken for the end of the text; attention_mask
            (R, L) where there is padding, on the right.
        start: the token that the decoder begins with. None: the text's last token goes before its first.
    """
    z, mask = inputs["inputs_embeds"], inputs.get("attention_mask")
    real = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if mask is None else mask.bool()
    if start is None:
        first = z.gather(1, _last(real)[..., None].expand(-1, -1, z.shape[2]))
    else:
        first = model.get_input_embeddings()(torch.full((len(z), 1), start, device=z.device)).detach().to(z.dtype)
    masked = {} if mask is None else {"attention_mask": mask}
    return model(
        input_ids=_ids(model.config, inputs.get("input_ids"), real),
        encoder_outputs=model.get_encoder()(inputs_embeds=z, **masked),
        decoder_inputs_embeds=torch.cat([first, z[:, :-1]], 1),
        use_cache=False,
        **masked,
        **{name: value for name, value in inputs.items() if name not in _OWN},
    )


def _ids(config: Any, ids: Tensor | None, real: Tensor) -> Tensor:
    """(R, L) for the head, which may look for the end of the text: it takes the last such token, and wants as many in each row.

    So each row keeps its last one alone. Nothing else is read of the ids.
    """
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else _NO_TOKEN
    other = int(end == 0)
    if ids is None:
        ids, ends = torch.full(real.shape, other, device=real.device), real
    else:
        ends = real & ids.eq(end)
    ids = ids.masked_fill(~real | ends, other)
    return ids.where(~ends, ids.scatter(1, _last(ends), end))


def _last(there: Tensor) -> Tensor:
    """(R, 1): the last column of each row that is ``there``."""
    return (there * torch.arange(there.shape[1], device=there.device)).amax(1, keepdim=True)


@torch.no_grad()
def start_of(model: Any, tokens: Sequence[int]) -> int | None:
    """The token that the model's decoder begins with, as :func:`outputs_of` takes it: found by running the model.

    Args:
        tokens: some that are not special.

    Raises:
        UnsupportedModelError: its decoder reads something else than the text, shifted by one token.
    """
    config = model.config
    named = getattr(config, "decoder_start_token_id", None)
    starts = [named, None] if isinstance(named, int) else [None]
    end = [config.eos_token_id] if isinstance(config.eos_token_id, int) else []
    last, *rest = [token for token in tokens if token not in (named, *end)][:3] or tokens[:1]
    ids = [*rest, *end, last]  # a text that ends with another token than it or the decoder may begin with
    table = model.get_input_embeddings()
    row = torch.tensor([ids], device=next(table.parameters()).device)
    given = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    right = _first_output(model(**given))
    for start in starts:
        if near(_first_output(outputs_of(model, {**given, "inputs_embeds": table(row)}, start)), right):
            return start
    raise UnsupportedModelError(
        f"{type(model).__name__} computes something else than if its encoder read the text's embeddings, and its decoder the "
        "same ones shifted by one token; models that read a text twice are explained if they do that."
    )


def _first_output(outputs: Any) -> Tensor:
    """Logits, start logits or hidden states."""
    found: Tensor = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0]
    return found
