"""Files are not believed: what does not fit is an error of ours that names the field, and what fits can be used."""

import io
import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

import fastshap
from fastshap.output.checked import check, compiled
from helpers.damage import MARKUP, mutated, scratched

DATA = Path(__file__).parents[1] / "data"
LINES = [
    line
    for name in ("outputs-1", "outputs-2", "kinds-1")
    for line in (DATA / f"{name}.jsonl").read_text().split("\n")
    if line
]


def changed(line=0, **changes):
    """A saved output with fields replaced; ``settings__seed`` is a field inside."""
    data = json.loads(LINES[line])
    for name, value in changes.items():
        inside, _, last = name.rpartition("__")
        (data[inside] if inside else data)[last] = value
    return data


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"settings__n_perturbations": MARKUP}, "settings.n_perturbations must be a whole number"),
        ({"settings__n_perturbations": True}, "settings.n_perturbations must be a whole number"),
        ({"settings__rounds": 0}, "settings.rounds must be at least 1"),
        ({"settings__seed": 2**63}, "settings.seed must be at most"),
        ({"settings__noise_std": -0.1}, "settings.noise_std must be at least 0"),
        ({"settings__rtol": 10**400}, "settings.rtol must be at most"),
        ({"settings__baseline": [1]}, "settings.baseline must be null or a number or a string or an object"),
        (
            {"settings__baseline": {"dtype": "nn", "values": [1]}},
            "settings.baseline.dtype must be one of 'float16'",
        ),
        ({"settings__baseline": {"dtype": "float32", "values": [[1], [1, 2]]}}, "settings.baseline.values must hold"),
        ({"settings__baseline": {"dtype": "float32", "values": [0, 1e39]}}, "values must be finite as float32"),
        ({"settings__baseline": {"dtype": "float16", "values": [[10**30]]}}, "values must be finite as float16"),
        ({"settings__inference_mode": "logits\n"}, "settings.inference_mode must match"),
        ({"degrees_of_freedom": 10**9 * 10}, "degrees_of_freedom must be at most"),
        ({"degrees_of_freedom": [4]}, "degrees_of_freedom must be a whole number"),
        ({"attributions": [[10**400] * 12]}, r"attributions\[0\]\[0\] must be at most"),
        ({"attributions": [[0.5] * 11]}, r"attributions\[0\] must hold 12 entries"),
        (
            {"attributions": [[0.5] * 11 + [{}]]},
            r"attributions\[0\]\[11\] must be a number or null or one of 'Infinity'",
        ),
        ({"standard_error": []}, "standard_error must hold 1 entries"),
        ({"unassigned": [0.0, 0.0]}, "unassigned must hold 1 entries"),
        ({"elements": ["\ud800"] * 12}, r"elements\[0\] holds half of a surrogate pair"),
        ({"text": "\ud800" * 99}, "text holds half of a surrogate pair"),
        ({"target_names": [7]}, r"target_names\[0\] must be a string"),
        ({"element_spans": [[5, 2]] * 12}, r"element_spans\[0\] must lie in the text"),
        ({"element_spans": [[0, 10**6]] * 12}, r"element_spans\[0\] must lie in the text"),
        ({"element_spans": [[0]] * 12}, r"element_spans\[0\] must hold 2 entries"),
        ({"element_tokens": [[99]] * 12}, r"element_tokens\[0\] must be below"),
        ({"element_tokens": [[]] * 12}, r"element_tokens\[0\] must hold at least 1"),
        ({"probability": 2}, "probability must be at most 1"),
        ({"probability": float("nan")}, "probability must be"),
        ({"converged": True}, r"converged must be null where settings\.rtol is"),
        ({"error": "lost"}, "error is for a text without"),
        ({"model_inputs": {}}, "model_inputs lacks 'input_ids'"),
        ({"targets": []}, "targets must hold 1 entries; it holds 0"),
        ({"targets": [0, 1]}, "targets must hold 1 entries; it holds 2"),
        ({"model_inputs": {"input_ids": [[5] * 14]}}, "model_inputs lacks 'special_tokens_mask'"),
        (
            {"model_inputs": {"input_ids": [[5] * 14], "special_tokens_mask": [[0] * 14]}},
            "model_inputs lacks 'offset_mapping'",
        ),
        (
            {"model_inputs__special_tokens_mask": [[[0]] * 14]},
            r"special_tokens_mask\[0\]\[0\] must be a whole number",
        ),
        ({"model_inputs__token_type_ids": [[[0]] * 14]}, r"token_type_ids\[0\]\[0\] must be a whole number"),
        ({"model_inputs__offset_mapping": [[0] * 14]}, r"offset_mapping\[0\]\[0\] must be a list"),
        ({"model_inputs__offset_mapping": [[[0, 1, 2]] * 14]}, r"offset_mapping\[0\]\[0\] must hold 2 entries"),
        ({"model_inputs__input_ids": [[[5]]]}, r"model_inputs.input_ids\[0\]\[0\] must be a whole number"),
        ({"model_inputs__more": [[1]]}, r"model_inputs.more\[0\] must hold"),
        ({"provenance__versions": {"torch": 2}}, "provenance.versions.torch must be a string"),
        ({"provenance__model": 7}, "provenance.model must be a string"),
    ],
    ids=str,
)
def test_what_does_not_fit_names_its_field(changes, place):
    data = changed(**changes)
    with pytest.raises(fastshap.InvalidArgumentError, match=place):
        fastshap.AttributionOutput.from_dict(data)
    with pytest.raises(fastshap.InvalidArgumentError):
        fastshap.AttributionOutput.from_json(json.dumps(data))


def test_whatever_is_not_named_is_left_alone():
    assert fastshap.AttributionOutput.from_dict(changed(later={"x": 1}, settings__later=1)).elements


def test_a_refused_text_may_hold_half_of_a_pair():
    failed = json.loads(LINES[2]) | {"text": "bad \ud800"}
    assert fastshap.AttributionOutput.from_dict(failed).text == "bad \ud800"


def test_what_is_nested_deeply_or_of_another_kind():
    for text in ("[" * 10**5, '{"a":' * 10**5, "[]", "7", "null", "NaN", '"x"', b"\xff", "9" * 5000):
        with pytest.raises(fastshap.InvalidArgumentError):
            fastshap.AttributionOutput.from_json(text)
    with pytest.raises(fastshap.InvalidTypeError, match="NoneType"):
        fastshap.AttributionOutput.from_json(None)
    deep = []
    for _ in range(10**4):
        deep = [deep]
    with pytest.raises(fastshap.InvalidArgumentError, match=r"settings\.seed"):
        fastshap.AttributionOutput.from_dict(changed(settings__seed=deep))
    with pytest.raises(fastshap.InvalidArgumentError, match="a very large int"):
        fastshap.AttributionOutput.from_dict(changed(settings__seed=10**5000))


def test_lines_that_are_no_text(tmp_path):
    path = tmp_path / "a\x1b]0;x.jsonl"
    path.write_bytes(LINES[0].encode() + b"\n\xff\xfe\n")
    with pytest.raises(fastshap.InvalidArgumentError, match="line 2") as caught:
        list(fastshap.read_jsonl(path))
    assert "\x1b" not in str(caught.value)


def test_an_interval_takes_no_longer_with_a_billion_degrees_of_freedom():
    output = fastshap.AttributionOutput.from_dict(changed(degrees_of_freedom=2**31 - 1))
    start = time.process_time()
    low, high = output.interval()
    assert time.process_time() - start < 5  # it was hours
    assert ((high - low) / output.standard_error / 2 - 1.959964).abs().max() < 1e-3


def test_damaged_parquet_says_so(tmp_path):
    path = tmp_path / "outputs.parquet"
    for content in (b"", b"PAR1", b"x" * 1000, (DATA / "kinds-1.parquet").read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(fastshap.InvalidArgumentError, match="no Parquet"):
            list(fastshap.read_parquet(path))
    with pytest.raises(FileNotFoundError):
        list(fastshap.read_parquet(tmp_path / "none"))
    rows = pyarrow.parquet.read_table(DATA / "kinds-1.parquet").to_pylist()
    for name, value, message in (
        ("target_names", None, "target_names, targets and elements must be lists"),
        ("attributions", [1.0], "attributions must hold"),
        ("settings", "{", "settings is no JSON"),
        ("settings", "[" * 10**5, "settings is no JSON"),
        ("settings", "[]", "settings must be an object"),
        ("n_perturbations", -1, "settings.n_perturbations must be at least 1"),
    ):
        pyarrow.parquet.write_table(pa.Table.from_pylist([rows[0], rows[1] | {name: value}]), path)
        with pytest.raises(fastshap.InvalidArgumentError, match=f"row 2: .*{message}"):
            list(fastshap.read_parquet(path))


def test_a_schema_says_what_is_checked():
    rule = compiled(
        {
            "type": "object",
            "properties": {
                "a": {"const": 1},
                "b": {"type": ["null", "array"], "items": {"type": "number", "exclusiveMinimum": 0}},
            },
        }
    )
    check({"a": 1, "b": [0.5], "c": ...}, rule)
    check({"b": None}, rule)
    for value, message in (
        ([], r"It must be an object; got \[\]"),
        ({"a": 2}, "a must be 1; got 2"),
        ({"b": [1, 0]}, r"b\[1\] must be more than 0; got 0"),
        ({7: 1}, "It has a field of the name 7"),
    ):
        with pytest.raises(fastshap.InvalidArgumentError, match=message):
            check(value, rule)


# ------------------------------------------------------------------ mutations


def use(output):
    """All that can be done with an output, but for what other libraries do."""
    back = fastshap.AttributionOutput.from_json(output.to_json())
    assert back.to_json() == output.to_json()
    output.interval()
    drawn = io.StringIO()
    output.show(Console(file=drawn, width=80))
    shown = drawn.getvalue() + str(output) + repr(output) + str(fastshap.AttributionOutputs([output]))
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e" for c in shown)
    page = output._repr_html_()
    assert MARKUP not in page
    page.encode()
    output.to_pandas()
    fastshap.summarize([output], min_count=1)._repr_html_().encode()
    assert len(list(output.rows())) == output.attributions.numel()
    output.top(3)
    if output.error is None:
        output.to_captum()
        shown = fastshap.compare(output, output)
        assert MARKUP not in shown._repr_html_()
        assert "\x1b" not in str(shown)


def tried(source, read):
    """Whether a mutated file was read; what was is used."""
    try:
        outputs = list(read(source))
    except fastshap.FastshapError:
        return 0
    for output in outputs:
        use(output)
    return 1


MANY = pytest.param(10_000, marks=pytest.mark.slow)


@pytest.mark.parametrize("count", [400, MANY])
def test_mutated_json_reads_or_says_why(count, tmp_path):
    dice = random.Random(count)
    read = 0
    for k in range(count):
        line = dice.choice(LINES)
        if k % 4 == 3:
            text = scratched(line, dice)
            path = tmp_path / "lines.jsonl"
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            read += tried(path, fastshap.read_jsonl)
        else:
            text = json.dumps(mutated(json.loads(line), dice))
            read += tried(text, lambda text: [fastshap.AttributionOutput.from_json(text)])
    assert 0 < read < count


@pytest.mark.parametrize("count", [100, MANY])
def test_mutated_parquet_reads_or_says_why(count, tmp_path):
    dice = random.Random(count)
    whole = [(DATA / "kinds-1.parquet").read_bytes()]
    fastshap.write_parquet(map(fastshap.AttributionOutput.from_json, LINES), tmp_path / "whole")
    whole.append((tmp_path / "whole").read_bytes())
    rows = pyarrow.parquet.read_table(tmp_path / "whole").to_pylist()
    path = tmp_path / "outputs.parquet"
    read = 0
    for k in range(count):
        if k % 2:
            row = mutated(json.loads(json.dumps(dice.choice(rows))), dice)
            try:
                pyarrow.parquet.write_table(pa.Table.from_pylist([row]), path)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
                continue  # a table cannot hold it
        else:
            content = bytearray(dice.choice(whole))
            for _ in range(dice.choice((1, 3, 9))):
                content[dice.randrange(len(content))] = dice.randrange(256)
            path.write_bytes(content)
        read += tried(path, fastshap.read_parquet)
    assert 0 < read < count
