"""What is kept of an output comes back: JSON, Parquet, tables; of every schema version; many in little memory."""

import itertools
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from jsonschema import Draft202012Validator

import fastshap
from fastshap.output.plain import SCHEMA_PATH
from fastshap.types import CustomMode, name_of_task
from helpers.checks import assert_identical

DATA = Path(__file__).parents[1] / "data"
TEXTS = ["A gorgeous, witty film, but the ending is dull.", "not good at all", "naïve 東京 🙂‍↔️ \u202ereversed\x07"]


@pytest.fixture(scope="module")
def outputs(default_pair, bert_pair, llama_pair):
    """Of every kind: classes, several targets, a generation, special tokens, errors, tensors as baselines, rounds."""
    width = bert_pair[0].config.hidden_size
    made = fastshap.GradientShap(*default_pair)(TEXTS)
    made += fastshap.GradientShap(*bert_pair, granularity="all_tokens", inference_mode="log_softmax")(TEXTS, "all")
    made += fastshap.GradientShap(*bert_pair, baseline=torch.linspace(-1, 1, width), n_perturbations=3)(TEXTS[0])
    made += fastshap.GradientShap(*bert_pair, rtol=0.3, path_density=2.0, seed=-(2**63))(TEXTS[1])
    options = {"granularity_aggregation_strategy": "signed_max", "reduction": "abs_mean", "sampling": "iid"}
    made += fastshap.GradientShap(*llama_pair, **options)("The film is", "not good. At all")
    made += fastshap.GradientShap(*llama_pair, return_convergence_delta=True)("The film", "is good")
    made += fastshap.GradientShap(*default_pair, on_error="record")(["", "fine", 7])
    return made


def test_json_comes_back_to_the_bit(outputs):
    schema = json.loads(SCHEMA_PATH.read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for output in outputs:
        text = output.to_json()
        assert "NaN" not in text
        assert "Infinity" not in text
        validator.validate(json.loads(text))
        assert_identical(fastshap.AttributionOutput.from_json(text), output)
        assert_identical(fastshap.AttributionOutput.from_dict(output.to_dict()), output)


def test_nan_and_infinities_are_portable(outputs):
    output = fastshap.AttributionOutput.from_dict(outputs[0].to_dict())
    output.standard_error[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    output.attributions[0, 0] = -0.0
    plain = json.loads(output.to_json(), parse_constant=pytest.fail)
    assert plain["standard_error"][0][:3] == ["Infinity", "-Infinity", None]
    Draft202012Validator(json.loads(SCHEMA_PATH.read_text())).validate(plain)
    back = fastshap.AttributionOutput.from_dict(plain)
    assert_identical(back, output)
    assert math.copysign(1, back.attributions[0, 0].item()) == -1


def test_files_of_every_schema_version_still_load():
    """Written once and never again: what the first line of the file holds is what must come out."""
    files = sorted(DATA.glob("outputs-*.jsonl"))
    assert [path.stem for path in files] == [f"outputs-{v + 1}" for v in range(len(files))]
    assert SCHEMA_PATH.stem == f"output-{len(files)}", "a schema version needs a file of its outputs in tests/data"
    for path in files:
        first, *others = fastshap.read_jsonl(path)
        assert first.elements[:3] == ["A", "gorgeous", ","]
        assert first.target_names == ["positive"]
        assert first.attributions[0, 1].item() == pytest.approx(1.14, abs=0.2)
        assert first.seed == 0
        tasks = {name_of_task(output.model_task) for output in others}
        assert tasks - {"score"} == {"classification", "generation"}
        assert any(output.error for output in others)


def test_a_function_as_inference_mode_comes_back_as_its_name(default_pair):
    def margin(logits):
        return logits - logits.mean(-1, keepdim=True)

    (output,) = fastshap.GradientShap(*default_pair, inference_mode=margin)("fine")
    back = fastshap.AttributionOutput.from_json(output.to_json())
    assert isinstance(back.inference_mode, CustomMode)
    assert json.loads(back.to_json()) == json.loads(output.to_json())
    with pytest.raises(fastshap.InvalidArgumentError, match="'margin' was a function"):
        fastshap.reproduce(back, *default_pair)
    assert fastshap.reproduce(back, *default_pair, inference_mode=margin).same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=99), "written by a later version"),
        (lambda data: data.pop("schema_version"), "this has None"),
        (lambda data: data.pop("elements"), "lacks 'elements'"),
        (lambda data: data.update(task="Poetry!"), "Poetry!"),
        (lambda data: data["attributions"][0].pop(), "does not read"),
        (lambda data: data["settings"].update(granularity="letter"), "letter"),
    ],
)
def test_what_is_no_output_says_so(outputs, change, message):
    data = json.loads(outputs[0].to_json())
    change(data)
    with pytest.raises(fastshap.InvalidArgumentError, match=message):
        fastshap.AttributionOutput.from_dict(data)


def test_what_is_no_json_says_so(tmp_path, outputs):
    with pytest.raises(fastshap.InvalidArgumentError, match="no JSON"):
        fastshap.AttributionOutput.from_json("{")
    path = tmp_path / "o.jsonl"
    path.write_text(outputs[0].to_json() + "\nnonsense\n")
    with pytest.raises(fastshap.InvalidArgumentError, match=r"o\.jsonl, line 2"):
        list(fastshap.read_jsonl(path))


def test_lines_of_json_come_back(outputs, tmp_path):
    path = tmp_path / "outputs.jsonl"
    assert fastshap.write_jsonl(iter(outputs), path) == len(outputs)
    for one, other in zip(fastshap.read_jsonl(path), outputs, strict=True):
        assert_identical(one, other)


def test_parquet_comes_back_and_other_tools_read_it(outputs, tmp_path):
    path = tmp_path / "outputs.parquet"
    assert fastshap.write_parquet(iter(outputs), path) == len(outputs)
    for one, other in zip(fastshap.read_parquet(path), outputs, strict=True):
        assert_identical(one, other)
    table = pyarrow.parquet.read_table(path)
    assert str(table.schema.field("attributions").type) == "list<element: float>"
    assert table.schema.names == fastshap.to_arrow(outputs).schema.names
    assert table.num_rows == len(outputs)
    frame = pd.read_parquet(path)
    for row, output in zip(frame.itertuples(), outputs, strict=True):
        shape = (len(row.target_names), len(row.elements))
        ours = output.attributions.numpy()
        assert np.array_equal(row.attributions.reshape(shape), ours, equal_nan=True)
        assert row.text == output.text
    assert frame.error.notna().sum() == 2


def test_a_table_that_is_no_output_says_so(tmp_path):
    path = tmp_path / "other.parquet"
    pd.DataFrame({"text": ["x"]}).to_parquet(path)
    with pytest.raises(fastshap.InvalidArgumentError, match="lacks the columns attributions"):
        list(fastshap.read_parquet(path))


def test_pandas(outputs):
    frame = outputs[3].to_pandas()  # three targets
    t, g = outputs[3].attributions.shape
    assert len(frame) == t * g
    wide = frame.assign(place=list(range(g)) * t).pivot(index="target", columns="place", values="attribution")
    assert np.array_equal(wide.loc[outputs[3].target_names].to_numpy(), outputs[3].attributions.numpy())
    word = outputs[0].to_pandas().iloc[1]
    assert TEXTS[0][word.start : word.end] == word.element == "gorgeous"
    assert outputs[-1].error
    assert len(outputs[-1].to_pandas()) == 0


def test_spans_and_tokens_of_elements(outputs):
    for output in outputs:
        assert len(output.elements) == len(output.element_spans) == len(output.element_tokens)
        for element, (start, end), member in zip(
            output.elements, output.element_spans, output.element_tokens, strict=True
        ):
            special = output.model_inputs_to_explain["special_tokens_mask"][0, member[0]]
            assert (start, end) == (0, 0) if special else output.text[start:end] in (element, "")
        if output.error is None and output.granularity is fastshap.Granularity.ALL_TOKENS:
            assert output.element_tokens == [[i] for i in range(len(output.elements))]


def test_a_file_that_breaks_off_leaves_the_old_one(outputs, tmp_path):
    def breaking():
        yield outputs[0]
        raise RuntimeError("power cut")

    writers = (fastshap.write_jsonl, fastshap.write_parquet, fastshap.write_html)
    for write, path in zip(writers, (tmp_path / "a", tmp_path / "b", tmp_path / "c"), strict=True):
        path.write_text("old")
        with pytest.raises(RuntimeError, match="power cut"):
            write(breaking(), path)
        assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("few", "many", "group"), [(150, 600, 100), pytest.param(2_000, 10_000, None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("write", [fastshap.write_jsonl, fastshap.write_parquet, fastshap.write_html])
def test_many_in_the_memory_of_few(write, few, many, group, outputs, tmp_path, monkeypatch):
    """``group``: rows of a Parquet file that are written together."""
    if group:
        monkeypatch.setattr("fastshap.output.parquet._ROWS", group)
    plain = outputs[0].to_dict()

    def peak(count):
        made = (fastshap.AttributionOutput.from_dict(plain) for _ in itertools.repeat(None, count))
        tracemalloc.start()
        try:
            assert write(made, tmp_path / "many") == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is imported and cached once
    assert peak(many) < 1.2 * peak(few) + (2**18 if group else 2**20)


def test_packages_that_are_missing_are_named(outputs, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    monkeypatch.setattr("importlib.import_module", missing)
    for call, how in (
        (outputs[0].to_pandas, r"pip install 'fastshap-text\[tables\]' \(in a clone: pip install -e '\.\[tables\]'\)"),
        (outputs[0].plot, r"fastshap-text\[plot\]"),
        (outputs[0].to_shap, "pip install shap"),
        (lambda: fastshap.to_arrow(outputs), r"fastshap-text\[tables\]"),
    ):
        with pytest.raises(fastshap.MissingPackageError, match=how) as caught:
            call()
        assert isinstance(caught.value, ImportError)


def test_files_of_the_first_version_hold_every_kind(tmp_path):
    """Written by the first version, as JSON and as Parquet: the same outputs, which become those of this version."""
    lines, rows = (
        list(fastshap.read_jsonl(DATA / "kinds-1.jsonl")),
        list(fastshap.read_parquet(DATA / "kinds-1.parquet")),
    )
    assert [output.to_json() for output in lines] == [output.to_json() for output in rows]
    tasks = {(output.model_task.value, output.granularity.value, output.error is None) for output in lines}
    assert len(tasks) == 5
    assert any(isinstance(output.baseline, torch.Tensor) for output in lines)
    assert any(isinstance(output.inference_mode, CustomMode) for output in lines)
    for output in lines:
        known = output.probability is not None
        assert output.predicted_label == (output.target_names[0] if known else None)
        assert (output.target_probabilities is None) != known
        assert json.loads(output.to_json())["schema_version"] == 3
    assert fastshap.write_parquet(lines, tmp_path / "again") == len(lines)
    again = fastshap.read_parquet(tmp_path / "again")
    assert [output.to_json() for output in again] == [output.to_json() for output in lines]


def test_what_a_classifier_predicts_is_kept(outputs, tmp_path):
    output = fastshap.AttributionOutput.from_dict(outputs[3].to_dict())  # three targets
    output.predicted_label, output.probability = "LABEL_2", 0.5
    output.target_probabilities = torch.tensor([0.2, 0.3, 0.5])
    assert_identical(fastshap.AttributionOutput.from_json(output.to_json()), output)
    fastshap.write_parquet([output], tmp_path / "one")
    (back,) = fastshap.read_parquet(tmp_path / "one")
    assert_identical(back, output)
