"""A score of the user's own: any function of a model's output that has a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.tasks.base import Predict, Prepared, Task
from fastshap.text.encode import Encoded


class ScoreTask(Task):
    """``score=callable``: whatever the model is, the callable makes t scores of each row (R, t) of its output."""

    name = "score"
    class_endings = ()
    explains = "models of any kind, with score=callable"
    takes_pairs = takes_words = takes_chats = True

    @classmethod
    def fits(cls, model: Any) -> bool:
        """The score chooses the task, not the model."""
        return False

    @classmethod
    def serves(cls, model: Any) -> bool:
        return True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.settings.score is None:
            raise InvalidArgumentError('task="score" needs score=, a callable (outputs, inputs) -> (R, t).')

    def found(self, what: Any, find: Callable[[], Any]) -> Any:
        """What hangs on the score is not remembered for explainers of another one."""
        return find() if what in ("embeddings", "layout") else super().found(what, find)

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(R, t)."""
        score: Any = self.settings.score
        given = inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]
        mask = torch.ones(given.shape[:2], dtype=torch.int64, device=given.device)  # where the model needs none
        scores, rows = score(self.outputs_of(model, inputs), {"attention_mask": mask, **inputs}), len(given)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != rows or not scores.is_floating_point():
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InvalidArgumentError(
                f"score must return a tensor (R, t), t scores for each of {rows} rows; it returned {shape}."
            )
        if torch.is_grad_enabled() and not scores.requires_grad:
            raise InvalidArgumentError(
                "score returned numbers without a gradient; it must be differentiable (no .detach(), .item(), argmax)."
            )
        return scores

    def scores(self, model: Any, call: Call) -> Tensor:
        scores = self.logits_of(model, self.given(call).inputs)
        return scores.to(call.targets.device).gather(1, call.targets)

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        if targets is not None:
            raise InvalidArgumentError("score= says what is explained; leave out targets.")
        return None

    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        def own(model: Any, call: Call) -> Tensor:
            return self.logits_of(model, self.given(call).inputs)

        found = iter(predict([one for one in tokenised if isinstance(one, Encoded)], own))
        return [self._prepared(one, next(found)) if isinstance(one, Encoded) else one for one in tokenised]

    def _prepared(self, encoded: Encoded, scores: Tensor | FastshapError) -> Prepared | FastshapError:
        if isinstance(scores, FastshapError):
            return scores
        name = str(getattr(self.settings.score, "__name__", "score")).replace("<lambda>", "score")
        names = [name] if len(scores) == 1 else [f"{name} {i}" for i in range(len(scores))]
        return Prepared(encoded, torch.arange(len(scores), device="cpu"), names)
