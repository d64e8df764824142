"""Every example of README, docs and docstrings runs, and the tables of parameters are backed by tests."""

import contextlib
import doctest
import importlib.util
import inspect
import io
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.testing import CliRunner

import fastshap
from fastshap.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def shell(example):
    """Runs the commands of fastshap itself; installing and testing is what brought us here."""
    for command in (part.strip() for line in example.parsed.splitlines() for part in line.split("&&")):
        if command.startswith("fastshap "):
            result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
        else:
            assert command.split()[0] in ("pip", "pytest", "python"), command


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_examples_of_a_page(page, tmp_path, monkeypatch, llama_pair, bert_pair):
    monkeypatch.setattr("fastshap.tasks.registry._registered", [])  # what a page registers is for it alone
    # A package below interpreto replaces it by what reads the caller's source, which a page has not.
    monkeypatch.setattr(torch.Tensor, "backward", inspect.unwrap(torch.Tensor.backward))
    monkeypatch.chdir(tmp_path)
    for part in llama_pair:  # what the pages call a model of one's own
        part.save_pretrained("path/to/a/causal/language/model")
    for part in bert_pair:
        for name in ("one", "another"):
            part.save_pretrained(f"path/to/{name}/classifier")
    (tmp_path / "texts.txt").write_text("not good at all\nI loved every minute of it.\n")
    (tmp_path / "reviews.jsonl").write_text('{"id": 1, "text": "not good at all"}\n{"id": 2, "text": "fine"}\n')
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=shell)]
    document = Sybil(parsers=parsers).parse(ROOT / page)
    count = 0
    text = (ROOT / page).read_text()
    for example in document.examples():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            example.evaluate()
        shown = text[example.region.end :].lstrip("`\n")
        if shown.startswith("text\n"):  # what the page says it prints
            assert printed.getvalue() == shown.removeprefix("text\n").split("```")[0]
        count += 1
    assert count == text.count("```python\n") + text.count("```bash\n")


def test_examples_of_docstrings():
    tried = 0
    for module in pkgutil.walk_packages(fastshap.__path__, "fastshap."):
        source = Path(importlib.util.find_spec(module.name).origin).read_text()
        if ">>>" in source:  # a module of the service needs its extra to be imported, and has no example
            found = doctest.testmod(
                importlib.import_module(module.name), extraglobs=vars(fastshap) | {"fastshap": fastshap}
            )
            assert found.failed == 0
            tried += found.attempted
    assert tried > 0


def test_the_reference_lists_every_public_name():
    listed = {
        line.split("fastshap.", 1)[1]
        for line in (ROOT / "docs/reference.md").read_text().splitlines()
        if line[:3] == ":::"
    }
    listed = {name for name in listed if "." not in name}  # the others are of modules
    assert listed == set(fastshap.__all__) - {"__version__"}


def test_what_one_might_guess_wrongly_is_said():
    """Numbers and names whose meaning elsewhere is another one."""
    said = " ".join(fastshap.GradientShap.__doc__.split())
    for words in (
        "Expected gradients are Erion et al.'s",
        "the SHAP values that Lundberg and Lee define",
        "a number (a constant for all dimensions, never a token id)",
        "0.1 is more than the spread of the packaged model's own embeddings, 0.063",
        "the largest score comes out too large, by at most about ``rtol`` squared",
    ):
        assert words in said


def test_first_examples_take_the_fast_way():
    """The default of ``batch_size`` is the one that interpreto documents; who copies an example need not wait."""
    first = [re.findall(r"GradientShap\(.*\)", (ROOT / page).read_text())[0] for page in ("README.md", "docs/index.md")]
    first += re.findall(r"GradientShap\(.*\)", fastshap.load_default_model.__doc__)
    assert len(first) == 3
    assert all('batch_size="auto"' in example for example in first)
