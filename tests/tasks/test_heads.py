"""Targets' logits made in short ways: the numbers are those of the full logits, and large tensors are not made."""

import threading

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

import fastshap
from fastshap.tasks.heads import full_logits, kept_logits, target_logits

INPUTS = ["The film is", "not good at all, and the acting", "Dr. Smith loved"]
TARGETS = [" superb and dull", " wonderful money", " it. The ending"]  # words of one token and of several

SIZES = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
GPT = {"n_layer": 1, "n_head": 2, "n_embd": 24}
FAMILIES = {
    "Llama": {**SIZES, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "Llama tied": {**SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "GPT2LMHead": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},  # a head with a bias
    "GPTNeoX": SIZES,
    "OPT": {
        "num_hidden_layers": 1,
        "hidden_size": 24,
        "ffn_dim": 32,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 24,
    },
    "Phi": SIZES,  # a head with a bias
    "Gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 12, "final_logit_softcapping": 3.0},
    "Cohere": {**SIZES, "num_key_value_heads": 2, "logit_scale": 0.25},
    "Granite": {**SIZES, "num_key_value_heads": 2, "logits_scaling": 8.0},
    "Qwen2": {**SIZES, "num_key_value_heads": 1},
    "Mistral": {**SIZES, "num_key_value_heads": 1, "sliding_window": 4},
    "Falcon": {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "alibi": True},
    "Bloom": {**GPT, "hidden_size": 24},
    "Mpt": {"d_model": 24, "n_heads": 2, "n_layers": 1, "expansion_ratio": 2},
    "StableLm": {**SIZES, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "BertLMHead": {**SIZES, "is_decoder": True},  # the head holds a dense layer too
    "Roberta": {**SIZES, "is_decoder": True, "max_position_embeddings": 130},
    "OpenAIGPTLMHead": GPT,
}


def head_bias(model):
    """Random, since it begins as zero."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        nn.init.normal_(bias)


def family(name, tokenizer):
    kind = name.split()[0]
    auto = kind.removesuffix("LMHead")
    end = tokenizer.eos_token_id
    options = {"vocab_size": len(tokenizer), "pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    torch.manual_seed(3)
    config = getattr(transformers, f"{auto}Config")(**options, **FAMILIES[name])
    model = getattr(transformers, f"{kind}Model" if kind != auto else f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.25)
    head_bias(model)
    return model


def explained(explainer, targets=TARGETS):
    return explainer(INPUTS, targets)


def assert_equal(ours, right, tolerance=1e-5):
    for one, other in zip(ours, right, strict=True):
        assert one.elements == other.elements
        assert one.target_names == other.target_names
        for name in ("attributions", "standard_error", "unassigned", "convergence_delta"):
            a, b = getattr(one, name), getattr(other, name)
            if b is not None:
                bound = tolerance * max(other.attributions.abs().nan_to_num().max().item(), 1e-3)
                torch.testing.assert_close(a, b, atol=bound, rtol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def both_ways(model, tokenizer, **options):
    """The way chosen, and the outputs of it and of full logits."""
    explainer = fastshap.GradientShap(
        model, tokenizer, batch_size=8, n_perturbations=6, return_convergence_delta=True, **options
    )
    ours = explained(explainer)
    way = explainer.task._way
    explainer.task._way = full_logits
    right = explained(explainer)
    assert max(output.attributions.abs().nan_to_num().max() for output in right) > 1e-3
    return way, ours, right


@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_models(byte_tokenizer, name, mode):
    model = family(name, byte_tokenizer)
    way, ours, right = both_ways(model, byte_tokenizer, inference_mode=mode)
    assert_equal(ours, right)
    if mode == "logits":
        assert way is target_logits
    else:
        assert way is (kept_logits if fastshap.tasks.takes(model, "logits_to_keep") else full_logits)


class Wide(TorchDispatchMode):
    """Operators whose outputs hold as many elements as told, or more."""

    def __init__(self, elements):
        super().__init__()
        self.elements = elements
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= 4 * self.elements:
                self.found.append((function._schema.name, tuple(tensor.shape)))
        return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["logits", "softmax"])
def test_no_logits_beside_those_needed(byte_tokenizer, mode, bias, monkeypatch):
    """Less than R x L x V, and than R x T x V where the logits themselves are explained."""
    monkeypatch.setattr(
        "fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 0}
    )  # else gradients of several scores lie together
    vocabulary, rows = 3500, 8
    kind, config = ("Phi", SIZES) if bias else ("Llama", FAMILIES["Llama"])
    settings = {**config, "vocab_size": vocabulary, "hidden_size": 8, "intermediate_size": 8, "pad_token_id": 0}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    head_bias(model)
    explainer = fastshap.GradientShap(model, byte_tokenizer, batch_size=rows, n_perturbations=rows, inference_mode=mode)
    text, target = "not good at all, and the acting was not superb at all", " so superb"
    (output,) = explainer(text, [target])  # the trial takes full logits of one row
    targets, length = len(output.targets), output.model_inputs_to_explain["input_ids"].shape[1]
    assert targets + 2 < length
    bound = rows * targets * vocabulary if mode == "logits" else rows * (targets + 2) * vocabulary
    with Wide(bound) as watched:
        explainer(text, [target])
    assert watched.found == []
    explainer.task._way = full_logits
    with Wide(rows * length * vocabulary) as watched:
        explainer(text, [target])
    assert watched.found


def small_llama(tokenizer, kind=LlamaForCausalLM):
    torch.manual_seed(5)
    vocabulary = len(tokenizer) + getattr(kind, "unused", 0)
    options = {**FAMILIES["Llama"], "vocab_size": vocabulary, "initializer_range": 0.3}
    return kind(LlamaConfig(**options)).eval()


class OwnForCausalLM(LlamaForCausalLM):
    """The logits by a function of its own."""

    def forward(self, inputs_embeds=None, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        hidden = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return CausalLMOutput(logits=self.made(hidden))


class ScaledForCausalLM(OwnForCausalLM):
    """Scales logits by a vector with an entry for each token."""

    def made(self, hidden):
        return self.lm_head(hidden) * torch.linspace(0.5, 2, self.config.vocab_size)


class TwiceForCausalLM(OwnForCausalLM):
    """Uses the head twice, the second time on what was made by the first."""

    def made(self, hidden):
        logits = self.lm_head(hidden)
        return logits + self.lm_head(torch.tanh(logits[..., : hidden.shape[-1]]))


class AddedForCausalLM(OwnForCausalLM):
    """Uses the head twice, on hidden states of one shape."""

    def made(self, hidden):
        return self.lm_head(hidden) + 0.5 * self.lm_head(hidden.flip(-1))


class FunctionalForCausalLM(OwnForCausalLM):
    """Multiplies with the head's weight itself."""

    def made(self, hidden):
        return hidden @ self.lm_head.weight.T


class NormalisedForCausalLM(OwnForCausalLM):
    """Its logits are log-probabilities."""

    def made(self, hidden):
        return self.lm_head(hidden).log_softmax(-1)


class CentredForCausalLM(OwnForCausalLM):
    """Its logits have mean zero."""

    def made(self, hidden):
        logits = self.lm_head(hidden)
        return logits - logits.mean(-1, keepdim=True)


class LastDoubledForCausalLM(OwnForCausalLM):
    """Doubles the logits of the last position."""

    def made(self, hidden):
        logits = self.lm_head(hidden)
        return torch.cat([logits[:, :-1], 2 * logits[:, -1:]], 1)


class MaskedForCausalLM(OwnForCausalLM):
    """The padding token, number 0, is never predicted."""

    value = -float("inf")

    def made(self, hidden):
        logits = self.lm_head(hidden).clone()
        logits[..., 0] = self.value
        return logits


class FarMaskedForCausalLM(MaskedForCausalLM):
    value = torch.finfo(torch.float32).min


class PaddedTableForCausalLM(OwnForCausalLM):
    """The last rows of the table belong to no token; what is left is log-probabilities."""

    unused = 8

    def made(self, hidden):
        logits = self.lm_head(hidden)
        dead = torch.arange(logits.shape[-1]) >= self.config.vocab_size - self.unused
        return logits.masked_fill(dead, -float("inf")).log_softmax(-1)


class HeedlessForCausalLM(LlamaForCausalLM):
    """Takes logits_to_keep and gives all."""

    def forward(self, logits_to_keep=0, **inputs):
        return super().forward(**inputs)


class StubbornForCausalLM(LlamaForCausalLM):
    """Takes logits_to_keep and gives one column, whatever is asked for."""

    def forward(self, logits_to_keep=0, **inputs):
        return super().forward(logits_to_keep=min(logits_to_keep, 1), **inputs)


class ReversedForCausalLM(LlamaForCausalLM):
    """Takes logits_to_keep and gives the first columns."""

    def forward(self, logits_to_keep=0, **inputs):
        out = super().forward(**inputs)
        return CausalLMOutput(logits=out.logits[:, : logits_to_keep or None])


OWN = [
    (ScaledForCausalLM, "logits", full_logits),
    (TwiceForCausalLM, "logits", full_logits),
    (AddedForCausalLM, "logits", target_logits),
    (FunctionalForCausalLM, "logits", full_logits),
    (NormalisedForCausalLM, "logits", full_logits),
    (CentredForCausalLM, "logits", full_logits),
    (LastDoubledForCausalLM, "logits", full_logits),
    (MaskedForCausalLM, "logits", full_logits),
    (FarMaskedForCausalLM, "logits", full_logits),
    (PaddedTableForCausalLM, "logits", full_logits),
    (HeedlessForCausalLM, "logits", target_logits),
    (HeedlessForCausalLM, "softmax", kept_logits),
    (StubbornForCausalLM, "softmax", full_logits),
    (ReversedForCausalLM, "softmax", full_logits),
]


@pytest.mark.parametrize(("kind", "mode", "expected"), OWN, ids=lambda v: getattr(v, "__name__", v))
def test_models_of_their_own(byte_tokenizer, kind, mode, expected):
    way, ours, right = both_ways(small_llama(byte_tokenizer, kind), byte_tokenizer, inference_mode=mode)
    assert_equal(ours, right)
    assert way is expected


@pytest.mark.parametrize(("kind", "mode", "expected"), OWN, ids=lambda v: getattr(v, "__name__", v))
def test_models_tried_on_two_tokens(byte_tokenizer, kind, mode, expected):
    """The shortest first text there is decides no worse."""
    model = small_llama(byte_tokenizer, kind)
    explainer = fastshap.GradientShap(model, byte_tokenizer, batch_size=8, n_perturbations=6, inference_mode=mode)
    (output,) = explainer("a", ["b"])
    assert output.model_inputs_to_explain["input_ids"].shape == (1, 2)
    ours = explained(explainer)
    explainer.task._way = full_logits
    assert_equal(ours, explained(explainer))


class Doubled(nn.Linear):
    """A linear layer that is not one."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_heads_of_a_kind_of_their_own(byte_tokenizer):
    model = small_llama(byte_tokenizer)
    head = Doubled(model.config.hidden_size, len(byte_tokenizer), bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    way, ours, right = both_ways(model, byte_tokenizer)
    assert way is kept_logits
    assert_equal(ours, right)
    plain = fastshap.GradientShap(small_llama(byte_tokenizer), byte_tokenizer, batch_size=8, n_perturbations=6)
    for one, other in zip(ours, explained(plain), strict=True):
        torch.testing.assert_close(one.attributions, 2 * other.attributions, equal_nan=True)


def test_a_head_with_a_forward_of_its_own_keeps_it(byte_tokenizer):
    model = small_llama(byte_tokenizer)
    head, calls = model.lm_head, []

    def forward(hidden):
        calls.append(hidden.shape)
        return 3 * nn.Linear.forward(head, hidden)

    head.forward = forward
    way, ours, right = both_ways(model, byte_tokenizer)
    assert way is kept_logits
    assert_equal(ours, right)
    assert vars(head)["forward"] is forward
    assert calls


@pytest.mark.parametrize("kind", ["scalar", "vocabulary", "input"])
def test_hooked_heads(byte_tokenizer, kind):
    """A hook that treats all tokens alike changes a target's own logits as it changes all; any other makes them fall back."""
    model = small_llama(byte_tokenizer)
    scale = torch.linspace(0.5, 2, len(byte_tokenizer))
    if kind == "input":
        model.lm_head.register_forward_pre_hook(lambda module, args: (torch.sin(args[0]),))
    else:
        by = 2.0 if kind == "scalar" else scale
        model.lm_head.register_forward_hook(lambda module, args, out: out * by)
    way, ours, right = both_ways(model, byte_tokenizer)
    assert way is (kept_logits if kind == "vocabulary" else target_logits)
    assert_equal(ours, right)


LATER = {
    "scaled": lambda module, args, out: out * torch.linspace(0.5, 2, 400)[: module.out_features],
    "centred": lambda module, args, out: out - out.mean(-1, keepdim=True),
    "first": lambda module, args, out: out - out[..., :1],
    "doubled": lambda module, args, out: 2 * out,
}


@pytest.mark.parametrize("kind", [LlamaForCausalLM, StubbornForCausalLM, FunctionalForCausalLM])
@pytest.mark.parametrize("hook", LATER)
def test_hooks_that_come_after_the_first_explanation(byte_tokenizer, kind, hook):
    model = small_llama(byte_tokenizer, kind)
    explainer = fastshap.GradientShap(model, byte_tokenizer, batch_size=8, n_perturbations=6)
    explained(explainer)
    model.lm_head.register_forward_hook(LATER[hook])
    right = fastshap.GradientShap(model, byte_tokenizer, batch_size=8, n_perturbations=6)
    explained(right)
    right.task._way = full_logits
    assert_equal(explained(explainer), explained(right))


def test_weights_that_are_computed_before_each_call(byte_tokenizer):
    """A parametrised head is another class; one whose hook sets the weight is used as it is then."""
    plain = explained(fastshap.GradientShap(small_llama(byte_tokenizer), byte_tokenizer))
    for normed in (nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm):
        model = small_llama(byte_tokenizer)
        torch.manual_seed(0)
        normed(model.lm_head)
        _, ours, right = both_ways(model, byte_tokenizer)
        assert_equal(ours, right)
        assert len(plain) == len(ours)


def parts_of(head):
    return set(vars(head)), set(vars(type(head))), dict(head._forward_hooks), dict(head._forward_pre_hooks)


@pytest.mark.parametrize("fails", ["not", "in the model", "in the backward pass", "in the mode"])
def test_the_head_is_as_it_was_afterwards(byte_tokenizer, fails, monkeypatch):
    model = small_llama(byte_tokenizer)
    before = parts_of(model.lm_head)
    armed = []

    def fail(*_, **__):
        if armed:
            raise RuntimeError("on purpose")

    handles = []
    if fails == "in the model":
        handles.append(model.lm_head.register_forward_hook(fail))
    explainer = fastshap.GradientShap(model, byte_tokenizer, n_perturbations=4)
    explained(explainer)
    assert explainer.task._way is target_logits
    assert "forward" not in vars(model.lm_head)
    armed.append(1)
    with monkeypatch.context() as patched:
        if fails == "in the backward pass":
            patched.setattr(torch.autograd, "grad", fail)
        if fails == "in the mode":
            patched.setattr(fastshap.ops, "attribute", fail)
        if fails != "not":
            with pytest.raises((RuntimeError, TypeError), match="on purpose"):
                explained(explainer)
    for handle in handles:
        handle.remove()
    assert parts_of(model.lm_head) == before
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, 3, len(byte_tokenizer))


def test_other_threads_get_ordinary_logits(byte_tokenizer):
    """One that uses the model while an explanation runs inside the head."""
    model = small_llama(byte_tokenizer)
    nn.init.normal_(model.lm_head.weight)
    model.lm_head.bias = nn.Parameter(torch.randn(len(byte_tokenizer)))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        right = model(input_ids=ids).logits
    explainer = fastshap.GradientShap(model, byte_tokenizer, n_perturbations=4)
    inside, seen, main = [], [], threading.get_ident()

    def use():
        with torch.no_grad():
            inside.append("forward" in vars(model.lm_head))
            seen.append(model(input_ids=ids).logits)

    def meanwhile(module, args):
        if busy and threading.get_ident() == main:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()

    busy = False
    model.lm_head.register_forward_pre_hook(meanwhile)
    expected = explained(explainer)
    busy = True
    ours = explained(explainer)
    assert seen
    assert all(inside)
    assert all(torch.equal(one, right) for one in seen)
    assert_equal(ours, expected, tolerance=0)


def test_the_short_way_is_found_again_for_each_text_length(byte_tokenizer):
    """The trial's text may have one token only; long targets and short ones after it are right too."""
    model = small_llama(byte_tokenizer)
    explainer = fastshap.GradientShap(model, byte_tokenizer, n_perturbations=4)
    inputs, targets = ["a", "The film", "a"], [" b", TARGETS[0] * 3, TARGETS[1]]
    ours = explainer(inputs, targets)
    assert explainer.task._way is target_logits
    explainer.task._way = full_logits
    assert_equal(ours, explainer(inputs, targets))


def test_modes_of_the_users_own(byte_tokenizer):
    """A callable sees all of a position's logits, one column for each token."""
    shapes = []

    def mode(logits):
        shapes.append(logits.shape)
        return logits - logits.logsumexp(-1, keepdim=True)

    way, ours, right = both_ways(small_llama(byte_tokenizer), byte_tokenizer, inference_mode=mode)
    assert way is kept_logits
    assert_equal(ours, right)
    assert {shape[-1] for shape in shapes} == {len(byte_tokenizer)}
    named = both_ways(small_llama(byte_tokenizer), byte_tokenizer, inference_mode="log_softmax")[1]
    assert_equal(ours, named)
