"""The command line as people run it."""

import contextlib
import copy
import fcntl
import importlib.metadata
import inspect
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import textwrap
import threading

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertForNextSentencePrediction
from typer.testing import CliRunner

import fastshap
from fastshap.cli import app
from fastshap.models import provenance
from fastshap.output.render.terminal import show

pytestmark = pytest.mark.usefixtures("loaded_once")

FIVE = {
    "A gorgeous, witty film, but the ending is dull.": "positive",
    "not good at all": "negative",
    "I loved every minute of it.": "positive",
    "The battery died after two days.": "negative",
    "Terrible customer service, I want my money back.": "negative",
}
# Words whose side is beyond doubt, as they support or oppose the label above.
STRONGEST = {"gorgeous": 1, "witty": 1, "not": 1, "good": -1, "loved": 1, "died": 1, "Terrible": 1}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["explain", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_five_sentences():
    lines = run("--json", *FIVE).stdout.splitlines()
    assert len(lines) == 5
    signs = 0
    for line, (text, label) in zip(lines, FIVE.items(), strict=True):
        shown = json.loads(line)
        assert shown["text"] == text
        assert shown["prediction"]["label"] == shown["target_names"][0] == label
        assert 0.5 < shown["prediction"]["probability"] < 1
        scores = shown["attributions"][0]
        strongest = max(range(len(scores)), key=lambda i: abs(scores[i]))
        signs += STRONGEST.get(shown["elements"][strongest], 0) * scores[strongest] > 0
    assert signs >= 4


def test_words_scores_and_prediction_are_readable_without_colour():
    out = run("not good at all").stdout
    assert "predicted negative, probability 0.9" in out
    assert re.search(r"not +good +at +all *\n", out)
    assert re.search(r"\+\d\.\d{3} +-\d\.\d{3}", out)
    assert re.search(r"±\d\.\d{3} +±\d\.\d{3}", out)
    assert "± standard error; 10 samples" in " ".join(out.split())
    assert "±" not in run("--n-perturbations", "3", "not good at all").stdout
    assert "within rtol 0.3" in " ".join(run("--rtol", "0.3", "A gorgeous, witty film").stdout.split())
    assert "\x1b" not in out


def test_colour_where_it_is_wanted(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)("not good at all")
    drawn = io.StringIO()
    show(output, Console(force_terminal=True, color_system="truecolor", width=60, file=drawn), uncertain=True)
    assert re.search(r"48;2;33;102;222m *not\x1b", drawn.getvalue())  # the strongest word, in full blue
    assert re.search(r"\x1b\[30;48;2;2\d\d;\d+;\d+mgood", drawn.getvalue())  # against, in light orange


def test_sixteen_colours_tell_the_sides_apart(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)("not good at all")
    drawn = io.StringIO()
    show(output, Console(force_terminal=True, color_system="standard", width=60, file=drawn), uncertain=True)
    assert re.search(r"\x1b\[97;44mnot", drawn.getvalue())
    assert re.search(r"\x1b\[30;43mgood", drawn.getvalue())


def test_emoji_stay_whole():
    assert "👨‍👩‍👧" in run("what a lovely 👨‍👩‍👧 day").stdout


def test_text_cannot_steer_the_terminal():
    out = run("fine \x1b[31m\x07 film \u202e abc").stdout
    assert not set(out) & {"\x1b", "\x07", "\u202e"}


def test_files_and_labels_cannot_steer_the_terminal(tmp_path, bert_pair):
    evil = "\x1b]52;c;eA==\x07\x9b2J"
    assert "No such file" in run("--file", str(tmp_path / evil), code=2).stderr
    page = run("--html", str(tmp_path / f"{evil}.html"), "fine")
    model, tokenizer = copy.deepcopy(bert_pair)
    model.config.id2label = {i: f"{evil}{i}" for i in range(3)}
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "labels")
    shown = run("--model", str(tmp_path / "labels"), "fine film")
    line = run("--json", "--model", str(tmp_path / "labels"), "fine film").stdout
    refused = run("--model", str(tmp_path / "labels"), "--target", f"{evil}9", "fine", code=2)
    for out in (page.stderr, shown.stdout, refused.stderr, line):
        assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert json.loads(line)["predicted_label"][:-1] == evil


def test_options():
    first = json.loads(run("--json", "--seed", "1", "--target", "negative", "fine film").stdout)
    assert (first["settings"]["seed"], first["target_names"]) == (1, ["negative"])
    assert json.loads(run("--json", "--seed", "1", "--target", "0", "fine film").stdout) == first
    assert json.loads(run("--json", "--seed", "1", "--target", "Negative", "fine film").stdout) == first
    both = json.loads(run("--json", "--target", "all", "fine film").stdout)
    assert both["target_names"] == ["negative", "positive"]
    assert (
        json.loads(run("--json", "--target", "0", "--target", "POSITIVE", "fine film").stdout)["target_names"]
        == both["target_names"]
    )
    added = run("--granularity-aggregation-strategy", "sum", "--return-convergence-delta", "fine film").stdout
    assert re.search(r"elsewhere [+-]\d\.\d+, convergence delta [+-]\d\.\d+", added)
    tokens = json.loads(run("--json", "--granularity", "ALL_TOKENS", "fine film").stdout)
    assert tokens["elements"][0] == "[CLS]"


def test_every_parameter_is_an_option(default_pair):
    """What Python computes with the same parameters comes out, to the last digit."""
    signature = inspect.signature(fastshap.GradientShap).parameters
    options = {
        "granularity": "token",
        "granularity_aggregation_strategy": "sum",
        "device": "cpu",
        "inference_mode": "log_softmax",
        "input_x_gradient": False,
        "n_perturbations": 3,
        "baseline": 0.25,
        "noise_std": 0.02,
        "reduction": "abs_mean",
        "sampling": "iid",
        "path_density": 0.5,
        "seed": 5,
        "rtol": 0.5,
        "max_perturbations": 9,
        "perturb_special_tokens": False,
        "batch_size": 2,
        "on_error": "raise",
        "backend": "torch",
        "task": "classification",
        "threshold": 0.25,
        "long_text": "error",
    }
    elsewhere = {"model", "tokenizer", "return_convergence_delta", "score", "span"}  # a function; for language models
    elsewhere |= {"hypothesis_template", "cuda_graphs"}  # for zero-shot classification; for services
    assert set(signature) - set(options) == elsewhere
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        arguments += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    shown = json.loads(run("--json", *arguments, "not a fine film").stdout)
    (output,) = fastshap.GradientShap(*default_pair, **options)("not a fine film")
    expected = output.to_dict()
    assert {name: shown[name] for name in expected} == expected
    delta = json.loads(run("--json", "--return-convergence-delta", "fine").stdout)["convergence_delta"]
    assert isinstance(delta[0], float)


def test_baselines_of_the_shell(tmp_path):
    """Numbers stay numbers; names of tokens; background texts from a file."""
    shown = lambda *arguments: json.loads(run("--json", *arguments, "fine film").stdout)["settings"]["baseline"]  # noqa: E731
    for word, value in {"0.5": 0.5, "-1": -1, "1e-3": 0.001, "[MASK]": "[MASK]", "#4": "#4", "mean": "mean"}.items():
        assert shown("--baseline", word) == value
    path = tmp_path / "background.txt"
    path.write_text("\ufeffAn ordinary film.\r\n\r\nok\n", encoding="utf-8")
    assert shown("--background", str(path))["texts"] == ["An ordinary film.", "ok"]
    assert "no token '[MSK]'" in run("--baseline", "[MSK]", "fine film", code=2).stderr
    assert "leave out --baseline" in run("--baseline", "0", "--background", str(path), "fine", code=2).stderr
    assert "No such file" in run("--background", str(tmp_path / "none"), "fine", code=2).stderr
    path.write_text("\n \n")
    assert "holds no text" in run("--background", str(path), "fine", code=2).stderr
    path.write_bytes(b"\xff\xfe\xfa")
    assert "not UTF-8" in run("--background", str(path), "fine", code=2).stderr


def test_pairs(tmp_path, default_pair, llama_pair):
    """One second text for all, or one for each."""
    firsts, seconds = ("A gorgeous film.", "not good"), ("The ending is dull.", "ok")
    explainer = fastshap.GradientShap(*default_pair, "auto", n_perturbations=4)
    few = ("--json", "--n-perturbations", "4")
    for given in (seconds, seconds[:1]):
        lines = run(*few, *(one for second in given for one in ("--pair", second)), *firsts).stdout.splitlines()
        expected = explainer([*zip(firsts, given * (3 - len(given)), strict=True)])
        for line, output in zip(lines, expected, strict=True):
            shown = json.loads(line)
            assert (shown["text"], shown["segments"]) == (output.text, output.segments)
            assert shown["attributions"][0] == pytest.approx(output.attributions[0].tolist(), abs=1e-5)
    assert "A gorgeous film.\nok\npredicted" in run("--pair", "ok", firsts[0]).stdout
    said = run("--pair", "a", "--pair", "b", "fine", "film", "good", code=2).stderr
    assert "there are 3 texts and 2 of --pair" in said
    for part in llama_pair:
        part.save_pretrained(tmp_path)
    said = run("--model", str(tmp_path), "--pair", "a", "fine", code=2).stderr
    assert "--pair is for a model that reads pairs of texts; LlamaForCausalLM reads one text" in said


def test_texts_from_files_and_standard_input(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufefffine film\r\n\r\nnot good", encoding="utf-8")
    lines = [json.loads(line) for line in run("--json", "--file", str(path), code=1).stdout.splitlines()]
    assert [line["text"] for line in lines] == ["fine film", "", "not good"]
    assert [line["error"] is None for line in lines] == [True, False, True]
    result = CliRunner().invoke(app, ["explain", "--json", "first", "-"], input="second film\nthird\n")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["first", "second film", "third"]
    assert "No such file" in run("--file", str(tmp_path / "none"), code=2).stderr
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    assert "UTF-8" in run("--file", str(tmp_path / "latin"), code=2).stderr
    assert "no text" in CliRunner().invoke(app, ["explain", "-"], input="").stderr


def test_a_page(tmp_path):
    path = tmp_path / "page.html"
    result = run("--html", str(path), *FIVE, "", code=1)
    assert result.stdout == ""
    assert f"6 texts written to {path}" in result.stderr
    page = path.read_text(encoding="utf-8")
    assert page.count("predicted ") >= 5
    assert "battery" in page
    assert "not explained" in page
    titled = run("--html", str(path), "--title", "A & B", "fine film")
    assert "1 text written" in titled.stderr
    assert "<title>A &amp; B</title>" in path.read_text()
    assert "add --html" in run("--title", "A", "fine film", code=2).stderr
    both = run("--html", str(path), "--json", "--target", "negative", "fine film")
    assert json.loads(both.stdout)["elements"] == ["fine", "film"]
    assert "predicted positive, probability" in path.read_text(encoding="utf-8")
    assert "could not be written" in run("--html", str(tmp_path / "none" / "page.html"), "fine", code=2).stderr


@pytest.mark.parametrize("path", ["", ".", "/", "folder"])
def test_a_page_needs_a_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    refused = run("--html", path, "fine film", code=2)
    assert f"--html is the file to write; '{path or '.'}' is a directory" in refused.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_lines_of_json_are_outputs(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(run("--json", *FIVE, "", code=1).stdout, encoding="utf-8")
    outputs = list(fastshap.read_jsonl(path))
    assert [output.text for output in outputs] == [*FIVE, ""]
    assert [output.error is None for output in outputs] == [True] * 5 + [False]


def alone(script, *before, **options):
    """A script in a process of its own: its exit code, its standard output and its standard error."""
    command = [*before, sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, **options)
    return done.returncode, done.stdout, done.stderr


def many(tmp_path):
    """Options that take long enough for a bar."""
    (tmp_path / "texts").write_text("".join(f"fine film {i}\n" for i in range(200)))
    return ["--json", "--n-perturbations", "160", "--file", str(tmp_path / "texts")]


def test_json_is_all_there_is_and_no_network_is_needed(tmp_path):
    """No bar either, where standard error is no terminal."""
    cut = shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode
    arguments = ["explain", "not good at all", *many(tmp_path)]
    before = ["unshare", "-rn"] if cut else []
    code, out, err = alone(f"from fastshap.cli import app; app({arguments!r})", *before)
    assert (code, err) == (0, "")
    first, *others = map(json.loads, out.splitlines())
    assert first["prediction"]["label"] == "negative"
    assert len(others) == 200
    if not cut:
        pytest.skip("this system allows no network namespaces, so the network could not be cut off")


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """What one process writes: to a pipe in ASCII, to a terminal, to one that shows no standard output, and to a full disk."""
    place = tmp_path_factory.mktemp("streams")
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    script = f"""
    import os, sys
    from fastshap.cli import app

    def explain(*arguments):
        app(["explain", *arguments], standalone_mode=False)
        sys.stdout.flush()

    def onto(path_or_number, *numbers):
        for number in numbers:
            target = os.open(path_or_number, os.O_WRONLY) if isinstance(path_or_number, str) else path_or_number
            os.dup2(target, number)

    explain("Café 👍")
    explain("--json", "Café")
    print("TERMINAL", flush=True)
    error = os.dup(2)
    onto({end}, 1, 2)
    sys.stdout.reconfigure(encoding="utf-8")
    explain("fine film")
    print("AGAIN", flush=True)
    os.environ["NO_COLOR"] = "1"
    explain("fine film")
    print("BARS", flush=True)
    onto(os.devnull, 1)
    explain(*{many(place)!r})
    onto(error, 2)
    onto("/dev/full", 1)
    app(["explain", "--json", "fine"])
    """
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "ascii"}
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):  # how a terminal says that the last writer is gone
            while part := os.read(screen, 65536):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        code, out, err = alone(script, env=environment, pass_fds=[end])
    finally:
        os.close(end)
        reader.join()
        os.close(screen)
    return code, out, err, shown.decode()


def test_bars_on_a_terminal(streams):
    """Where the output itself goes elsewhere."""
    assert re.search(r"\d+/200", streams[-1].split("BARS")[1])


def test_colour_follows_no_color(streams):
    shown = streams[-1].split("BARS")[0].split("AGAIN")
    assert [bool(re.search(r"\x1b\[[\d;]*48;", one)) for one in shown] == [True, False]
    assert all("fine" in one for one in shown)


def test_a_stream_that_takes_ascii_alone(streams):
    *lines, last, mark = streams[1].splitlines()
    assert mark == "TERMINAL"
    assert "Caf?" in "".join(lines)
    assert json.loads(last)["elements"] == ["Café"]


def test_a_full_disk(streams):
    code, _, err, _ = streams
    assert code == 2
    assert "could not be written" in err


def test_info():
    out = CliRunner().invoke(app, ["info"]).stdout
    for needed in (
        f"fastshap {fastshap.__version__}",
        f"torch {torch.__version__}",
        "device cpu",
        "backend",
        "Labels: 0 = negative",
    ):
        assert needed in out


def test_the_build_of_torch_is_told(monkeypatch, default_pair):
    """The default CUDA build's package says 2.15.0, torch itself 2.15.0+cu132."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.8.7" if name == "torch" else version(name))
    monkeypatch.setattr(torch, "__version__", "9.8.7+cu132")
    provenance._known_versions.cache_clear()
    model, tokenizer = copy.deepcopy(default_pair[0]), default_pair[1]  # of which no provenance is known yet
    try:
        (output,) = fastshap.GradientShap(model, tokenizer, n_perturbations=2)("fine")
    finally:
        provenance._known_versions.cache_clear()
    assert output.provenance.versions["torch"] == "9.8.7+cu132"
    assert "\ntorch 9.8.7+cu132\n" in CliRunner().invoke(app, ["info"]).stdout


def test_info_puts_versions_first_and_the_model_last():
    lines = CliRunner().invoke(app, ["info"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["fastshap", "torch", "transformers"]
    assert len(lines) < 25
    assert lines[-1].endswith("README.md")


def test_help_and_offline_models(monkeypatch):
    assert CliRunner().invoke(app, ["explain", "-h"]).exit_code == 0
    result = run("--model", "somebody/no-such-model", "fine", code=2)
    assert "hub" in result.stderr
    assert "network" in result.stderr
    assert "no such directory" in run("--model", "./nowhere", "fine", code=2).stderr
    assert "It is a file. Name the directory" in run("--model", __file__, "fine", code=2).stderr


def test_other_models(tmp_path, llama_pair, bert_pair):
    for name, (model, tokenizer) in {"lm": llama_pair, "bert": bert_pair}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    shown = json.loads(run("--json", "--model", str(tmp_path / "bert"), "not good").stdout)
    assert shown["prediction"]["label"].startswith("LABEL_")
    shown = json.loads(run("--json", "--model", str(tmp_path / "lm"), "--target", "is dull", "The film").stdout)
    assert shown["target_names"] == [" is", " dull"]
    assert shown["attributions"][0][-1] is None
    assert shown["prediction"] is None
    assert "target is" in run("--model", str(tmp_path / "lm"), "--target", "is dull", "The film").stdout


def test_language_models_are_explained_by_probabilities(tmp_path, llama_pair):
    """Unless the option says otherwise; a classifier is explained by logits."""
    for part in llama_pair:
        part.save_pretrained(tmp_path / "lm")
    arguments = ["--json", "--model", str(tmp_path / "lm"), "--target", "dull", "The film is"]
    expected = {"softmax": fastshap.GradientShap(*llama_pair, inference_mode="softmax")("The film is", "dull")}
    expected["logits"] = fastshap.GradientShap(*llama_pair)("The film is", "dull")
    usual, logits = json.loads(run(*arguments).stdout), json.loads(run("--inference-mode=logits", *arguments).stdout)
    for shown, mode in ((usual, "softmax"), (logits, "logits")):
        assert shown["settings"]["inference_mode"] == mode
        scores = [score for score in shown["attributions"][0] if score is not None]
        assert scores == pytest.approx(expected[mode][0].attributions[0, : len(scores)].tolist(), rel=1e-4, abs=1e-7)
    assert json.loads(run("--json", "fine film").stdout)["settings"]["inference_mode"] == "logits"


def test_exit_codes(tmp_path, llama_pair):
    encoder = tmp_path / "encoder"
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    BertForNextSentencePrediction(tiny).save_pretrained(encoder)
    assert "holds a BertForNextSentencePrediction" in run("--model", str(encoder), "fine", code=2).stderr
    for part in llama_pair:
        part.save_pretrained(tmp_path / "lm")
    generated = json.loads(run("--json", "--max-new-tokens", "3", "--model", str(tmp_path / "lm"), "The film").stdout)
    assert 1 <= len(generated["targets"]) <= 3
    assert "writes its own target" in run("--max-new-tokens", "3", "fine", code=2).stderr
    for odd in ("²", "--5", "9"):
        assert "its classes are" in run(f"--target={odd}", "fine", code=2).stderr
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"damaged")
    assert "lacks something" in run("--model", str(tmp_path / "lm"), "The film", code=2).stderr
    assert "Text 1" in run("--on-error", "raise", "fine", " ", code=1).stderr
    result = run("--json", "fine film", " ", code=1)
    assert [json.loads(line)["error"] is None for line in result.stdout.splitlines()] == [True, False]
    assert "LABEL" in run("--target", "LABEL", "fine", code=2).stderr
    assert "WORD" in run("--granularity", "letter", "fine", code=2).stderr
    assert "could not be loaded" in run("--model", "no-such-model-here", "fine", code=2).stderr
    assert CliRunner().invoke(app, ["explain"]).exit_code == 2


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"fastshap {fastshap.__version__}\n"


def test_a_contrast_and_a_span(llama_pair, tmp_path):
    output = fastshap.AttributionOutput.from_json(
        run("--json", "--target", "Positive", "--contrast", "negative", "fine").stdout
    )
    assert output.target_names == ["positive rather than negative"]
    for part in llama_pair:
        part.save_pretrained(tmp_path)
    model = ("--json", "--model", str(tmp_path), "--target", "not good")
    output = fastshap.AttributionOutput.from_json(run(*model, "--span", "the film was").stdout)
    assert output.target_names == ["not good"]
    assert output.inference_mode is fastshap.InferenceModes.LOG_SOFTMAX
    output = fastshap.AttributionOutput.from_json(run(*model, "--contrast", "dull", "the film was").stdout)
    assert output.target_names == ["not good rather than dull"]
    assert output.inference_mode is fastshap.InferenceModes.SOFTMAX  # what the shell explains of language models
    output = fastshap.AttributionOutput.from_json(run(*model, "--score", "log_probability", "the film was").stdout)
    assert output.inference_mode is fastshap.InferenceModes.LOG_SOFTMAX


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contrast", "negative"], "stands beside one --target"),
        (["--target", "all", "--target", "negative", "--contrast", "negative"], "stands beside one --target"),
        (["--target", "all", "--contrast", "negative"], "neither of which is 'all'"),
        (["--target", "positive", "--contrast", "positive"], "with itself"),
        (["--span"], "span is for language models"),
        (["--score", "surprise"], "must be one of 'logit'"),
        (["--score", "probability", "--inference-mode", "logits"], "say different ones; leave out either"),
        (["--long-text", "cut"], "must be one of 'truncate'"),
        (["--file", "reviews.jsonl"], "one text per line; fastshap run"),
    ],
)
def test_questions_without_sense(arguments, message):
    assert re.search(message, run(*arguments, "fine", code=2).stderr)
