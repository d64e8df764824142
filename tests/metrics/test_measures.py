"""The measures: known values of a linear model, definitions recomputed by hand, and what is skipped or refused."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

import fastshap
from fastshap import metrics
from fastshap.metrics.measures import tops
from fastshap.metrics.normalized import _exact, _masks, _searched

TEXTS = [
    "A gorgeous, witty film, but the ending is dull.",
    "The battery died after two days and nobody answered the phone.",
    "not good at all",
]
ALL = [
    metrics.Comprehensiveness(),
    metrics.Sufficiency(k=2),
    metrics.LogOdds(),
    metrics.Comprehensiveness(metrics.AOPC_GRID),
    metrics.Insertion(),
    metrics.Deletion(),
    metrics.Infidelity(n_perturb_samples=8),
    metrics.NormalizedAOPC(beam=2, exact_up_to=5),
]


class LinearForSequenceClassification(PreTrainedModel):
    """Logits 0 and the sum of a weight for each token: linear in words that are left out."""

    config_class = BertConfig
    base_model_prefix = "linear"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        weights = self.head(x).squeeze(-1)
        total = (weights if attention_mask is None else weights * attention_mask).sum(1)
        return SequenceClassifierOutput(logits=torch.stack([torch.zeros_like(total), total], 1))


@pytest.fixture(scope="module")
def linear(default_pair):
    tokenizer = default_pair[1]
    torch.manual_seed(0)
    model = LinearForSequenceClassification(BertConfig(vocab_size=len(tokenizer), hidden_size=6, num_labels=2)).eval()
    with torch.no_grad():
        model.embeddings.weight.normal_()
        model.head.weight.normal_()
    return model, tokenizer


def weights_of_words(linear, texts):
    """Each text's words, and what each adds to the logit of class 1."""
    model, tokenizer = linear
    outputs = fastshap.GradientShap(
        model, tokenizer, 50, granularity_aggregation_strategy="sum", n_perturbations=4, noise_std=0.0
    )(texts, 1)
    for output in outputs:
        ids = output.model_inputs_to_explain["input_ids"][0]
        each = model.head(model.embeddings(ids)).detach().squeeze(1)
        right = [float(each[member].sum()) for member in output.element_tokens]
        assert output.attributions[0].tolist() == pytest.approx(right, rel=1e-4, abs=1e-5)
    return outputs, [output.attributions[0].double().numpy() for output in outputs]


@pytest.mark.parametrize("replacement", ["delete", 0.0])
def test_a_linear_model_has_the_known_values(linear, replacement):
    """Both replacements take a word's weight away."""
    outputs, weights = weights_of_words(linear, TEXTS)
    judge = metrics.Faithfulness(*linear, replacement=replacement, score="logit")

    def found(measure):
        return np.array(judge.evaluate(outputs, measure).per_text)

    sizes = np.array([len(w) for w in weights])
    down = [np.sort(w)[::-1] for w in weights]
    fifth = [max(1, len(w) // 5) for w in weights]
    total = np.array([w.sum() for w in weights])
    top = np.array([w[:k].sum() for w, k in zip(down, fifth, strict=True)])
    assert found(metrics.Comprehensiveness()) == pytest.approx(top, rel=1e-4)
    assert found(metrics.Sufficiency()) == pytest.approx(total - top, rel=1e-4)
    assert found(metrics.Comprehensiveness(k=3)) == pytest.approx([w[:3].sum() for w in down], rel=1e-4)
    grid = [np.mean([w[:k].sum() for k in {max(1, tenth * len(w) // 10) for tenth in range(1, 11)}]) for w in down]
    assert found(metrics.Comprehensiveness(metrics.AOPC_GRID)) == pytest.approx(grid, rel=1e-4)
    others = np.array([linear_rest(linear, output) for output in outputs])
    curves = [np.concatenate([[0], np.cumsum(w)]) for w in down]
    area = np.array([np.mean((c[1:] + c[:-1]) / 2) for c in curves])
    assert found(metrics.Insertion()) == pytest.approx(others + area, rel=1e-4)
    assert found(metrics.Deletion()) == pytest.approx(others + total - area, rel=1e-4)
    assert found(metrics.Infidelity()) == pytest.approx(np.zeros(3), abs=1e-8)
    assert found(metrics.Infidelity(normalize=False)) == pytest.approx(np.zeros(3), abs=1e-8)
    # The largest weights first are the best order, the smallest first the worst.
    for exact in (4, 12):
        best = metrics.NormalizedAOPC(exact_up_to=exact, beam=3)
        assert found(best) == pytest.approx(np.ones(3), abs=1e-5)
        worst = metrics.NormalizedAOPC("sufficiency", exact_up_to=exact, beam=3)
        assert found(worst) == pytest.approx(np.zeros(3), abs=1e-5)
    assert (sizes > 3).all()


def linear_rest(linear, output):
    """What special tokens add, which stand in no word."""
    model, ids = linear[0], output.model_inputs_to_explain["input_ids"][0]
    shown = {token for member in output.element_tokens for token in member}
    others = [i for i in range(len(ids)) if i not in shown]
    return float(model.head(model.embeddings(ids[others])).detach().sum())


def test_log_odds_of_a_linear_model(linear):
    outputs, weights = weights_of_words(linear, TEXTS)
    found = metrics.Faithfulness(*linear).evaluate(outputs, metrics.LogOdds(k=2)).per_text
    for value, output, w in zip(found, outputs, weights, strict=True):
        logit = w.sum() + linear_rest(linear, output)
        less = logit - np.sort(w)[-2:].sum()
        assert value == pytest.approx(np.log1p(np.exp(-logit)) - np.log1p(np.exp(-less)), rel=1e-4, abs=1e-6)


def test_max_sensitivity_of_a_linear_model(linear):
    """Moved by e, a token's score changes by w e; the relative change does not hang on the number of samples."""
    explainer = fastshap.GradientShap(*linear, 50, "all_tokens", noise_std=0.0, n_perturbations=2)
    found = metrics.sensitivity_max(explainer, TEXTS, 1, perturb_radius=0.1, n_perturb_samples=3)
    weight = linear[0].head.weight[0].detach().double()
    for value, output in zip(found.per_text, explainer(TEXTS, 1), strict=True):
        ids = output.model_inputs_to_explain["input_ids"][0].tolist()
        draws = np.random.default_rng([0, *fastshap.sampling.text_key(0, ids)])
        moved = [draws.uniform(-0.1, 0.1, (len(ids), 6)).astype(np.float32) for _ in range(3)]
        changes = [float((torch.from_numpy(one).double() @ weight).norm()) for one in moved]
        assert value == pytest.approx(max(changes) / float(output.attributions[0].double().norm()), rel=1e-4)


# ------------------------------------------------------------------ by hand


def probability(pair, ids, label):
    with torch.no_grad():
        return float(pair[0](input_ids=torch.tensor([ids])).logits.softmax(-1)[0, label])


@pytest.fixture(scope="module")
def explained(default_pair):
    return fastshap.GradientShap(*default_pair, 50, granularity="token", n_perturbations=10)(TEXTS)


def by_hand(default_pair, output, kept, mask=None):
    """The probability of the target with the text's tokens for which ``kept`` (L - 2,) holds; the others go, or are masked."""
    ids = output.model_inputs_to_explain["input_ids"][0].tolist()
    inner = [i if keep else mask for i, keep in zip(ids[1:-1], kept, strict=True) if keep or mask is not None]
    return probability(default_pair, [ids[0], *inner, ids[-1]], int(output.targets[0]))


def test_aopc_as_ferret_defines_it(default_pair, explained):
    """10 % to 100 % of the tokens, rounded down; none, and what was taken already, is left out."""
    judge = metrics.Faithfulness(*default_pair)
    found = [
        judge.evaluate(explained, kind(metrics.AOPC_GRID)) for kind in (metrics.Comprehensiveness, metrics.Sufficiency)
    ]
    for i, output in enumerate(explained):
        scores = output.attributions[0].numpy()
        size = len(scores)
        whole = by_hand(default_pair, output, [True] * size)
        counts = sorted({int(share * size) for share in np.arange(0.1, 1.1, 0.1)} - {0})
        tops = [set(scores.argsort()[-count:]) for count in counts]
        comprehensive = [whole - by_hand(default_pair, output, [t not in top for t in range(size)]) for top in tops]
        sufficient = [whole - by_hand(default_pair, output, [t in top for t in range(size)]) for top in tops]
        assert found[0].per_text[i] == pytest.approx(np.mean(comprehensive), abs=1e-5)
        assert found[1].per_text[i] == pytest.approx(np.mean(sufficient), abs=1e-5)


@pytest.mark.parametrize("token", ["mask", "pad"])
def test_log_odds_as_tint_defines_them(default_pair, explained, token):
    mask = getattr(default_pair[1], f"{token}_token_id")
    found = metrics.Faithfulness(*default_pair, replacement=token).evaluate(explained, metrics.LogOdds(k=0.4))
    for value, output in zip(found.per_text, explained, strict=True):
        scores = output.attributions[0]
        top = scores.topk(int(len(scores) * 0.4)).indices.tolist()
        p = by_hand(default_pair, output, [t not in top for t in range(len(scores))], mask)
        whole = by_hand(default_pair, output, [True] * len(scores))
        assert value == pytest.approx(math.log(p) - math.log(whole), abs=1e-5)


def test_exact_bounds_are_those_of_all_orders():
    values = np.random.default_rng(0).normal(size=1 << 5)
    values[0] = 0
    totals = [
        sum(values[sum(1 << i for i in order[:count])] for count in range(1, 6)) / 5
        for order in itertools.permutations(range(5))
    ]
    assert _exact(values, 5) == pytest.approx((min(totals), max(totals)))
    # A beam that holds all sets of a size finds the same.
    search = _searched(5, 10)
    masks = next(search)
    for _ in range(5):
        masks = search.send(-values[masks @ (1 << np.arange(5))])
    with pytest.raises(StopIteration) as end:
        search.send(-values[masks @ (1 << np.arange(5))])
    assert end.value.value == pytest.approx((min(totals), max(totals)))
    assert (_masks([0, 5, 300], 9) @ (1 << np.arange(9))).tolist() == [0, 5, 300]


@pytest.mark.parametrize(("k", "counts"), [(0.2, [1]), (0.3, [3]), (3, [3]), ((0.05, 0.1, 0.29, 99), [1, 2, 10])])
def test_how_many_elements_are_the_top(k, counts):
    assert tops(np.arange(10.0), k).sum(1).tolist() == (counts if k != 0.2 else [2])


# ------------------------------------------------------------------ what does not matter


@pytest.mark.parametrize("replacement", ["delete", "mask", "mean"])
def test_batch_size_and_company_do_not_matter(default_pair, explained, replacement):
    together = metrics.Faithfulness(*default_pair, replacement=replacement).compare({"ours": explained}, ALL)
    for batch_size in (1, 7):
        other = metrics.Faithfulness(*default_pair, replacement=replacement, batch_size=batch_size)
        alone = other.compare({"ours": explained[:1]}, ALL)
        for measure in ALL:
            value = alone["ours", measure].per_text[0]
            assert value == pytest.approx(together["ours", measure].per_text[0], rel=1e-4, abs=1e-5)


def test_rows_of_many_texts_share_calls_and_the_model_stays_as_it_was(default_pair, explained):
    model, _ = default_pair
    model.train()
    model.classifier.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    judge = metrics.Faithfulness(*default_pair, batch_size=1000, replacement="mask")
    judge.evaluate(explained, metrics.Comprehensiveness())  # tries the model
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    try:
        judge.evaluate(explained, metrics.Comprehensiveness())
        tried = len(calls)
        judge.compare({"one": explained, "two": explained}, [metrics.Comprehensiveness(metrics.AOPC_GRID)])
        assert len(calls) - tried <= 3  # a call for each length, where no mask is needed
        assert not any(calls[tried:])
    finally:
        handle.remove()
        assert model.training
        assert not model.classifier.bias.requires_grad
        model.eval()
        model.classifier.bias.requires_grad_(True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------ inputs


def test_words_and_scores_of_any_method_count_as_outputs(default_pair):
    outputs = fastshap.GradientShap(*default_pair, 50)(TEXTS)
    plain = [(o.text, o.elements, o.attributions[0], o.target_names[0]) for o in outputs]
    predicted = [(o.text, [f" {word}" for word in o.elements], o.attributions.tolist()) for o in outputs]
    table = metrics.Faithfulness(*default_pair).compare({"a": outputs, "b": plain, "c": predicted}, ALL[:6])
    for label in table.measures:
        assert table["a", label].per_text == table["b", label].per_text == table["c", label].per_text
        assert table.difference("a", "b", label).mean == 0
    assert metrics.rank_correlation(outputs, plain).per_text == pytest.approx([1, 1, 1])


def test_several_targets_count_by_their_mean(bert_pair):
    explainer = fastshap.GradientShap(*bert_pair, 50)
    judge, measure = metrics.Faithfulness(*bert_pair), metrics.Comprehensiveness()
    both = judge.evaluate(explainer(TEXTS, [[0, 2]] * 3), measure).per_text
    each = [judge.evaluate(explainer(TEXTS, target), measure).per_text for target in (0, 2)]
    assert both == pytest.approx(np.mean(each, 0), abs=1e-6)
    contrast = explainer(TEXTS, fastshap.Contrast(0, 2))
    rest = judge.compare({"": contrast}, [measure, metrics.LogOdds()])
    assert rest["", measure].count == 3
    assert rest["", metrics.LogOdds()].skipped == {"a contrast has no log-odds": 3}


def test_a_model_of_several_labels(bert_pair):
    model, tokenizer = bert_pair
    model.config.problem_type = "multi_label_classification"
    try:
        outputs = fastshap.GradientShap(model, tokenizer, 50)(TEXTS, 1)
        found = metrics.Faithfulness(model, tokenizer).evaluate(outputs, metrics.Comprehensiveness(k=1)).per_text
        ids = outputs[2].model_inputs_to_explain["input_ids"][0]
        best = outputs[2].element_tokens[int(outputs[2].attributions[0].argmax())]
        less = torch.tensor([t for i, t in enumerate(ids.tolist()) if i not in best])
        with torch.no_grad():
            p = [float(model(input_ids=one[None]).logits.sigmoid()[0, 1]) for one in (ids, less)]
        assert found[2] == pytest.approx(p[0] - p[1], abs=1e-5)
    finally:
        model.config.problem_type = None


def test_next_tokens(llama_pair):
    """The prompt's elements alone are replaced; f is the mean probability of a word's tokens."""
    model, tokenizer = llama_pair
    outputs = fastshap.GradientShap(model, tokenizer, 50)(
        ["The film is", "not good at all, and"], [" superb.", " dull"]
    )
    judge = metrics.Faithfulness(model, tokenizer)
    found = judge.compare({"": outputs}, [metrics.Comprehensiveness(k=1), metrics.LogOdds(k=1)])
    output = outputs[0]
    ids = output.model_inputs_to_explain["input_ids"][0].tolist()
    first = len(ids) - len(output.targets)
    words = [m for m in output.element_tokens if m[0] < first]
    answers = [m for m in output.element_tokens if m[0] >= first]
    assert len(words) == 3
    right = []
    for row, answer in zip(output.attributions, answers, strict=True):
        best = words[int(row[:3].argmax())]
        p = []
        for gone in ([], best):
            kept = [i for i in range(len(ids)) if i not in gone]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[ids[i] for i in kept]])).logits[0].softmax(-1)
            p.append(np.mean([float(logits[kept.index(i) - 1, ids[i]]) for i in answer]))
        right.append(p[0] - p[1])
    assert found["", metrics.Comprehensiveness(k=1)].per_text[0] == pytest.approx(np.mean(right), abs=1e-6)
    plain = [("The film is", ["The", "film", "is"], [3.0, 2.0, 1.0], " superb.")]
    assert judge.evaluate(plain, metrics.Comprehensiveness(k=1)).count == 1
    everything = judge.evaluate(plain, metrics.Comprehensiveness(k=3))
    assert everything.skipped == {"nothing is left of the text where its elements are deleted": 1}
    with pytest.raises(fastshap.InvalidArgumentError, match="Name the text that follows"):
        judge.evaluate([plain[0][:3]], metrics.Comprehensiveness())


def test_a_span_counts_by_its_mean(llama_pair):
    outputs = fastshap.GradientShap(*llama_pair, 50, granularity="token", span=True)(["The film is"], [" superb. Go"])
    whole = fastshap.GradientShap(*llama_pair, 50, granularity="token")(["The film is"], [" superb. Go"])
    (one,) = outputs
    count = len(one.targets)
    rows = [(one.text[:11], ["The", "film", "is"], [3.0, 2.0, 1.0], one.text[11:])]
    judge, measure = metrics.Faithfulness(*llama_pair), metrics.Comprehensiveness(k=99)
    judge_masked = metrics.Faithfulness(*llama_pair, replacement=0.0)
    assert count > 2
    assert judge_masked.evaluate(outputs, measure).mean == pytest.approx(
        judge_masked.evaluate(rows, measure).mean, abs=1e-7
    )
    assert judge_masked.evaluate(whole, measure).mean == pytest.approx(
        judge_masked.evaluate(rows, measure).mean, abs=1e-7
    )
    assert judge.evaluate(outputs, metrics.LogOdds(k=1)).count == 1


@pytest.mark.parametrize("replacement", ["delete", "mask"])
def test_a_long_text_that_is_read_in_windows(bert_pair, replacement):
    model, tokenizer = bert_pair
    (output,) = fastshap.GradientShap(model, tokenizer, 50, long_text="window")(" ".join(TEXTS * 5), 1)
    places = output.model_inputs_to_explain["sequences_mask"][0].T.bool()
    assert len(places) > 1
    judge, measure = metrics.Faithfulness(model, tokenizer, replacement=replacement), metrics.Comprehensiveness(k=2)
    ids, top = output.model_inputs_to_explain["input_ids"][0].clone(), output.attributions[0].topk(2).indices.tolist()
    gone = torch.zeros(len(ids), dtype=torch.bool)
    gone[[token for element in top for token in output.element_tokens[element]]] = True
    p = []
    for replaced in (False, True):
        rows = ids.masked_fill(gone & replaced, tokenizer.mask_token_id)
        kept = [window & ~(gone & (replaced and replacement == "delete")) for window in places]
        with torch.no_grad():
            each = [model(input_ids=rows[one][None]).logits.softmax(1)[0, 1] for one in kept]
        p.append(float(torch.stack(each).mean()))
    assert judge.evaluate([output], measure).mean == pytest.approx(p[0] - p[1], abs=1e-5)


def test_a_token_is_its_embedding(default_pair, explained):
    measure = metrics.Comprehensiveness(metrics.AOPC_GRID)
    found = [
        metrics.Faithfulness(*default_pair, replacement=one).evaluate(explained, measure) for one in ("mask", "[MASK]")
    ]
    assert found[0].per_text == pytest.approx(found[1].per_text, abs=1e-6)


def test_a_text_too_long_for_the_model(bert_pair):
    text = " ".join(TEXTS * 5)
    rows = [(one, one.split(), list(range(len(one.split()))), 1) for one in (text, *TEXTS)]
    result = metrics.Faithfulness(*bert_pair).evaluate(rows, metrics.Comprehensiveness())
    assert result.skipped == {"too long for the model, so that words are lost": 1}


def test_what_has_no_value_is_skipped_and_counted(default_pair):
    explainer = fastshap.GradientShap(*default_pair, 50, on_error="record")
    outputs = explainer([*TEXTS, "ok", " "])
    broken = explainer([TEXTS[0]])[0]
    broken.attributions[0, 1] = torch.nan
    outputs.append(broken)
    result = metrics.Faithfulness(*default_pair).evaluate(outputs, metrics.Comprehensiveness())
    assert result.count == 3
    assert [*map(math.isnan, result.per_text)] == [False] * 3 + [True] * 3
    assert result.skipped == {
        "fewer than two elements": 1,
        "not explained: its output has an error": 1,
        "a score of an element is NaN or infinite": 1,
    }
    assert result.mean == pytest.approx(np.mean(result.per_text[:3]))
    assert result.standard_error == pytest.approx(np.std(result.per_text[:3], ddof=1) / math.sqrt(3))
    assert "skipped 1 (fewer than two elements), 1 (not explained" in str(result)
    agreed = metrics.rank_correlation(outputs, outputs)
    assert agreed.skipped == result.skipped
    assert agreed.mean == pytest.approx(1)


def test_a_model_that_fails_on_a_row_or_gives_nan(linear):
    model, tokenizer = linear
    good = [(text, text.split(), list(range(len(text.split()))), 1) for text in ("good film", "not a good film")]
    judge = metrics.Faithfulness(model, tokenizer)
    judge.evaluate(good, metrics.Comprehensiveness())
    (token,) = tokenizer("not", add_special_tokens=False)["input_ids"]
    kept = model.embeddings.weight[token].clone()
    with torch.no_grad():
        model.embeddings.weight[token] = torch.nan
        result = judge.evaluate(good, metrics.Comprehensiveness())
        model.embeddings.weight[token] = kept
    assert result.count == 1
    assert result.skipped == {"the model's score is NaN or infinite": 1}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["not", "good", "at"], "end before ' all'"),
        (["not", "at", "all"], "word 1, 'at'"),
        (["not", "good", "at", "all", "[SEP]"], "word 4"),
        (["not", "good", "at", "all", ""], "word 4"),
    ],
)
def test_words_that_do_not_match_are_refused(default_pair, words, why):
    judge = metrics.Faithfulness(*default_pair)
    with pytest.raises(fastshap.InvalidArgumentError, match="do not match the text") as caught:
        judge.evaluate([("not good at all", words, [0.0] * len(words))], metrics.Comprehensiveness())
    assert why in str(caught.value)
    assert caught.value.text_index == 0


def test_marks_of_subwords_and_case_are_understood():
    from fastshap.metrics.explained import located

    text = "A gorgeously witty film"
    assert located(text, ["a", "gorgeous", "##ly", "Ġwitty", "▁film"]) == (
        (0, 1),
        (2, 10),
        (10, 12),
        (13, 18),
        (19, 23),
    )


def test_what_cannot_be_measured_is_refused(default_pair, bert_pair, llama_pair):
    outputs = fastshap.GradientShap(*default_pair, 50)(TEXTS)
    judge = metrics.Faithfulness(*default_pair)
    measure = metrics.Comprehensiveness()
    refused = [
        (lambda: judge.compare({"a": outputs, "b": outputs[:2]}), "lengths differ"),
        (lambda: judge.compare({"a": outputs, "b": outputs[::-1]}), "different texts"),
        (lambda: judge.evaluate([], measure), "empty"),
        (lambda: judge.evaluate(outputs[0], measure), "Pass a list"),
        (lambda: judge.evaluate([("a text", ["a", "text"], [1.0])], measure), "2 words and 1 scores"),
        (lambda: judge.evaluate([("a text", ["a", "text"], [[1.0, 2.0]] * 2)], measure), "2 rows"),
        (lambda: judge.evaluate(["a text"], measure), "An entry is"),
        (lambda: judge.evaluate([("film", ["f", "ilm"], [1.0, 2.0])], measure), "model's tokens"),
        (lambda: judge.evaluate([outputs, outputs[0]], measure), "for each seed"),
        (lambda: judge.compare({"a": outputs}, [0.2]), "A measure is"),
        (
            lambda: judge.compare({"a": outputs}, [metrics.NormalizedAOPC(beam=b) for b in (1, 2)]),
            "each of another name",
        ),
        (lambda: judge.compare({"a": outputs}, measure), "into a list"),
        (lambda: metrics.Faithfulness(*llama_pair).evaluate(outputs, measure), "explains a classification"),
        (lambda: metrics.Faithfulness(*llama_pair, replacement="mask"), "no mask token"),
        (lambda: metrics.Faithfulness(*default_pair, replacement="[NOTHING]"), "no token"),
        (lambda: metrics.Faithfulness(*default_pair, replacement=torch.zeros(3, 4)), "one embedding"),
        (lambda: metrics.Faithfulness(*default_pair, score="logit").evaluate(outputs, metrics.LogOdds()), "of probab"),
        (lambda: metrics.Comprehensiveness(k=1.5), "share"),
        (lambda: metrics.Comprehensiveness(k=0), "k"),
        (lambda: metrics.Comprehensiveness(k=[]), "k as a list"),
        (lambda: metrics.Comprehensiveness(k="a"), "k is"),
        (lambda: metrics.NormalizedAOPC("both"), "kind"),
        (lambda: metrics.NormalizedAOPC(exact_up_to=17), "exact_up_to"),
        (lambda: metrics.Deletion(share=0), "share"),
        (lambda: metrics.rank_stability([outputs]), "two seeds"),
        (lambda: metrics.rank_correlation(outputs, outputs[::-1]), "texts differ"),
        (lambda: metrics.sensitivity_max(judge, TEXTS), "takes a GradientShap"),
    ]
    for call, why in refused:
        with pytest.raises((fastshap.InvalidArgumentError, fastshap.InvalidTypeError), match=why):
            call()


def test_a_task_of_another_kind_is_refused(default_pair):
    from transformers import BertForMaskedLM

    from helpers import models

    model = BertForMaskedLM(models.bert(len(default_pair[1])).config).eval()
    with pytest.raises(fastshap.UnsupportedModelError, match="this model's task is masked_lm"):
        metrics.Faithfulness(model, default_pair[1])


# ------------------------------------------------------------------ results


def test_a_table_compares_the_same_texts(default_pair):
    explainer = fastshap.GradientShap(*default_pair, 50)
    ours = explainer([*TEXTS, "A fine film."])
    rows = [(o.text, o.elements, torch.arange(len(o.elements)), o.target_names[0]) for o in ours]
    rows[3] = (rows[3][0], ["A fine", "film."], [1.0, 2.0], rows[3][3])
    table = metrics.Faithfulness(*default_pair).compare({"ours": ours, "reading order": rows})
    assert table.methods == ["ours", "reading order"]
    assert len(table.measures) == 7
    for label in table.measures:
        for method in table.methods:
            assert table[method, label].count == 3
            assert table[method, label].skipped == {"the methods' targets or elements differ": 1}
    a, b = (np.array(table[m, "comprehensiveness at 20 %"].per_text[:3]) for m in table.methods)
    difference = table.difference("reading order", "ours", metrics.Comprehensiveness())
    assert difference.mean == pytest.approx((b - a).mean())
    assert difference.standard_error == pytest.approx((b - a).std(ddof=1) / math.sqrt(3))
    printed = str(table)
    assert "difference from ours" in printed
    assert "3 texts; skipped 1 (the methods' targets or elements differ)" in printed
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain["differences"]["reading order"]["comprehensiveness at 20 %"]["mean"] == difference.mean
    with pytest.raises(fastshap.InvalidArgumentError, match="There is no 'x'"):
        table["ours", "x"]
    with pytest.raises(fastshap.InvalidArgumentError, match="same texts"):
        table["ours", table.measures[0]] - metrics.MetricResult("", (1.0,))


def test_progress_is_told(default_pair, explained):
    told = []
    judge = metrics.Faithfulness(*default_pair)
    judge.compare({"ours": explained}, ALL, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
    assert told == sorted(told)
    assert len(told) > 2
    assert str(metrics.Deletion(10, 0.5)) == "deletion up to 50 % in 10 steps"


def test_seeds_have_a_standard_error_of_their_own(bert_pair):
    explainer = fastshap.GradientShap(*bert_pair, 50, n_perturbations=4, noise_std=0.5)
    seeds = [explainer(TEXTS, 0, seed=seed) for seed in range(4)]
    judge, measure = metrics.Faithfulness(*bert_pair), metrics.Comprehensiveness(metrics.AOPC_GRID)
    each = [judge.evaluate(one, measure) for one in seeds]
    both = judge.evaluate(seeds, measure)
    assert math.isnan(each[0].seed_standard_error)
    assert both.per_text == pytest.approx(np.mean([one.per_text for one in each], 0), abs=1e-6)
    assert both.seed_standard_error == pytest.approx(np.std([one.mean for one in each], ddof=1) / 2, abs=1e-6)
    stable = metrics.rank_stability(seeds)
    pairs = [metrics.rank_correlation(a, b).mean for a, b in itertools.combinations(seeds, 2)]
    assert stable.mean == pytest.approx(np.mean(pairs))
    assert 0 < stable.seed_standard_error < 1


def test_agreement():
    text, words = "a b c d", ["a", "b", "c", "d"]

    def one(*scores):
        return [(text, words, scores)]

    assert metrics.rank_correlation(one(1, 2, 3, 4), one(2, 4, 6, 9)).mean == pytest.approx(1)
    assert metrics.rank_correlation(one(1, 2, 3, 4), one(4, 3, 2, 1)).mean == pytest.approx(-1)
    scipy = pytest.importorskip("scipy.stats")
    a, b = [1, 2, 2, 5], [3, 1, 1, 1]
    assert metrics.rank_correlation(one(*a), one(*b)).mean == pytest.approx(scipy.spearmanr(a, b)[0])
    assert metrics.rank_correlation(one(*a), one(0, 0, 0, 0)).skipped == {"all scores are equal": 1}
    assert metrics.top_k_overlap(one(1, 2, 3, 4), one(4, 1, 2, 3), k=2).mean == 0.5
    assert metrics.top_k_overlap(one(1, 2, 3, 4), one(4, 1, 2, 3), k=0.25).mean == 0
    other = [(text, ["a b", "c", "d"], [1, 2, 3])]
    assert metrics.top_k_overlap(one(1, 2, 3, 4), other).skipped == {"the methods' targets or elements differ": 1}
