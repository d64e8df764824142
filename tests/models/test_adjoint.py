"""Linear layers whose backward pass is not that of their forward pass are refused, and all others are let be."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastshap import UnsupportedModelError
from fastshap.models.adjoint import check_linear_layers
from helpers.checks import assert_unchanged, snapshot

WIDTHS = 48, 40


def rounded(x, dim=-1, bits=8):
    """What rounding leaves of x, and the step; the gradient goes through the step alone."""
    most = 2 ** (bits - 1) - 1
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    step = largest.clamp_min(1e-8) / most
    return (x / step).round().clamp(-most, most), step


class Linear(nn.Linear):
    """A subclass, and so tested; its weight has a size that makes outputs of order one."""

    def __init__(self, *widths, **options):
        super().__init__(*(widths or WIDTHS), **options)
        with torch.no_grad():
            self.weight.normal_(std=self.in_features**-0.5, generator=torch.Generator().manual_seed(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.product(x)

    def product(self, x):
        return super().forward(x)


class RoundedInputs(Linear):
    """Each row rounded to 8 bits by itself, as torchao does: wrong without a word."""

    dim, bits, passed = -1, 8, False

    def product(self, x):
        values, step = rounded(x, self.dim, self.bits)
        if self.passed:
            return F.linear(x + (values * step - x).detach(), self.weight, self.bias)
        return F.linear(values, self.weight) * step + self.bias


class OneStepForAll(RoundedInputs):
    dim = None


class FourBits(RoundedInputs):
    bits = 4


class StraightThrough(RoundedInputs):
    passed = True


class StraightThroughFourBits(RoundedInputs):
    bits, passed = 4, True


class StaticStep(Linear):
    """A step fixed beforehand, too small here: nothing comes through, and with most inputs cut off it is hardly linear."""

    def product(self, x):
        return F.linear((x / 0.002).round().clamp(-127, 127) * 0.002, self.weight, self.bias)


class RoundedWeight(nn.Module):
    """No subclass of nn.Linear: integers and scales, as the weight-only layers have."""

    def __init__(self, bits=8, **options):
        super().__init__()
        plain = Linear(**options)
        self.in_features, self.out_features = WIDTHS
        values, step = rounded(plain.weight.detach(), bits=bits)
        self.register_buffer("weight", values.to(torch.int8))
        self.register_buffer("step", step)
        self.bias = plain.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.step.to(x.dtype), self.bias)


class Adapted(nn.Module):
    """A layer with a product of two narrow ones beside it, and dropout while it is trained."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down, self.up = nn.Linear(self.in_features, 4), nn.Linear(4, self.out_features)
        self.dropout = nn.Dropout(0.5)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(self.dropout(x)))


class _Product(torch.autograd.Function):
    """A product with one weight whose backward pass takes another."""

    @staticmethod
    def forward(ctx, x, weight, other):
        ctx.save_for_backward(other)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.saved_tensors[0], None, None


class OtherWeight(Linear):
    def other(self):
        return self.weight

    def product(self, x):
        return _Product.apply(x, self.weight, self.other())


class Transposed(OtherWeight):
    def __init__(self):
        super().__init__(48, 48)

    def other(self):
        return self.weight.T


class Halved(OtherWeight):
    def other(self):
        return self.weight / 2


class Strayed(OtherWeight):
    """The right weight and, as large, one that has nothing to do with it: <W^T u, v> is right on average if u = W v."""

    def __init__(self):
        super().__init__(512, 512)

    def other(self):
        return self.weight + torch.randn(512, 512, generator=torch.Generator().manual_seed(5)) / 512**0.5


class Coarse(OtherWeight):
    """The backward pass with the weight rounded, the forward pass with the exact one: harmless."""

    def other(self):
        values, step = rounded(self.weight, bits=8)
        return values * step


class Raises(OtherWeight):
    def other(self):
        return self.weight[:, :3].expand(-1, 3)[:3]


class Detached(Linear):
    def product(self, x):
        return super().product(x.detach())


class RepacksUnderNoGrad(Linear):
    """Changes its weight's format when it is first run for its outputs alone, and has no gradient from then on."""

    packed = False

    def product(self, x):
        self.packed = self.packed or not x.requires_grad
        return super().product(x.detach() if self.packed else x)


class Infinite(Linear):
    def product(self, x):
        return super().product(x) + math.inf


class Gate(Linear):
    """No linear layer: what is not asked for is whether it looks like one."""

    def product(self, x):
        return super().product(x).relu()


class Router(Linear):
    def product(self, x):
        return super().product(x).topk(2)


class Chosen(Linear):
    def product(self, x):
        return super().product(x).argmax(-1, keepdim=True)


class WithOneArgumentMore(Linear):
    def forward(self, x, expert):
        return super().forward(x) * expert


class QuantisedWithOneArgumentMore(RoundedWeight):
    def forward(self, x, expert):
        return super().forward(x) * expert


class AdaptedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Embedding(9, 4)
        self.in_features, self.out_features = 9, 4
        self.register_buffer("packed", torch.ones(3, 3, dtype=torch.uint8))

    def forward(self, ids):
        return self.base_layer(ids)


class OutOfMemory(Linear):
    def product(self, x):
        raise torch.OutOfMemoryError("none left")


class Wrapped(torch.Tensor):
    """A weight that is a tensor subclass, as torchao's are; F.linear goes to ``product``."""

    product = staticmethod(F.linear)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is not F.linear:
            return super().__torch_function__(function, types, args, kwargs)
        x, weight, bias = args
        return cls.product(x, weight.as_subclass(torch.Tensor), bias)


class WrappedWithRoundedInputs(Wrapped):
    @staticmethod
    def product(x, weight, bias):
        values, step = rounded(x)
        return F.linear(values, weight) * step + bias


def wrapped(kind, **options):
    layer = nn.Linear(*WIDTHS, **options)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(kind))
    assert type(layer) is nn.Linear
    assert type(layer.weight) is kind
    return layer


def zeros():
    layer = Linear()
    nn.init.zeros_(layer.weight)
    return layer


ACCEPTED = {
    "subclass": Linear,
    "bfloat16": lambda: Linear(dtype=torch.bfloat16),
    "float16": lambda: Linear(dtype=torch.float16),
    "float64": lambda: Linear(dtype=torch.float64),
    "without bias": lambda: Linear(bias=False),
    "narrow": lambda: Linear(1, 1),
    "wide": lambda: Linear(2048, 3),
    "zeros": zeros,
    "8 bits": RoundedWeight,
    "8 bits in bfloat16": lambda: RoundedWeight(dtype=torch.bfloat16),
    "4 bits": lambda: RoundedWeight(bits=4),
    "adapter": lambda: Adapted(nn.Linear(*WIDTHS)),
    "adapter of 8 bits": lambda: Adapted(RoundedWeight()),
    "straight through": StraightThrough,
    "straight through 4 bits": StraightThroughFourBits,
    "coarse": Coarse,
    "tensor subclass": lambda: wrapped(Wrapped),
    "tensor subclass in bfloat16": lambda: wrapped(Wrapped, dtype=torch.bfloat16),
    "infinite": Infinite,
    "gate": Gate,
    "router": Router,
    "chosen": Chosen,
    "one argument more": WithOneArgumentMore,
    "adapter of an embedding": AdaptedEmbedding,
    "parametrised": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(*WIDTHS)),
}

REFUSED = {
    "rounded inputs": (
        RoundedInputs,
        r"\(RoundedInputs\) gives a gradient that differs .* by \d+% .*\(1\d% is allowed\)",
    ),
    "one step for all": (OneStepForAll, "gives a gradient that differs"),
    "rounded to four bits": (FourBits, "gives a gradient that differs"),
    "static step": (StaticStep, "differs from its outputs by 100%"),
    "adapter of rounded inputs": (
        lambda: Adapted(RoundedInputs()),
        r"\(Adapted\).*of 2 linear layers tested, 2 failed",
    ),
    "tensor subclass": (lambda: wrapped(WrappedWithRoundedInputs), r"\(Linear\) gives a gradient that differs"),
    "transposed": (Transposed, "gives a gradient that differs"),
    "halved": (Halved, r"differs from its outputs by 50% of its size \(10% is allowed\)"),
    "strayed": (Strayed, "gives a gradient that differs"),
    "raises": (Raises, "fails in the backward pass .RuntimeError: "),
    "detached": (Detached, "lets no gradient through"),
    "repacks": (RepacksUnderNoGrad, "lets no gradient through"),
    "not to be tested": (QuantisedWithOneArgumentMore, "does not run by itself.*TypeError: .*expert"),
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(make):
    check_linear_layers(nn.Sequential(nn.Linear(4, 4), make()))


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(make, message):
    with pytest.raises(UnsupportedModelError, match=rf"^The model's gradients cannot be trusted.* 1 .*{message}"):
        check_linear_layers(nn.Sequential(nn.Linear(4, 4), make()))


def test_the_first_is_named_and_all_are_counted():
    model = nn.ModuleDict(
        {"fine": Linear(), "block": nn.ModuleList([nn.Linear(2, 2), RoundedInputs()]), "last": Detached()}
    )
    with pytest.raises(
        UnsupportedModelError, match=r"block\.1 \(RoundedInputs\).*of 3 linear layers tested, 2 failed"
    ) as error:
        check_linear_layers(model)
    assert "Load the model in float32 or bfloat16, or with quantisation of the weights alone" in str(error.value)
    with pytest.raises(UnsupportedModelError, match=r"the model itself \(Detached\)"):
        check_linear_layers(model["last"])


def test_the_danger_is_real():
    """The refused layer's gradient against the one of the same weight, and what a test at the point itself would see."""
    layer = RoundedInputs()
    x = torch.randn(16, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    u = torch.randn(16, 40, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(layer(x), x, u)
    assert F.cosine_similarity(gradient, u @ layer.weight, -1).mean() < 0.4
    output = layer(x) - layer.bias
    torch.testing.assert_close((gradient * x).sum(-1), (u * output).sum(-1), atol=1e-3, rtol=1e-3)  # Euler


def test_a_transposed_weight_of_an_odd_shape_raises_in_the_backward_pass():
    class Odd(OtherWeight):
        def other(self):
            return self.weight.T

    with pytest.raises(UnsupportedModelError, match="fails in the backward pass"):
        check_linear_layers(Odd())


def test_a_plain_model_is_not_run(monkeypatch, bert_pair, llama_pair):
    ran = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: ran.append(self))
    check_linear_layers(bert_pair[0])
    check_linear_layers(copy.deepcopy(llama_pair[0]).to(torch.bfloat16))
    check_linear_layers(nn.Sequential(nn.Bilinear(2, 3, 4), nn.Conv1d(2, 2, 1), nn.Embedding(3, 3)))
    shard = wrapped(WrappedWithRoundedInputs)
    shard.weight._local_tensor = torch.ones(20, 48)  # a distributed tensor's part that is here
    check_linear_layers(shard)
    assert not ran


def test_a_layer_is_run_twice():
    layer = Linear()
    check_linear_layers(nn.Sequential(layer, layer))  # one module at two places
    assert layer.calls == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whatever_mode_the_caller_is_in(mode):
    right, wrong = Linear(), RoundedInputs()
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        check_linear_layers(right)
        with pytest.raises(UnsupportedModelError, match="differs"):
            check_linear_layers(wrong)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed(bert_pair, fails):
    model, tokenizer = copy.deepcopy(bert_pair)
    for i, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention.self
        attention.query = Adapted(attention.query)
        attention.key = RoundedInputs(36, 36) if fails and i else Linear(36, 36)
    model.train()
    model.bert.encoder.layer[0].attention.self.query.eval()
    model.bert.encoder.layer[1].attention.self.key.weight.requires_grad_(False)
    seen = []
    model.bert.encoder.layer[1].attention.self.key.register_forward_hook(lambda *_: seen.append(1))
    before = snapshot(model, tokenizer)
    if fails:
        with pytest.raises(UnsupportedModelError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key"):
            check_linear_layers(model)
    else:
        check_linear_layers(model)
    assert_unchanged(before, snapshot(model, tokenizer))
    assert not seen  # a user's hook is for the user's calls


def test_the_same_again():
    """Nothing depends on what was drawn before, or on the layers before."""
    messages = []
    for before in ([], [Linear()], [Linear(3, 3), Linear(5, 5)]):
        torch.randn(len(before))
        with pytest.raises(UnsupportedModelError) as error:
            check_linear_layers(nn.ModuleDict({"before": nn.ModuleList(before), "wrong": RoundedInputs()}))
        messages.append(str(error.value).split("; of")[0])
    assert len(set(messages)) == 1


def test_a_layer_without_weights_of_its_own_takes_what_the_model_has():
    """Packed integers alone tell nothing of the inputs' type: the model's is tried, first the one that comes first."""

    class Packed(nn.Module):
        in_features, out_features = WIDTHS

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(40, 48, dtype=torch.int8), requires_grad=False)
            self.taken = []

        def forward(self, x):
            self.taken.append(x.dtype)
            if x.dtype != torch.bfloat16:
                raise RuntimeError("bfloat16 only")
            return x @ self.weight.to(x.dtype).T

    layer = Packed()
    check_linear_layers(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4, dtype=torch.bfloat16), layer))
    assert layer.taken == [torch.float32, torch.bfloat16, torch.bfloat16]
    with pytest.raises(UnsupportedModelError, match=r"does not run by itself, .*RuntimeError: bfloat16 only"):
        check_linear_layers(nn.Sequential(nn.LayerNorm(4), layer))


def test_memory_that_runs_out_is_no_verdict():
    with pytest.raises(torch.OutOfMemoryError):
        check_linear_layers(OutOfMemory())


def test_a_compiled_layer_is_tested_uncompiled():
    layer = Linear()
    check_linear_layers(nn.Sequential(torch.compile(layer, backend="eager")))
    assert layer.calls == 2
