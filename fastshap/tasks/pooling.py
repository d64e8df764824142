"""One vector for a text from the hidden states of its tokens, as the model's own files say."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshap.errors import UnsupportedModelError

# What sentence-transformers writes beside a model's weights.
_MODULES = "modules.json"
_BEFORE_6 = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_HARMLESS = ("Transformer", "Pooling", "Normalize", "Dropout")


class Pooling(NamedTuple):
    """How a text's vector comes from the hidden states of its tokens."""

    kind: str  # mean, cls or lasttoken
    normalised: bool = False  # whether vectors have length 1

    def __call__(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(R, D) from hidden states (R, L, D) and the mask (R, L) of real tokens; None: all are."""
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        mask = mask.to(hidden.device)
        if self.kind == "mean":
            weights = mask[..., None].to(hidden.dtype)
            found = (hidden * weights).sum(1) / weights.sum(1)
        else:
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            at = mask.argmax(1) if self.kind == "cls" else last
            found = hidden[torch.arange(len(hidden), device=hidden.device), at]
        return torch.nn.functional.normalize(found, dim=-1) if self.normalised else found


def pooling_of(model: Any) -> Pooling:
    """The pooling in the files that the model was loaded from; without these the mean, of a decoder the last token.

    Raises:
        UnsupportedModelError: the files ask for what only sentence-transformers itself can do.
    """
    path = getattr(model.config, "_name_or_path", "")
    modules = [(str(one.get("type", "")).rsplit(".", 1)[-1], one.get("path")) for one in _read(path, _MODULES) or []]
    folder = next((folder for kind, folder in modules if kind == "Pooling"), "1_Pooling")
    given = _read(path, f"{folder}/config.json")
    if given is None:
        return Pooling("lasttoken" if _is_decoder(model.config) else "mean")
    modes = given.get("pooling_mode") or [mode for name, mode in _BEFORE_6.items() if given.get(name)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    others = [kind for kind, _ in modules if kind not in _HARMLESS]
    if len(modes) > 1 or modes[0] not in ("mean", "cls", "lasttoken") or others:
        what = " and ".join([*map(str, modes), *others])
        raise UnsupportedModelError(
            f"The files of this model make sentence embeddings by {what}, of which fastshap alone knows mean, cls and "
            "lasttoken. Load it with sentence_transformers, and pass the SentenceTransformer as the model."
        )
    return Pooling(modes[0], any(kind == "Normalize" for kind, _ in modules))


def _read(path: str, name: str) -> Any:
    """A JSON file beside the weights, also where they came from the hub's local cache; None if there is none."""
    from transformers.utils.hub import cached_file

    if not path:
        return None
    try:
        found = cached_file(path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if found is None:
            return None
        with open(found, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _is_decoder(config: Any) -> bool:
    """Whether such models are known for going on with a text, and not for filling in what is masked."""
    from transformers.models.auto import modeling_auto as known

    if getattr(config, "is_encoder_decoder", False):
        return False
    kind = getattr(config, "model_type", None)
    goes_on = kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return goes_on and kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
