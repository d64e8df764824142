"""Families of models with every task: alone, in batches, padded and without shortcuts the same, and adding up."""

import families
import pytest

import fastshap
from fastshap.settings import Settings

CASES = families.cases()
# One of each task and of most families; the others take minutes.
SAMPLE = {
    ("classification", "BERT"),
    ("pairs", "RoBERTa"),
    ("zero_shot", "DeBERTa-v2"),
    ("token_classification", "Llama"),
    ("question_answering", "XLNet"),
    ("masked_lm", "ModernBERT"),
    ("multiple_choice", "ALBERT"),
    ("similarity", "Qwen3"),
    ("generation", "Mamba"),
    ("seq2seq", "BART"),
    ("pairs", "T5"),
}


def of(wanted):
    return [pytest.param(*case, id="-".join(case[:2])) for case in CASES if (case[:2] in SAMPLE) == wanted]


def check(task, family, name):
    what, why, trace = families.verdict(task, family, name)
    assert what != "wrong", f"{why}\n{trace}"
    assert families.cell_of(task, family).startswith("yes" if what == "equal" else "refused"), why


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "family", "name"), of(True))
def test_a_sample(task, family, name):
    check(task, family, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "family", "name"), of(False))
def test_all_others(task, family, name):
    check(task, family, name)


def test_the_page_holds_each_and_nothing_wrong():
    assert len(of(True)) == len(SAMPLE)
    for family in families.FAMILIES:
        for task in families.TASKS:
            there = (task, family) in {case[:2] for case in CASES}
            assert families.cell_of(task, family).startswith(("yes", "refused") if there else "–")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["zero_shot", "multiple_choice", "question_answering", "similarity", "masked_lm"])
def test_background_texts_serve_every_task(task):
    """They are texts by themselves, whatever form the task's own texts have."""
    model, words = families.made(task, "BERT", families.name_of(task, "bert"))
    texts, targets, options = families.asked(task)
    background = fastshap.BaselineSet(["the film was dull", "superb"])
    explainer = fastshap.GradientShap(model, words, "auto", n_perturbations=4, baseline=background, **options)
    outputs = explainer(texts, targets)
    assert all(output.attributions.isfinite().all() for output in outputs)
    alone = explainer(texts[:1], targets if targets is None or task == "zero_shot" else targets[:1])
    assert families.apart(alone, outputs[:1]) < 1e-5


@pytest.mark.parametrize("hypothesis", ["It is.", "", "{} {}", "{label}", "{0}", "{} {", "{:d}"])
def test_a_hypothesis_has_one_place(hypothesis):
    with pytest.raises(fastshap.InvalidArgumentError, match="with exactly one"):
        Settings(hypothesis_template=hypothesis)
