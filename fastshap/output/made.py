"""Makes outputs from what was computed for a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fastshap.engine.estimate import Running
from fastshap.engine.rounds import Ends
from fastshap.errors import FastshapError
from fastshap.models.provenance import Provenance
from fastshap.output.inputs import model_inputs
from fastshap.output.output import AttributionOutput
from fastshap.output.record import later
from fastshap.settings import Settings
from fastshap.tasks import Prepared, Task
from fastshap.text.encode import Encoded
from fastshap.text.groups import Grouping, unassigned
from fastshap.text.inputs import spelled


def _looked_at(field: str, grouping: Grouping, encoded: Encoded, kept: dict[str, Tensor]) -> Any:
    """A field that is made when somebody looks at it."""
    if field == "model_inputs_to_explain":
        return model_inputs(encoded, kept)
    if field == "segments":
        return grouping.segments
    return grouping.elements if field == "elements" else grouping.spans


@dataclass(frozen=True)
class Maker:
    """Makes outputs of one task, by one explainer's settings."""

    task: Task
    settings: Settings
    provenance: Provenance

    @cached_property
    def _model_task(self) -> Any:
        return self.task.model_task

    def outputs(
        self,
        found: Sequence[tuple[Running, Ends | None] | FastshapError],
        prepared: Sequence[Prepared],
        groupings: Sequence[Grouping],
    ) -> list[AttributionOutput | FastshapError]:
        """The outputs of texts, of what was found for each, as :meth:`output` takes it."""
        good = [i for i, one in enumerate(found) if not isinstance(one, FastshapError)]
        tokens = [found[i][0].tokens for i in good]  # type: ignore[index]
        totals = iter(unassigned([groupings[i] for i in good], tokens))
        return [
            one if isinstance(one, FastshapError) else self.output(text, grouping, *one, next(totals))
            for one, text, grouping in zip(found, prepared, groupings, strict=True)
        ]

    def output(
        self, prepared: Prepared, grouping: Grouping, running: Running, ends: Ends | None, total: Tensor
    ) -> AttributionOutput:
        """The output of a text that was explained.

        Args:
            ends: those of its paths, if its convergence delta was asked for.
            total: (t,) what is unassigned.
        """
        kept = self.task.kept(prepared)
        at_ends = Ends(*(None,) * 3) if ends is None else Ends(*(grouping.reduce_targets(one).clone() for one in ends))  # type: ignore[arg-type]
        looked_at = later(_looked_at, grouping, prepared.encoded, kept)
        return AttributionOutput(
            attributions=running.attributions,
            elements=looked_at,
            model_inputs_to_explain=looked_at,
            targets=prepared.targets,
            model_task=self._model_task,
            classes=prepared.targets if self.task.targets_are_classes else None,
            settings=self.settings,
            target_names=grouping.names(prepared.target_names),
            standard_error=running.standard_error(),
            degrees_of_freedom=running.freedom,
            unassigned=total,
            convergence_delta=at_ends.delta,
            output_value=at_ends.value,
            baseline_value=at_ends.baseline,
            text=prepared.encoded.text,
            element_spans=looked_at,
            element_tokens=grouping.members,
            segments=looked_at,
            target_weights=prepared.scope.joined,
            predicted_label=prepared.prediction.label,
            probability=prepared.prediction.probability,
            target_probabilities=prepared.prediction.of_targets,
            truncated=prepared.encoded.truncated,
            converged=None if self.settings.rtol is None else running.meets(self.settings.rtol),
            rounds=running.rounds,
            provenance=self.provenance,
        )

    def failed(self, error: FastshapError, text: Any) -> AttributionOutput:
        """The output of a text that was not explained. ``text``: as the user gave it."""
        return AttributionOutput.failed(
            error,
            spelled(text),
            model_task=self.task.model_task,  # type: ignore[arg-type]  # or a registered task's name
            settings=self.settings,
            provenance=self.provenance,
        )
