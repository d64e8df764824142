"""Explanations run on a view of the model: whoever uses, copies or trains the model meanwhile sees it as it is."""

import copy
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.models.bert.modeling_bert import BertPooler

import fastshap
from fastshap.models.view import Desk

TEXTS = ["not good at all", "a gorgeous film", "dull"]


def meanwhile(explain, act):
    """What ``act`` gives while ``explain`` is in the middle of a model call, by a thread of its own."""
    found, done, forward = [], threading.Event(), torch.nn.Linear.forward

    def act_once():
        found.append(act())
        done.set()

    def watched(self, *arguments):
        if not found and threading.current_thread() is caller and torch.is_grad_enabled():
            thread = threading.Thread(target=act_once)
            thread.start()
            thread.join(60)
        return forward(self, *arguments)

    caller = threading.current_thread()
    torch.nn.Linear.forward = watched
    try:
        outputs = explain()
    finally:
        torch.nn.Linear.forward = forward
    assert done.is_set(), "nothing happened meanwhile"
    return found[0], outputs


def equal(some, others):
    return all(torch.equal(a.attributions, b.attributions) for a, b in zip(some, others, strict=True))


@pytest.fixture
def trained(bert_pair):
    """A model in training mode without dropout, so that its logits stay comparable."""
    model = copy.deepcopy(bert_pair[0]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model, bert_pair[1]


def test_a_training_thread_keeps_its_gradients(trained):
    model, tokenizer = trained
    explainer = fastshap.GradientShap(model, tokenizer)
    batch = tokenizer("not good at all", return_tensors="pt")

    def gradients():
        assert model.training
        model.zero_grad()
        model(**batch, labels=torch.tensor([1])).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected, outputs = gradients(), explainer(TEXTS)
    found, again = meanwhile(lambda: explainer(TEXTS), gradients)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert equal(again, outputs)


def test_a_copy_made_meanwhile_is_whole(llama_pair):
    model, tokenizer = llama_pair
    explainer = fastshap.GradientShap(model, tokenizer)
    copied, _ = meanwhile(lambda: explainer(TEXTS[0], "fine"), lambda: copy.deepcopy(model))
    assert "forward" not in vars(copied.lm_head)
    assert all(parameter.requires_grad for parameter in copied.parameters())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(copied(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_configuration_stays_meanwhile(llama_pair):
    """A decoder that classifies without a padding token is lent one; the user's configuration never holds it."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**llama_pair[0].config.to_diff_dict() | {"num_labels": 2, "architectures": None})
    config.pad_token_id = None
    model = LlamaForSequenceClassification(config).eval()
    explainer = fastshap.GradientShap(model, llama_pair[1])
    found, _ = meanwhile(lambda: explainer(TEXTS), lambda: model.config.pad_token_id)
    assert found is None


def test_nothing_is_held_between_calls(bert_pair):
    """A model that leaves a device leaves it whole: the view keeps no memory of its weights."""
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1])
    before = explainer(TEXTS)
    held = {parameter.data_ptr() for parameter in explainer._desk._view()._model.parameters()}
    assert not held & {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert equal(explainer(TEXTS), before)


def new_weight(model):
    model.classifier.weight = torch.nn.Parameter(2 * model.classifier.weight.detach())


def new_layer(model):
    model.classifier = torch.nn.Linear(36, 3)


def new_attribute(model):
    model.bert.embeddings.LayerNorm.eps = 0.5


def new_values(model):
    with torch.no_grad():
        model.classifier.weight *= 2


def new_buffer(model):
    model.bert.embeddings.position_ids = model.bert.embeddings.position_ids.flip(1)


class Opposite(BertPooler):
    def forward(self, hidden):
        return -super().forward(hidden)


def new_class(model):
    model.bert.pooler.__class__ = Opposite


@pytest.mark.parametrize("change", [new_weight, new_layer, new_attribute, new_values, new_buffer, new_class])
def test_changes_of_the_model_are_seen(bert_pair, change):
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1])
    before = explainer(TEXTS, 1)
    torch.manual_seed(5)
    change(model)
    after = explainer(TEXTS, 1)
    assert not equal(after, before)
    assert equal(after, fastshap.GradientShap(copy.deepcopy(model), bert_pair[1])(TEXTS, 1))


def test_the_order_of_modules_is_seen(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    model.classifier = torch.nn.Sequential(torch.nn.Linear(36, 36), torch.nn.Tanh(), model.classifier)
    explainer = fastshap.GradientShap(model, bert_pair[1])
    before, held = explainer(TEXTS, 1), model.classifier._modules
    held["0"], held["2"] = held.pop("0"), held.pop("2")
    after = explainer(TEXTS, 1)
    assert not equal(after, before)
    assert equal(after, fastshap.GradientShap(copy.deepcopy(model), bert_pair[1])(TEXTS, 1))


def test_a_view_stays_while_only_the_mode_and_values_change(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    desk = Desk(model)
    view = desk._view()
    model.train()
    new_values(model)
    assert desk._view() is view
    model.bert.pooler.register_forward_hook(lambda *_: None)
    assert desk._view() is None


@pytest.mark.filterwarnings("ignore::fastshap.TruncationWarning")
def test_a_smaller_table_of_positions_is_seen(bert_pair):
    tokenizer = bert_pair[1]
    sizes = {"hidden_size": 36, "intermediate_size": 36, "num_hidden_layers": 1, "num_attention_heads": 2}
    pad = tokenizer.pad_token_id
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=pad + 25, pad_token_id=pad, **sizes)
    model = RobertaForSequenceClassification(config).eval()
    explainer, text = fastshap.GradientShap(model, tokenizer), " ".join(TEXTS * 5)
    assert len(explainer(text, 1)[0].model_inputs_to_explain["input_ids"][0]) == 24
    model.roberta.embeddings.position_embeddings = torch.nn.Embedding(pad + 17, 36, padding_idx=pad)
    assert len(explainer(text, 1)[0].model_inputs_to_explain["input_ids"][0]) == 16


def test_explainers_of_a_model_share_its_view_and_may_explain_within_each_other(bert_pair):
    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    other, inner = fastshap.GradientShap(model, tokenizer), []

    def explaining(logits):
        if not inner:
            inner.append(None)
            inner[0] = other(TEXTS, 1)
        return 1 * logits

    explainer = fastshap.GradientShap(model, tokenizer, inference_mode=explaining)
    outputs = explainer(TEXTS, 1)
    assert explainer._desk._view() is other._desk._view()
    assert equal(inner[0], other(TEXTS, 1))
    for output, expected in zip(outputs, inner[0], strict=True):
        torch.testing.assert_close(output.attributions, expected.attributions)


def hooked(model):
    model.classifier.register_forward_hook(lambda *arguments: None)


def replaced(model):
    model.classifier.forward = types.MethodType(torch.nn.Linear.forward, model.classifier)


def listed(model):
    model.parts = [model.classifier]


class Gate(torch.nn.Module):
    """Depends on the mode, and so shows whether it is in the one that explanations are computed in."""

    def forward(self, x):
        return 3 * x if self.training else x


class Head(torch.nn.Module):
    """A head with a part that stands in no module's tree."""

    def __init__(self, inner, hide):
        super().__init__()
        self.inner = inner
        hide(self, Gate())

    def forward(self, x):
        return self.inner(self.reach()(x))


class Helper:
    def __init__(self, part):
        self.part = part


def as_attribute(head, part):
    object.__setattr__(head, "other", part)
    head.reach = types.MethodType(lambda self: self.other, head)


def in_a_closure(head, part):
    head.reach = lambda: part


def in_a_container(head, part):
    head.parts = {"a": [(part,)]}
    Head.reach = lambda self: self.parts["a"][0][0]


def in_an_object(head, part):
    head.helper = Helper(part)
    Head.reach = lambda self: self.helper.part


@pytest.mark.parametrize("hide", [as_attribute, in_a_closure, in_a_container, in_an_object])
def test_parts_outside_the_tree_are_in_the_right_mode(bert_pair, hide):
    """Where such a part might be, the model itself runs: the user's own loop has to reach it as well."""
    model = copy.deepcopy(bert_pair[0])
    model.classifier = Head(model.classifier, hide)
    with Desk(model).at_work() as running:
        assert running is model


def test_stock_models_are_viewed(bert_pair, llama_pair):
    for model in (bert_pair[0], llama_pair[0]):
        with Desk(model).at_work() as running:
            assert running is not model


def test_an_array_that_was_replaced(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1])
    model.sizes = np.array([1.0, 2.0])
    before = explainer(TEXTS, 1)
    model.sizes = np.array([2.0, 2.0])
    assert equal(explainer(TEXTS, 1), before)


@pytest.mark.parametrize("change", [hooked, replaced, listed])
def test_what_cannot_be_viewed_runs_itself_and_is_put_back(trained, change):
    model, tokenizer = trained
    outputs = fastshap.GradientShap(model, tokenizer)(TEXTS)
    change(model)
    with Desk(model).at_work() as running:
        assert running is model
        assert not model.training
    for one, other in zip(fastshap.GradientShap(model, tokenizer)(TEXTS), outputs, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, rtol=0, atol=1e-5)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_change_from_outside_is_noticed(trained):
    """Where the model itself runs, a thread that trains it meanwhile makes the numbers wrong: that is said."""
    model, tokenizer = trained
    hooked(model)
    explainer = fastshap.GradientShap(model, tokenizer)
    with pytest.warns(fastshap.SharedModelWarning, match="cannot be trusted"):
        meanwhile(lambda: explainer(TEXTS), model.train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(TEXTS)


@pytest.mark.parametrize("on_error", ["raise", "record"])
def test_a_model_that_cannot_be_copied(bert_pair, tmp_path, on_error):
    """A lock, an open file, a tensor with a history: none of them stands in the way of an explanation."""
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1], n_perturbations=200, batch_size="auto", on_error=on_error)
    texts = ["a gorgeous and witty film, but dull"] * 1 + [f"not good at all {i}" for i in range(9)]
    before = explainer(texts)
    with open(tmp_path / "log", "w") as file:
        model.lock, model.log = threading.Lock(), file
        model.cached = model.classifier.weight * 2
        with pytest.raises(Exception, match=r"pickle|deepcopy"):
            copy.deepcopy(model)
        after = explainer(texts)
        with pytest.raises(fastshap.UnsupportedModelError, match="Name one device"):
            fastshap.GradientShap(model, bert_pair[1], device=["cpu", "cpu"], on_error=on_error)(texts)
    assert not any(output.error for output in after)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, rtol=0, atol=1e-5)
