"""Parameters, targets, outputs, and errors that teach."""

import copy
import enum
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForNextSentencePrediction,
    BertLMHeadModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
    CanineTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import fastshap
from fastshap import GradientShap, Granularity, InvalidArgumentError, InvalidTypeError
from helpers.bad import BAD_INPUTS, BAD_PARAMETERS


def test_documented_defaults():
    import inspect

    parameters = inspect.signature(GradientShap).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert list(parameters) == [
        *("model", "tokenizer", "batch_size", "granularity", "granularity_aggregation_strategy", "device"),
        *("inference_mode", "input_x_gradient", "n_perturbations", "baseline", "noise_std"),
        *("reduction", "sampling", "path_density", "seed", "rtol", "max_perturbations", "perturb_special_tokens"),
        *("score", "span", "threshold", "long_text", "hypothesis_template", "task"),
        *("return_convergence_delta", "on_error", "backend", "cuda_graphs"),
    ]
    assert defaults == {
        "tokenizer": None,  # a pipeline brings one
        "batch_size": 4,
        "granularity": Granularity.WORD,
        "granularity_aggregation_strategy": fastshap.GranularityAggregationStrategy.MEAN,
        "device": None,
        "inference_mode": fastshap.InferenceModes.LOGITS,
        "input_x_gradient": True,
        "n_perturbations": 10,
        "baseline": None,
        "noise_std": 0.1,
        "reduction": "sum",
        "sampling": "antithetic",
        "path_density": None,
        "seed": 0,
        "rtol": None,
        "max_perturbations": None,
        "perturb_special_tokens": True,
        "score": None,
        "span": False,
        "threshold": 0.5,
        "long_text": "truncate",
        "hypothesis_template": "This example is {}.",
        "task": None,
        "return_convergence_delta": False,
        "on_error": "raise",
        "backend": "auto",
        "cuda_graphs": False,
    }
    assert issubclass(GradientShap, fastshap.MultitaskExplainerMixin)
    assert issubclass(GradientShap, fastshap.AttributionExplainer)


def test_output_of_a_classifier(bert_pair):
    model, tokenizer = bert_pair
    (output,) = GradientShap(model, tokenizer, seed=9, granularity="Sentence")("It was dull. Not good, Dr. Smith!")
    assert output.elements == ["It was dull.", "Not good, Dr. Smith!"]
    assert output.attributions.shape == (1, 2)
    assert output.attributions.dtype == torch.float32
    logits = model(**tokenizer("It was dull. Not good, Dr. Smith!", return_tensors="pt")).logits
    assert output.targets.tolist() == output.classes.tolist() == [logits.argmax().item()]
    assert output.target_names == [f"LABEL_{logits.argmax().item()}"]
    assert output.model_task is fastshap.ModelTask.CLASSIFICATION
    assert output.granularity is Granularity.SENTENCE
    assert output.inference_mode is fastshap.InferenceModes.LOGITS
    assert output.unassigned.shape == (1,)
    assert output.convergence_delta is None
    assert output.error is None
    assert (output.seed, output.n_perturbations, output.noise_std) == (9, 10, 0.1)
    assert (output.sampling, output.reduction, output.truncated) == ("antithetic", "sum", False)
    assert output.provenance.versions["fastshap"] == fastshap.__version__
    assert output.text == "It was dull. Not good, Dr. Smith!"
    assert output.probability == pytest.approx(logits.softmax(-1).max().item())
    ids = tokenizer("It was dull. Not good, Dr. Smith!")["input_ids"]
    assert output.model_inputs_to_explain["input_ids"].tolist() == [ids]


def test_output_of_a_language_model(llama_pair):
    model, tokenizer = llama_pair
    (output,) = GradientShap(model, tokenizer)("The ending is", "simply dull.")
    assert "".join(output.elements) == "The ending is simply dull."
    assert output.target_names == [" simply", " dull", "."]
    assert output.targets.tolist() == tokenizer(" simply dull.")["input_ids"]
    assert output.classes is None
    assert output.attributions.shape == (3, 6)
    assert output.attributions.isnan().tolist() == [
        [False] * 3 + [True] * 3,
        [False] * 4 + [True] * 2,
        [False] * 5 + [True],
    ]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (2, [[2], [2]]),
        ("LABEL_2", [[2], [2]]),
        ([0, 1], [[0], [1]]),
        (["LABEL_1", 0], [[1], [0]]),
        (torch.tensor([1, 2]), [[1], [2]]),
        (np.array([1, 2]), [[1], [2]]),
        (np.int64(1), [[1], [1]]),
        (torch.tensor(1), [[1], [1]]),
        ([torch.tensor([0, 1]), torch.tensor([2])], [[0, 1], [2]]),
        (torch.tensor([[0, 1, 2], [2, 1, 0]]), [[0, 1, 2], [2, 1, 0]]),
    ],
    ids=str,
)
def test_classification_targets(bert_pair, targets, expected):
    explainer = GradientShap(*bert_pair)
    outputs = explainer(["not good", "fine"], targets)
    assert [output.targets.tolist() for output in outputs] == expected
    for text, output in zip(["not good", "fine"], outputs, strict=True):
        for row, target in zip(output.attributions, output.targets.tolist(), strict=True):
            (alone,) = explainer(text, target)
            torch.testing.assert_close(alone.attributions[0], row, atol=1e-5, rtol=1e-4)


class Foreign(enum.Enum):
    WORD = 17
    SENTENCE = 3
    SOFTMAX = 4


def test_members_names_and_other_libraries_members(bert_pair):
    for granularity in (Granularity.WORD, "word", "WORD", " Word "):
        assert GradientShap(*bert_pair, granularity=granularity).granularity is Granularity.WORD
    for granularity in (Granularity.TOKENIZER_WORD, "tokenizer_word", Foreign.WORD):  # what interpreto means by a word
        assert GradientShap(*bert_pair, granularity=granularity).granularity is Granularity.TOKENIZER_WORD
    assert GradientShap(*bert_pair, granularity=Foreign.SENTENCE).granularity is Granularity.SENTENCE
    assert GradientShap(*bert_pair, inference_mode=Foreign.SOFTMAX).inference_mode is fastshap.InferenceModes.SOFTMAX


def test_callable_inference_mode(bert_pair):
    named = GradientShap(*bert_pair, inference_mode="log_softmax")("not good", 1)[0]
    called = GradientShap(*bert_pair, inference_mode=lambda z: z.log_softmax(-1))("not good", 1)[0]
    torch.testing.assert_close(named.attributions, called.attributions)


@pytest.mark.parametrize(("options", "error", "message"), BAD_PARAMETERS, ids=str)
def test_bad_parameters(bert_pair, options, error, message):
    with pytest.raises(error, match=message):
        GradientShap(*bert_pair, **options)


@pytest.mark.parametrize(("inputs", "targets", "error", "message"), BAD_INPUTS, ids=str)
def test_bad_inputs(bert_pair, inputs, targets, error, message):
    with pytest.raises(error, match=message):
        GradientShap(*bert_pair)(inputs, targets)


def test_bad_generation_targets(llama_pair):
    explainer = GradientShap(*llama_pair)
    with pytest.raises(InvalidArgumentError, match=r"Text 0.*target.*empty"):
        explainer("The ending", " ")
    with pytest.raises(InvalidArgumentError, match="There is 1 input but 2 targets"):
        explainer("The ending", ["is", "was"])


def test_unsupported_models(default_pair):
    tokenizer = default_pair[1]
    tiny = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(
        fastshap.UnsupportedModelError,
        match=r"BertForNextSentencePrediction tells whether.*other tasks: classification",
    ):
        GradientShap(BertForNextSentencePrediction(tiny), tokenizer)


def test_tokenizer_of_another_model(default_pair, bert_pair, byte_tokenizer, llama_pair):
    with pytest.raises(InvalidArgumentError, match="knows 400 tokens and the model 11000"):
        GradientShap(bert_pair[0], byte_tokenizer)
    with pytest.raises(InvalidArgumentError, match="does not belong to this model"):
        GradientShap(llama_pair[0], default_pair[1])("witty gorgeous film", "dull")


def test_baseline_of_another_length(bert_pair):
    with pytest.raises(InvalidArgumentError, match=r"Text 1.*\(4, 36\).*\(6, 36\)"):
        GradientShap(*bert_pair, baseline=torch.zeros(4, 36))(["not good", "not good at all"])


def test_one_bad_target_or_token_is_recorded(bert_pair, default_pair):
    explainer = GradientShap(*bert_pair, on_error="record")
    outputs = explainer(["fine", "good", "bad \ud800"], [0, 7, 1])
    assert [output.error is None for output in outputs] == [True, False, False]
    assert "out of range" in outputs[1].error
    tokenizer = copy.deepcopy(default_pair[1])
    tokenizer.add_tokens(["brandnewtoken"])
    outputs = GradientShap(bert_pair[0], tokenizer, on_error="record")(["fine", "a brandnewtoken here"], 1)
    assert outputs[0].error is None
    assert "resize_token_embeddings" in outputs[1].error


def test_outputs_state_what_was_used(bert_pair):
    baseline = torch.zeros(36)
    explainer = GradientShap(*bert_pair, baseline=baseline)
    (before,) = explainer("fine", 1)
    baseline += torch.linspace(0, 1, 36)
    (after,) = explainer("fine", 1)
    assert torch.equal(before.attributions, after.attributions)
    assert (after.baseline == 0).all()


def test_iter_explain_takes_what_explain_takes(bert_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=2)
    texts = ["not good", "fine"]
    for targets in (
        1,
        "LABEL_1",
        np.int64(1),
        torch.tensor(1),
        np.array([[0, 1], [1, 0]]),
        torch.tensor([[0, 1], [1, 0]]),
    ):
        for one, other in zip(explainer(texts, targets), explainer.iter_explain(texts, targets), strict=True):
            torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=1e-4)  # in other calls
    for bad in (None, 5):
        with pytest.raises(InvalidTypeError, match="iterable of these"):
            explainer.iter_explain(bad)


def test_recorded_errors(bert_pair):
    explainer = GradientShap(*bert_pair, on_error="record")
    outputs = explainer(["not good", "", 5, "fine"], [0, 1, 2, 1])
    assert [output.error is None for output in outputs] == [True, False, False, True]
    assert "empty" in outputs[1].error
    assert "int" in outputs[2].error
    assert outputs[1].attributions.shape == (0, 0)
    torch.testing.assert_close(outputs[3].attributions, explainer("fine", 1)[0].attributions, atol=1e-5, rtol=1e-4)
    assert outputs[1].to_dict()["error"] == outputs[1].error


def test_non_finite_scores_are_never_returned(bert_pair):
    poisoned = {"inference_mode": lambda logits: logits / 0 * 0}
    with pytest.raises(fastshap.NonFiniteError, match="Text 0"):
        GradientShap(*bert_pair, **poisoned)("fine")
    (output,) = GradientShap(*bert_pair, **poisoned, on_error="record")("fine")
    assert "NonFiniteError" in output.error


def test_long_texts_are_flagged_and_warned_about_once(bert_pair):
    explainer = GradientShap(*bert_pair, batch_size=64, n_perturbations=2)
    long = "witty film " * 200
    with pytest.warns(fastshap.TruncationWarning, match="128 tokens lost their end") as caught:
        outputs = explainer(["fine", long])
    assert caught[0].filename == __file__
    assert [output.truncated for output in outputs] == [False, True]
    assert len(outputs[1].elements) == 126
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer([long])


def test_long_prompts_are_cut_and_targets_kept(llama_pair):
    model, tokenizer = llama_pair
    explainer = GradientShap(model, tokenizer, batch_size=64, n_perturbations=2, granularity="token")
    with pytest.warns(fastshap.TruncationWarning):
        (output,) = explainer("witty film " * 200, "is dull")
    assert output.truncated
    assert output.model_inputs_to_explain["input_ids"].shape == (1, 256)
    assert output.targets.tolist() == tokenizer(" is dull")["input_ids"]
    (output,) = explainer("filler " * 300 + "so who wrote it?", "Anna")
    assert "".join(output.elements).endswith("so who wrote it? Anna")
    assert tokenizer.truncation_side == "right"
    with pytest.raises(InvalidArgumentError, match=r"target is .* tokens long"):
        explainer("witty", "film " * 300)


class WrappedForSequenceClassification(GPT2ForSequenceClassification):
    """Its own source says nothing of padding."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_padding_that_changes_the_model_is_found_by_trying(byte_tokenizer):
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_positions=128, n_embd=24, n_layer=2, n_head=2, num_labels=3)
    config.initializer_range = 0.3
    model = WrappedForSequenceClassification(config).eval()
    texts = ["not good at all", "fine", "The battery died after two days", "ok"]
    explainer = GradientShap(model, byte_tokenizer, batch_size=64)
    for text, output in zip(texts, explainer(texts, 1), strict=True):
        torch.testing.assert_close(explainer(text, 1)[0].attributions, output.attributions, atol=1e-4, rtol=1e-4)
    assert explainer._layout.padding_side == "left"  # so that texts of several lengths still share calls


def test_models_that_cannot_be_explained_say_so(default_pair, byte_tokenizer):
    tokenizer = default_pair[1]
    tiny = {"vocab_size": len(tokenizer), "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = BertLMHeadModel(BertConfig(**tiny, intermediate_size=12, initializer_range=0.5))
    with pytest.raises(fastshap.UnsupportedModelError, match="not causal"):
        GradientShap(encoder, tokenizer)("not good", "at all")
    config = T5Config(vocab_size=len(tokenizer), d_model=12, d_kv=6, d_ff=12, num_layers=1, num_heads=2, num_labels=2)
    with pytest.raises(fastshap.InvalidArgumentError, match=r"end-of-text token .* this text has none"):
        GradientShap(T5ForSequenceClassification(config), tokenizer)("not good", 1)
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_positions=64, n_embd=24, n_layer=1, n_head=2)
    config.pad_token_id = byte_tokenizer.pad_token_id
    config.initializer_range = 0.3
    pooled = GPT2ForSequenceClassification(config)
    with pytest.raises(fastshap.UnsupportedModelError, match=r"padding token.*something else from its ids"):
        GradientShap(pooled, byte_tokenizer)("not good<|end|>", 1)


@pytest.mark.parametrize("padding_token", [True, False])
def test_decoder_classifiers_are_exact_in_mixed_batches(byte_tokenizer, padding_token):
    """They pool the last position when given embeddings, so padding on the right would be classified instead."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=len(byte_tokenizer), n_positions=128, n_embd=24, n_layer=2, n_head=2, initializer_range=0.3
    )
    config.pad_token_id = byte_tokenizer.pad_token_id if padding_token else None
    model = GPT2ForSequenceClassification(config).eval()
    texts = ["not good at all", "fine", "The battery died after two days", "ok"]
    explainer = GradientShap(model, byte_tokenizer, batch_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = explainer(texts)
        for text, output in zip(texts, together, strict=True):
            predicted = model(**byte_tokenizer(text, return_tensors="pt")).logits.argmax().item()
            assert output.targets.tolist() == [predicted]
            torch.testing.assert_close(explainer(text)[0].attributions, output.attributions, atol=1e-4, rtol=1e-4)
    assert (model.config.pad_token_id is None) == (not padding_token)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_padding_is_found_for_logits_of_any_size(byte_tokenizer, scale):
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_positions=128, n_embd=24, n_layer=2, n_head=2, num_labels=3)
    model = GPT2ForSequenceClassification(config).eval()
    model.config.pad_token_id = byte_tokenizer.pad_token_id
    with torch.no_grad():
        model.score.weight.mul_(scale)
    explainer = GradientShap(model, byte_tokenizer, batch_size=64)
    texts = ["not good at all", "fine", "The battery died after two days"]
    for text, output in zip(texts, explainer(texts, 1), strict=True):
        alone = explainer(text, 1)[0].attributions
        assert (alone - output.attributions).abs().max() < 1e-4 * alone.abs().max()


def test_a_later_text_with_the_padding_token(byte_tokenizer):
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_positions=64, n_embd=24, n_layer=1, n_head=2)
    config.pad_token_id = byte_tokenizer.pad_token_id
    config.initializer_range = 0.3
    explainer = GradientShap(GPT2ForSequenceClassification(config), byte_tokenizer, on_error="record")
    outputs = explainer(["fine", "not good<|end|>", "good"], 1)
    assert [output.error is None for output in outputs] == [True, False, True]


def test_models_without_a_table_or_with_a_memory(default_pair):
    config = CanineConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(fastshap.UnsupportedModelError, match="no table of input embeddings"):
        GradientShap(CanineForSequenceClassification(config), CanineTokenizer())
    tokenizer = default_pair[1]
    tiny = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BigBirdConfig(**tiny, intermediate_size=8, block_size=4)
    with pytest.raises(fastshap.UnsupportedModelError, match="original_full"):
        GradientShap(BigBirdForSequenceClassification(config), tokenizer)("fine", 1)


class BareForSequenceClassification(PreTrainedModel):
    """A classifier of the user's, whose configuration knows no padding token."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.table, self.head = torch.nn.Embedding(config.vocab_size, 6), torch.nn.Linear(6, 2)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        x = x if attention_mask is None else x * attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.head(x.tanh().sum(1)))


def test_a_model_whose_configuration_names_no_padding(default_pair):
    tokenizer = default_pair[1]
    model = BareForSequenceClassification(PretrainedConfig(num_labels=2, vocab_size=len(tokenizer))).eval()
    assert not hasattr(model.config, "pad_token_id")
    texts = ["a fine film", "not good at all, though"]
    outputs = fastshap.GradientShap(model, tokenizer)(texts)
    for text, output in zip(texts, outputs, strict=True):
        assert output.elements[0] == text.split()[0]
        assert output.attributions.abs().max() > 0
    assert not hasattr(model.config, "pad_token_id")
