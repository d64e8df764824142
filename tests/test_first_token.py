"""Classifiers that read the first token alone: what is left out of their last layer changes no number."""

import threading

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

import fastshap
from fastshap.tasks.first_token import Cut

TEXTS = ["not good", "The film is superb at all, and the acting", "Dr. Smith loved it"]
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "num_labels": 3,
}
OUTPUT = "attention.output"
FAMILIES = {
    "Bert": (SIZES, OUTPUT),
    "Roberta": ({**SIZES, "max_position_embeddings": 130}, OUTPUT),
    "Electra": ({**SIZES, "embedding_size": 24}, OUTPUT),
    "DebertaV2": ({**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, OUTPUT),
    "Layoutlm": (SIZES, OUTPUT),
    "DistilBert": (
        {"n_layers": 2, "dim": 24, "hidden_dim": 32, "n_heads": 2, "initializer_range": 0.3, "num_labels": 3},
        "sa_layer_norm",
    ),
    "ModernBert": ({**SIZES, "classifier_pooling": "cls", "global_attn_every_n_layers": 2}, "mlp_norm"),
    "ModernBert mean": ({**SIZES, "classifier_pooling": "mean"}, None),
    "Albert": ({**SIZES, "embedding_size": 24}, None),  # one layer's weights in all layers
    "MPNet": (SIZES, None),
    "GPT2": ({"n_layer": 2, "n_head": 2, "n_embd": 24, "num_labels": 3}, None),  # reads the last token
}


def family(name, tokenizer):
    kind = name.split()[0].replace("Layoutlm", "LayoutLM")
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**options, **FAMILIES[name][0])
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


def explained(explainer, targets="all"):
    return explainer(TEXTS, targets)


def assert_equal(ours, right):
    for one, other in zip(ours, right, strict=True):
        assert one.elements == other.elements
        bound = 1e-5 * max(other.attributions.abs().max().item(), 1e-3)
        for name in ("attributions", "standard_error", "convergence_delta"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=bound, rtol=0)


def both_ways(model, tokenizer, **options):
    """The cut taken, and the outputs with it and without any."""
    explainer = fastshap.GradientShap(
        model, tokenizer, batch_size=8, n_perturbations=6, return_convergence_delta=True, **options
    )
    ours = explained(explainer)
    cut = explainer.task._cut
    explainer.task._cut = None
    right = explained(explainer)
    assert max(output.attributions.abs().max() for output in right) > 1e-3
    return cut, ours, right


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_models(bert_pair, byte_tokenizer, name):
    tokenizer = byte_tokenizer if name == "GPT2" else bert_pair[1]
    cut, ours, right = both_ways(family(name, tokenizer), tokenizer)
    assert (cut and cut.part) == FAMILIES[name][1]
    assert_equal(ours, right)


@pytest.mark.parametrize("options", [{"inference_mode": "softmax"}, {"reduction": "sum", "granularity": "all_tokens"}])
def test_modes(bert_pair, options):
    cut, ours, right = both_ways(family("Bert", bert_pair[1]), bert_pair[1], **options)
    assert cut is not None
    assert_equal(ours, right)


class Rows:
    """Sees how many columns the feed-forward part of each layer gets; not a hook, and not the forward of a layer."""

    def __init__(self, model, monkeypatch):
        self.columns = []
        for layer in model.bert.encoder.layer:
            dense = layer.intermediate.dense
            monkeypatch.setattr(dense, "forward", self.of(dense.forward))

    def of(self, forward):
        def seen(x):
            self.columns.append(x.shape[1])
            return forward(x)

        return seen


def test_last_layer_goes_on_with_one_row(bert_pair, monkeypatch):
    model = family("Bert", bert_pair[1])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    explainer(TEXTS[0], 1)
    seen = Rows(model, monkeypatch)
    (output,) = explainer(TEXTS[0], 1)
    assert seen.columns == [output.model_inputs_to_explain["input_ids"].shape[1], 1]


class PooledForSequenceClassification(BertForSequenceClassification):
    """Reads all tokens."""

    def forward(self, inputs_embeds=None, attention_mask=None, **inputs):
        hidden = self.bert(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **inputs).last_hidden_state
        mask = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(self.pooled(hidden, mask)))


class MeanForSequenceClassification(PooledForSequenceClassification):
    def pooled(self, hidden, mask):
        return (hidden * mask[:, : hidden.shape[1], None]).sum(1) / mask.sum(1, keepdim=True)


class LargestForSequenceClassification(PooledForSequenceClassification):
    def pooled(self, hidden, mask):
        return hidden.amax(1)


class FirstTwoForSequenceClassification(PooledForSequenceClassification):
    def pooled(self, hidden, mask):
        return hidden[:, :2].sum(1)


class LastForSequenceClassification(PooledForSequenceClassification):
    def pooled(self, hidden, mask):
        return hidden[:, -1]


class FirstForSequenceClassification(PooledForSequenceClassification):
    def pooled(self, hidden, mask):
        return hidden[:, 0].tanh()


@pytest.mark.parametrize(
    ("kind", "cuts"),
    [
        (MeanForSequenceClassification, False),
        (LargestForSequenceClassification, False),
        (FirstTwoForSequenceClassification, False),
        (LastForSequenceClassification, False),
        (FirstForSequenceClassification, True),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_models_of_their_own(bert_pair, kind, cuts):
    torch.manual_seed(5)
    model = kind(BertConfig(vocab_size=len(bert_pair[1]), pad_token_id=0, **SIZES)).eval()
    # What the model is tried on is the shortest text there is.
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    explainer([[7]], "all")
    assert (explainer.task._cut is not None) is cuts
    cut, ours, right = both_ways(model, bert_pair[1])
    assert (cut is not None) is cuts
    assert_equal(ours, right)


def test_logits_that_hang_on_nothing_decide_nothing(bert_pair):
    """A head of zeros gives the same logits whatever is cut."""
    torch.manual_seed(5)
    model = MeanForSequenceClassification(BertConfig(vocab_size=len(bert_pair[1]), pad_token_id=0, **SIZES)).eval()
    torch.nn.init.zeros_(model.classifier.weight)
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    explainer(TEXTS, 0)
    assert explainer.task._cut is None


def test_hooks_see_all_rows(bert_pair):
    model = family("Bert", bert_pair[1])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    right = explainer(TEXTS[0], 1)[0]
    assert explainer.task._cut == Cut("bert.encoder.layer.1", OUTPUT)
    length = right.model_inputs_to_explain["input_ids"].shape[1]
    for module in (model.bert, model.bert.encoder, model.bert.encoder.layer[-1], model.bert.pooler, model):
        seen = []
        handle = module.register_forward_hook(
            lambda module, arguments, result, seen=seen: seen.append(
                result.last_hidden_state if hasattr(result, "last_hidden_state") else result
            )
        )
        ours = explainer(TEXTS[0], 1)[0]
        handle.remove()
        assert seen
        if module not in (model, model.bert.pooler):
            (hidden,) = (one for one in seen if isinstance(one, torch.Tensor) and one.ndim == 3)
            assert hidden.shape[1] == length
        torch.testing.assert_close(ours.attributions, right.attributions, atol=1e-6, rtol=1e-5)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_other_threads_get_the_whole_model(bert_pair):
    """While an explanation runs, someone else asks the model for all of its last layer."""
    model = family("Bert", bert_pair[1])
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        right = model.bert(ids).last_hidden_state
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    explainer(TEXTS[0], 1)
    inside, asked, found = threading.Event(), threading.Event(), []

    def ask():
        assert inside.wait(60)
        with torch.no_grad():
            found.append(model.bert(ids).last_hidden_state)
        asked.set()

    other = threading.Thread(target=ask)
    other.start()
    first = model.bert.encoder.layer[-1].intermediate
    usual = first.forward

    def waiting(x):
        if not asked.is_set() and threading.current_thread() is not other:
            assert x.shape[1] == 1
            inside.set()
            assert asked.wait(60)
        return usual(x)

    first.forward = waiting
    try:
        explainer(TEXTS[0], 1)
    finally:
        del first.forward
        other.join()
    torch.testing.assert_close(found[0], right)


def test_compiled_models_are_left_whole(bert_pair):
    model = family("Bert", bert_pair[1])
    compiled = torch.compile(model, backend="eager")
    explainer = fastshap.GradientShap(compiled, bert_pair[1], n_perturbations=4)
    output = explainer(TEXTS[0], 1)[0]
    assert explainer.task._cut is None
    right = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)(TEXTS[0], 1)[0]
    torch.testing.assert_close(output.attributions, right.attributions, atol=1e-6, rtol=1e-5)
