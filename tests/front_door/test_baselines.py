"""Baselines that the model and tokenizer give: tokens by name, the mean embedding, sets of embeddings and of texts."""

import copy
import json
import pickle

import pytest
import torch

import fastshap
from fastshap import BaselineSet, GradientShap, InvalidArgumentError, InvalidTypeError
from fastshap.sampling import draw_samples
from fastshap.settings import Settings
from helpers.models import bert, byte_tokenizer

TEXTS = ["not good at all", "A gorgeous, witty film."]
FEW = {"n_perturbations": 8, "batch_size": 3, "granularity": "all_tokens"}
BACKGROUND = ["An ordinary film.", "ok", "It is what it is, and it goes on like that for a long, long while."]


def table(pair):
    return pair[0].get_input_embeddings().weight.detach()


def same(pair, one, other, **options):
    """Two baselines give the same scores to the bit."""
    runs = [GradientShap(*pair, baseline=baseline, **FEW | options)(TEXTS, 1) for baseline in (one, other)]
    return all(torch.equal(a.attributions, b.attributions) for a, b in zip(*runs, strict=True))


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize("name", ["[MASK]", "[PAD]", "film", "##s"])
def test_a_token_is_its_embedding(bert_pair, name):
    number = bert_pair[1].convert_tokens_to_ids(name)
    assert number != bert_pair[1].unk_token_id
    assert same(bert_pair, name, table(bert_pair)[number])
    assert same(bert_pair, name, f"#{number}")
    assert not same(bert_pair, name, "[SEP]")


def test_mean_is_that_of_the_rows_that_the_tokenizer_knows(default_pair):
    """The model's table has more rows than the tokenizer has tokens; a token called mean goes by its number."""
    tokenizer = default_pair[1]
    pair = bert(len(tokenizer) + 7), tokenizer
    with torch.no_grad():
        pair[0].get_input_embeddings().weight[-7:] += torch.linspace(-99, 99, 36)
    run = lambda baseline: GradientShap(*pair, baseline=baseline, **FEW)(TEXTS[0], 1)[0].attributions  # noqa: E731
    torch.testing.assert_close(run("mean"), run(table(pair)[: len(tokenizer)].mean(0)), atol=1e-5, rtol=1e-4)
    assert (run("mean") - run(table(pair).mean(0))).abs().max() > 1e-3
    assert "mean" in tokenizer.get_vocab()
    assert not same(pair, "mean", f"#{tokenizer.convert_tokens_to_ids('mean')}")


def test_a_whole_number_is_a_constant_and_never_a_token(bert_pair):
    assert same(bert_pair, 4, 4.0)
    assert not same(bert_pair, 4, "#4")


def test_what_goes_into_outputs_is_the_name(bert_pair):
    (output,) = GradientShap(*bert_pair, baseline="[MASK]", **FEW)(TEXTS[0], 1)
    again = fastshap.AttributionOutput.from_json(output.to_json())
    assert json.loads(output.to_json())["settings"]["baseline"] == again.baseline == "[MASK]"
    assert fastshap.reproduce(again, *bert_pair).same


def test_a_name_follows_the_model(bert_pair):
    """Weights that change between two calls, also of one explainer; a call's own baseline."""
    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    explainer = GradientShap(model, tokenizer, baseline="[MASK]", **FEW)
    before = explainer(TEXTS[0], 1)[0].attributions
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.mask_token_id] += torch.linspace(-1, 1, 36)
    after = explainer(TEXTS[0], 1)[0].attributions
    assert not torch.equal(before, after)
    assert torch.equal(after, GradientShap(model, tokenizer, baseline="[MASK]", **FEW)(TEXTS[0], 1)[0].attributions)
    own = explainer(TEXTS[0], 1, baseline=table((model,))[tokenizer.mask_token_id])[0].attributions
    assert torch.equal(after, own)


def test_a_name_follows_dtype_and_a_layer_that_scales(bert_pair):
    """What counts is what get_input_embeddings() gives: Gemma's, for one, multiplies the table's rows."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    model.get_input_embeddings().__class__ = Scaled
    assert same((model, tokenizer), "[MASK]", 3 * table((model,))[tokenizer.mask_token_id])
    model.to(torch.bfloat16)
    (output,) = GradientShap(model, tokenizer, baseline="[MASK]", **FEW)(TEXTS[0], 1)
    assert output.attributions.isfinite().all()


@pytest.mark.parametrize("baseline", ["[MASK]", BaselineSet(BACKGROUND)], ids=str)
def test_the_model_is_asked_once(bert_pair, baseline, monkeypatch):
    from fastshap.tasks import baselines

    asked = []
    real = baselines._embedded
    monkeypatch.setattr(baselines, "_embedded", lambda task, ids: asked.append(ids) or real(task, ids))
    model, tokenizer = copy.deepcopy(bert_pair)
    explainer = GradientShap(model, tokenizer, baseline=baseline, **FEW)
    explainer(TEXTS, 1)
    count = len(asked)
    assert count > 0
    explainer(TEXTS, 1)
    explainer("another text, and longer than those before it were, by far", 1, seed=3)
    GradientShap(model, tokenizer, baseline=baseline, **FEW)(TEXTS, 1)
    assert len(asked) == count


UNKNOWN = [
    ("[MSK]", r"no token '\[MSK\]' .*did you mean '\[MASK\]' \(#4\).*Special tokens are .*'\[CLS\]'"),
    ("Film", r"no token 'Film' .*'film' \(#\d+\)"),
    ("#11000", "no token '#11000' .*it has 11000 tokens"),
    ("#99999999999999999999999", "no token '#99999999999999999999999'"),
    ("#-1", "no token '#-1'"),
    ("qqqqzzzz", r"no token 'qqqqzzzz' for a baseline\. Name"),
    ("0.5", "without quotes"),
    ("", "empty"),
]


@pytest.mark.parametrize(("name", "said"), UNKNOWN)
def test_a_token_that_there_is_not(bert_pair, name, said):
    with pytest.raises(InvalidArgumentError, match=said):
        GradientShap(*bert_pair, baseline=name)
    with pytest.raises(InvalidArgumentError, match=said):
        GradientShap(*bert_pair)(TEXTS, baseline=name)


def test_a_token_without_an_embedding(bert_pair):
    tokenizer = copy.deepcopy(bert_pair[1])
    tokenizer.add_tokens(["brandnewtoken"])
    with pytest.raises(InvalidArgumentError, match=r"'brandnewtoken', id 11000.*has 11000 rows.*resize_token_emb"):
        GradientShap(bert_pair[0], tokenizer, baseline="brandnewtoken")


def test_a_byte_level_tokenizer_spells_spaces(llama_pair):
    spelt = next(token for token in llama_pair[1].get_vocab() if token.startswith("Ġ") and len(token) > 3)
    explain = lambda name: GradientShap(*llama_pair, baseline=name, **FEW)("The film is", " not good")[0]  # noqa: E731
    assert explain(spelt).attributions.nansum().isfinite()
    with pytest.raises(InvalidArgumentError, match=f"'{spelt}' \\(#\\d+\\)"):
        explain(spelt.replace("Ġ", " "))
    assert torch.equal(
        explain("<|end|>").attributions.nan_to_num(),
        explain(f"#{llama_pair[1].eos_token_id}").attributions.nan_to_num(),
    )


# ---------------------------------------------------------------- sets


def of_members(pair, text, members, baselines, **options):
    """(t, G): the scores of each member alone, sample by sample, put together as the samples draw their members."""
    totals = 0
    n = FEW["n_perturbations"]
    for member, baseline in enumerate(baselines):
        explainer = GradientShap(*pair, baseline=baseline, **FEW | options)
        found = []
        with pytest.MonkeyPatch.context() as patched:
            from fastshap.engine import rounds

            real = rounds.token_scores

            def seen(*args, real=real, found=found, **kwargs):
                for scored in real(*args, **kwargs):
                    found.extend(scores for _, scores in scored)
                    yield scored

            patched.setattr(rounds, "token_scores", seen)
            explainer(text, 1)
        (scores,) = found
        totals = totals + scores[:, torch.from_numpy(members == member)].sum(1)
    return totals / n


@pytest.mark.parametrize("sampling", ["antithetic", "iid"])
@pytest.mark.parametrize("special", [True, False])
def test_every_sample_draws_a_member(bert_pair, sampling, special):
    """A set's scores are those of its members, sample by sample; embeddings (k, D), (k, L, D) and texts."""
    options = {"sampling": sampling, "perturb_special_tokens": special}
    text, tokenizer = TEXTS[0], bert_pair[1]
    ids = tokenizer(text)["input_ids"]
    members = draw_samples(0, ids, 8, sampling, baselines=3).members
    assert len(set(members)) > 1
    torch.manual_seed(0)
    vectors, matrices = torch.randn(3, 36), torch.randn(3, len(ids), 36)
    filled = [(tokenizer(one)["input_ids"] + [tokenizer.pad_token_id] * 9)[: len(ids)] for one in BACKGROUND]
    cases = {
        "vectors": (BaselineSet(vectors), vectors),
        "matrices": (BaselineSet(matrices), matrices),
        "texts": (BaselineSet(BACKGROUND), table(bert_pair)[torch.tensor(filled)]),
    }
    for name, (baselines, alone) in cases.items():
        (output,) = GradientShap(*bert_pair, baseline=baselines, **FEW | options)(text, 1)
        expected = of_members(bert_pair, text, members, alone, **options)
        torch.testing.assert_close(output.attributions, expected, atol=1e-5, rtol=1e-5, msg=name)
        if not special:
            assert (output.attributions[:, [0, -1]] == 0).all()


def test_background_texts_of_a_generation(llama_pair):
    """They are tokenised as prompts are, and filled up to prompt and target; without a padding token by the end of text."""
    model, tokenizer = llama_pair
    text, target = "The film is", " not good at all"
    (whole,) = GradientShap(model, tokenizer, **FEW)(text, target)
    length = whole.model_inputs_to_explain["input_ids"].shape[1]
    ids = [tokenizer(one)["input_ids"] for one in BACKGROUND]
    assert min(map(len, ids)) < length < max(map(len, ids))
    matrices = table(llama_pair)[torch.tensor([(one + [tokenizer.eos_token_id] * 99)[:length] for one in ids])]
    bare = byte_tokenizer()
    bare.pad_token = None
    for own in (tokenizer, bare):
        runs = [
            GradientShap(model, own, baseline=BaselineSet(members), **FEW)(text, target)[0].attributions
            for members in (BACKGROUND, matrices)
        ]
        assert torch.equal(*(run.nan_to_num() for run in runs))


def test_a_text_does_not_depend_on_company_with_a_set(bert_pair, texts):
    explainer = GradientShap(*bert_pair, baseline=BaselineSet(BACKGROUND), n_perturbations=6, batch_size=7)
    together = explainer(texts, 1)
    alone = [explainer(text, 1)[0] for text in texts[::-1]][::-1]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("baseline", [BaselineSet(BACKGROUND), "mean"], ids=str)
def test_convergence_delta_is_of_the_same_members(bert_pair, baseline):
    """It is small where members and noise of both are the same: the path's integral, drawn finely, is the difference."""
    options = {"granularity_aggregation_strategy": "sum", "return_convergence_delta": True, "noise_std": 0.05}
    (output,) = GradientShap(*bert_pair, baseline=baseline, n_perturbations=600, batch_size=100, **options)(TEXTS[0], 1)
    total = output.attributions.sum() + output.unassigned.sum()
    assert output.convergence_delta.abs().item() < 0.1 * total.abs().item() + 0.1


def test_completeness(bert_pair):
    """E[sum of scores] = F(x) less the mean over members of E F(member + noise), within 4 standard errors of both."""
    model, tokenizer = bert_pair
    torch.manual_seed(0)
    members = 0.5 * torch.randn(4, 36)
    explainer = GradientShap(
        *bert_pair, "auto", "all_tokens", baseline=BaselineSet(members), n_perturbations=40, noise_std=0.2
    )
    sums = torch.stack([explainer(TEXTS[0], 1, seed=seed)[0].attributions.sum() for seed in range(60)]).double()
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    x = model.get_input_embeddings()(ids)
    with torch.no_grad():
        own = model(inputs_embeds=x).logits[0, 1].double()
        drawn = members[torch.arange(8000) % 4, None] + 0.2 * torch.randn(8000, ids.shape[1], 36)
        away = model(inputs_embeds=drawn).logits[:, 1].double()
    error = (sums.var() / len(sums) + away.var() / len(away)).sqrt()
    assert abs(sums.mean() - (own - away.mean())) < 4 * error
    alone = torch.stack([own - away[member::4].mean() for member in range(4)])
    assert (sums.mean() - alone).abs().max() > 8 * error


# ---------------------------------------------------------------- the class


def test_a_set_is_a_value():
    tensor = torch.randn(3, 5)
    one, other = BaselineSet(tensor), BaselineSet(tensor.clone())
    assert one == other
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint
    assert len(one) == 3
    tensor += 1
    one.tensor.zero_()
    assert one == other
    for changed in (
        BaselineSet(other.tensor + 1),
        BaselineSet(other.tensor.double()),
        BaselineSet(other.tensor[None]),
        BaselineSet(other.tensor[:2]),
        BaselineSet(BACKGROUND),
    ):
        assert changed != one
        assert changed.fingerprint != one.fingerprint
    for name in ("texts", "fingerprint", "_tensor", "new"):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(one, name, None)
    for its in (one, BaselineSet(BACKGROUND), BaselineSet(tensor.bfloat16())):
        for again in (pickle.loads(pickle.dumps(its)), copy.deepcopy(its), copy.copy(its)):
            assert again == its
            assert again.fingerprint == its.fingerprint
    assert repr(BaselineSet(BACKGROUND)).startswith("BaselineSet(3 texts, fingerprint ")
    assert "float32 (3, 5)" in repr(one)
    assert BaselineSet(["a"]).fingerprint == "0eb5b8d6f81bc677"
    assert BaselineSet(torch.zeros(1, 2)).fingerprint == "ecba960c2b5af1ec"


BAD_SETS = [
    (torch.zeros(3), InvalidArgumentError, r"\(k, D\) or \(k, L, D\).*\(3,\)"),
    (torch.zeros(2, 0), InvalidArgumentError, r"at least one.*\(2, 0\)"),
    (torch.zeros(0, 4), InvalidArgumentError, r"at least one.*\(0, 4\)"),
    (torch.zeros(2, 4, dtype=torch.int64), InvalidArgumentError, "float32.*int64"),
    (torch.full((2, 4), torch.nan), InvalidArgumentError, "NaN"),
    ([], InvalidArgumentError, "list of texts is empty"),
    (["fine", " \n"], InvalidArgumentError, "Text 1 .*empty"),
    (["fine", 3], InvalidTypeError, "Text 1 .*int"),
    (["fine \ud800"], InvalidArgumentError, "surrogate"),
    ("fine", InvalidTypeError, "single text into a list"),
    (3, InvalidTypeError, "tensor of embeddings or a list of texts; got int"),
]


@pytest.mark.parametrize(("members", "kind", "said"), BAD_SETS, ids=lambda value: str(value)[:20])
def test_bad_sets(members, kind, said):
    with pytest.raises(kind, match=said):
        BaselineSet(members)


@pytest.mark.parametrize("baseline", ["#" + "9" * 5000, "\ud800"])
def test_names_that_no_tokenizer_reads(bert_pair, baseline):
    with pytest.raises(fastshap.InvalidArgumentError, match="has no token"):
        fastshap.GradientShap(*bert_pair, baseline=baseline)


@pytest.mark.parametrize("of", [lambda tensor: tensor, lambda tensor: fastshap.BaselineSet(tensor.unsqueeze(0))])
def test_tensors_that_cannot_be_baselines(bert_pair, of):
    width = bert_pair[0].config.hidden_size
    for tensor in (torch.zeros(width).to_sparse(), torch.zeros(width, device="meta")):
        with pytest.raises(fastshap.InvalidArgumentError, match="dense tensor that holds values"):
            fastshap.GradientShap(*bert_pair, baseline=of(tensor))
    with pytest.raises(fastshap.InvalidArgumentError, match="dtype float64, but the model's embeddings have float32"):
        fastshap.GradientShap(*bert_pair, baseline=of(torch.zeros(width, dtype=torch.float64)))("fine")


def test_a_set_that_does_not_fit_the_model_or_the_text(bert_pair):
    with pytest.raises(InvalidArgumentError, match=r"\(3, 5\).*\(L, 36\).*\(k, 36\)"):
        GradientShap(*bert_pair, baseline=BaselineSet(torch.zeros(3, 5)))
    explainer = GradientShap(*bert_pair, baseline=BaselineSet(torch.zeros(2, 4, 36)))
    with pytest.raises(InvalidArgumentError, match=r"Text 1.*\(2, 4, 36\).*\(6, 36\)"):
        explainer(["not good", "not good at all"])
    with pytest.raises(InvalidArgumentError, match=r"Text 1 of the BaselineSet, '\\u200b'"):
        GradientShap(*bert_pair, baseline=BaselineSet(["fine", "\u200b"]))("fine")


@pytest.mark.parametrize(
    "baseline",
    [
        "[MASK]",
        "mean",
        BaselineSet(BACKGROUND),
        BaselineSet(torch.ones(2, 36).bfloat16()),
        BaselineSet(torch.ones(2, 6, 36)),
    ],
    ids=str,
)
def test_files_hold_names_and_sets(bert_pair, baseline, tmp_path):
    explainer = GradientShap(*bert_pair, baseline=baseline, **FEW)
    (output,) = explainer(TEXTS[0], 1)
    again = fastshap.AttributionOutput.from_json(output.to_json())
    assert again.baseline == baseline
    assert Settings.from_plain(output.settings.to_plain()) == output.settings
    fastshap.write_parquet([output], tmp_path / "outputs.parquet")
    (stored,) = fastshap.read_parquet(tmp_path / "outputs.parquet")
    for one in (again, stored):
        assert fastshap.reproduce(one, *bert_pair).same
    copied = pickle.loads(pickle.dumps(explainer))
    assert torch.equal(copied(TEXTS[0], 1)[0].attributions, output.attributions)


def plain_of(baseline):
    return Settings(baseline=baseline).to_plain()["baseline"]


BAD_FILES = [
    ({"fingerprint": "0" * 16}, "lacks 'dtype'"),
    (plain_of(BaselineSet(["a"])) | {"texts": ["b"]}, "fingerprint is '0eb5b8d6f81bc677', and the members have"),
    (plain_of(BaselineSet(torch.zeros(1, 2))) | {"values": [[1.0, 0.0]]}, "fingerprint is"),
    ({"texts": ["a"]}, "fingerprint is None"),
    ({"texts": [], "fingerprint": "0" * 16}, "texts must hold at least 1"),
    ({"texts": [" "], "fingerprint": "0" * 16}, "empty"),
    ({"texts": ["a"], "fingerprint": "x"}, "fingerprint must match"),
    ({"dtype": "float32", "values": [[[1.0], [1.0, 2.0]]]}, "lists of one length"),
    ({"dtype": "float32", "values": [[[1.0]]]}, "pass a number, or a tensor"),
    ("", "empty string"),
]


@pytest.mark.parametrize(("plain", "said"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_files_that_do_not_fit(bert_pair, plain, said):
    (output,) = GradientShap(*bert_pair, **FEW)(TEXTS[0], 1)
    data = json.loads(output.to_json())
    data["settings"]["baseline"] = plain
    with pytest.raises(InvalidArgumentError, match=said):
        fastshap.AttributionOutput.from_dict(data)
