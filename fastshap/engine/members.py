"""The members of a set of baselines, on the devices where calls run."""

from __future__ import annotations

import torch
from torch import Tensor


class Members:
    """k members, each one embedding for all positions, or one for each position.

    Each device gets them once. Members of background texts are filled up where a text is longer.

    Args:
        embeddings: (k, D) or (k, L, D).
        filling: (D,), which goes on behind the L positions. None: texts have L tokens.
    """

    def __init__(self, embeddings: Tensor, filling: Tensor | None = None) -> None:
        self._embeddings = embeddings
        self._filling = filling
        self._at: dict[torch.device, Tensor] = {}

    def at(self, device: torch.device, positions: int) -> Tensor:
        """(k, D) or (k, positions or more, D) on a device, where nothing waits for it from the second time on."""
        found = self._at.get(device)
        if found is None or (self._filling is not None and found.shape[1] < positions):
            found = self._at[device] = self._filled(positions).to(device)
        return found

    def _filled(self, positions: int) -> Tensor:
        its, filling = self._embeddings, self._filling
        missing = 0 if filling is None else positions - its.shape[1]
        if filling is None or missing <= 0:
            return its
        room = 2 ** (positions - 1).bit_length()  # so that it is seldom done again
        return torch.cat([its, filling.expand(len(its), room - its.shape[1], -1)], 1)
