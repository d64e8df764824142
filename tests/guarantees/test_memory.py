"""A long job gives back what is free, and garbage does not stay."""

import copy
import gc
import platform
import weakref

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


class Cycle:
    """Refers to itself, and so is garbage that only a search finds."""

    def __init__(self):
        self.itself = self


@pytest.mark.parametrize("wanted", [True, False])
def test_the_collector_pauses_and_what_a_model_leaves_is_found(default_pair, wanted):
    """Cycles that a model call left are gone a call or two later; a collector that the user switched off stays off."""
    model, tokenizer = copy.deepcopy(default_pair[0]), default_pair[1]
    left, found, pausing = [], [], []

    def leave(*_):
        pausing.append(not gc.isenabled())
        found.append(sum(one() is not None for one in left))
        left.append(weakref.ref(Cycle()))

    explainer = fastshap.GradientShap(model, tokenizer, batch_size=10)
    explainer("fine", 1)
    model.bert.encoder.register_forward_hook(leave)
    try:
        gc.enable() if wanted else gc.disable()
        explainer(["a fine film", "not good at all", "dull"], 1)
        assert gc.isenabled() == wanted
        model.bert.register_forward_hook(stop)
        with pytest.raises(fastshap.FastshapError, match="stop"):
            explainer("a fine film", 1)
        assert gc.isenabled() == wanted
    finally:
        gc.enable()
    assert all(pausing)
    assert len(found) > 3
    assert max(found) <= 3 if wanted else max(found) == len(found) - 1


def stop(*_):
    raise KeyError("stop")
