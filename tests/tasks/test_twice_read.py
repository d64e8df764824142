"""Encoders with a decoder that read one text twice: both readings count, and the model stays as it was."""

import copy

import every_class
import families
import pytest
import torch

import fastshap
from fastshap import GradientShap
from helpers.checks import assert_equal
from helpers.gradients import close
from helpers.twice_read import by_a_loop

N = 4
KINDS = {"t5": "T5", "bart": "Bart", "mbart": "MBart", "plbart": "PLBart", "bigbird_pegasus": "BigBirdPegasus"}
MIXED = ["the film was not good at all", ("superb", "a dull ending"), "superb </s> and dull", "superb"]
HEADS = {"question_answering": "ForQuestionAnswering", "similarity": "Model"}


def made(kind, task, **tweaks):
    """A small model with large weights, and a tokenizer that ends each text."""
    words = families.tokenizer(task, False, True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(every_class.TWEAKS, kind, {**every_class.TWEAKS.get(kind, {}), **tweaks})
        patched.setitem(every_class.GAINS, kind, 0.7)
        name = KINDS[kind] + HEADS.get(task, "ForSequenceClassification")
        model = every_class.built(task, kind, name, len(words), labels=2 if task == "question_answering" else 3)
    if task == "zero_shot":
        model.config.id2label = {0: "contradiction", 1: "neutral", 2: "entailment"}
    return model, words


def class_1(run):
    return run().logits[0, 1]


def of_places(places):
    def score(run):
        found = run()
        return found.start_logits[0, places[0]] + found.end_logits[0, places[1]]

    return score


def entailed(labels):
    """(labels,) hypotheses, as lists of tokens."""

    def score(run):
        return run(labels[1]).logits[0, 2]

    return score


def states_alike(first, second):
    def score(run):
        one, other = (run(places).last_hidden_state[0].mean(0) for places in (first, second))
        return torch.nn.functional.cosine_similarity(one, other, dim=0)

    return score


def sequences(output):
    return [one.nonzero().flatten() for one in output.model_inputs_to_explain["sequences_mask"][0].unbind(1)]


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        *(
            (kind, task)
            for kind in ("t5", "bart")
            for task in ("classification", "pairs", "zero_shot", "question_answering")
        ),
        ("bart", "similarity"),
        pytest.param("bigbird_pegasus", "similarity", marks=pytest.mark.slow),
        ("mbart", "classification"),
        pytest.param("plbart", "classification", marks=pytest.mark.slow),
        pytest.param("mbart", "question_answering", marks=pytest.mark.slow),
    ],
)
def test_both_readings_count(kind, task):
    """Against a plain loop that replaces what the model looks up for its encoder and for its decoder."""
    tweaks = {"scale_embedding": True} if "bart" in kind else {}
    model, words = made(kind, task, **tweaks, **{"attention_type": "original_full"} if "bird" in kind else {})
    texts, targets, options = families.asked(task)
    targets = [1] * len(texts) if task in ("classification", "pairs") else targets
    explainer = GradientShap(model, words, "auto", granularity="all_tokens", n_perturbations=N, noise_std=0, **options)
    for output in explainer(texts, targets):
        score = class_1
        if task == "question_answering":
            score = of_places(output.model_inputs_to_explain["target_positions"][0].tolist())
        elif task == "zero_shot":
            score = entailed(sequences(output))
        elif task == "similarity":
            score = states_alike(*sequences(output))
        close(output.attributions[-1], by_a_loop(model, output, score))


@pytest.fixture(scope="module", params=["t5", "bart"])
def pair(request):
    return made(request.param, "classification")


def test_texts_with_other_numbers_of_ends_share_calls(pair):
    """A pair has two; a text may hold one itself. The model reads the last one alone."""
    explainer = GradientShap(*pair, 64, n_perturbations=N, granularity="all_tokens")
    together = explainer(MIXED, 1)
    assert explainer._layout.padding_side == "right"
    assert not explainer._layout.equal_lengths
    alone = [explainer([text], 1)[0] for text in MIXED]
    assert families.apart(together, alone) < 1e-5
    for output in together:
        close(output.attributions[0], by_a_loop(pair[0], output, class_1))


def test_a_text_without_an_end_is_refused_by_itself(pair):
    texts = [[7, 8, 2], [7, 8, 9], [6, 2]]
    good, bad, other = GradientShap(*pair, "auto", n_perturbations=N, on_error="record")(texts, 1)
    assert "InvalidArgumentError" in bad.error
    assert "reads a text at its last end-of-text token (id 2), and this text has none" in bad.error
    assert good.error is other.error is None


def test_a_tokenizer_that_ends_no_text(pair):
    with pytest.raises(fastshap.InvalidArgumentError, match="Have the tokenizer add it"):
        GradientShap(pair[0], every_class.tokenizer())("superb", 1)


def test_an_end_that_is_not_the_last_token():
    """mBART's languages stand behind it."""
    model, words = made("mbart", "classification")
    for output in GradientShap(model, words, "auto", n_perturbations=N, granularity="all_tokens")(
        [[5, 6, 7, 2, 9], [8, 2, 10]], 1
    ):
        close(output.attributions[0], by_a_loop(model, output, class_1))


def test_a_decoder_that_reads_something_else_is_refused(pair):
    model = copy.deepcopy(pair[0])
    kind = type(model)

    class Other(kind):
        def forward(self, input_ids=None, decoder_input_ids=None, decoder_inputs_embeds=None, **further):
            if decoder_inputs_embeds is None:
                decoder_input_ids = input_ids.flip(1)
            return super().forward(
                input_ids=input_ids,
                decoder_input_ids=decoder_input_ids,
                decoder_inputs_embeds=decoder_inputs_embeds,
                **further,
            )

    Other.__name__ = kind.__name__
    model.__class__ = Other
    with pytest.raises(fastshap.UnsupportedModelError, match="its decoder the same ones shifted by one"):
        GradientShap(model, pair[1])("superb", 1)


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for name, held in vars(module).items()
        if name.endswith("_hooks")
        for hook in held
    ]


@pytest.mark.parametrize("watched", [False, True], ids=["a view", "the model itself"])
def test_the_model_stays_as_it_was(pair, monkeypatch, watched):
    """No hooks and the same numbers after an explanation and after one that failed, in training mode too."""
    model = copy.deepcopy(pair[0]).train()
    if watched:  # then no view can be made
        monkeypatch.setattr("fastshap.models.view._can_be_viewed", lambda model: False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explainer = GradientShap(model, pair[1], n_perturbations=N)
    first = explainer("a dull ending", 1)
    head = type(model.classification_head)
    with monkeypatch.context() as patched:
        patched.setattr(head, "forward", lambda self, states: 1 / 0)
        with pytest.raises(fastshap.FastshapError, match="ZeroDivisionError"):
            explainer("superb and dull", 1)
    assert not hooks_of(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert_equal(explainer("a dull ending", 1), first)


def test_copies_in_threads_of_their_own(pair, monkeypatch):
    texts = ["the film was not good at all", "superb", "a dull ending", "superb and dull"]
    options = {"n_perturbations": N, "batch_size": 4, "granularity": "all_tokens"}
    alone = GradientShap(*pair, **options)(texts, [[0, 2]] * 4)
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr("fastshap.engine.work.ENOUGH_TOKENS", 0)
        both = GradientShap(*pair, **options)(texts, [[0, 2]] * 4)
    finally:
        torch.set_num_threads(usual)
    assert families.apart(both, alone) < 1e-5


def test_outputs_are_saved_and_reproduced(pair, tmp_path):
    explainer = GradientShap(*pair, "auto", n_perturbations=N, return_convergence_delta=True)
    outputs = [explainer([text])[0] for text in MIXED]
    fastshap.write_jsonl(outputs, tmp_path / "outputs.jsonl")
    fastshap.write_parquet(outputs, tmp_path / "outputs.parquet")
    for read in (fastshap.read_jsonl(tmp_path / "outputs.jsonl"), fastshap.read_parquet(tmp_path / "outputs.parquet")):
        for output in read:
            assert fastshap.reproduce(output, *pair).identical


def test_a_score_of_ones_own(pair):
    def margin(outputs, inputs):
        return outputs.logits[:, 1:2] - outputs.logits[:, :1]

    options = {"n_perturbations": N, "granularity": "all_tokens"}
    (ours,) = GradientShap(*pair, score=margin, **options)("a dull ending")
    (theirs,) = GradientShap(*pair, **options)("a dull ending", fastshap.Contrast("LABEL_1", "LABEL_0"))
    close(ours.attributions[0], theirs.attributions[0])
