"""A model is tried before it is explained: at points of its own, by logits and gradients, whatever the first text is."""

import copy
import warnings

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertLMHeadModel,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    YosoConfig,
    YosoForSequenceClassification,
)
from transformers.models.bert.modeling_bert import BertPooler

import fastshap
from fastshap import ModelFailedError, one_call
from fastshap.tasks import trial
from fastshap.tasks.loading import load_pair

TEXTS = ["not good", "The film is superb at all, and the acting", "Dr. Smith loved it", "fine " * 60]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MIXING = {
    "ConvBert": (ConvBertForSequenceClassification, ConvBertConfig, {"embedding_size": 24}),
    "FNet": (FNetForSequenceClassification, FNetConfig, {}),
    "Yoso": (YosoForSequenceClassification, YosoConfig, {"max_position_embeddings": 512}),
}


def mixing_hook(model):
    model.bert.encoder.register_forward_pre_hook(lambda module, given: (given[0] + given[0].mean(1, keepdim=True),))


class MeanPooler(BertPooler):
    def forward(self, hidden_states):
        return super().forward(hidden_states.mean(1, keepdim=True))


def mixing_pooler(model):
    pooler = MeanPooler(model.config).eval()
    pooler.load_state_dict(model.bert.pooler.state_dict())
    model.bert.pooler = pooler


class GatedPooler(BertPooler):
    mixes = False

    def forward(self, hidden_states):
        return super().forward(hidden_states.mean(1, keepdim=True) if self.mixes else hidden_states)


def mixing_attribute(model):
    model.bert.pooler.mixes = True


@pytest.mark.parametrize("change", [mixing_hook, mixing_pooler, mixing_attribute])
def test_a_model_that_changed_is_tried_again(bert_pair, change):
    """By the explainer that knew it, and by a new one."""
    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    pooler = GatedPooler(model.config).eval()
    pooler.load_state_dict(model.bert.pooler.state_dict())
    model.bert.pooler = pooler
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=16, n_perturbations=2)
    explainer(TEXTS, 1)
    assert not explainer._layout.equal_lengths
    change(model)
    for one in (explainer, fastshap.GradientShap(model, tokenizer, batch_size=16, n_perturbations=2)):
        together = one(TEXTS, 1)
        assert one._layout.equal_lengths
        for text, output in zip(TEXTS, together, strict=True):
            alone = fastshap.GradientShap(copy.deepcopy(model), tokenizer, batch_size=1, n_perturbations=2)(text, 1)[0]
            off = (alone.attributions - output.attributions).abs().max()
            assert off <= 1e-5 * alone.attributions.abs().max()


class ScaledForSequenceClassification(BertForSequenceClassification):
    """One scale for all rows of a call, as dynamic quantisation of whole tensors has."""

    def shared(self, x):
        return x / x.detach().abs().amax()

    def forward(self, input_ids=None, inputs_embeds=None, **options):
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=self.shared(x), **options)


class MixedForSequenceClassification(ScaledForSequenceClassification):
    """Rows mix from three on."""

    def shared(self, x):
        return x + 0.1 * x.mean(0, keepdim=True) if len(x) > 2 else x


@pytest.mark.parametrize("kind", [ScaledForSequenceClassification, MixedForSequenceClassification])
def test_rows_that_share_a_scale_or_mix_in_larger_calls_are_refused(bert_pair, kind):
    model = kind(bert_pair[0].config).eval()
    model.load_state_dict(bert_pair[0].state_dict())
    with pytest.raises(fastshap.UnsupportedModelError, match="its rows mix"):
        fastshap.GradientShap(model, bert_pair[1])("not good at all", 1)


@pytest.mark.parametrize(
    ("name", "scale", "bias"),
    [("ConvBert", 0.02, 0.0), ("ConvBert", 0.1, 0.0), ("FNet", 0.02, 3.0), ("Yoso", 0.02, 3.0), ("Yoso", 0.1, 0.0)],
)
def test_models_that_mix_over_padding_never_get_any(default_pair, name, scale, bias):
    """Also with weights as they begin, beside a large bias, with a long text, and whichever text comes first."""
    kind, config, options = MIXING[name]
    tokenizer = default_pair[1]
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if name != "FNet" or k != "num_attention_heads"}
    model = kind(config(vocab_size=len(tokenizer), pad_token_id=0, initializer_range=scale, **sizes, **options)).eval()
    torch.nn.init.constant_(getattr(model.classifier, "out_proj", model.classifier).bias, bias)
    texts = [*TEXTS, "fine film " * 154]
    for order in (texts, texts[::-1]):
        explainer = fastshap.GradientShap(model, tokenizer, batch_size=16, n_perturbations=2)
        together = explainer(order, 1)
        assert explainer._layout.equal_lengths
        for text, ours in zip(order, together, strict=True):
            alone = explainer(text, 1)[0].attributions
            assert (ours.attributions - alone).abs().max() < 1e-4 * alone.abs().max()


SMALL_GPT2 = {"n_positions": 128, "n_embd": 24, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
SMALL_LLAMA = SIZES | {"head_dim": 12, "max_position_embeddings": 128, "initializer_range": 0.2}
HALVES = {
    "GPT2": (GPT2ForSequenceClassification, GPT2Config, {**SMALL_GPT2, "num_labels": 3}),
    "Llama": (LlamaForSequenceClassification, LlamaConfig, {**SMALL_LLAMA, "num_labels": 3}),
    "Llama that writes": (LlamaForCausalLM, LlamaConfig, SMALL_LLAMA),
    "Bert": (BertForSequenceClassification, BertConfig, {**SIZES, "num_labels": 3, "initializer_range": 0.3}),
}


def half(tokenizer, name, dtype, scale=1.0):
    """A small model in some precision, with one token, "!", of infinite size, and the others of a given one."""
    torch.manual_seed(2)
    kind, config, options = HALVES[name]
    model = kind(config(vocab_size=len(tokenizer) + 1, pad_token_id=len(tokenizer), **options)).eval().to(dtype)
    with torch.no_grad():
        table = model.get_input_embeddings().weight.mul_(scale)
        table[tokenizer("!")["input_ids"][0]] = torch.inf
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("count", [1, 4])
def test_first_texts_that_are_not_finite_spoil_no_later_one(byte_tokenizer, name, dtype, count):
    pair = half(byte_tokenizer, name, dtype), byte_tokenizer
    explainer = fastshap.GradientShap(*pair, batch_size=16, on_error="record")
    bad, good = ["bad!", "worse!", "no!", "dull!"], ["not good at all", "fine", "The battery died after two days"]
    bad = bad[:count]
    targets = [" yes" if "writes" in name else 1] * (count + 3)
    outputs = explainer(bad + good, targets)
    assert all(output.error.startswith("NonFiniteError") for output in outputs[:count])
    tolerance = {torch.float16: 0.01, torch.bfloat16: 0.06}.get(dtype, 1e-4)
    for text, output in zip(good, outputs[count:], strict=True):
        alone = fastshap.GradientShap(*pair)(text, targets[:1])[0].attributions.nan_to_num()
        assert alone.any()
        apart = (output.attributions.nan_to_num() - alone).abs().max()
        assert apart <= tolerance * alone.abs().max()
    assert not explainer._layout.equal_lengths
    assert explainer._layout.maskless


@pytest.mark.parametrize("name", ["Llama", "Llama that writes"])
def test_embeddings_of_a_size_that_half_precision_hardly_holds(byte_tokenizer, name):
    """Points far from such a text would be infinite, and what a model makes of these tells nothing of it."""
    explainer = fastshap.GradientShap(half(byte_tokenizer, name, torch.float16, scale=60_000), byte_tokenizer)
    (output,) = explainer("fine", [" yes"] if "writes" in name else [1])
    assert output.attributions.nan_to_num().any()
    assert not explainer._layout.equal_lengths


def test_nan_agrees_with_nothing():
    nan, one = torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 2.0]])
    near = fastshap.tasks.embeddings.near
    assert not near(one, nan)
    assert not near(nan, nan)
    assert near(torch.tensor([[1.0, torch.inf]]), torch.tensor([[1.0, torch.inf]]))


class FailsForSequenceClassification(BertForSequenceClassification):
    """Cannot take the token number 7."""

    def forward(self, input_ids=None, **inputs):
        if input_ids is not None and (input_ids == 7).any():
            raise RuntimeError("seven")
        return super().forward(input_ids=input_ids, **inputs)


def test_a_first_text_on_which_the_model_fails(default_pair):
    model = FailsForSequenceClassification(BertConfig(vocab_size=len(default_pair[1]), **SIZES)).eval()
    outputs = fastshap.GradientShap(model, default_pair[1], n_perturbations=2, on_error="record")([[7, 9], [9, 10]], 1)
    assert outputs[1].error is None


class PastForSequenceClassification(BertForSequenceClassification):
    """Right in its logits without a mask, wrong in their gradients."""

    def forward(self, attention_mask=None, **inputs):
        out = super().forward(attention_mask=attention_mask, **inputs)
        if attention_mask is None:
            out["logits"] = out["logits"].detach() + 2 * (out["logits"] - out["logits"].detach())
        return out


def test_gradients_are_compared_too(bert_pair):
    model = PastForSequenceClassification(bert_pair[0].config).eval()
    model.load_state_dict(bert_pair[0].state_dict())
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)
    ours = explainer(TEXTS[0], 1)[0].attributions
    assert not explainer._layout.maskless
    torch.testing.assert_close(ours, fastshap.GradientShap(*bert_pair, n_perturbations=2)(TEXTS[0], 1)[0].attributions)


def twice(values):
    """The same values, with twice the gradient."""
    return values.detach() + 2 * (values - values.detach())


class PastFirstPooler(BertPooler):
    """Right of the first token alone, wrong in its gradient."""

    __module__ = "transformers.made_up"

    def forward(self, hidden):
        out = super().forward(hidden)
        return twice(out) if hidden.shape[1] == 1 else out


def test_gradients_of_the_last_layer_without_other_tokens_are_compared(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    cut = fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)
    right = cut(TEXTS[0], 1)[0].attributions
    assert cut.task._cut is not None
    model.bert.pooler.__class__ = PastFirstPooler
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)
    torch.testing.assert_close(explainer(TEXTS[0], 1)[0].attributions, right)
    assert explainer.task._cut is None


class PastKeptForCausalLM(LlamaForCausalLM):
    """Right in the logits that it is asked to keep, wrong in their gradients."""

    def forward(self, logits_to_keep=0, **inputs):
        out = super().forward(logits_to_keep=logits_to_keep, **inputs)
        if logits_to_keep:
            out["logits"] = twice(out["logits"])
        return out


class PastTargetsForCausalLM(LlamaForCausalLM):
    """Right in the logits of targets alone, wrong in their gradients."""

    def forward(self, **inputs):
        out = super().forward(**inputs)
        if out["logits"].shape[-1] == 1:
            out["logits"] = twice(out["logits"])
        return out


@pytest.mark.parametrize(
    ("kind", "mode", "way", "found"),
    [
        (PastKeptForCausalLM, "softmax", "kept_logits", "full_logits"),
        (PastTargetsForCausalLM, "logits", "target_logits", "kept_logits"),
    ],
)
def test_gradients_of_the_targets_logits_are_compared(llama_pair, kind, mode, way, found):
    plain = fastshap.GradientShap(*llama_pair, n_perturbations=2, inference_mode=mode)
    right = plain("not good", "at all")[0].attributions
    assert plain.task._way.__name__ == way
    model = kind(llama_pair[0].config).eval()
    model.load_state_dict(llama_pair[0].state_dict())
    explainer = fastshap.GradientShap(model, llama_pair[1], n_perturbations=2, inference_mode=mode)
    ours = explainer("not good", "at all")[0].attributions
    torch.testing.assert_close(ours, right, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert explainer.task._way.__name__ == found


class MixedForSequenceClassification(BertForSequenceClassification):
    """Its rows mix."""

    def forward(self, **inputs):
        out = super().forward(**inputs)
        out["logits"] = out["logits"] + out["logits"].mean(0)
        return out


def test_the_trial_comes_before_the_model_writes_or_predicts(default_pair, monkeypatch):
    """A model that cannot be explained is refused before it does any work."""
    tokenizer = default_pair[1]
    model = BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **SIZES)).eval()
    done = []
    monkeypatch.setattr(model, "generate", lambda *a, **k: done.append("written"), raising=False)
    monkeypatch.setattr(fastshap.GradientShap, "_predict", lambda *a: done.append("predicted"))
    with pytest.raises(fastshap.UnsupportedModelError, match="not causal"):
        fastshap.GradientShap(model, tokenizer)("not good")
    mixed = MixedForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **SIZES)).eval()
    with pytest.raises(fastshap.UnsupportedModelError, match="beside a second one than alone"):
        fastshap.GradientShap(mixed, tokenizer)("not good")
    assert done == []


class AloneForSequenceClassification(BertForSequenceClassification):
    """Takes one row at a time."""

    def forward(self, input_ids=None, inputs_embeds=None, **inputs):
        if len(inputs_embeds if input_ids is None else input_ids) > 1:
            raise RuntimeError("one at a time")
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **inputs)


def test_a_model_that_fails_where_it_is_tried(bert_pair):
    model = AloneForSequenceClassification(bert_pair[0].config).eval()
    with pytest.raises(fastshap.UnsupportedModelError, match="fails where it is tried: RuntimeError: one at a time"):
        fastshap.GradientShap(model, bert_pair[1])(TEXTS[0], 1)


def test_models_whose_rows_mix_are_refused(bert_pair):
    model = MixedForSequenceClassification(bert_pair[0].config).eval()
    with pytest.raises(fastshap.UnsupportedModelError, match="beside a second one than alone"):
        fastshap.GradientShap(model, bert_pair[1])(TEXTS[0], 1)


def test_the_trial_is_made_once_a_model(bert_pair, monkeypatch):
    model = copy.deepcopy(bert_pair[0])
    runs, ran = [], trial.ran
    for module in ("layout", "classification"):
        monkeypatch.setattr(f"fastshap.tasks.{module}.ran", lambda *a: runs.append(1) or ran(*a))
    explained = [fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)(text, 1)[0] for text in TEXTS[:2]]
    first = len(runs)
    assert first > 0
    fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)(TEXTS[0], 1)
    assert len(runs) == first
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    fastshap.GradientShap(model, bert_pair[1], n_perturbations=2)(TEXTS[0], 1)
    assert len(runs) == 2 * first
    assert all(output.error is None for output in explained)


# Which models are accepted


def test_a_causal_model_of_any_name(default_pair):
    """BertGenerationDecoder has the name of none."""
    tokenizer = default_pair[1]
    config = BertGenerationConfig(vocab_size=len(tokenizer), is_decoder=True, pad_token_id=0, **SIZES)
    (output,) = fastshap.GradientShap(BertGenerationDecoder(config).eval(), tokenizer)("not good", "at all")
    assert output.model_task is fastshap.ModelTask.GENERATION


def test_a_model_of_text_and_images_that_writes(default_pair):
    """Of text alone it is a causal language model."""
    tokenizer = default_pair[1]
    text = SIZES | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 16}
    images = SIZES | {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4, image_token_id=1)
    torch.manual_seed(0)
    explainer = fastshap.GradientShap(Gemma3ForConditionalGeneration(config).eval(), tokenizer, n_perturbations=4)
    together = explainer(["not good", "The film is superb"], [" at all", " yes"])
    (alone,) = explainer("not good", " at all")
    assert alone.model_task is fastshap.ModelTask.GENERATION
    torch.testing.assert_close(together[0].attributions, alone.attributions, equal_nan=True, atol=1e-5, rtol=1e-4)


class HeadlessForCausalLM(LlamaForCausalLM):
    """Does not say which layer makes its logits."""

    def get_output_embeddings(self):
        raise AttributeError("no such layer")


def test_a_causal_model_that_does_not_name_its_output_layer(llama_pair):
    model = HeadlessForCausalLM(llama_pair[0].config).eval()
    model.load_state_dict(llama_pair[0].state_dict())
    ours = fastshap.GradientShap(model, llama_pair[1])("not good", "at all")[0].attributions
    right = fastshap.GradientShap(*llama_pair)("not good", "at all")[0].attributions
    torch.testing.assert_close(ours, right, equal_nan=True)


@pytest.mark.parametrize("kind", [BertForNextSentencePrediction, BertForPreTraining])
def test_models_of_other_tasks_are_told_what_there_is(default_pair, kind):
    model = kind(BertConfig(vocab_size=50, **SIZES))
    with pytest.raises(fastshap.UnsupportedModelError, match=r"BertFor.*\. fastshap has other tasks") as caught:
        fastshap.GradientShap(model, default_pair[1])
    assert "docs/adding-a-task.md" in str(caught.value)


def test_targets_past_the_logits(llama_pair):
    model = copy.deepcopy(llama_pair[0])
    known = model.lm_head.out_features
    model.lm_head = torch.nn.Linear(model.config.hidden_size, known - 8, bias=False)
    explainer = fastshap.GradientShap(model, llama_pair[1])
    with pytest.raises(fastshap.InvalidArgumentError, match=f"predicts ids below {known - 8}"):
        explainer([[5, 6]], [[known - 1]])
    assert explainer([[5, 6]], [[7]])[0].error is None


@pytest.fixture
def answering(default_pair, tmp_path):
    """A checkpoint that answers questions, with the packaged tokenizer."""
    config = BertConfig(vocab_size=len(default_pair[1]), **SIZES)
    BertForQuestionAnswering(config).save_pretrained(tmp_path)
    default_pair[1].save_pretrained(tmp_path)
    return tmp_path


def test_a_head_that_was_never_trained(answering, default_pair):
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    with pytest.warns(
        fastshap.UntrainedHeadWarning, match=r"BertForSequenceClassification .*classifier\.bias"
    ) as caught:
        fastshap.GradientShap(load(answering), default_pair[1])
    assert caught[0].filename == __file__
    trained = load(answering)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    fastshap.GradientShap(trained, default_pair[1])  # no warning
    load(answering).save_pretrained(answering / "whole")
    fastshap.GradientShap(load(answering / "whole"), default_pair[1])  # nor here


def test_a_head_that_was_never_trained_is_told_of_at_the_users_line(answering, default_pair):
    config = answering / "config.json"
    config.write_text(config.read_text().replace("ForQuestionAnswering", "ForSequenceClassification"))
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    calls = (
        lambda: fastshap.explain("fine", load(answering), tokenizer=default_pair[1], n_perturbations=1),
        lambda: fastshap.explain("fine", str(answering), n_perturbations=1),
        lambda: load_pair(str(answering)),
    )
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(2):
                call()
                one_call._explainer.cache_clear()
        found = [one.filename for one in caught if one.category is fastshap.UntrainedHeadWarning]
        assert found == [__file__] * 2


def test_a_head_of_another_size(answering, default_pair):
    """Asked for with num_labels, where the checkpoint holds one of other classes."""
    BertForSequenceClassification(BertConfig(vocab_size=len(default_pair[1]), num_labels=3, **SIZES)).save_pretrained(
        answering
    )
    model = BertForSequenceClassification.from_pretrained(answering, num_labels=5, ignore_mismatched_sizes=True)
    with pytest.warns(
        fastshap.UntrainedHeadWarning, match=r"classifier\.bias, classifier\.weight: these weights are random"
    ):
        fastshap.GradientShap(model, default_pair[1])
    fastshap.GradientShap(BertForSequenceClassification.from_pretrained(answering), default_pair[1])  # no warning


def test_a_checkpoint_whose_name_promises_more_than_it_holds(answering):
    config = answering / "config.json"
    config.write_text(config.read_text().replace("ForQuestionAnswering", "ForSequenceClassification"))
    with pytest.warns(fastshap.UntrainedHeadWarning, match="random") as caught:
        load_pair(str(answering))
    assert len(caught) == 1


def test_an_encoder_is_no_causal_model_in_half_precision(default_pair):
    model = BertLMHeadModel(BertConfig(vocab_size=len(default_pair[1]), **SIZES)).bfloat16()
    with pytest.raises(fastshap.UnsupportedModelError, match="not causal"):
        fastshap.GradientShap(model, default_pair[1])("not good", "at all")


@pytest.mark.parametrize("targets", [None, 1], ids=["predicted", "given"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_text_whose_prediction_fails(default_pair, targets, first):
    """The forward pass without gradients: it alone has the error, also where it comes first."""
    model, tokenizer = default_pair
    texts = ["A gorgeous, witty film.", "not good at all", "ok"]
    texts.insert(first, "zebra here")
    zebra = model.get_input_embeddings().weight[tokenizer("zebra", add_special_tokens=False)["input_ids"][0]].detach()
    right = {one.text: one for one in fastshap.GradientShap(*default_pair, n_perturbations=4)(texts, targets)}

    def fails(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        if given is not None and not torch.is_grad_enabled() and (given == zebra).all(-1).any():
            raise LookupError("no such word")

    handle = model.register_forward_pre_hook(fails, with_kwargs=True)
    try:
        outputs = fastshap.GradientShap(*default_pair, n_perturbations=4, on_error="record")(texts, targets)
        with pytest.raises(ModelFailedError, match=f"Text {first}: .*LookupError: no such word") as caught:
            fastshap.GradientShap(*default_pair, n_perturbations=4)(texts, targets)
    finally:
        handle.remove()
    assert isinstance(caught.value.__cause__, LookupError)
    for i, output in enumerate(outputs):
        if i == first:
            assert output.error.startswith("ModelFailedError: The model failed on this text: LookupError")
            continue
        assert (output.error, output.predicted_label) == (None, right[output.text].predicted_label)
        torch.testing.assert_close(output.attributions, right[output.text].attributions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 2])
def test_a_text_on_which_the_model_cannot_generate(llama_pair, first):
    model, tokenizer = llama_pair
    texts = ["The film is", "Simply"]
    texts.insert(first, "The battery died")
    options = {"generation_kwargs": {"max_new_tokens": 2}}
    right = {one.text: one for one in fastshap.GradientShap(*llama_pair, n_perturbations=2)(texts, **options)}

    def fails(module, args, kwargs):
        given = kwargs.get("input_ids")
        if given is not None and given.shape[1] > 1 and tokenizer.decode(given[0]).startswith("The battery"):
            raise LookupError("no such word")

    handle = model.register_forward_pre_hook(fails, with_kwargs=True)
    try:
        outputs = fastshap.GradientShap(*llama_pair, n_perturbations=2, on_error="record")(texts, **options)
        with pytest.raises(ModelFailedError, match=f"Text {first}: .*LookupError: no such word"):
            fastshap.GradientShap(*llama_pair, n_perturbations=2)(texts, **options)
    finally:
        handle.remove()
    assert [output.error is None for output in outputs] == [i != first for i in range(3)]
    for output in outputs:
        if output.error is None:
            torch.testing.assert_close(
                output.attributions, right[output.text].attributions, atol=1e-5, rtol=1e-4, equal_nan=True
            )
