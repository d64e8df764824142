"""Each row of the pages for newcomers from other libraries, checked by running both libraries."""

import copy
import functools
import re
import warnings
from pathlib import Path

import captum.attr
import interpreto
import numpy as np
import pytest
import torch
from interpreto.commons.granularity import GranularityAggregationStrategy as TheirStrategy

import fastshap
from fastshap import GradientShap
from fastshap.sampling import Samples, draw_samples
from fastshap.text.encode import encode
from fastshap.text.groups import groups
from fastshap.types import member_of

with warnings.catch_warnings():  # what shap's plotting says at import is not ours
    warnings.simplefilter("ignore")
    import shap

pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = Path(__file__).parents[2] / "docs"
TEXT = "A gorgeous, witty film. Not good at all, though!"


@pytest.fixture(scope="module")
def pair(default_pair):
    return copy.deepcopy(default_pair)


def theirs(pair, **options):
    model, tokenizer = copy.deepcopy(pair)
    return interpreto.GradientShap(model, tokenizer, batch_size=options.pop("batch_size", 10), **options)


def deterministic(pair, **options):
    """interpreto's kind of number from both, at one position of the path and without noise, so that nothing is drawn."""
    torch.manual_seed(3)
    other = theirs(pair, n_perturbations=1, noise_std=0.0, **options)
    draw = torch.rand
    torch.rand = lambda *shape, **rest: torch.full(shape, 0.375)
    try:
        expected = other(TEXT, 1)[0].attributions
    finally:
        torch.rand = draw
    return expected


def ours_at(pair, monkeypatch, **options):
    at = Samples((0, 0, 0), np.full(1, 0.375, np.float32), np.zeros(1, np.int64), *np.ones((2, 1), np.float32))
    monkeypatch.setattr("fastshap.engine.rounds.draw_all", lambda seed, texts, *others: [at] * len(texts))
    options = {"reduction": "abs_mean", "baseline": 1e-6, "noise_std": 0.0, "n_perturbations": 1} | options
    return GradientShap(*pair, **options)(TEXT, 1)[0].attributions


def close(ours, expected):
    torch.testing.assert_close(ours, expected.float(), atol=1e-6, rtol=1e-4)


def i_call(pair, monkeypatch):
    (one,), (other,) = GradientShap(*pair)(TEXT), theirs(pair)(TEXT)
    assert one.attributions.shape == other.attributions.shape
    assert [e.lower() for e in one.elements] == other.elements
    assert one.targets.tolist() == other.targets.flatten().tolist()


def i_batch_size(pair, monkeypatch):
    rows = {"ours": 0, "theirs": 0}
    texts = [f"{word} {TEXT}" for word in ("one", "two", "three", "four", "five", "six")]
    for name, explainer in (
        ("ours", GradientShap(*pair, batch_size=30, n_perturbations=10)),
        ("theirs", theirs(pair, batch_size=30, n_perturbations=10)),
    ):
        model = explainer.model if name == "ours" else explainer.inference_wrapper.model
        hook = model.get_submodule("bert.encoder.layer.0").register_full_backward_hook(
            lambda module, grads, outs, name=name: rows.__setitem__(name, rows[name] + outs[0].shape[0])
        )
        explainer(texts, [1] * 6)  # the first call also tries the model
        rows[name] = 0
        explainer(texts, [1] * 6)
        hook.remove()
    assert rows["ours"] == 60  # texts x samples
    assert rows["theirs"] > 60
    (auto,), (four,) = GradientShap(*pair, batch_size="auto")(TEXT), GradientShap(*pair, batch_size=4)(TEXT)
    torch.testing.assert_close(auto.attributions, four.attributions, atol=1e-5, rtol=1e-4)


def i_granularity(pair, monkeypatch):
    for member in interpreto.Granularity:
        name = member.name.lower().replace("word", "tokenizer_word")
        close(ours_at(pair, monkeypatch, granularity=member), deterministic(pair, granularity=member))
        close(ours_at(pair, monkeypatch, granularity=name), deterministic(pair, granularity=member))
    assert GradientShap(*pair, granularity=interpreto.Granularity.WORD)("I didn't.")[0].elements[1:4] == [
        "didn",
        "'",
        "t",
    ]
    assert GradientShap(*pair, granularity="word")("I didn't.")[0].elements == ["I", "didn't", "."]


def i_strategy(pair, monkeypatch):
    for member in TheirStrategy:
        options = {"granularity": interpreto.Granularity.SENTENCE, "granularity_aggregation_strategy": member}
        close(ours_at(pair, monkeypatch, **options), deterministic(pair, **options))
    output = GradientShap(*pair, granularity_aggregation_strategy="sum", return_convergence_delta=True)(TEXT)[0]
    whole = GradientShap(*pair, granularity="all_tokens")(TEXT)[0].attributions.sum()
    torch.testing.assert_close(output.attributions.sum() + output.unassigned[0], whole, atol=1e-4, rtol=1e-4)


def i_device(pair, monkeypatch):
    assert GradientShap(*pair).model.device == theirs(pair).device == torch.device("cpu")
    close(ours_at(pair, monkeypatch, device="cpu"), deterministic(pair, device=torch.device("cpu")))


def i_inference_mode(pair, monkeypatch):
    for member in interpreto.attributions.InferenceModes:
        close(ours_at(pair, monkeypatch, inference_mode=member), deterministic(pair, inference_mode=member))


def i_input_x_gradient(pair, monkeypatch):
    for value in (True, False):
        close(ours_at(pair, monkeypatch, input_x_gradient=value), deterministic(pair, input_x_gradient=value))


def i_n_perturbations(pair, monkeypatch):
    for explainer in (GradientShap(*pair, n_perturbations=3, batch_size=10), theirs(pair, n_perturbations=3)):
        rows = []
        model = explainer.model if hasattr(explainer, "task") else explainer.inference_wrapper.model
        hook = model.register_forward_pre_hook(
            lambda m, a, k, rows=rows: rows.append(len(k["inputs_embeds"])) if "inputs_embeds" in k else None,
            with_kwargs=True,
        )
        explainer(TEXT, [1])
        hook.remove()
        assert rows[-1] in (3, 4)  # ours with the text itself


def i_baseline(pair, monkeypatch):
    close(ours_at(pair, monkeypatch, baseline=1e-6), deterministic(pair))
    close(ours_at(pair, monkeypatch, baseline=0.5), deterministic(pair, baseline=0.5))
    assert torch.equal(ours_at(pair, monkeypatch, baseline=1), ours_at(pair, monkeypatch, baseline=1.0))
    zero = ours_at(pair, monkeypatch, baseline=None)
    assert not torch.equal(zero, ours_at(pair, monkeypatch, baseline=1e-6))
    vector = torch.linspace(-1, 1, pair[0].config.hidden_size)
    length = len(pair[1](TEXT)["input_ids"])
    close(ours_at(pair, monkeypatch, baseline=vector), deterministic(pair, baseline=vector.expand(length, -1).clone()))


def i_noise_std(pair, monkeypatch):
    def spread(explainer):
        scores = torch.stack([explainer(TEXT, [1])[0].attributions for _ in range(6)])
        return scores.std(0).mean() / scores.mean()

    assert spread(theirs(pair, noise_std=0.5)) > 0.02
    mine = [GradientShap(*pair, noise_std=0.5, reduction="abs_mean", seed=s)(TEXT, 1)[0].attributions for s in range(6)]
    assert torch.stack(mine).std(0).mean() / torch.stack(mine).mean() > 0.02


def i_absolute(pair, monkeypatch):
    assert (theirs(pair)(TEXT, 1)[0].attributions >= 0).all()
    assert (GradientShap(*pair, reduction="abs_mean")(TEXT, 1)[0].attributions >= 0).all()
    assert (GradientShap(*pair)(TEXT, 1)[0].attributions < 0).any()
    # With many samples the two kinds of randomness average out.
    many = theirs(pair, n_perturbations=400, batch_size=400)(TEXT, 1)[0].attributions
    mine = GradientShap(*pair, n_perturbations=400, reduction="abs_mean", batch_size="auto")(TEXT, 1)[0].attributions
    torch.testing.assert_close(mine, many, rtol=0.1, atol=0)


def i_random(pair, monkeypatch):
    explainer = theirs(pair)
    state = torch.get_rng_state()
    first, second = (output.attributions for output in explainer([TEXT, TEXT], [1, 1]))
    assert not torch.allclose(first, second)
    assert not torch.equal(state, torch.get_rng_state())
    state = torch.get_rng_state()
    first, second = (output.attributions for output in GradientShap(*pair)([TEXT, TEXT], 1))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def i_independent(pair, monkeypatch):
    options = {"n_perturbations": 10, "reduction": "sum", "noise_std": 0.1}

    def spread(sampling):
        runs = [GradientShap(*pair, sampling=sampling, seed=s, **options)(TEXT, 1)[0].attributions for s in range(24)]
        return torch.stack(runs).std(0).pow(2).mean(), torch.stack(runs).mean(0)

    (independent, mean), (paired, other) = spread("iid"), spread("antithetic")
    assert paired < 0.7 * independent
    assert (mean - other).abs().max() < 5 * (independent / 24).sqrt()
    torch.manual_seed(0)
    assert torch.stack([theirs(pair)(TEXT, 1)[0].attributions for _ in range(5)]).std(0).mean() > 0


def i_output(pair, monkeypatch):
    ours, other = GradientShap(*pair)(TEXT, 1)[0], theirs(pair)(TEXT, 1)[0]
    for name in (name for name in dir(other) if not name.startswith("_")):
        assert hasattr(ours, name), name
    assert ours.granularity.name == other.granularity.name
    assert ours.model_task.name == other.model_task.name
    assert torch.equal(ours.model_inputs_to_explain["input_ids"], other.model_inputs_to_explain["input_ids"])


def i_elements(pair, monkeypatch):
    assert theirs(pair)("Café GOOD")[0].elements == ["cafe", "good"]
    assert GradientShap(*pair)("Café GOOD")[0].elements == ["Café", "GOOD"]


def i_words(pair, monkeypatch):
    (word,), (split,), (other,) = (
        GradientShap(*pair)("I didn't."),
        GradientShap(*pair, granularity="tokenizer_word")("I didn't."),
        theirs(pair, granularity=interpreto.Granularity.WORD)("I didn't."),
    )
    assert word.elements == ["I", "didn't", "."]
    assert [element.lower() for element in split.elements] == other.elements == ["i", "didn", "'", "t", "."]


def i_unknown(pair, monkeypatch):
    text = "a \U0001f9ff film"
    assert theirs(pair, granularity=interpreto.Granularity.TOKEN)(text)[0].elements == ["a", "film"]
    assert GradientShap(*pair, granularity="token")(text)[0].elements == text.split()


def i_groups(pair, monkeypatch):
    """On the examples in interpreto's own docstrings, and on sentences with the same features."""
    documented = re.findall(r'"([^"\n]+[.?])"', interpreto.Granularity.get_indices.__doc__)
    assert len(documented) >= 2
    tokenizer = pair[1]
    for text in (
        *documented,
        "It rained: so, Mr. Jones stayed... Did he?\nSee example.com, then !?! Ha!",
        "one longword two",
    ):
        inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        (encoded,) = encode(tokenizer, [text], max_length=None)
        for member in interpreto.Granularity:
            ours = member_of(fastshap.Granularity, member, "granularity")
            assert groups(encoded, ours)[0] == member.get_indices(inputs, tokenizer)[0]
    quoted = "“It is dull.” So he said."
    inputs = tokenizer(quoted, return_tensors="pt", return_offsets_mapping=True)
    assert len(interpreto.Granularity.SENTENCE.get_indices(inputs, tokenizer)[0]) == 1
    assert GradientShap(*pair, granularity="sentence")(quoted)[0].elements == ["“It is dull.”", "So he said."]


def i_later_tokens(pair, monkeypatch, llama_pair):
    ours, other = (
        GradientShap(*llama_pair)("Nobody.", "It is dull.")[0],
        theirs(llama_pair)("Nobody.", "It is dull.")[0],
    )
    assert torch.equal(ours.attributions.isnan(), other.attributions.isnan())
    open_ended = ("The ending is", "dull. Yes.")
    lost = theirs(llama_pair, granularity=interpreto.Granularity.SENTENCE)(*open_ended)[0]
    kept = GradientShap(*llama_pair, granularity="sentence")(*open_ended)[0]
    assert lost.attributions[0].isnan().all()
    assert kept.attributions[0].isfinite().any()


def i_strings(pair, monkeypatch):
    for form in (TEXT, [TEXT, "fine"]):
        assert len(GradientShap(*pair)(form)) == len(theirs(pair)(form))


def i_pairs(pair, monkeypatch):
    assert len(theirs(pair)([("good", "bad")])) == 2
    assert len(GradientShap(*pair)(("good", "bad"))) == 2
    (output,) = GradientShap(*pair)([("good", "bad")])
    assert output.elements == ["good", "bad"]
    assert output.segments == [0, 1]
    assert torch.equal(output.attributions, GradientShap(*pair)(pair[1]("good", "bad"))[0].attributions)


def i_encodings(pair, monkeypatch):
    tokenizer = pair[1]
    one = tokenizer(TEXT, return_tensors="pt", return_offsets_mapping=True)
    assert len(GradientShap(*pair)(one)) == len(theirs(pair)(one)) == 1
    two = tokenizer([TEXT, "fine"], return_tensors="pt", padding=True)
    with pytest.raises(ValueError):
        theirs(pair)(two)
    assert len(GradientShap(*pair)(two)) == 2


def i_one_int(pair, monkeypatch):
    assert GradientShap(*pair)(TEXT, 1)[0].targets.tolist() == theirs(pair)(TEXT, 1)[0].targets.tolist()
    with pytest.raises(ValueError):
        theirs(pair)([TEXT, "fine"], 1)
    assert [output.targets.tolist() for output in GradientShap(*pair)([TEXT, "fine"], 1)] == [[1], [1]]
    assert GradientShap(*pair)(TEXT, "all")[0].target_names == ["negative", "positive"]


def i_lists(pair, monkeypatch):
    for targets in (
        [0, 1],
        torch.tensor([0, 1]),
        torch.tensor([[0, 1], [1, 0]]),
        [torch.tensor([0, 1]), torch.tensor([1, 0])],
    ):
        ours, other = GradientShap(*pair)([TEXT, "fine"], targets), theirs(pair)([TEXT, "fine"], targets)
        assert [o.targets.flatten().tolist() for o in ours] == [o.targets.flatten().tolist() for o in other]
    predicted = GradientShap(*pair)(TEXT)[0].targets.tolist()
    assert [o.targets.tolist() for o in GradientShap(*pair)([TEXT, "fine"], [None, 0])] == [predicted, [0]]


def i_generation_targets(pair, monkeypatch, llama_pair):
    ids = llama_pair[1](" It is dull.", return_tensors="pt")["input_ids"]
    for target in ("It is dull.", ids):
        ours, other = GradientShap(*llama_pair)("Nobody.", target)[0], theirs(llama_pair)("Nobody.", target)[0]
        assert ours.targets.tolist() == other.targets.flatten().tolist()
        assert ours.attributions.shape == other.attributions.shape
    assert GradientShap(*llama_pair)("Nobody.", generation_kwargs={"max_new_tokens": 3})[0].error is None


def i_empty(pair, monkeypatch):
    assert theirs(pair)("")[0].attributions.numel() == 0
    with pytest.raises(IndexError):
        theirs(pair, granularity=interpreto.Granularity.TOKEN)("")
    with pytest.raises(fastshap.InvalidArgumentError, match="Text 0"):
        GradientShap(*pair)("")
    assert GradientShap(*pair, on_error="record")("")[0].error is not None


def i_long(pair, monkeypatch):
    long = "good film " * 400
    other, ours = theirs(pair, n_perturbations=1)(long, 1)[0], GradientShap(*pair, n_perturbations=1)(long, 1)[0]
    assert ours.truncated
    assert ours.attributions.shape == other.attributions.shape


def embedded(pair, text="not good at all"):
    return pair[0].get_input_embeddings()(torch.tensor([pair[1](text)["input_ids"]])).detach()


def scores_of(pair):
    return lambda x: pair[0](inputs_embeds=x).logits


def captum_runs(pair, **options):
    x = embedded(pair)
    options = {"baselines": torch.zeros_like(x), "n_samples": 2000, "target": 0} | options
    np.random.seed(0)
    torch.manual_seed(0)
    return captum.attr.GradientShap(scores_of(pair)).attribute(x, **options)


def ours(pair, **options):
    options = {"granularity": "all_tokens", "noise_std": 0.0, "n_perturbations": 100, "batch_size": "auto"} | options
    return GradientShap(*pair, **options)("not good at all", 0)[0]


def alike(one, other, share=0.05):
    assert (one - other).abs().max() < share * other.abs().max()


def c_forward(pair, monkeypatch):
    alike(ours(pair).attributions[0], captum_runs(pair).sum(-1)[0])


def c_multiply(pair, monkeypatch, llama_pair):
    """On a model whose first layer does not subtract the mean, so that plain sums of gradients are not zero."""
    model, tokenizer = llama_pair
    ids = tokenizer("The ending is dull.")["input_ids"]
    x = model.get_input_embeddings()(torch.tensor([ids[:-1]])).detach()
    at_our_positions(monkeypatch, ids, 10)
    for times_input in (True, False):
        forward = captum.attr.GradientShap(
            lambda z: model(inputs_embeds=z).logits[:, -1], multiply_by_inputs=times_input
        )
        other = forward.attribute(x, baselines=torch.zeros_like(x), n_samples=10, target=ids[-1]).sum(-1)[0]
        options = {"granularity": "all_tokens", "noise_std": 0.0, "input_x_gradient": times_input}
        alike(GradientShap(*llama_pair, **options)(ids[:-1], [ids[-1]])[0].attributions[0, :-1], other, 1e-4)


def at_our_positions(monkeypatch, ids, n):
    """Makes captum take the positions that fastshap takes; it weights the input where we weight the baseline."""
    positions = 1 - draw_samples(0, ids, n, "antithetic").alphas.astype(np.float64)
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: positions.copy())


def c_inputs(pair, monkeypatch):
    assert captum_runs(pair, n_samples=2).shape == (1, 6, 128)
    assert ours(pair).attributions.shape == (1, 6)


def c_baselines(pair, monkeypatch):
    x = embedded(pair)
    at_our_positions(monkeypatch, pair[1]("not good at all")["input_ids"], 20)
    vector = torch.linspace(-1, 1, 128)
    for theirs, mine in (
        (torch.full_like(x, 0.5), 0.5),
        (vector.expand_as(x).contiguous(), vector),
        (vector.expand_as(x).contiguous(), vector.expand(6, -1).clone()),
    ):
        other = captum_runs(pair, baselines=theirs, n_samples=20).sum(-1)[0]
        alike(ours(pair, baseline=mine, n_perturbations=20).attributions[0], other, 1e-4)

    several = torch.cat([torch.zeros_like(x), 0.1 * torch.ones_like(x).cumsum(1)])
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.undo()
    other = captum_runs(pair, baselines=several, n_samples=4000).sum(-1)[0]
    alike(ours(pair, baseline=fastshap.BaselineSet(several), n_perturbations=2000).attributions[0], other, 0.1)


def c_samples(pair, monkeypatch):
    rows = []
    hook = pair[0].register_forward_pre_hook(lambda m, a, k: rows.append(len(k["inputs_embeds"])), with_kwargs=True)
    captum_runs(pair, n_samples=7)
    assert max(rows) == 7
    rows.clear()
    hook.remove()
    explainer = GradientShap(*pair, n_perturbations=7, batch_size=4)
    hook = pair[0].register_forward_pre_hook(
        lambda m, a, k: rows.append((len(k.get("inputs_embeds", ())), torch.is_grad_enabled())), with_kwargs=True
    )
    explainer("fine", 0)  # tries the model first
    rows.clear()
    explainer("not good at all", 0)
    hook.remove()
    assert rows.pop(0) == (1, False)  # the text itself, for the prediction
    assert sum(count for count, _ in rows) == 7
    assert max(count for count, _ in rows) == 4


SENTENCE = "A gorgeous, witty film, but the ending is dull."


def of_the_sentence(pair, **options):
    """(L,) with noise on the baseline, of 2,000 draws."""
    options = {"granularity": "all_tokens", "n_perturbations": 2000, "batch_size": "auto"} | options
    return GradientShap(*pair, **options)(SENTENCE, 1)[0].attributions[0]


def c_stdevs(pair, monkeypatch):
    """Noise on the input moves the point itself; on the baseline it vanishes at the input's end of the path."""
    alike(ours(pair).attributions[0], captum_runs(pair).sum(-1)[0])
    x, scores = embedded(pair, SENTENCE), lambda x: pair[0](inputs_embeds=x).logits[:, 1]
    zero = torch.zeros_like(x)
    np.random.seed(0)
    torch.manual_seed(0)
    forward = captum.attr.GradientShap(scores_of(pair))
    runs = [forward.attribute(x, zero, n_samples=500, stdevs=0.1, target=1) for _ in range(4)]
    noisy, mine = torch.stack(runs).mean(0).sum(-1)[0].detach(), of_the_sentence(pair)
    assert 0.4 < (noisy - mine).abs().max() / mine.abs().max() < 0.7
    with torch.no_grad():
        noise = 0.1 * torch.randn(2000, *x.shape[1:])
        on_input, on_baseline = scores(x + noise).mean() - scores(zero), scores(x) - scores(noise).mean()
    assert mine.sum() == pytest.approx(float(on_baseline), abs=0.05)
    assert noisy.sum() == pytest.approx(float(on_input), abs=0.05)


def c_equal(pair, monkeypatch):
    x = embedded(pair, SENTENCE)
    np.random.seed(0)
    torch.manual_seed(0)
    forward = captum.attr.GradientShap(scores_of(pair))
    drawn = (0.1 * torch.randn(500, *x.shape[1:]) for _ in range(4))
    runs = [forward.attribute(x, baselines, n_samples=500, stdevs=0.0, target=1) for baselines in drawn]
    alike(torch.stack(runs).mean(0).sum(-1)[0].detach(), of_the_sentence(pair), share=0.1)


def c_target(pair, monkeypatch):
    for target in (0, 1):
        one = GradientShap(*pair, granularity="all_tokens", noise_std=0.0, n_perturbations=100)(
            "not good at all", target
        )[0]
        alike(one.attributions[0], captum_runs(pair, target=target).sum(-1)[0])
    assert GradientShap(*pair)("fine", [[0, 1]])[0].attributions.shape[0] == 2


def c_delta(pair, monkeypatch):
    _, delta = captum_runs(pair, return_convergence_delta=True, n_samples=50)
    assert delta.shape == (50,)
    output = ours(pair, return_convergence_delta=True, n_perturbations=50)
    assert output.convergence_delta.shape == (1,)
    logits = scores_of(pair)
    x = embedded(pair)
    expected = output.attributions.sum() - (logits(x) - logits(torch.zeros_like(x)))[0, 0]
    torch.testing.assert_close(output.convergence_delta[0], expected.detach(), atol=1e-4, rtol=1e-3)


def c_random(pair, monkeypatch):
    state = np.random.get_state()[1].copy()
    x = embedded(pair)
    captum.attr.GradientShap(scores_of(pair)).attribute(x, baselines=torch.zeros_like(x), target=0)
    assert not np.array_equal(state, np.random.get_state()[1]) or np.random.get_state()[2] > 0
    state = [str(part) for part in np.random.get_state()]
    assert torch.equal(ours(pair).attributions, ours(pair).attributions)
    assert state == [str(part) for part in np.random.get_state()]


class Embedded(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x).logits


def shap_runs(pair, local_smoothing=0, **options):
    x = embedded(pair)
    explainer = shap.GradientExplainer(Embedded(pair[0]), torch.zeros_like(x), local_smoothing=local_smoothing)
    return explainer.shap_values(x, **({"nsamples": 2000, "rseed": 0} | options))


@functools.cache
def many_of_shap(model, tokenizer):
    """Its 2,000 samples without noise, which several tests compare with."""
    return shap_runs((model, tokenizer))


def s_explainer(pair, monkeypatch):
    alike(ours(pair).attributions[0], torch.tensor(many_of_shap(*pair)[0, :, :, 0].sum(-1)))
    background = torch.cat([embedded(pair, "film is not art"), embedded(pair, "it is so so")])  # of the same length
    explainer = shap.GradientExplainer(Embedded(pair[0]), background)
    values = explainer.shap_values(embedded(pair), nsamples=4000, rseed=0)
    for baseline in (background, ["film is not art", "it is so so"]):
        mine = ours(pair, baseline=fastshap.BaselineSet(baseline), n_perturbations=2000)
        alike(mine.attributions[0], torch.tensor(values[0, :, :, 0].sum(-1)), 0.1)


def s_values(pair, monkeypatch):
    values = many_of_shap(*pair)
    assert values.shape == (1, 6, 128, 2)
    both = GradientShap(*pair, granularity="all_tokens", noise_std=0.0, n_perturbations=100)("not good at all", "all")[
        0
    ]
    assert both.attributions.shape == (2, 6)
    for k in range(2):
        alike(both.attributions[k], torch.tensor(values[0, :, :, k].sum(-1)))


def s_samples(pair, monkeypatch):
    """Error of ours at 10 samples against shap's at 10, both without noise."""
    expected = ours(pair, n_perturbations=1000).attributions[0]
    mine = ours(pair, n_perturbations=10).attributions[0]
    runs = [torch.tensor(shap_runs(pair, nsamples=10, rseed=seed)[0, :, :, 0].sum(-1)) for seed in range(10)]
    error = torch.stack([(run - expected).pow(2).mean().sqrt() for run in runs]).mean()
    assert (mine - expected).pow(2).mean().sqrt() < error


def s_smoothing(pair, monkeypatch):
    alike(ours(pair).attributions[0], torch.tensor(many_of_shap(*pair)[0, :, :, 0].sum(-1)))
    smoothed = shap_runs(pair, local_smoothing=0.3)[0, :, :, 0].sum(-1)
    mine = ours(pair, noise_std=0.3, n_perturbations=800).attributions[0]
    assert (mine - torch.tensor(smoothed)).abs().max() > 0.02 * mine.abs().max()


def s_seed(pair, monkeypatch):
    assert np.array_equal(shap_runs(pair, nsamples=20), shap_runs(pair, nsamples=20))
    first, second = (shap_runs(pair, nsamples=20, local_smoothing=0.3) for _ in range(2))
    assert not np.array_equal(first, second)
    noisy = [ours(pair, noise_std=0.3, seed=4).attributions for _ in range(2)]
    assert torch.equal(*noisy)


def s_variances(pair, monkeypatch):
    values, variances = shap_runs(pair, nsamples=20, return_variances=True)
    assert np.array(variances).shape[-2:] == values.shape[1:3] == (6, 128)
    runs = [shap_runs(pair, nsamples=25, rseed=seed, return_variances=True) for seed in range(30)]
    measured = np.var([run[0] for run in runs], axis=0, ddof=1).mean()
    assert np.mean([run[1] for run in runs]) / measured == pytest.approx(25**0.5, rel=0.3)
    output = ours(pair)
    assert output.standard_error.shape == output.attributions.shape == (1, 6)
    assert (output.standard_error > 0).all()


def s_ranked(pair, monkeypatch):
    _, indexes = shap_runs(pair, nsamples=5, ranked_outputs=1)
    assert GradientShap(*pair)("not good at all")[0].targets.tolist() == [int(indexes[0, 0])]


INTERPRETO = {
    "`GradientShap(model, tokenizer)`": i_call,
    "`batch_size=4`": i_batch_size,
    "`granularity`": i_granularity,
    "`granularity_aggregation_strategy`": i_strategy,
    "`device=None`": i_device,
    "`inference_mode`": i_inference_mode,
    "`input_x_gradient=True`": i_input_x_gradient,
    "`n_perturbations=10`": i_n_perturbations,
    "`baseline=None`": i_baseline,
    "`noise_std=0.1`": i_noise_std,
    "scores are a mean of absolute values": i_absolute,
    "random numbers come from torch's global state": i_random,
    "independent samples": i_independent,
    "`AttributionOutput`": i_output,
    "elements are decoded tokens": i_elements,
    "words are the tokenizer's: `didn`, `'`, `t`": i_words,
    "unknown tokens are missing at TOKEN": i_unknown,
    "sentences and parts of sentences": i_groups,
    "generation: later tokens are NaN": i_later_tokens,
    "a string or a list of strings": i_strings,
    "a tuple of two strings in the list becomes texts of their own": i_pairs,
    "a `BatchEncoding` of one row": i_encodings,
    "one int as the target of one text": i_one_int,
    "a list or tensor of targets": i_lists,
    "generation targets as strings or ids": i_generation_targets,
    '`""` gives no scores, or an IndexError': i_empty,
    "long texts are cut silently": i_long,
}
CAPTUM_AND_SHAP = {
    "`GradientShap(forward_func)`": c_forward,
    "`multiply_by_inputs=True`": c_multiply,
    "`attribute(inputs)` of shape (n, L, D)": c_inputs,
    "`baselines`": c_baselines,
    "`n_samples=5`": c_samples,
    "`stdevs=0.0`": c_stdevs,
    "`stdevs=0.0` and baselines drawn from N(b, noise²)": c_equal,
    "`target`": c_target,
    "`return_convergence_delta=True`": c_delta,
    "numpy's global random state": c_random,
    "`GradientExplainer(model, data)`": s_explainer,
    "`shap_values(X)` of shape (n, L, D, classes)": s_values,
    "`nsamples=200`": s_samples,
    "`local_smoothing=0`": s_smoothing,
    "`rseed`": s_seed,
    "`return_variances=True`": s_variances,
    "`ranked_outputs=1`": s_ranked,
}
PAGES = {"coming-from-interpreto.md": INTERPRETO, "coming-from-captum-and-shap.md": CAPTUM_AND_SHAP}


@pytest.mark.parametrize("page", PAGES)
def test_every_row_has_its_test(page):
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in (DOCS / page).read_text().splitlines() if line[:2] == "| "
    ]
    assert [row for row in rows if row not in ("interpreto", "captum", "shap", "---")] == list(PAGES[page])


@pytest.mark.parametrize("row", [*INTERPRETO, *CAPTUM_AND_SHAP])
def test_row(pair, llama_pair, monkeypatch, row):
    check = (INTERPRETO | CAPTUM_AND_SHAP)[row]
    more = {"llama_pair": llama_pair} if "llama_pair" in check.__code__.co_varnames else {}
    check(pair, monkeypatch, **more)
