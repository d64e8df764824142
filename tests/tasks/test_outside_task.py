"""A task from outside, defined here: what a masked language model fills in."""

import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

import fastshap
from fastshap import one_call
from fastshap.cli import app
from fastshap.output.render.page import article
from fastshap.reference import normals
from fastshap.sampling import draw_samples
from fastshap.tasks import Encoded, Prepared, Scope, Shown, Task, registry
from fastshap.text.groups import Grouping, reduce_samples, unassigned

TEXTS = [
    "A gorgeous, [MASK] film.",
    "The [MASK] is dull, but the ending is not good at [MASK].",
    "[MASK]",
    "An unbelievably overproduced, [MASK] mess, and yet I could not look away for one [MASK] moment of it.",
]
N = 6


class FillingIn(Task):
    """Models that fill in masked tokens: a target is a token at a mask."""

    name = "filling_in"
    class_endings = ("ForMaskedLM",)
    auto_class = "AutoModelForMaskedLM"
    explains = "models that fill in masked tokens (*ForMaskedLM)"
    shown = Shown(targets="filled in")

    def rows(self, model, call):
        """(R, T, V): the logits at the masks."""
        return self.logits_of(model, self.given(call).inputs)[call.places]

    def scores(self, model, call):
        return self.transformed(self.rows(model, call)).gather(2, call.targets[..., None]).squeeze(2)

    def prepare(self, tokenised, targets, predict, options, generated):
        wanted = [None] * len(tokenised) if targets is None else targets
        found = [self._placed(*one) for one in zip(tokenised, wanted, strict=True)]
        read = [one for one in found if isinstance(one, tuple)]
        logits = iter(predict([text for text, _, _ in read], self.rows, [places for _, places, _ in read]))
        return [self._prepared(*one, next(logits)) if isinstance(one, tuple) else one for one in found]

    def _placed(self, encoded, words):
        if isinstance(encoded, fastshap.FastshapError):
            return encoded
        places = torch.tensor([i for i, token in enumerate(encoded.input_ids) if token == self.tokenizer.mask_token_id])
        if not len(places):
            return fastshap.InvalidArgumentError("The text holds no mask; there is nothing to fill in.")
        if words is not None and len(words) != len(places):
            return fastshap.InvalidArgumentError(f"The text has {len(places)} masks and {len(words)} targets.")
        return encoded, places, words

    def _prepared(self, encoded, places, words, logits):
        if isinstance(logits, fastshap.FastshapError):
            return logits
        ids = logits.argmax(-1) if words is None else torch.tensor(self.tokenizer.convert_tokens_to_ids(words))
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return Prepared(encoded, ids, names, scope=Scope(places))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    return fastshap.tasks.register(FillingIn)


@pytest.fixture(scope="module")
def pair(default_pair):
    tokenizer = default_pair[1]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return BertForMaskedLM(config).eval(), tokenizer


def plain_loop(model, ids, place, target, seed=0):
    """(L,): a forward and a backward pass of each sample alone."""
    x = model.get_input_embeddings()(ids).detach()
    samples = draw_samples(seed, ids.tolist(), N, "antithetic")
    streams, positions = torch.tensor([samples.stream] * len(ids)), torch.arange(len(ids))
    scores = torch.zeros(len(ids))
    for alpha, draw, sign in zip(samples.alphas, samples.draws, samples.signs, strict=True):
        noise = float(sign) * normals(streams, torch.full((len(ids),), int(draw)), positions, x.shape[1])
        b = 0.1 * noise
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        given = {"attention_mask": torch.ones_like(ids)[None], "token_type_ids": torch.zeros_like(ids)[None]}
        (gradient,) = torch.autograd.grad(model(inputs_embeds=z[None], **given).logits[0, place, target], z)
        scores += ((x - b) * gradient).sum(1) / N
    return scores


def test_against_a_plain_loop_of_each_sample_alone(registered, pair):
    """Texts of other lengths and other numbers of masks share calls."""
    model, tokenizer = pair
    explainer = fastshap.GradientShap(model, tokenizer, 50, "all_tokens", n_perturbations=N)
    for output in explainer(TEXTS):
        ids = output.model_inputs_to_explain["input_ids"][0]
        places = output.model_inputs_to_explain["target_positions"][0]
        assert (ids[places] == tokenizer.mask_token_id).all()
        assert output.attributions.shape == (len(places), len(ids))
        with torch.no_grad():
            logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, places]
        assert output.targets.tolist() == logits.argmax(1).tolist()
        for row, place, target in zip(output.attributions, places, output.targets, strict=True):
            right = plain_loop(model, ids, place, target)
            assert (row - right).abs().max() < 1e-5 * right.abs().max()


def test_alone_and_in_company(registered, pair):
    together = fastshap.GradientShap(*pair, "auto", n_perturbations=N)(TEXTS)
    for text, output in zip(TEXTS, together, strict=True):
        (alone,) = fastshap.GradientShap(*pair, 1, n_perturbations=N)(text)
        torch.testing.assert_close(output.attributions, alone.attributions, rtol=1e-5, atol=1e-5)
        low, high = output.interval()
        assert (low < output.attributions).all()
        assert (output.attributions < high).all()
    (several,) = fastshap.GradientShap(*pair, rtol=2.0, n_perturbations=N, return_convergence_delta=True)(TEXTS[1])
    assert several.rounds > 1
    assert several.convergence_delta.shape == (2,)


def test_targets_as_given(registered, pair):
    explainer = fastshap.GradientShap(*pair, n_perturbations=N, on_error="record")
    given = explainer([*TEXTS[:2], "nothing"], [["film"], ["ending", "all"], None])
    assert [output.target_names for output in given] == [["film"], ["ending", "all"], []]
    assert given[2].error == "InvalidArgumentError: The text holds no mask; there is nothing to fill in."
    streamed = list(explainer.iter_explain(iter(TEXTS[:2]), [["film"], ["ending", "all"]]))
    for one, other in zip(given, streamed, strict=False):
        assert torch.equal(one.attributions, other.attributions)
    with pytest.raises(fastshap.InvalidArgumentError, match="2 texts but 1 target;"):
        explainer(TEXTS[:2], [["film"]])
    with pytest.raises(fastshap.InvalidTypeError, match="got str"):
        explainer(TEXTS[:2], "film")
    with pytest.raises(fastshap.InvalidArgumentError, match="for causal language models"):
        explainer(TEXTS[0], generation_kwargs={"max_new_tokens": 3})


def test_a_text_without_targets(registered, pair, monkeypatch):
    """Whatever a task makes of it."""
    placed = FillingIn._placed

    def anywhere(self, encoded, words):
        found = placed(self, encoded, words)
        return (
            (encoded, torch.zeros(0, dtype=torch.int64), words) if isinstance(found, fastshap.FastshapError) else found
        )

    monkeypatch.setattr(FillingIn, "_placed", anywhere)
    explainer = fastshap.GradientShap(*pair, n_perturbations=N, on_error="record")
    outputs = explainer([TEXTS[0], "nothing"])
    assert outputs[0].error is None
    assert outputs[1].error == "InvalidArgumentError: The text has no target; there is nothing to explain."


def test_files_and_what_comes_of_them(registered, pair, tmp_path, monkeypatch):
    (output,) = fastshap.GradientShap(*pair, "auto", n_perturbations=N)(TEXTS[1])
    assert output.model_task == "filling_in"
    assert output.classes is None
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for read in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        (back,) = read
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    page = article(output, "t")
    assert '<span class="q">filled in</span>' in page
    assert "target" in str(output)
    monkeypatch.setattr(registry, "_registered", [])  # a process that lacks the task can read and show
    back = fastshap.AttributionOutput.from_json(output.to_json())
    assert back.to_json() == output.to_json()
    assert article(back, "t") == page.replace("filled in", "target")
    with pytest.raises(
        fastshap.UnsupportedModelError, match=r"explains a filling_in\. This process does not know the task"
    ):
        fastshap.reproduce(back, *pair)


def grouping(strategy, scope, joins=False):
    """Five tokens, the first of no element, in three words."""
    encoded = Encoded(
        "a bb c", [0, 1, 2, 3, 4], [True] + [False] * 4, [(0, 0)] * 5, [""] * 5, [None, 0, 1, 1, 2], False
    )
    given = ([[1], [2, 3], [4]], ["a", "bb", "c"])
    kind = fastshap.GranularityAggregationStrategy[strategy]
    return Grouping(encoded, fastshap.Granularity.WORD, kind, joins=joins, given=given, scope=scope)


OF_WORDS = fastshap.Granularity.WORD, fastshap.GranularityAggregationStrategy.SUM
HIDDEN = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()


def test_what_a_scope_hides_is_nan_and_stays_in_the_total():
    """Any tokens of any target, in any order: an element with a hidden token is hidden."""
    tokens = torch.randn(4, 5)
    its = grouping("SUM", Scope(torch.tensor([3, 1, 4, 1]), HIDDEN))
    scores = its.reduce(tokens)
    assert scores.isnan().tolist() == [[True, False, False], [False, True, False], [False, False, True], [False] * 3]
    torch.testing.assert_close(scores[3], torch.stack([tokens[3, 1], tokens[3, 2:4].sum(), tokens[3, 4]]))
    torch.testing.assert_close(scores.nansum(1) + its.unassigned(tokens), tokens.sum(1))
    samples = torch.randn(4, 2, 5)
    assert torch.equal(reduce_samples([its], samples).isnan(), scores.isnan()[:, None].expand(-1, 2, -1))
    assert its.names(["w", "x", "y", "z"]) == ["w", "x", "y", "z"]


@pytest.mark.parametrize("joins", [False, True])
def test_targets_that_are_tokens_are_grouped_as_these_are(joins):
    """Not the last ones, and not in order: tokens 3, 1 and 2 form the words bb and a."""
    tokens = torch.randn(3, 5)
    its = grouping("SUM", Scope(own=[3, 1, 2]), joins)
    assert its.names([]) == ["a", "bb"]
    given = tokens if its.joined is None else its.joined @ tokens
    assert (its.joined is not None) is joins
    rows = torch.stack([tokens[1], tokens[0] + tokens[2]])
    right = torch.stack([rows[:, 1], rows[:, 2:4].sum(1), rows[:, 4]], 1)
    torch.testing.assert_close(its.reduce(given), right)
    torch.testing.assert_close(its.reduce(given).sum(1) + its.unassigned(given), rows.sum(1))


def test_what_is_unassigned_side_by_side_is_what_it_is_alone():
    """Of texts with none, one, two and three tokens in no element, with one target and several; nobody shares memory."""
    members = [[[0], [1], [2], [3], [4]], [[0, 1], [2], [4]], [[1, 2], [3]], [[4]], [[2, 3], [0, 1]], [[1], [2, 4]]]
    its = [Grouping(grouping("SUM", Scope()).encoded, *OF_WORDS, given=(one, ["x"] * len(one))) for one in members]
    its += [grouping("SUM", Scope(torch.tensor([3, 1, 4, 1]), HIDDEN)), grouping("SUM", Scope(own=[3, 1, 2]))]
    tokens = [torch.randn(rows, 5) for rows in (1, 1, 1, 3, 3, 3, 4, 3)]
    found = unassigned(its, tokens)
    for one, total, scores in zip(its, found, tokens, strict=True):
        assert torch.equal(total, one.unassigned(scores))
    assert len({total.untyped_storage().data_ptr() for total in found}) == len(found)
    assert unassigned([], []) == []


@pytest.mark.parametrize("places", [[[1]], [[1, 2, 3]], [[1, 99]], [[-1, 2]]])
def test_places_that_do_not_fit(registered, pair, places):
    data = fastshap.GradientShap(*pair, n_perturbations=2)(TEXTS[1])[0].to_dict()
    data["model_inputs"]["target_positions"] = places
    with pytest.raises(fastshap.InvalidArgumentError, match="target_positions"):
        fastshap.AttributionOutput.from_dict(data)


def test_another_task_reproduces_nothing(registered, pair, bert_pair):
    (output,) = fastshap.GradientShap(*pair, n_perturbations=2)(TEXTS[0])
    with pytest.raises(fastshap.UnsupportedModelError, match=r"explains a filling_in.*this model is a BertForSeq"):
        fastshap.reproduce(output, *bert_pair)


def test_interpreto_has_no_such_task(registered, pair):
    (output,) = fastshap.GradientShap(*pair, n_perturbations=2)(TEXTS[0])
    with pytest.raises(fastshap.InvalidArgumentError, match="no task 'filling_in'"):
        output.to_interpreto()


def test_from_the_command_line(registered, pair, tmp_path):
    for part in pair:
        part.save_pretrained(tmp_path / "model")
    arguments = ["explain", "--model", str(tmp_path / "model"), "--json", "--n-perturbations", "4", TEXTS[0]]
    shown = CliRunner().invoke(app, [*arguments, "--target", "film"])
    assert shown.exit_code == 0, shown.output
    data = json.loads(shown.stdout)
    assert (data["task"], data["target_names"]) == ("filling_in", ["film"])
    refused = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "3"])
    assert refused.exit_code == 2
    assert "--max-new-tokens" in refused.output


def test_what_cannot_be_registered(registered, monkeypatch):
    for name in ("filling_in", "classification"):
        other = type("Other", (FillingIn,), {"name": name})
        with pytest.raises(fastshap.InvalidArgumentError, match=f"{name}"):
            fastshap.tasks.register(other)
    with pytest.raises(fastshap.InvalidArgumentError, match="small letters"):
        fastshap.tasks.register(type("Other", (FillingIn,), {"name": "Filling In"}))
    for wrong in (Task, dict, "masked", type("Other", (Task,), {"name": "other"})):
        with pytest.raises(fastshap.InvalidTypeError):
            fastshap.tasks.register(wrong)
    assert registry._registered == [FillingIn]


def test_tasks_from_outside_are_asked_first(registered, bert_pair):
    """Also for models that a built-in task would take."""

    @fastshap.tasks.register
    class Ours(fastshap.tasks.task_named("classification")):
        name = "ours"

    assert isinstance(fastshap.GradientShap(*bert_pair).task, Ours)


def test_a_model_is_loaded_for_the_task_asked_for(registered, pair, tmp_path):
    """A checkpoint that two tasks can load: by its own architecture, or as the task that is asked for loads it."""
    for part in pair:
        part.save_pretrained(tmp_path / "model")
    (own,) = fastshap.explain(TEXTS[0], tmp_path / "model", n_perturbations=2)
    assert own.model_task == "filling_in"
    for asked in ("classification", fastshap.tasks.task_named("classification")):
        one_call._explainer.cache_clear()
        with pytest.warns(fastshap.UntrainedHeadWarning):
            (other,) = fastshap.explain(TEXTS[0], tmp_path / "model", task=asked, n_perturbations=2)
        assert other.model_task is fastshap.ModelTask.CLASSIFICATION
    (again,) = fastshap.explain(TEXTS[0], tmp_path / "model", n_perturbations=2)  # not the other task's explainer
    assert again.model_task == "filling_in"
    batch = fastshap.BatchExplainer(tmp_path / "model", task="nothing")
    for call in (lambda: fastshap.explain("fine", tmp_path / "model", task="nothing"), lambda: batch({"text": "fine"})):
        with pytest.raises(fastshap.InvalidArgumentError, match="no task named 'nothing'"):
            call()
    with pytest.raises(fastshap.UnsupportedModelError, match="task='classification' is for"):
        fastshap.explain(TEXTS[0], pair[0], tokenizer=pair[1], task="classification")
    arguments = ["explain", "--json", "--n-perturbations", "2", "--model", str(tmp_path / "model"), TEXTS[0]]
    done = CliRunner().invoke(app, [*arguments, "--task", "filling_in"])
    assert json.loads(done.stdout)["task"] == "filling_in"
    refused = CliRunner().invoke(app, [*arguments, "--task", "nothing"])
    assert refused.exit_code == 2
    assert "no task named 'nothing'" in refused.stderr
