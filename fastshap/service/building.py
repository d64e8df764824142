"""What a service explains with, made from what a command line or a configuration says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from fastshap.explainer import GradientShap
from fastshap.settings import DEFAULTS
from fastshap.tasks.loading import load_pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """A model, and how it is explained.

    Attributes:
        model: a directory or hub id; None is the model in the package.
        task: its task's name, where the model leaves a choice.
        threads: of one model call on a CPU.
        with_delta: also measure the convergence delta, where there is one.
        settings: parameters of :class:`fastshap.GradientShap`.
    """

    model: str | None = None
    task: str | None = None
    threads: int = 1
    with_delta: bool = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def explainer(self) -> GradientShap:
        """Loads the model.

        Raises:
            FastshapError: it cannot be loaded or explained so.
        """
        # oneDNN keeps what it has made for each of the last 1,024 shapes, which is 100 MB and no time is saved by it here.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        torch.set_num_threads(self.threads)
        settings = {"batch_size": "auto"} | dict(self.settings)
        size = settings["batch_size"]
        settings["batch_size"] = int(size) if isinstance(size, str) and size.isdecimal() else size
        its = {**DEFAULTS, **settings}
        return GradientShap(
            *load_pair(self.model, self.task),
            task=self.task,
            return_convergence_delta=self.with_delta and its["reduction"] == "sum" and bool(its["input_x_gradient"]),
            **settings,
        )
