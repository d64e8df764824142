"""Similarity of sentence embeddings: one text against others, and two texts that are both explained."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, GPT2Config, GPT2Model, XLNetConfig

import fastshap
from fastshap.models.embedder import SentenceEmbedder
from fastshap.output.render.page import article
from helpers.plain import apart, token_scores

TEXTS = [
    "A gorgeous, witty film.",
    "The ending is dull, but the whole is not good at all.",
    "Superb acting",
    "An unbelievably overproduced mess, and yet I could not look away.",
]
OTHERS = ["What a fine movie!", "bad", "The actors were a delight to watch.", "too much of everything"]
N = 4
SMALL = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
SMALL |= {"max_position_embeddings": 64, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def tokenizer(default_pair):
    return default_pair[1]


@pytest.fixture(scope="module")
def pair(tokenizer):
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL)).eval(), tokenizer


@pytest.fixture(scope="module")
def decoder(byte_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_embd=36, n_layer=2, n_head=3, initializer_range=0.3)
    return GPT2Model(config).eval(), byte_tokenizer


def explain(pair, texts, targets=None, batch_size="auto", **options):
    return fastshap.GradientShap(*pair, batch_size, n_perturbations=N, **options)(texts, targets)


def mean_of(model, points):
    """The mean of a text's hidden states, from its points (L, D)."""
    types = torch.zeros(1, len(points), dtype=torch.long)
    return model(inputs_embeds=points[None], token_type_ids=types).last_hidden_state[0].mean(0)


def embedded(pair, text):
    model, tokenizer = pair
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other, dim=0)


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_against_a_plain_loop(pair, noise_std):
    outputs = explain(pair, TEXTS, OTHERS, granularity="all_tokens", noise_std=noise_std)
    for output, other in zip(outputs, OTHERS, strict=True):
        assert output.model_task == "similarity"
        assert (output.target_names, output.targets.tolist()) == ([other], [0])
        vector = embedded(pair, other)
        ids = output.model_inputs_to_explain["input_ids"][0]
        right = token_scores(pair[0], ids, lambda z: cosine(mean_of(pair[0], z), vector), N, noise_std)  # noqa: B023
        assert apart(output.attributions[0], right) < 2e-5


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_both_texts_against_a_plain_loop(pair, noise_std):
    outputs = explain(pair, [*zip(TEXTS, OTHERS, strict=True)], granularity="all_tokens", noise_std=noise_std)
    for output, texts in zip(outputs, zip(TEXTS, OTHERS, strict=True), strict=True):
        ids = output.model_inputs_to_explain["input_ids"][0].tolist()
        first, second = (pair[1](text)["input_ids"] for text in texts)
        assert ids == first + second
        assert output.segments == [0] * len(first) + [1] * len(second)
        assert output.text == "\n".join(texts)
        cut = len(first)
        right = token_scores(
            pair[0],
            ids,
            lambda z: cosine(mean_of(pair[0], z[:cut]), mean_of(pair[0], z[cut:])),  # noqa: B023
            N,
            noise_std,
        )
        assert apart(output.attributions[0], right) < 2e-5


@pytest.mark.parametrize("kind", ["pair", "decoder"])
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_alone_and_in_company(kind, batch_size, request):
    pair = request.getfixturevalue(kind)
    targets = [["a", "some other text"], ["b", "c"], *OTHERS[2:]]
    texts = [*TEXTS, *zip(TEXTS, OTHERS, strict=True)]
    targets += [None] * 4
    together = explain(pair, texts, targets)
    for text, target, output in zip(texts, targets, together, strict=True):
        (alone,) = explain(pair, [text], [target], batch_size)
        assert apart(output.attributions, alone.attributions) < 1e-5
        assert output.target_names == alone.target_names


@pytest.mark.parametrize("texts", [TEXTS, [*zip(TEXTS, OTHERS, strict=True)]])
def test_scores_add_up(pair, texts):
    targets = OTHERS if texts is TEXTS else None
    options = {"granularity_aggregation_strategy": "sum", "return_convergence_delta": True}
    for i, output in enumerate(
        fastshap.GradientShap(*pair, "auto", n_perturbations=400, noise_std=0.0, **options)(texts, targets)
    ):
        whole = cosine(embedded(pair, TEXTS[i]), embedded(pair, OTHERS[i]))
        zeros = [torch.zeros(len(pair[1](text)["input_ids"]), 36) for text in (TEXTS[i], OTHERS[i])]
        with torch.no_grad():
            base = mean_of(pair[0], zeros[0])
            base = cosine(base, embedded(pair, OTHERS[i]) if texts is TEXTS else mean_of(pair[0], zeros[1]))
        total = output.attributions.sum() + output.unassigned[0]
        torch.testing.assert_close(total - output.convergence_delta[0], whole - base, rtol=1e-4, atol=1e-5)
        assert abs(output.convergence_delta[0]) < 0.05


def test_both_is_another_word_for_pairs(pair):
    right = explain(pair, [*zip(TEXTS, OTHERS, strict=True)])
    explainer = fastshap.GradientShap(*pair, "auto", n_perturbations=N)
    for given in (
        explainer(TEXTS, OTHERS, both=True),
        explainer(iter(TEXTS), [[other] for other in OTHERS], both=True, seed=0),
        explainer.iter_explain(iter(TEXTS), iter(OTHERS), both=True),
        fastshap.explain(TEXTS, pair[0], OTHERS, tokenizer=pair[1], both=True, n_perturbations=N),
    ):
        assert [
            apart(one.attributions, other.attributions) < 1e-5 for one, other in zip(given, right, strict=True)
        ] == [True] * 4
    assert [output.text for output in explainer(TEXTS, "bad", both=True)] == [f"{text}\nbad" for text in TEXTS]
    bad, good = explainer([3, TEXTS[0]], OTHERS[:2], both=True, on_error="record")
    assert "got int" in bad.error
    assert good.error is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "another text or its embedding"),
        (torch.ones(36), "must be a text too"),
        ([["a", "b"], "c"], "must be a text too"),
        (["a"], "There is 1 target for more texts"),
        (["a", "b", "c"], "more targets than texts"),
    ],
)
def test_both_needs_two_texts(pair, targets, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        fastshap.GradientShap(*pair)(TEXTS[:2], targets, both=True)


def test_both_is_for_similarity(bert_pair):
    with pytest.raises(fastshap.InvalidArgumentError, match="both=True is for similarity"):
        fastshap.GradientShap(*bert_pair)(TEXTS, 0, both=True)


def test_several_targets_and_embeddings(pair):
    vector = embedded(pair, OTHERS[1])
    (output,) = explain(pair, TEXTS[0], [[OTHERS[0], vector, vector.double().numpy()]])
    assert output.target_names == [OTHERS[0], "embedding 1", "embedding 2"]
    (text,) = explain(pair, TEXTS[0], OTHERS[1])
    assert apart(output.attributions[1:], text.attributions.expand(2, -1)) < 1e-5
    (again,) = explain(pair, TEXTS[0], torch.stack([vector]))
    assert apart(again.attributions, text.attributions) < 1e-5
    for_all = explain(pair, TEXTS, vector)
    assert [one.target_names for one in for_all] == [["embedding 0"]] * 4
    streamed = fastshap.GradientShap(*pair, "auto", n_perturbations=N).iter_explain(iter(TEXTS), OTHERS[0])
    assert [one.target_names for one in streamed] == [[OTHERS[0]]] * 4


def test_the_dot_product(pair):
    (output,) = explain(pair, TEXTS[0], OTHERS[0], task="dot_similarity", granularity="all_tokens")
    assert output.model_task == "dot_similarity"
    ids, vector = output.model_inputs_to_explain["input_ids"][0], embedded(pair, OTHERS[0])
    assert apart(output.attributions[0], token_scores(pair[0], ids, lambda z: mean_of(pair[0], z) @ vector, N)) < 2e-5


def test_files_pages_and_what_comes_of_them(pair, tmp_path):
    outputs = [*explain(pair, TEXTS[1], [["a", "some text"]]), *explain(pair, [(TEXTS[1], OTHERS[1])])]
    fastshap.write_jsonl(outputs, tmp_path / "some.jsonl")
    fastshap.write_parquet(outputs, tmp_path / "some.parquet")
    for read in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        for back, output in zip(read, outputs, strict=True):
            assert back.to_json() == output.to_json()
            again = fastshap.reproduce(back, *pair)
            assert again.identical
            assert not again.changed
            assert again.output.to_json() == output.to_json()
    assert "similar to" in article(outputs[0], "t")
    assert "gorgeous" not in article(outputs[1], "t")
    assert "explains the cosine, one score per word" in str(outputs[1])
    assert "target similarity" in str(outputs[1])


def test_what_cannot_be_reproduced(pair):
    (output,) = explain(pair, TEXTS[0], [["a", embedded(pair, "b")]])
    back = fastshap.AttributionOutput.from_json(output.to_json())
    with pytest.raises(fastshap.InvalidArgumentError, match="Target 1 was given as an embedding"):
        fastshap.reproduce(back, *pair)
    data = output.to_dict()
    for wrong in ([[0, 3]], [[0, 9, 3]], [[0, 3, 2]], [[1, 2, 3]]):
        changed = json.loads(json.dumps(data))
        changed["model_inputs"]["target_offsets"] = wrong
        with pytest.raises(fastshap.InvalidArgumentError, match="does not hold the texts"):
            fastshap.reproduce(fastshap.AttributionOutput.from_dict(changed), *pair)
    with pytest.raises(fastshap.UnsupportedModelError):
        fastshap.reproduce(back, *fastshap.load_default_model())


@pytest.mark.parametrize(
    ("texts", "targets", "message"),
    [
        (TEXTS[0], None, "nothing to compare the text with"),
        ([(TEXTS[0], "b")], ["c"], "a pair takes no target"),
        ([(TEXTS[0], " ")], None, "Of a pair, one text cannot be used"),
        (TEXTS[0], " ", "The target cannot be used. The text is empty"),
        (TEXTS[0], torch.zeros(36), "zero in all dimensions"),
        (TEXTS[0], torch.ones(35), "35 numbers, and those of BertModel have 36"),
        (TEXTS[0], torch.full((36,), torch.nan), "NaN or infinite"),
        (TEXTS[0], [[]], "no target"),
        (TEXTS[:2], ["a"], "2 texts but 1 target"),
    ],
)
def test_what_cannot_be_compared(pair, texts, targets, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        explain(pair, texts, targets)


@pytest.mark.parametrize("targets", [3, {"a": 1}, [3], [[3]], torch.ones(36).long(), [np.ones((2, 2, 2))], b"a"])
def test_targets_of_another_kind(pair, targets):
    with pytest.raises(fastshap.InvalidTypeError, match="another text or its embedding"):
        explain(pair, TEXTS[0], targets)


def test_one_that_cannot_be_explained_leaves_the_others_alone(pair):
    outputs = explain(pair, [*TEXTS[:2], (TEXTS[2], "x")], [OTHERS[0], "", None], on_error="record")
    assert [output.error is None for output in outputs] == [True, False, True]
    assert apart(outputs[0].attributions, explain(pair, TEXTS[0], OTHERS[0])[0].attributions) < 1e-5


@pytest.mark.parametrize("mode", ["softmax", "log_softmax", "sigmoid"])
def test_probabilities_make_no_sense(pair, mode):
    with pytest.raises(fastshap.InvalidArgumentError, match="similarity is a single number"):
        fastshap.GradientShap(*pair, inference_mode=mode)


def test_a_score_of_ones_own_from_the_similarity(pair):
    (plain,), (doubled,) = (
        explain(pair, TEXTS[0], OTHERS[0], inference_mode=mode) for mode in ("logits", lambda cosines: 2 * cosines)
    )
    assert apart(doubled.attributions, 2 * plain.attributions) < 1e-5


def test_long_texts_are_cut(pair):
    long = "good " * 100
    with pytest.warns(fastshap.TruncationWarning):
        outputs = explain(pair, [long, TEXTS[0], (long, long), (TEXTS[0], "x")], [OTHERS[0], long, None, None])
    assert [output.truncated for output in outputs] == [True, True, True, False]
    inputs = outputs[2].model_inputs_to_explain
    assert inputs["sequences_mask"].sum(1).tolist() == [[64, 64]]
    again = fastshap.reproduce(outputs[2], *pair)  # its row is longer than the model takes
    assert again.relative_difference < 1e-5


def saved(pair, folder, config, modules=("Transformer", "Pooling")):
    """The model as sentence-transformers writes it."""
    pair[0].save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    listed = [{"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"some.{kind}"} for i, kind in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return AutoModel.from_pretrained(folder)


POOLED = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("version", [5, 6])
def test_pooling_comes_from_the_models_files(pair, tmp_path, kind, version):
    name = {"cls": "cls_token", "mean": "mean_tokens"}.get(kind, kind)
    config = (
        {"pooling_mode": kind} if version == 6 else {f"pooling_mode_{name}": True, "pooling_mode_max_tokens": False}
    )
    model = saved(pair, tmp_path, config)
    vector = torch.randn(36, generator=torch.Generator().manual_seed(0))
    output, longer = explain((model, pair[1]), TEXTS[:2], vector, granularity="all_tokens")
    assert output.segments[0] == longer.segments[0]

    def score(z):
        types = torch.zeros(1, len(z), dtype=torch.long)
        return cosine(POOLED[kind](model(inputs_embeds=z[None], token_type_ids=types).last_hidden_state[0]), vector)

    for one in (output, longer):
        ids = one.model_inputs_to_explain["input_ids"][0]
        assert apart(one.attributions[0], token_scores(model, ids, score, N)) < 2e-5


def test_pooling_of_ones_own(pair, tmp_path):
    class OfFirst(fastshap.tasks.task_named("similarity")):
        pooling = "cls"

    (ours,) = explain(pair, TEXTS[0], OTHERS[0], task=OfFirst)
    (theirs,) = explain((saved(pair, tmp_path, {"pooling_mode": "cls"}), pair[1]), TEXTS[0], OTHERS[0])
    assert torch.equal(ours.attributions, theirs.attributions)


@pytest.mark.parametrize(
    ("config", "modules", "what"),
    [
        ({"pooling_mode": "max"}, ("Transformer", "Pooling"), "by max"),
        ({"pooling_mode": ["mean", "cls"]}, ("Transformer", "Pooling"), "by mean and cls"),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "by mean and Dense"),
    ],
)
def test_pooling_that_only_sentence_transformers_can_do(pair, tmp_path, config, modules, what):
    with pytest.raises(fastshap.UnsupportedModelError, match=f"{what}.*SentenceTransformer"):
        explain((saved(pair, tmp_path, config, modules), pair[1]), TEXTS[0], OTHERS[0])


def test_normalised_embeddings_have_the_cosine_as_dot_product(pair, tmp_path):
    model = saved(pair, tmp_path, {"pooling_mode": "mean"}, ("Transformer", "Pooling", "Normalize"))
    dot, cos = (explain((model, pair[1]), TEXTS[0], OTHERS[0], task=task)[0] for task in ("dot_similarity", None))
    assert apart(dot.attributions, cos.attributions) < 1e-5


def test_a_decoder_is_pooled_at_its_last_token(decoder):
    model, tokenizer = decoder
    with torch.no_grad():
        vector = model(**tokenizer(OTHERS[0], return_tensors="pt")).last_hidden_state[0, -1]
    output = explain(decoder, TEXTS, OTHERS[0], granularity="all_tokens")[0]
    ids = output.model_inputs_to_explain["input_ids"][0]
    right = token_scores(model, ids, lambda z: cosine(model(inputs_embeds=z[None]).last_hidden_state[0, -1], vector), N)
    assert apart(output.attributions[0], right) < 2e-5


@pytest.mark.parametrize(
    "config",
    [
        DistilBertConfig(dim=36, n_layers=2, n_heads=3, hidden_dim=48, initializer_range=0.3),
        XLNetConfig(d_model=36, n_layer=2, n_head=3, d_inner=48, initializer_range=0.3),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families(config, tokenizer):
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    model = AutoModel.from_config(config).eval()
    texts, targets = [*TEXTS[:2], *zip(TEXTS[2:], OTHERS[2:], strict=True)], [*OTHERS[:2], None, None]
    together = explain((model, tokenizer), texts, targets)
    for output, text, target in zip(together, texts, targets, strict=True):
        (alone,) = explain((model, tokenizer), [text], [target], 1)
        assert apart(output.attributions, alone.attributions) < 1e-5


class Transformer(nn.Module):
    """The first module of a SentenceTransformer, as sentence-transformers 6.2 has it."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer, self.max_seq_length = model, tokenizer, 12

    @property
    def auto_model(self):
        return self.model


class Pooling(nn.Module):
    def forward(self, features):
        states, mask = features["token_embeddings"], features["attention_mask"][..., None]
        features["sentence_embedding"] = torch.cat([(states * mask).sum(1) / mask.sum(1), states[:, 0]], 1)
        return features


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(72, 5)

    def forward(self, features):
        features["sentence_embedding"] = self.linear(features["sentence_embedding"]).tanh()
        return features


class SentenceTransformer(nn.Sequential):
    """Stands in for the class of sentence-transformers, which runs its modules one after the other."""

    @property
    def tokenizer(self):
        return self[0].tokenizer


@pytest.fixture
def sentence_transformer(pair):
    torch.manual_seed(0)
    return SentenceTransformer(Transformer(*pair), Pooling(), Dense()).eval()


def test_a_sentence_transformer(sentence_transformer, pair):
    """All its modules count, and they are its own."""
    explainer = fastshap.GradientShap(sentence_transformer, None, "auto", "all_tokens", n_perturbations=N)
    assert isinstance(explainer.model, SentenceEmbedder)
    assert explainer.model.encoder is pair[0]
    with pytest.warns(fastshap.TruncationWarning, match="more than 12 tokens"):
        outputs = explainer(TEXTS, OTHERS)
    assert [output.truncated for output in outputs] == [False, True, False, True]

    def vector(points):
        states = (
            mean_of(pair[0], points),
            pair[0](
                inputs_embeds=points[None], token_type_ids=torch.zeros(1, len(points), dtype=torch.long)
            ).last_hidden_state[0, 0],
        )
        return sentence_transformer[2].linear(torch.cat(states)).tanh()

    with torch.no_grad():
        other = vector(pair[0].get_input_embeddings()(torch.tensor(pair[1](OTHERS[0])["input_ids"])))
    ids = outputs[0].model_inputs_to_explain["input_ids"][0]
    assert apart(outputs[0].attributions[0], token_scores(pair[0], ids, lambda z: cosine(vector(z), other), N)) < 2e-5
    assert fastshap.reproduce(outputs[0], sentence_transformer, None).same
    both = explainer([(TEXTS[0], OTHERS[0])])
    assert fastshap.reproduce(both[0], sentence_transformer, None).identical


def test_a_sentence_transformer_of_no_transformer(pair):
    with pytest.raises(fastshap.UnsupportedModelError, match="first module of this SentenceTransformer is a Dense"):
        fastshap.GradientShap(SentenceTransformer(Dense(), Dense()), pair[1])


def test_an_encoder_whose_decoder_reads_another_text_is_refused(tokenizer):
    from transformers import T5Config, T5EncoderModel, T5Model

    config = T5Config(vocab_size=len(tokenizer), d_model=36, num_layers=1, num_heads=3, d_ff=48, d_kv=12)
    with pytest.raises(fastshap.UnsupportedModelError, match="load the encoder alone, such as T5EncoderModel"):
        explain((T5Model(config), tokenizer), TEXTS[0], OTHERS[0])
    (output,) = explain((T5EncoderModel(config).eval(), tokenizer), TEXTS[0], OTHERS[0])
    assert output.attributions.isfinite().all()


def test_a_pooler_that_was_never_trained_is_not_used(pair, tmp_path, recwarn):
    without = BertModel(pair[0].config, add_pooling_layer=False)
    without.load_state_dict(pair[0].state_dict(), strict=False)
    without.save_pretrained(tmp_path)
    fastshap.GradientShap(AutoModel.from_pretrained(tmp_path), pair[1])
    assert not [one for one in recwarn if issubclass(one.category, fastshap.UntrainedHeadWarning)]


def test_warming_up(pair):
    fastshap.warm_up(fastshap.GradientShap(*pair, n_perturbations=N))
