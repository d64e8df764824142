"""Explanations of tables of texts: what runs in the workers of Ray Data and of Hugging Face's datasets.

A row is explained by itself: what is wrong with one is recorded in its own ``error``, and its neighbours are right.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastshap.engine.run import device_of
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    NoiseWarning,
    TruncationWarning,
)
from fastshap.explainer import GradientShap
from fastshap.extras import needed
from fastshap.jobs.recorded import MOST_FAILED, all_failed, count_failed, count_tried
from fastshap.jobs.texts import Text, checked_text, strings, text_hash, text_of
from fastshap.models.provenance import Provenance, provenance_of
from fastshap.output.output import AttributionOutput
from fastshap.output.plain import encodable
from fastshap.tasks.loading import load_pair
from fastshap.tasks.spelled import spelled_targets
from fastshap.types.targets import Contrast

if TYPE_CHECKING:
    import pyarrow as pa

    from fastshap.tasks import Task

SAID_BY_ROWS = (TruncationWarning, NoiseWarning)
_OURS = ("model", "tokenizer", "on_error", "return_convergence_delta")  # not for the caller of a batch


class BatchExplainer:
    """Explains a batch of rows: ``ray.data.Dataset.map_batches`` and ``datasets.Dataset.map`` take it as it is.

    The model is loaded where the first batch is explained, once in each process; the object itself is small and can be
    pickled. A row's numbers depend on its text alone, not on the batch, the worker, or a retry.

    Each batch comes back as an Arrow table: the columns to ``keep``, and

    - ``text_hash``: the first 32 hex digits of the SHA-256 of the text's UTF-8, or of the JSON list of a pair or of a text
      and its choices; null where the row holds no text;
    - ``elements``: G strings;
    - ``attributions``, ``standard_error``: ``list<float>``, row after row of (t, G);
    - ``reliability``: the share of each target's scores, by their squares, that a repeated run would find again;
    - ``targets``, ``target_names``: what was explained; there are t names;
    - ``n_perturbations``: samples used;
    - ``truncated``: whether the text was longer than the model takes, so that only a part was explained;
    - ``error``: null, or the kind of error and what it says; what was to be computed is null then.

    Args:
        model: a directory or hub id of a sequence classifier or causal language model; None is the model in the package.
        text_column: the column that holds the texts.
        pair_column: for a model that reads pairs of texts: the column of the second texts.
        choices_column: for a model that chooses among texts: the column of the lists of choices.
        targets: None (the predicted class, or what the model generates), a class number, a label or "all", a list of
            these, or the text that follows, for a language model; or a :class:`Contrast` of two. The same for every row.
        generation_kwargs: for ``model.generate``, where a language model is given no targets.
        keep: the batch's columns that come back too; None is all of them.
        settings: parameters of :class:`GradientShap`. ``batch_size`` and ``device`` are "auto" unless given.

    Raises:
        InvalidArgumentError: a setting that :class:`GradientShap` has not; where the first batch is explained, one that it
            does not take, or a model that cannot be loaded.

    Example:
        >>> explain = BatchExplainer(n_perturbations=4)
        >>> explain({"text": ["A gorgeous film.", ""]}).column("elements").to_pylist()
        [['A', 'gorgeous', 'film', '.'], None]
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        text_column: str = "text",
        pair_column: str | None = None,
        choices_column: str | None = None,
        targets: str | int | Contrast | Sequence[str | int] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        keep: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        self.model = None if model is None else os.fspath(model)
        if pair_column is not None and choices_column is not None:
            raise InvalidArgumentError("A text is one of a pair, or has choices; name pair_column or choices_column.")
        named = {"text_column": text_column, "pair_column": pair_column, "choices_column": choices_column}
        self.columns = {option: name for option, name in named.items() if name is not None}
        one = [targets] if isinstance(targets, str | int) else targets
        self.targets = one if one is None or isinstance(one, Contrast) else list(one)
        self.generation_kwargs = None if generation_kwargs is None else dict(generation_kwargs)
        self.keep = None if keep is None else tuple(keep)
        known = set(inspect.signature(GradientShap).parameters) - set(_OURS)
        if unknown := sorted(set(settings) - known):
            raise InvalidArgumentError(
                f"A batch has no setting {', '.join(unknown)}; there are targets, {', '.join(sorted(known))}. What is wrong "
                "with a row is always recorded in its column error."
            )
        self.settings: dict[str, Any] = {"batch_size": "auto", "device": "auto"} | settings
        self._explainer: GradientShap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_explainer": None}

    @property
    def explainer(self) -> GradientShap:
        """The explainer, with its model; loaded when first asked for."""
        if self._explainer is None:
            from transformers.utils import logging

            logging.disable_progress_bar()
            pair = load_pair(self.model, self.settings.get("task"))
            explainer = GradientShap(*pair, on_error="record", **self.settings)
            _refuse_unfit(self.columns, explainer.task)
            spelled_targets(explainer.task, self.targets, 1)
            if self.targets is None:
                explainer.task.check_options(self.generation_kwargs)
            elif self.generation_kwargs:
                raise InvalidArgumentError("generation_kwargs have no use beside targets; pass one of the two.")
            self._explainer = explainer
        return self._explainer

    @property
    def provenance(self) -> Provenance:
        """What the model, loaded here, is."""
        explainer = self.explainer
        return provenance_of(explainer.model, explainer.tokenizer, device_of(explainer.model))

    def __call__(self, batch: Any) -> pa.Table:
        """Explains a batch: a mapping of columns, an Arrow table, or a pandas data frame; or one row, as a mapping.

        Raises:
            InvalidArgumentError: there is no such column, or a column that is kept has the name of one of ours.
        """
        arrow = needed("pyarrow", "tables")
        names, columns = _columns(batch)
        for option, name in self.columns.items():
            if name not in names:
                raise InvalidArgumentError(
                    f"The batch has no column {name!r}; it has {', '.join(map(repr, names))}. Name the texts' as {option}."
                )
        parts = {option.removesuffix("_column"): columns(name) for option, name in self.columns.items()}
        one = parts["text"] is None or isinstance(parts["text"], str)
        kept = {} if self.keep == () else {name: columns(name) for name in (names if self.keep is None else self.keep)}
        if taken := sorted(set(kept) & set(columns_of_a_batch().names)):
            raise InvalidArgumentError(
                f"The batch has columns of its own that are named {', '.join(taken)}; leave them out with keep, or rename them."
            )
        if one:
            parts, kept = ({name: [value] for name, value in some.items()} for some in (parts, kept))
        rows = zip(*map(_values, parts.values()), strict=True)
        made = self.rows([text_of(dict(zip(parts, row, strict=True))) for row in rows])
        of_strings = {name for option, name in self.columns.items() if option != "choices_column"}
        for place, (name, column) in enumerate(kept.items()):
            made = made.add_column(place, name, _array(arrow, column, name, text=name in of_strings))
        return made

    def rows(self, texts: Sequence[Any]) -> pa.Table:
        """A table of our own columns for ``texts`` or pairs; an error in a text's place is recorded as the row's."""
        checked = [checked_text(text) for text in texts]
        return to_table(checked, self.outputs(checked))

    def outputs(self, texts: Sequence[Text | FastshapError]) -> list[AttributionOutput]:
        """One output a text. What a row brings down that is no error of fastshap's is recorded as a ModelFailedError.

        Raises:
            FastshapError: the model cannot be explained at all.
            JobError: the model failed on every one of ``MOST_FAILED`` texts or more, for instance on a broken device.
        """
        if not texts:
            return []
        try:
            outputs = self._together(texts)
        except FastshapError:
            raise
        except Exception:
            outputs = [self._alone(text) for text in texts]
        errors = [output.error for output in outputs]
        if count_failed(errors) == count_tried(errors) >= MOST_FAILED:
            raise all_failed(errors)
        return outputs

    def stream(self, texts: Sequence[Text | FastshapError]) -> Iterator[AttributionOutput]:
        """One output a text, as they come; what is no error of fastshap's ends it."""
        return map(self._output, texts, self.explainer.iter_explain(_strings(texts), **self._call(len(texts))))

    def failed_output(self, error: FastshapError, text: Text = "") -> AttributionOutput:
        """The output of a row that was not explained."""
        output = self.explainer._maker().failed(error, text)
        output.provenance = self.provenance
        return output

    def _together(self, texts: Sequence[Text | FastshapError]) -> list[AttributionOutput]:
        with warnings.catch_warnings():
            for category in SAID_BY_ROWS:
                warnings.simplefilter("ignore", category)
            explained = self.explainer.explain(_strings(texts), **self._call(len(texts)))
        return list(map(self._output, texts, explained))

    def _alone(self, text: Text | FastshapError) -> AttributionOutput:
        if isinstance(text, FastshapError):
            return self.failed_output(text)
        try:
            return self._together([text])[0]
        except FastshapError:
            raise
        except Exception as error:
            return self.failed_output(ModelFailedError.caused_by(error), text)

    def _output(self, text: Text | FastshapError, explained: AttributionOutput) -> AttributionOutput:
        return self.failed_output(text) if isinstance(text, FastshapError) else explained

    def _call(self, count: int) -> dict[str, Any]:
        """What ``count`` texts are explained with."""
        targets = spelled_targets(self.explainer.task, self.targets, count)
        return {"targets": targets, "generation_kwargs": self.generation_kwargs, "progress": False}


def _strings(texts: Sequence[Text | FastshapError]) -> list[Text]:
    """The texts, with an empty one for each error: which rows share a model call does not depend on what is wrong with some."""
    return ["" if isinstance(text, FastshapError) else text for text in texts]


def _refuse_unfit(columns: Mapping[str, str], task: Task) -> None:
    """Columns that do not go with the model."""
    if "pair_column" in columns and not task.takes_pairs:
        raise InvalidArgumentError(
            f"pair_column is for a model that reads pairs of texts; {task.model_name} reads one text."
        )
    if "choices_column" in columns and not task.takes_choices:
        raise InvalidArgumentError(
            f"choices_column is for a model that chooses among texts; {task.model_name} reads one text."
        )
    if task.takes_choices and "choices_column" not in columns:
        raise InvalidArgumentError(
            f"{task.model_name} chooses among texts: name the column of the lists of choices as choices_column."
        )


def columns_of_a_batch() -> pa.Schema:
    """Of a batch's own columns."""
    arrow = needed("pyarrow", "tables")
    strings, floats = arrow.list_(arrow.string()), arrow.list_(arrow.float32())
    return arrow.schema(
        [
            ("text_hash", arrow.string()),
            ("elements", strings),
            ("attributions", floats),
            ("standard_error", floats),
            ("reliability", floats),
            ("targets", arrow.list_(arrow.int64())),
            ("target_names", strings),
            ("n_perturbations", arrow.int64()),
            ("truncated", arrow.bool_()),
            ("error", arrow.string()),
        ]
    )


def to_table(texts: Sequence[Any], outputs: Sequence[AttributionOutput]) -> pa.Table:
    """A row for each output, with the hash of its text."""
    arrow = needed("pyarrow", "tables")
    rows = [_row(text, output) for text, output in zip(texts, outputs, strict=True)]
    return arrow.table(
        [arrow.array([row[i] for row in rows], field.type) for i, field in enumerate(columns_of_a_batch())],
        schema=columns_of_a_batch(),
    )


def _row(text: Any, output: AttributionOutput) -> tuple[Any, ...]:
    if output.error is not None:
        return text_hash(text), None, None, None, None, None, None, 0, output.truncated, encodable(output.error)
    return (
        text_hash(text),
        [encodable(element) for element in output.elements],
        output.attributions.flatten().numpy(),
        output.standard_error.flatten().numpy(),
        output.reliability.numpy(),
        output.targets.tolist(),
        [encodable(name) for name in output.target_names],
        output.n_perturbations,
        output.truncated,
        None,
    )


def _columns(batch: Any) -> tuple[list[str], Callable[[str], Any]]:
    """The names of a batch's columns, and what gives one by its name."""
    if isinstance(batch, Mapping):
        return list(batch), batch.__getitem__
    if hasattr(batch, "column_names") and hasattr(batch, "column"):
        return list(batch.column_names), batch.column
    if hasattr(batch, "columns") and hasattr(batch, "iloc"):
        return [str(name) for name in batch.columns], lambda name: batch[name]
    raise InvalidTypeError(
        "A batch is a mapping of columns, an Arrow table or a pandas data frame, as map_batches and map (with batched=True) "
        f"pass them; got {type(batch).__name__}."
    )


def _values(column: Any) -> list[Any]:
    """A column as Python values, with an error in the place of a string that is no UTF-8."""
    if hasattr(column, "to_pylist"):
        return strings(column)
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _array(arrow: Any, column: Any, name: str, text: bool) -> Any:
    """A kept column for Arrow; a text column keeps what is text."""
    if isinstance(column, arrow.Array | arrow.ChunkedArray):
        return (
            column if not text else arrow.array([v if isinstance(v, str) else None for v in strings(column)], "string")
        )
    try:
        return arrow.array(_values(column) if getattr(column, "ndim", 1) > 1 else column)
    except (arrow.ArrowException, UnicodeEncodeError, TypeError, ValueError) as error:
        if text:
            return arrow.array([encodable(v) if isinstance(v, str) else None for v in _values(column)], arrow.string())
        raise InvalidTypeError(
            f"Arrow has no type for the column {name!r} ({error}); leave it out with keep."
        ) from None
