"""A long job gives back what is free."""

import platform

import pytest

import fastshap
from fastshap.engine import memory


def test_free_memory_goes_back_after_many_texts(default_pair, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_TEXTS", 40)
    monkeypatch.setattr(memory, "_counted", 0)
    monkeypatch.setattr(memory, "_malloc_trim", lambda: asked.append)
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=2)
    explainer(["fine"] * 39)  # however many are alike
    assert asked == []
    explainer("fine")
    assert asked == [0]
    list(explainer.iter_explain(f"film {i}" for i in range(100)))
    assert len(asked) >= 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no malloc_trim")
def test_glibc_gives_back():
    assert memory._malloc_trim()(0) in (0, 1)


def test_other_libraries_do_without(monkeypatch):
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    monkeypatch.setattr(memory, "_counted", memory._TEXTS)
    memory.trim(1)
    assert memory._counted == 0
