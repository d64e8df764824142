"""What is explained where that is no logit of one class or token: contrasts, spans, thresholds, functions of one's own."""

import copy

import pytest
import torch

import fastshap
from fastshap import Contrast, GradientShap
from fastshap.reference import normals
from fastshap.sampling import draw_samples
from helpers.texts import SENTENCES

N = 8
SUM = {"granularity": "all_tokens", "n_perturbations": N, "return_convergence_delta": True}
PROMPT, ENDING = "the film was not", " good at all"


def plain(model, output, score):
    """Expected gradients of a score, by a plain loop with the same draws: (L,)."""
    ids = output.model_inputs_to_explain["input_ids"][0]
    x = model.get_input_embeddings()(ids).detach()
    its = draw_samples(output.seed, ids.tolist(), N, "antithetic")
    streams, places = torch.tensor([its.stream] * len(ids)), torch.arange(len(ids))
    total = torch.zeros(len(ids))
    for alpha, draw, sign in zip(its.alphas, its.draws, its.signs, strict=True):
        noise = float(sign) * normals(streams, torch.full((len(ids),), int(draw)), places, x.shape[1])
        b = output.noise_std * noise
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        (gradient,) = torch.autograd.grad(score(model(inputs_embeds=z[None]).logits[0]), z)
        total += ((x - b) * gradient).sum(1) / N
    return total


def back(output):
    """Through JSON, the same."""
    again = fastshap.AttributionOutput.from_json(output.to_json())
    assert again.to_json() == output.to_json()
    return again


def close(ours, theirs):
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


# Contrasts


def test_a_contrast_of_classes_is_their_difference(bert_pair):
    explainer = GradientShap(*bert_pair, **SUM)
    both = explainer(SENTENCES, [[2, 0]] * len(SENTENCES))
    for targets in (Contrast(2, 0), [Contrast("LABEL_2", "LABEL_0")] * len(SENTENCES)):
        for output, each in zip(explainer(SENTENCES, targets), both, strict=True):
            close(output.attributions[0], each.attributions[0] - each.attributions[1])
            assert output.target_names == ["LABEL_2 rather than LABEL_0"]
            assert output.targets.tolist() == [2, 0]
            assert output.target_weights.tolist() == [[1, -1]]
            assert output.target_probabilities is None
            assert output.predicted_label == each.predicted_label
            assert abs(float(output.convergence_delta - each.convergence_delta[0] + each.convergence_delta[1])) < 1e-3


def test_contrasts_beside_classes_in_any_company(bert_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=N)
    targets = [[Contrast(0, 1), 2], None, [None, Contrast(1, 2)], "all"]
    together = explainer(SENTENCES[:4], targets)
    assert [len(output.target_names) for output in together] == [2, 1, 2, 3]
    for text, target, output in zip(SENTENCES, targets, together, strict=False):
        (alone,) = explainer(text, [target])
        close(alone.attributions, output.attributions)
        again = fastshap.reproduce(back(output), *bert_pair)
        assert again.same
        assert not again.changed
    close(together[0].attributions[1], explainer(SENTENCES[0], 2)[0].attributions[0])


def test_a_contrast_with_abs_mean_is_of_the_difference(bert_pair):
    (output,) = GradientShap(*bert_pair, reduction="abs_mean", n_perturbations=N)(SENTENCES[0], Contrast(0, 1))
    each = GradientShap(*bert_pair, reduction="abs_mean", n_perturbations=N)(SENTENCES[0], [[0, 1]])[0].attributions
    assert output.attributions.shape == (1, each.shape[1])
    assert (output.attributions[0] <= each.sum(0) * 1.0001).all()
    assert (output.attributions > 0).all()


@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
def test_a_contrast_of_continuations(llama_pair, mode):
    model, tokenizer = llama_pair
    explainer = GradientShap(*llama_pair, inference_mode=mode, **SUM)
    (output,) = explainer(PROMPT, Contrast("good and dull", "good at all"))
    ours, theirs = output.targets.tolist()
    assert ours != theirs
    assert output.target_names == ["good and dull rather than good at all"]
    first = len(tokenizer(PROMPT)["input_ids"])
    seen = ~output.attributions[0].isnan()
    length = len(seen)
    assert length > first + 1  # what they share stands behind the prompt
    assert seen.tolist() == [True] * (length - 1) + [False]
    assert output.segments == [0] * first + [1] * (length - first)

    def score(logits):
        row = logits[length - 2]
        row = row.log_softmax(-1) if mode == "log_softmax" else row
        return row[ours] - row[theirs]

    close(output.attributions[0, :-1], plain(model, output, score)[:-1])
    assert fastshap.reproduce(back(output), *llama_pair).identical


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, g: Contrast(1, 1), "with itself"),
        (lambda c, g: Contrast(Contrast(0, 1), 1), "neither of which is a contrast"),
        (lambda c, g: c("fine", Contrast("LABEL_1", 1)), "'LABEL_1' with itself"),
        (lambda c, g: c(["fine"], [Contrast(1, 7)]), "Target 7 is out of range"),
        (lambda c, g: g(PROMPT, Contrast("good", "good at all")), "one begins with the other"),
        (lambda c, g: g(PROMPT, Contrast("good", "dull"), span=True), "leave out span"),
        (lambda c, g: g(PROMPT, [ENDING], span=True, inference_mode="softmax"), "log-probabilities"),
        (lambda c, g: g(PROMPT, [ENDING], span=[(40, 50)]), r"must lie in the target.*11 characters: 'good at all'"),
        (lambda c, g: g(PROMPT, [ENDING], span=[(0, 80)]), r"must lie in the target.*11 characters: 'good at all'"),
        (lambda c, g: g(PROMPT, [ENDING], span=[(4, 2)]), r"\(start, end\)"),
        (lambda c, g: c("fine", span=True), "span is for language models"),
        (lambda c, g: c("fine", score="surprise"), "must be one of 'logit', 'probability', 'log_probability'"),
        (lambda c, g: c("fine", score="probability", inference_mode="log_softmax"), "two names for one thing"),
        (lambda c, g: c("fine", score="probability", inference_mode="logits"), "say different ones; leave out either"),
        (
            lambda c, g: GradientShap(c.model, c.tokenizer, score="logit", inference_mode="softmax"),
            "two names for one thing",
        ),
        (lambda c, g: c("fine", 0, score=lambda outputs, inputs: outputs.logits), "leave out targets"),
        (lambda c, g: c("fine", score=lambda outputs, inputs: outputs.logits[:, 0]), r"\(R, t\).*returned \(\d,\)"),
        (lambda c, g: c("fine", score=lambda outputs, inputs: outputs.logits.detach()), "without a gradient"),
        (lambda c, g: c("fine", score=lambda outputs, inputs: outputs.logits, inference_mode="softmax"), "as it is"),
        (lambda c, g: GradientShap(c.model, c.tokenizer, task="score"), "needs score="),
        (lambda c, g: GradientShap(c.model, c.tokenizer, task="generation"), "is for causal language models"),
        (lambda c, g: GradientShap(c.model, c.tokenizer, task="poetry"), "no task named 'poetry'; there are"),
        (lambda c, g: GradientShap(c.model, c.tokenizer, task=3), "task must be None"),
    ],
)
def test_combinations_without_sense(bert_pair, llama_pair, call, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        call(GradientShap(*bert_pair, n_perturbations=2), GradientShap(*llama_pair, n_perturbations=2))


# Spans


def test_a_span_is_the_sum_of_its_tokens(llama_pair):
    model, tokenizer = llama_pair
    (output,) = GradientShap(*llama_pair, span=True, **SUM)(PROMPT, [ENDING])
    ids = output.targets
    first = len(tokenizer(PROMPT)["input_ids"])
    assert len(ids) > 2
    assert output.inference_mode is fastshap.InferenceModes.LOG_SOFTMAX
    assert output.target_names == [ENDING.strip()]
    assert output.attributions.isnan().tolist() == [[False] * (first + len(ids) - 1) + [True]]

    def score(logits):
        return logits[first - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).sum()

    close(output.attributions[0, :-1], plain(model, output, score)[:-1])
    assert fastshap.reproduce(back(output), *llama_pair).identical


def test_some_spans_in_any_company(llama_pair):
    explainer = GradientShap(*llama_pair, n_perturbations=N)
    prompts, endings = [PROMPT, SENTENCES[0], "dull"], [ENDING, "superb", None]
    options = {"generation_kwargs": {"max_new_tokens": 5}}
    together = explainer(prompts, endings, span=True, **options)
    for prompt, ending, output in zip(prompts, endings, together, strict=True):
        given = {} if ending else options
        close(
            explainer(prompt, [ending], span=True, **given)[0].attributions.nan_to_num(),
            output.attributions.nan_to_num(),
        )
    (two,) = explainer(PROMPT, [ENDING], span=[(0, 4), (5, 7)])
    assert two.target_names == ["good", "at"]
    (within,) = explainer(PROMPT, [ENDING], span=[(1, 3), (5, 6)])  # within tokens, which are what is explained
    assert within.target_names == ["good", "at"]
    close(within.attributions.nan_to_num(), two.attributions.nan_to_num())
    assert two.attributions[0].isnan().sum() >= two.attributions[1].isnan().sum()
    assert two.target_weights.sum() < two.targets.numel() + 1
    assert fastshap.reproduce(back(two), *llama_pair).identical


def test_a_span_takes_one_backward_pass(llama_pair, monkeypatch):
    passes = []
    grad = torch.autograd.grad

    def counted(outputs, inputs, *arguments, **named):
        passes.append(inputs.shape[0] if isinstance(inputs, torch.Tensor) else 0)
        return grad(outputs, inputs, *arguments, **named)

    explainer = GradientShap(*llama_pair, 64, n_perturbations=N)
    explainer(PROMPT, [ENDING], span=True)  # the model is tried
    monkeypatch.setattr("torch.autograd.grad", counted)
    explainer(PROMPT, [ENDING], span=True)
    assert passes == [N]


# Scores


def first_minus_last(outputs, inputs):
    return outputs.logits[:, :1] - outputs.logits[:, -1:]


def test_a_score_of_ones_own(bert_pair):
    explainer = GradientShap(*bert_pair, **SUM)
    outputs = explainer(SENTENCES, score=first_minus_last)
    for output, same in zip(outputs, explainer(SENTENCES, Contrast(0, 2)), strict=True):
        close(output.attributions, same.attributions)
        close(output.convergence_delta + 1, same.convergence_delta + 1)
        assert output.model_task == "score"
        assert output.target_names == ["first_minus_last"]
        assert output.predicted_label is None
    kept = back(outputs[0])
    with pytest.raises(fastshap.InvalidArgumentError, match="pass the function, as score"):
        fastshap.reproduce(kept, *bert_pair)
    assert fastshap.reproduce(kept, *bert_pair, score=first_minus_last).same


def test_a_score_at_the_last_token_is_not_read_from_padding(llama_pair):
    def last(outputs, inputs):
        return outputs.logits[:, -1, 5:7]

    explainer = GradientShap(*llama_pair, score=last, n_perturbations=N)
    together = explainer(SENTENCES)
    for text, output in zip(SENTENCES, together, strict=True):
        close(explainer(text)[0].attributions, output.attributions)
        assert output.target_names == ["last 0", "last 1"]


def test_names_of_scores(bert_pair):
    explainer = GradientShap(*bert_pair, score="log_probability", n_perturbations=2)
    assert explainer.inference_mode is fastshap.InferenceModes.LOG_SOFTMAX
    assert explainer("fine", score="logit")[0].inference_mode is fastshap.InferenceModes.LOGITS
    assert explainer("fine", inference_mode="softmax")[0].inference_mode is fastshap.InferenceModes.SOFTMAX


def test_a_call_has_its_own_score(bert_pair):
    """What the explainer was given with is undone by None, and replaced by another name for the same thing."""
    modes = fastshap.InferenceModes

    def mode_of(explainer, **call):
        return explainer("fine", **call)[0].inference_mode

    named = GradientShap(*bert_pair, score="probability", n_perturbations=2)
    assert mode_of(named) is modes.SOFTMAX
    assert mode_of(named, score=None) is modes.LOGITS
    assert mode_of(named, score=None, inference_mode="log_softmax") is modes.LOG_SOFTMAX
    assert mode_of(named, score="probability", inference_mode="softmax") is modes.SOFTMAX
    assert named("fine", score=first_minus_last)[0].model_task == "score"
    assert mode_of(named) is modes.SOFTMAX
    moded = GradientShap(*bert_pair, inference_mode="softmax", n_perturbations=2)
    assert mode_of(moded, score=None) is modes.SOFTMAX
    assert mode_of(moded, score="logit") is modes.LOGITS
    assert moded("fine", score=first_minus_last)[0].model_task == "score"
    own = GradientShap(*bert_pair, score=first_minus_last, n_perturbations=2)
    assert own("fine", score=None)[0].model_task is fastshap.ModelTask.CLASSIFICATION


# Regression, and classes that do not exclude each other


def with_problem(pair, problem):
    model = copy.deepcopy(pair[0])
    model.config.problem_type = problem
    return model, pair[1]


def test_classes_that_do_not_exclude_each_other(bert_pair):
    model, tokenizer = with_problem(bert_pair, "multi_label_classification")
    explainer = GradientShap(model, tokenizer, score="probability", n_perturbations=2)
    assert explainer.inference_mode is fastshap.InferenceModes.SIGMOID
    with torch.no_grad():
        shares = [model(**tokenizer(text, return_tensors="pt")).logits[0].sigmoid() for text in SENTENCES]
    for threshold in (0.5, 0.2, 0.999):
        for output, share in zip(explainer(SENTENCES, threshold=threshold), shares, strict=True):
            predicted = (share >= threshold).nonzero().flatten().tolist() or [int(share.argmax())]
            assert output.targets.tolist() == predicted
            assert torch.allclose(output.target_probabilities, share[predicted], atol=1e-5)
            assert fastshap.reproduce(back(output), model, tokenizer).largest_difference < 1e-6  # scores of about 1e-3
    (alone,) = explainer(SENTENCES[0])
    close(alone.attributions, explainer(SENTENCES)[0].attributions)
    with pytest.raises(fastshap.InvalidArgumentError, match=r"do not exclude each other.*SIGMOID"):
        GradientShap(model, tokenizer, inference_mode="softmax")


def test_values_have_no_probability(bert_pair):
    model, tokenizer = with_problem(bert_pair, "regression")
    for mode in ("softmax", "log_softmax", "sigmoid"):
        with pytest.raises(fastshap.InvalidArgumentError, match=r"values.*use LOGITS"):
            GradientShap(model, tokenizer, inference_mode=mode)
    assert GradientShap(model, tokenizer, n_perturbations=2)("fine")[0].probability is None
    with pytest.raises(fastshap.InvalidArgumentError, match="threshold must be from 0 to 1"):
        GradientShap(model, tokenizer, threshold=2)


def test_each_score_is_tried_by_itself(llama_pair):
    """What was found with one function says nothing of the next."""

    def mean(outputs, inputs):
        mask = inputs["attention_mask"][..., None]
        return ((outputs.logits * mask).sum(1) / mask.sum(1))[:, :2]

    def plain_mean(outputs, inputs):
        return outputs.logits.mean(1)[:, :2]

    for score in (lambda outputs, inputs: outputs.logits[:, -1, :2], plain_mean, mean):
        explainer = GradientShap(*llama_pair, "auto", n_perturbations=4, score=score)
        for text, output in zip(SENTENCES, explainer(SENTENCES), strict=True):
            close(explainer(text)[0].attributions, output.attributions)


def test_rows_that_mix_are_refused_whatever_was_tried_before(default_pair):
    GradientShap(*default_pair, score=lambda outputs, inputs: outputs.logits[:, :1])("fine")
    mixing = GradientShap(*default_pair, score=lambda outputs, inputs: outputs.logits[:, :1] * outputs.logits.mean())
    with pytest.raises(fastshap.UnsupportedModelError, match="rows mix"):
        mixing("fine")


def test_a_score_beside_a_task(default_pair):
    with pytest.raises(fastshap.InvalidArgumentError, match="leave out task='classification'"):
        GradientShap(*default_pair, task="classification", score=first_minus_last)
    with pytest.raises(fastshap.InvalidArgumentError, match="leave out task='classification'"):
        GradientShap(*default_pair, task="classification")("fine", score=first_minus_last)


def test_contrasts_of_token_ids_and_behind_long_inputs(llama_pair):
    explainer = GradientShap(*llama_pair, n_perturbations=2)
    (output,) = explainer([[5, 6, 7]], Contrast([8, 9], [8, 10]))
    assert output.targets.tolist() == [9, 10]
    with pytest.warns(fastshap.TruncationWarning):
        (output,) = explainer("the film " * 400, Contrast("good at all", "dull"))
    assert output.truncated
    first, second = GradientShap(*llama_pair, n_perturbations=2, on_error="record")(
        [PROMPT, PROMPT], [Contrast("good", [[1], [2]]), "dull"]
    )
    assert "must be a string or token ids; got list" in first.error
    assert second.error is None
    for sides in ((None, "good"), ("good", None)):
        with pytest.raises(fastshap.InvalidArgumentError, match="neither may be None"):
            Contrast(*sides)
    for made in (torch.tensor, list):
        with pytest.raises(fastshap.InvalidArgumentError, match="with itself"):
            Contrast(made([1, 2]), made([1, 2]))
        Contrast(made([1, 2]), made([1, 3]))


def test_a_score_without_slope_is_told(bert_pair):
    def sign(outputs, inputs):
        return outputs.logits[:, :1].sign()

    explainer = GradientShap(*bert_pair, "auto", n_perturbations=4, score=sign)
    with pytest.warns(fastshap.NoiseWarning, match="All scores are zero") as told:
        explainer(["A fine film", "not good"])
    assert len(told) == 1
    with pytest.warns(fastshap.NoiseWarning, match="All scores are zero"):
        list(explainer.iter_explain(["A fine film", "not good", "dull"]))
