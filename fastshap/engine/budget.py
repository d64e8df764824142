"""How many rows a model call takes: what the user asked for, what runs fastest, and what fits into memory."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Tokens of one model call under batch_size="auto", padding included. Measured (docs/adr/0009).
_TOKENS = {"cpu": 2048}
_TOKENS_ON_A_GPU = 131_072
# Tokens from which a call rather ends than takes in padding or a part of a text. Measured, too.
_ENOUGH = {"cpu": 256}
_ENOUGH_ON_A_GPU = 65_536
# The rest is for what the backward pass needs beside what the forward pass kept.
_SHARE_OF_FREE_MEMORY = 0.5
_PROBE = 2  # rows of the call that shows how much memory a token takes


@dataclass
class Kept:
    """What one call of a model kept for its backward pass: bytes a token, of rows of so many tokens."""

    length: int = 0
    per_token: float = 0.0


class Budget:
    """The rows of each call; it learns from the first call, and from calls that did not fit.

    Args:
        batch_size: rows at most, or "auto".
        device: where the calls run. On a GPU "auto" fills the free memory, by what the first call keeps for its backward
            pass; texts come longest first, so later ones take no more a token. Explainers of one model share what they
            found (``kept``), so that only the first has a small first call.
    """

    def __init__(self, batch_size: int | str, device: torch.device) -> None:
        self.kept = Kept()
        self.batch_size = batch_size
        self._device = device
        self._fitting: int | None = None  # tokens, once a call did not fit
        self.worth = 0.0  # tokens of padding that cost less than one more call
        self.together = True  # scores of one small call may share a backward pass; False once a model could not
        self._tokens = _TOKENS.get(device.type, _TOKENS_ON_A_GPU)
        self.measured = batch_size != "auto" or free_memory(device) is None
        self.positions = self.padding = 0  # of all calls that ran
        self._counting = threading.Lock()

    def rows(self, length: int, backward: bool = True) -> int:
        """Rows of a call whose longest text has so many tokens; ``backward``: whether it keeps what a backward pass takes."""
        if isinstance(self.batch_size, int):
            rows = self.batch_size
        elif backward and not self.measured and not self._is_known(length):
            rows = _PROBE
        else:
            rows = max(_PROBE, self._tokens // length)
        if self._fitting is not None:
            rows = min(rows, max(1, self._fitting // length))
        # Pairs of samples share their noise, so an even number is kept where there is a choice.
        return rows if rows == 1 or isinstance(self.batch_size, int) else rows // 2 * 2

    def is_enough(self, rows: int, length: int) -> bool:
        """Whether a call of this size is better than a larger one with padding; never where the user said how many rows."""
        enough = _ENOUGH.get(self._device.type, _ENOUGH_ON_A_GPU)
        most = self._tokens if self._fitting is None else min(self._tokens, self._fitting)
        return self.batch_size == "auto" and rows * length >= min(enough, most // 2)

    def fits(self, rows: int, length: int) -> bool:
        """Whether no call of this size has failed; a single row is always tried."""
        return self._fitting is None or rows == 1 or rows * length <= self._fitting

    def ran(self, positions: int, tokens: int) -> None:
        """A call of so many positions ran, of which so many held tokens; the rest was padding."""
        with self._counting:
            self.positions += positions
            self.padding += positions - tokens

    def shrink(self, rows: int, length: int) -> None:
        """A call of this size did not fit."""
        fitting = max(1, rows // 2) * length
        self._fitting = fitting if self._fitting is None else min(self._fitting, fitting)

    @contextlib.contextmanager
    def watch(self, model: nn.Module, z: Tensor) -> Iterator[None]:
        """Around the first forward pass, of the points z (R, L, D): how much of the free memory a token takes."""
        free = None if self.measured else free_memory(self._device)
        if free is None:
            yield
            return
        held = [*itertools.chain(model.parameters(), model.buffers())]
        weights = {tensor.untyped_storage().data_ptr() for tensor in held}
        shapes = {shape for tensor in held for shape in (tuple(tensor.shape), tuple(tensor.shape)[::-1])}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            # Autocast keeps copies of weights; they do not grow with the rows.
            copied = not tensor.requires_grad and tuple(tensor.shape) in shapes
            if tensor.device.type == self._device.type and storage.data_ptr() not in weights and not copied:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        rows, length, _ = z.shape
        # Beside what is kept: z, and the gradients of two activations of its size.
        per_token = (sum(kept.values()) + 3 * z.nbytes) / (rows * length)
        if length >= self.kept.length:
            self.kept.length, self.kept.per_token = length, per_token
        self._bound(per_token, free)

    def _is_known(self, length: int) -> bool:
        """Whether another explainer found what tokens of such rows take; then this one is bound by it."""
        free = free_memory(self._device) if self.kept.length >= length else None
        if free is None:
            return False
        self._bound(self.kept.per_token, free)
        return True

    def _bound(self, per_token: float, free: int) -> None:
        self._tokens = max(1, min(self._tokens, int(_SHARE_OF_FREE_MEMORY * free / per_token)))
        self.measured = True


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had, those that PyTorch holds unused included; None where memory sets no bound."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
