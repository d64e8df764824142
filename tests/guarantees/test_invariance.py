"""An explanation is a pure function of the model, the text, the target, the seed and the settings."""

import dataclasses
import json
import random
import subprocess
import sys

import pytest
import torch

import fastshap
from fastshap.reference import rows as reference_rows
from helpers.checks import assert_same
from helpers.texts import TEXT, company


@pytest.fixture
def noise_seen(monkeypatch):
    """Every noise vector generated, by stream, draw and position."""
    seen = {}
    generate = reference_rows.normals

    def recording(streams, draws, positions, dim):
        noise = generate(streams, draws, positions, dim)
        keys = zip(streams.tolist(), draws.tolist(), positions.tolist(), strict=True)
        for (stream, draw, position), vector in zip(keys, noise, strict=True):
            key = (*stream, draw, position)
            data = vector.numpy().tobytes()
            assert seen.setdefault(key, data) == data, "the same draw came out differently"
        return noise

    monkeypatch.setattr(reference_rows, "normals", recording)
    return seen


@pytest.fixture(params=["classification", "generation"])
def job(request, default_pair, llama_pair):
    """A pair, and a function from texts to (texts, targets)."""
    if request.param == "classification":
        return default_pair, lambda texts: (texts, "positive")
    return llama_pair, lambda texts: (texts, [f"Indeed {text.split()[0]}." for text in texts])


@pytest.mark.parametrize(
    ("batch_size", "count"),
    [(1, 5), (4, 10), (7, 10), ("auto", 20), *(pytest.param(size, 20, marks=pytest.mark.slow) for size in (1, 4, 7))],
)
def test_company_order_and_batch_size(job, noise_seen, batch_size, count):
    pair, with_targets = job
    (alone,) = fastshap.GradientShap(*pair)(*with_targets([TEXT]))
    own = dict(noise_seen)
    noise_seen.clear()
    others = company(count)
    for place in (0, len(others) // 2, len(others)):
        texts = [*others[:place], TEXT, *others[place:]]
        outputs = fastshap.GradientShap(*pair, batch_size=batch_size)(*with_targets(texts))
        assert_same(outputs[place].attributions, alone.attributions)
        assert [output.elements[0][:1] for output in outputs] == [text[:1] for text in texts]
        random.Random(1).shuffle(others)
    assert own
    assert all(noise_seen.get(key) == vector for key, vector in own.items())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_of_the_tokenizer(job, side):
    (model, tokenizer), with_targets = job
    (alone,) = fastshap.GradientShap(model, tokenizer)(*with_targets([TEXT]))
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        outputs = fastshap.GradientShap(model, tokenizer, batch_size=16)(*with_targets([*company(7), TEXT]))
    finally:
        tokenizer.padding_side = before
    assert_same(outputs[-1].attributions, alone.attributions)


def test_padding_side_of_the_engine(llama_pair, noise_seen):
    """Positions count from the first real token. (BERT reads column 0, so for it padding can only stand on the right.)"""
    inputs, targets = ["not good at all, and dull", "fine", TEXT], ["Indeed.", "So.", "Yes."]
    results = {}
    for side in ("left", "right"):
        explainer = fastshap.GradientShap(*llama_pair, batch_size=32)
        explainer(inputs[0], targets[:1])  # which tries where padding may stand
        explainer._layout = dataclasses.replace(explainer._layout, padding_side=side)
        results[side] = explainer(inputs, targets)
    for left, right in zip(results["left"], results["right"], strict=True):
        assert_same(left.attributions, right.attributions)


SCRIPT = """
import hashlib, json, sys, torch, fastshap
from fastshap.reference import rows

def found(threads, text):
    before, digest, generate = torch.get_num_threads(), hashlib.sha256(), rows.normals
    def recording(*arguments):
        noise = generate(*arguments)
        digest.update(noise.numpy().tobytes())
        return noise
    torch.set_num_threads(threads)
    rows.normals = recording
    try:
        (output,) = fastshap.GradientShap(*fastshap.load_default_model(), seed=11)(text, 1)
    finally:
        rows.normals = generate
        torch.set_num_threads(before)
    return [digest.hexdigest(), output.attributions.tolist()]
"""


def test_two_processes():
    """Another one with two threads, and this one with one."""
    script = f"{SCRIPT}\nprint(json.dumps(found(2, sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, TEXT], capture_output=True, text=True, check=True, timeout=120)
    here = {}
    exec(SCRIPT, here)
    results = [json.loads(done.stdout), here["found"](1, TEXT)]
    assert results[0][0] == results[1][0]
    assert_same(torch.tensor(results[0][1]), torch.tensor(results[1][1]))


def test_seed_changes_the_numbers_and_nothing_else_does(default_pair):
    explain = lambda **options: fastshap.GradientShap(*default_pair, **options)(TEXT, 1)[0].attributions  # noqa: E731
    first = explain(seed=0)
    assert torch.equal(explain(seed=0), first)
    assert not torch.allclose(explain(seed=1), first)


def test_iter_explain_gives_the_same_over_window_borders(default_pair, monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 5)
    texts = company(12)
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=4)
    listed = explainer(texts, [i % 2 for i in range(12)])
    streamed = list(explainer.iter_explain(iter(texts), (i % 2 for i in range(12))))
    for one, other in zip(listed, streamed, strict=True):
        assert_same(one.attributions, other.attributions)


def test_iter_explain_reads_no_further_than_it_must(default_pair, monkeypatch):
    monkeypatch.setattr("fastshap.base._WINDOW", 3)
    read = []
    results = fastshap.GradientShap(*default_pair, n_perturbations=2).iter_explain(
        read.append(t) or t for t in company(9)
    )
    next(results)
    assert len(read) == 1
    assert len(list(results)) == 8
