"""Outputs in Parquet, one row each. The library's files and the parts of batch jobs have the same form.

Jobs add columns of their own (:mod:`fastshap.jobs.parts`), which readers of outputs ignore. The parts of earlier versions hold
less; readers take what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.output.disk import StrPath, replacing
from fastshap.output.output import AttributionOutput
from fastshap.output.plain import AT_ENDS, encodable, number
from fastshap.output.visible import printable
from fastshap.tasks import has_classes, task_of_class
from fastshap.types import name_of_task

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT = b"fastshap"  # key of the metadata of a job's part
# Statistics would hold the smallest and the largest text and settings, several times.
OPTIONS = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}

_ROWS = 1024  # of a row group
_READ = 64  # rows at a time
_LATER = {
    "predicted_label",
    "target_probabilities",
    "reliability",
    "segments",
    "target_weights",
    "output_value",
    "baseline_value",
}  # columns that older files lack
_JSON = ("settings", "provenance", "model_inputs")
_OF_EARLIER_JOBS = {"text_hash", "elements", "attributions", "targets", "target_names", "n_perturbations", "error"}


def columns_of_outputs() -> pa.Schema:
    """The schema of the columns that hold an output."""
    arrow = needed("pyarrow", "tables")
    strings, floats, longs = arrow.list_(arrow.string()), arrow.list_(arrow.float32()), arrow.list_(arrow.int64())
    return arrow.schema(
        [
            ("schema_version", arrow.int32()),
            ("task", arrow.string()),
            ("text", arrow.string()),
            ("elements", strings),
            ("element_spans", arrow.list_(longs)),
            ("element_tokens", arrow.list_(longs)),
            ("segments", longs),
            ("targets", longs),
            ("target_names", strings),
            ("target_weights", floats),
            ("attributions", floats),
            ("standard_error", floats),
            ("reliability", floats),
            ("degrees_of_freedom", arrow.int32()),
            ("unassigned", floats),
            ("convergence_delta", floats),
            ("output_value", floats),
            ("baseline_value", floats),
            ("predicted_label", arrow.string()),
            ("probability", arrow.float64()),
            ("target_probabilities", floats),
            ("error", arrow.string()),
            ("truncated", arrow.bool_()),
            ("converged", arrow.bool_()),
            ("n_perturbations", arrow.int64()),
            ("rounds", arrow.int64()),
            ("settings", arrow.string()),
            ("provenance", arrow.string()),
            ("model_inputs", arrow.string()),
        ]
    )


def to_arrow(outputs: Iterable[AttributionOutput]) -> pa.Table:
    """A table with a row for each output.

    ``attributions`` and ``standard_error`` are ``list<float>`` with the rows of (t, G) one after the other, and with NaN as it
    is. ``elements`` has G entries and ``target_names`` has t. ``settings``, ``provenance`` and ``model_inputs`` are JSON.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    arrow = needed("pyarrow", "tables")
    provenances: dict[int, str] = {}  # most outputs share one
    held = list(outputs)  # so that no two of them have the same address
    return arrow.Table.from_pylist([_row(output, provenances) for output in held], schema=columns_of_outputs())


def write_parquet(outputs: Iterable[AttributionOutput], path: StrPath) -> int:
    """Writes a row for each output, and returns their number. The columns are those of :func:`to_arrow`.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    parquet = needed("pyarrow.parquet", "tables")
    rest, count = iter(outputs), 0
    with replacing(path) as beside, parquet.ParquetWriter(beside, columns_of_outputs(), **OPTIONS) as writer:
        while group := list(islice(rest, _ROWS)):
            writer.write_table(to_arrow(group))
            count += len(group)
    return count


def read_parquet(path: StrPath) -> Iterator[AttributionOutput]:
    """The outputs of a file that ``write_parquet`` or a batch job wrote, one after the other.

    A part that a job of an earlier version wrote (manifest format 1 or 2) holds no texts, spans and model inputs.

    Raises:
        InvalidArgumentError: fastshap did not write the file, or it is damaged; the message names the row and the field.
        MissingPackageError: pyarrow is not installed.
    """
    return (output for _, output in rows_in(path, printable(os.fspath(path))))


def rows_in(
    file: Any, name: str, about: dict[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], AttributionOutput]]:
    """Each row of a file as a dictionary, and the output that it holds. Reads a few rows at a time.

    Args:
        file: what ``pyarrow.parquet.ParquetFile`` takes.
        name: the file's name, for messages.
        about: what is known of the job (``identity`` and ``versions``), for parts of earlier versions that do not say it.

    Raises:
        InvalidArgumentError: the file holds no outputs, or is damaged; the message names the row and the field.
    """
    arrow, parquet = needed("pyarrow", "tables"), needed("pyarrow.parquet", "tables")
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            names, metadata = set(opened.schema_arrow.names), opened.schema_arrow.metadata or {}
            earlier = None
            if missing := set(columns_of_outputs().names) - _LATER - names:
                earlier = _job_of(metadata.get(ABOUT), about) if names >= _OF_EARLIER_JOBS else None
                if earlier is None:
                    raise InvalidArgumentError(
                        f"{name} holds no outputs: it lacks the columns {', '.join(sorted(missing))}."
                    )
            batches = opened.iter_batches(batch_size=_READ)
            for count, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield row, _output_of(row, earlier, f"{name}, row {count}")
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # there is no such file, say
            raise
        raise InvalidArgumentError(f"{name} is no Parquet that can be read: {error}") from None


def _output_of(row: dict[str, Any], earlier: dict[str, Any] | None, place: str) -> AttributionOutput:
    try:
        return AttributionOutput.from_dict(_from_row(row)) if earlier is None else _from_earlier(row, earlier)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{place}: {error}") from None


def _row(output: AttributionOutput, provenances: dict[int, str]) -> dict[str, Any]:
    row = output.to_dict()
    settings = row["settings"]
    # What differs between texts has columns of its own, so that the settings are the same in every row.
    varying = {name: settings.pop(name) for name in ("n_perturbations", "rounds")}
    key = id(output.provenance)
    if key not in provenances:
        provenances[key] = _json(row["provenance"])
    texts = {
        "text": encodable(row["text"]),
        "target_names": [encodable(name) for name in row["target_names"]],
        "error": None if row["error"] is None else encodable(row["error"]),
        "settings": _json(settings),
        "provenance": provenances[key],
        "model_inputs": _json(row["model_inputs"]),
    }
    weights = output.target_weights
    numbers = {
        "target_weights": None if weights is None else weights.flatten().numpy(),
        "attributions": output.attributions.flatten().numpy(),
        "standard_error": output.standard_error.flatten().numpy(),
        "reliability": output.reliability.numpy(),
        "unassigned": output.unassigned.numpy(),
        **{name: None if (value := getattr(output, name)) is None else value.numpy() for name in AT_ENDS},
    }
    return row | varying | texts | numbers


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the form that ``from_dict`` takes."""
    plain = {name: _plain(value) for name, value in row.items()}
    for name in _JSON:
        try:
            plain[name] = json.loads(row[name])
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{name} is no JSON: {error}.") from None
    if isinstance(plain["settings"], dict):
        plain["settings"] |= {name: row[name] for name in ("n_perturbations", "rounds")}
    for name in ("attributions", "standard_error"):
        plain[name] = _matrix(name, plain[name], row["target_names"], row["elements"])
    if plain.get("target_weights") is not None:
        plain["target_weights"] = _matrix(
            "target_weights", plain["target_weights"], row["target_names"], row["targets"]
        )
    return plain


def _plain(value: Any) -> Any:
    """The value, with Parquet's NaN and infinities in JSON's form."""
    if isinstance(value, list):
        return [number(one) if isinstance(one, float) else one for one in value]
    return number(value) if isinstance(value, float) else value


def _matrix(name: str, values: Any, targets: Any, elements: Any) -> list[Any]:
    """(t, G) as lists, or (t, T) likewise."""
    if not all(isinstance(one, list) for one in (values, targets, elements)):
        raise InvalidArgumentError(f"{name}, target_names, targets and elements must be lists.")
    height, width = len(targets), len(elements)
    if len(values) != height * width:
        raise InvalidArgumentError(f"{name} must hold {height} x {width} entries; it holds {len(values)}.")
    return [values[t * width : (t + 1) * width] for t in range(height)]


# Parts of jobs of earlier versions: manifest formats 1 and 2


def _job_of(said: bytes | None, about: dict[str, Any] | None) -> dict[str, Any] | None:
    """An output without a text, in plain form, of the job that a part belongs to. None if the job is not known."""
    try:
        about = about if said is None else json.loads(said)
        if about is None:
            return None
        model = dict(about["identity"]["model"])
        settings = about["identity"]["settings"] | {"rounds": 1}
        configuration = model.get("configuration")
        written = "" if configuration is None else json.dumps(configuration, sort_keys=True, separators=(",", ":"))
        task = task_of_class(model["model_class"])
        versions = about.get("versions", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return {
        "schema_version": 2,
        "task": task,
        **dict.fromkeys(("text", "error"), ""),
        **dict.fromkeys(("predicted_label", "probability", "target_probabilities", "converged", "convergence_delta")),
        **{
            name: []
            for name in ("elements", "element_spans", "element_tokens", "targets", "target_names", "unassigned")
        },
        **{name: [] for name in ("attributions", "standard_error")},
        "degrees_of_freedom": 0,
        "truncated": False,
        "model_inputs": {},
        "settings": settings,
        "provenance": model
        | {"configuration": written, "device": "", "configuration_fingerprint": "", "versions": versions},
    }


def _from_earlier(row: dict[str, Any], job: dict[str, Any]) -> AttributionOutput:
    """The output in such a row. Its text, spans and model inputs are not known."""
    try:
        settings = job["settings"]
        samples = row["n_perturbations"] or settings["n_perturbations"]
        varying = {"n_perturbations": samples, "rounds": max(1, samples // settings["n_perturbations"])}
        said = {"error": row["error"] or "", "truncated": bool(row["truncated"]), "settings": settings | varying}
        output = AttributionOutput.from_dict(job | said)
        return output if row["error"] is not None else _with_scores(output, row)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"this is no row of a job ({type(error).__name__}: {error}).") from None


def _with_scores(output: AttributionOutput, row: dict[str, Any]) -> AttributionOutput:
    output.error = None
    output.elements, output.target_names = list(map(str, row["elements"])), list(map(str, row["target_names"]))
    for name in ("attributions", "standard_error"):
        scores = _matrix(name, row[name], output.target_names, output.elements)
        setattr(output, name, torch.tensor(scores, dtype=torch.float32, device="cpu"))
    output.targets = torch.tensor(row["targets"], dtype=torch.int64, device="cpu")
    output.unassigned = torch.full((len(output.target_names),), torch.nan, device="cpu")
    output.classes = output.targets if has_classes(name_of_task(output.model_task)) else None
    return output
