"""Answers in a context: their two ends, over the tokens of their own text."""

import pytest
import torch

import fastshap
from fastshap import Contrast, GradientShap
from helpers.checks import assert_equal, assert_same
from helpers.families import CONFIGURATIONS, tiny, with_slow_ones
from helpers.gradients import by_a_loop, by_captum, close
from helpers.texts import SENTENCES

N = 6
CONTEXT = SENTENCES[2]  # Dr. Smith loved it. The acting was superb! ...
PAIRS = [("Who loved it?", CONTEXT), ("What?", "ok"), ("What is dull, if the film is witty?", SENTENCES[0])]


@pytest.fixture(scope="module")
def pair(default_pair):
    return tiny("Bert", "ForQuestionAnswering", default_pair[1]), default_pair[1]


def centred(logits):
    """A score of one's own that takes no infinity."""
    return logits - logits.mean(-1, keepdim=True)


MODES = {"logits": lambda x: x, "softmax": lambda x: x.softmax(-1), "log_softmax": lambda x: x.log_softmax(-1)}


@pytest.mark.parametrize("mode", [*MODES, centred], ids=[*MODES, "centred"])
def test_an_answer_is_the_sum_of_its_ends(pair, mode, monkeypatch):
    """Against plain loops of each text alone, with noise and without, and captum; texts of other lengths share calls."""
    model = pair[0]
    scored = MODES.get(mode, centred)
    for noise_std in (0.1, 0):
        explainer = GradientShap(
            *pair, "auto", granularity="all_tokens", n_perturbations=N, noise_std=noise_std, inference_mode=mode
        )
        for output in explainer(PAIRS):
            (ends,) = output.model_inputs_to_explain["target_positions"].tolist()
            assert output.targets.tolist() == [0, 1]

            def score(outputs, ends=ends):
                start, end = scored(outputs.start_logits), scored(outputs.end_logits)
                return start[:, ends[0]] + end[:, ends[1]]

            close(output.attributions[0], by_a_loop(model, output, lambda outputs: score(outputs)[0]))
            if noise_std == 0:
                close(output.attributions[0], by_captum(model, output, score, monkeypatch))


def test_it_is_warmed_up_on_a_question(pair):
    fastshap.warm_up(GradientShap(*pair, n_perturbations=2))


def test_the_predicted_answer(pair):
    """The best sum of a start and an end in the context, and its probability among context and [CLS]."""
    model, tokenizer = pair
    for output, (question, context) in zip(GradientShap(*pair, n_perturbations=2)(PAIRS), PAIRS, strict=True):
        batch = tokenizer(question, context, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch)
        start, end = found.start_logits[0], found.end_logits[0]
        own = [i for i, part in enumerate(batch.sequence_ids(0)) if part == 1]
        best = max(((s, e) for s in own for e in own if s <= e < s + 30), key=lambda one: start[one[0]] + end[one[1]])
        assert output.model_inputs_to_explain["target_positions"].tolist() == [[*best]]
        first, last = batch.token_to_chars(0, best[0]).start, batch.token_to_chars(0, best[1]).end
        assert output.target_names == [context[first:last]] == [output.predicted_label]
        assert output.segments == [int(a > len(question)) for a, _ in output.element_spans]
        right = start[[0, *own]].softmax(0)[own.index(best[0]) + 1] * end[[0, *own]].softmax(0)[own.index(best[1]) + 1]
        assert output.probability == pytest.approx(float(right), rel=1e-4)
        assert output.target_probabilities.tolist() == pytest.approx([float(right)], rel=1e-4)


def test_an_answer_has_thirty_tokens_at_most_and_no_negative_length(pair):
    task = GradientShap(*pair).task
    (encoded,) = task.tokenised([fastshap.text.inputs.Pair("Who?", " ".join(["ok"] * 60))], None, {})
    first, logits = encoded.parts[0], torch.zeros(len(encoded), 2)
    logits[1] = 99  # of the question
    logits[first, 0], logits[first + 40, 1] = 5, 5
    assert task.predicted(encoded, logits)[0].places == [first, first]
    logits[first + 29, 1] = 1
    assert task.predicted(encoded, logits)[0].places == [first, first + 29]
    logits[first + 41, 0], logits[first + 30, 1] = 7, 9
    assert task.predicted(encoded, logits)[0].places == [first + 1, first + 30]


@pytest.mark.parametrize("family", with_slow_ones(CONFIGURATIONS, "Bert", "XLNet", "GPT2"))
def test_alone_and_in_company(default_pair, family):
    head = "ForQuestionAnsweringSimple" if family == "XLNet" else "ForQuestionAnswering"
    pair = tiny(family, head, default_pair[1]), default_pair[1]
    options = {"n_perturbations": 4, "inference_mode": "softmax", "return_convergence_delta": True}
    targets = [None, None, ["ending", ("start", "dull")]]
    together = GradientShap(*pair, "auto", **options)(PAIRS, targets)
    assert_equal(GradientShap(*pair, 1, **options)(PAIRS[::-1], targets[::-1])[::-1], together)


def test_answers_as_given(pair):
    explainer = GradientShap(*pair, n_perturbations=N)
    given = [
        "Smith",
        (6, 11),
        ("start", "Smith"),
        ("end", (6, 11)),
        ("end", None),
        None,
        Contrast("Smith", "The acting"),
    ]
    question, context = PAIRS[0]
    (output,) = explainer([(f"{question} \n", f"  {context}")], [given])
    assert output.target_names[:4] == ["Smith", "Smith", "start: Smith", "end: Smith"]
    assert output.target_names[4] == f"end: {output.predicted_label}"
    assert output.target_names[5:] == [output.predicted_label, "Smith rather than The acting"]
    assert output.text == f"{question}\n  {context}"
    scores = output.attributions
    assert_same(scores[0], scores[1])
    assert_same(scores[2] + scores[3], scores[0])
    (other,) = explainer(PAIRS[:1], ["The acting"])  # one by itself
    assert_same(scores[6], scores[0] - other.attributions[0])
    ids = pair[1](*PAIRS[0], return_tensors="pt")  # and as token ids
    assert_same(explainer(ids, ["the acting"])[0].attributions, other.attributions)
    assert explainer({"text": question, "text_pair": context}, ["The acting"])[0].to_json() == other.to_json()


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("Who loved it?", None, "Question answering takes a question with its context: a tuple"),
        (PAIRS[0], "Who", "'Who' does not occur in the text."),
        (PAIRS[0], "it", r"'it' occurs 2 times in the text; give the characters that you mean, one of \(16, 18\)"),
        (PAIRS[0], (0, 999), r"The characters \(0, 999\) are no part of the text"),
        (PAIRS[0], (3, 4), "No token of the context stands at"),
        (PAIRS[0], 7, "A target is None"),
        (PAIRS[0], [], "A text has no target"),
        (PAIRS[0], Contrast("Smith", (4, 9)), "A contrast of 'Smith' with itself"),
    ],
)
def test_what_cannot_be_explained(pair, text, target, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        GradientShap(*pair, n_perturbations=2)([text], [target])
    outputs = GradientShap(*pair, n_perturbations=2, on_error="record")([text, PAIRS[1]], [target, None])
    assert [one.error is None for one in outputs] == [False, True]


def test_models_of_another_output(default_pair):
    beam = tiny("XLNet", "ForQuestionAnswering", default_pair[1])
    with pytest.raises(fastshap.UnsupportedModelError, match=r"such as XLNetForQuestionAnsweringSimple\."):
        GradientShap(beam, default_pair[1])(PAIRS[:1])


def test_sums_files_and_reproduction(pair, tmp_path):
    explainer = GradientShap(
        *pair,
        "auto",
        granularity_aggregation_strategy="sum",
        n_perturbations=400,
        noise_std=0,
        return_convergence_delta=True,
    )
    (output,) = explainer(PAIRS[:1])
    ids = output.model_inputs_to_explain["input_ids"]
    x = pair[0].get_input_embeddings()(ids)
    first, last = output.model_inputs_to_explain["target_positions"][0]
    with torch.no_grad():
        found = [pair[0](inputs_embeds=z) for z in (x, 0 * x)]
    at, base = (one.start_logits[0, first] + one.end_logits[0, last] for one in found)
    total = output.attributions.sum(1) + output.unassigned
    torch.testing.assert_close(total, (at - base + output.convergence_delta), atol=1e-4, rtol=1e-4)
    assert output.convergence_delta.abs() < 0.05 * (at - base).abs()
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for (back,) in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    assert output.model_task == "question_answering"
    assert f"target {output.predicted_label}" in str(output)
    (both,) = explainer(PAIRS[:1], [[None, "The acting"]])
    both.to_html(tmp_path / "page.html")
    assert '<span class="q">answer</span>' in (tmp_path / "page.html").read_text()


def test_what_the_shell_says(pair):
    task = GradientShap(*pair).task
    assert task.spelled_targets(["Smith", "start: Smith", "note: Smith"], 1) == [
        ["Smith", ("start", "Smith"), "note: Smith"]
    ]
    assert task.spelled_targets(None, 1) is None
