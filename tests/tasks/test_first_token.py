"""Classifiers that read the first token alone: what is left out of their last layer changes no number."""

import copy
import pickle
import threading

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertIntermediate

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


@pytest.fixture
def columns(monkeypatch):
    """How many columns the feed-forward part of each layer gets in calls with gradients."""
    seen = []
    forward = BertIntermediate.forward

    def watched(self, x):
        seen.append(x.shape[1])
        return forward(self, x)

    monkeypatch.setattr(BertIntermediate, "forward", watched)
    return seen


def length(output):
    return output.model_inputs_to_explain["input_ids"].shape[1]


def test_last_layer_goes_on_with_one_row(bert_pair, columns):
    explainer = fastshap.GradientShap(family("Bert", bert_pair[1]), bert_pair[1], n_perturbations=4)
    (output,) = explainer(TEXTS[0], 1)
    assert columns[-2:] == [length(output), 1]


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


OWN = [
    MeanForSequenceClassification,
    LargestForSequenceClassification,
    FirstTwoForSequenceClassification,
    LastForSequenceClassification,
    FirstForSequenceClassification,
]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", OWN)
def test_models_of_their_own(bert_pair, monkeypatch, kind, known):
    """They are left whole; and were they transformers' own, the trial would tell."""
    cuts = known and kind is FirstForSequenceClassification
    if known:
        monkeypatch.setattr("fastshap.tasks.first_token._KNOWN", ("transformers.", "torch.nn.", __name__))
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
    model = family("Bert", bert_pair[1])
    torch.nn.init.zeros_(model.classifier.weight)
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    explainer(TEXTS, 0)
    assert explainer.task._cut is None


class Mean(torch.nn.Module):
    def forward(self, hidden):
        return hidden.mean(1)


def another_pooler(model):
    model.bert.pooler = Mean()


def fewer_layers(model):
    del model.bert.encoder.layer[-1]


def more_layers(model):
    model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[0]))


@pytest.mark.parametrize("change", [another_pooler, fewer_layers, more_layers])
def test_models_that_change_between_calls(bert_pair, change):
    model = family("Bert", bert_pair[1])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4, return_convergence_delta=True)
    explained(explainer)
    assert explainer.task._cut is not None
    change(model)
    ours = explained(explainer)
    explainer.task._cut = None
    assert_equal(ours, explained(explainer))


def test_a_configuration_that_changes_between_calls(bert_pair):
    model = family("ModernBert", bert_pair[1])
    options = {"n_perturbations": 4, "return_convergence_delta": True}
    explainer = fastshap.GradientShap(model, bert_pair[1], **options)
    explained(explainer)
    assert explainer.task._cut is not None
    model.config.classifier_pooling = "mean"
    ours = explained(explainer)
    assert explainer.task._cut is None
    assert_equal(ours, explained(fastshap.GradientShap(model, bert_pair[1], **options)))


HOOKS = {
    "forward": lambda module, hook: module.register_forward_hook(lambda m, a, out: hook(out)),
    "pre": lambda module, hook: module.register_forward_pre_hook(lambda m, a: hook(*a)),
    "backward": lambda module, hook: module.register_full_backward_hook(lambda m, gi, go: hook(*go)),
    "global": lambda module, hook: torch.nn.modules.module.register_module_forward_hook(
        lambda m, a, out: hook(out) if m is module else None
    ),
}


@pytest.mark.parametrize("when", ["from the first call on", "later"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_see_all_rows(bert_pair, kind, when):
    """And when they are gone, the last layer is cut again."""
    model = family("Bert", bert_pair[1])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
    if when == "later":
        explainer(TEXTS[0], 1)
    seen = []
    handle = HOOKS[kind](model.bert.encoder.layer[-1].output, lambda *tensors: seen.append(tensors[0].shape[1]))
    try:
        watched = explainer(TEXTS[0], 1)[0]
    finally:
        handle.remove()
    assert seen
    assert seen[-1] == length(watched)
    assert explainer.task._cut is None
    free = explainer(TEXTS[0], 1)[0]
    assert explainer.task._cut == Cut("bert.encoder.layer.1", OUTPUT)
    torch.testing.assert_close(free.attributions, watched.attributions, atol=1e-6, rtol=1e-5)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_another_pooler_behind_a_hook_is_not_cut_when_the_hook_is_gone(bert_pair):
    model = family("ModernBert mean", bert_pair[1])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4, return_convergence_delta=True)
    handle = model.model.register_forward_hook(lambda *arguments: None)
    expected = explained(explainer)
    handle.remove()
    assert_equal(explained(explainer), expected)
    assert explainer.task._cut is None


@pytest.fixture
def in_mid_call(bert_pair, monkeypatch):
    """Explains, and does something in another thread while the first call with a cut runs."""

    def run(model, something):
        explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)
        explainer(TEXTS[0], 1)
        forward, results = BertIntermediate.forward, []

        def waiting(self, x):
            if not results and threading.current_thread() is threading.main_thread() and x.shape[1] == 1:
                results.append(None)
                other = threading.Thread(target=lambda: results.append(something()))
                other.start()
                other.join(60)
            return forward(self, x)

        monkeypatch.setattr(BertIntermediate, "forward", waiting)
        explainer(TEXTS[0], 1)
        monkeypatch.setattr(BertIntermediate, "forward", forward)
        (_, result) = results
        return result

    return run


def test_other_threads_get_the_whole_model(bert_pair, in_mid_call):
    """While an explanation runs, someone else asks the model for all of its last layer, copies it, and writes it down."""
    model = family("Bert", bert_pair[1])
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        right = model.bert(ids).last_hidden_state

    def something():
        with torch.no_grad():
            return model.bert(ids).last_hidden_state, copy.deepcopy(model), pickle.loads(pickle.dumps(model))

    hidden, *copies = in_mid_call(model, something)
    torch.testing.assert_close(hidden, right)
    for one in copies:
        with torch.no_grad():
            torch.testing.assert_close(one.bert(ids).last_hidden_state, right)


def test_compiled_models_are_left_whole(bert_pair):
    model = family("Bert", bert_pair[1])
    compiled = torch.compile(model, backend="eager")
    explainer = fastshap.GradientShap(compiled, bert_pair[1], n_perturbations=4)
    output = explainer(TEXTS[0], 1)[0]
    assert explainer.task._cut is None
    right = fastshap.GradientShap(model, bert_pair[1], n_perturbations=4)(TEXTS[0], 1)[0]
    torch.testing.assert_close(output.attributions, right.attributions, atol=1e-6, rtol=1e-5)
