"""Whether the backward pass of a model's linear layers belongs to their forward pass.

Some quantised layers hand back a wrong gradient without a word: rounding the inputs stops it, wholly or but for what goes
through the scale, the largest absolute input. The residual connections carry on, and attributions come out as noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastshap.errors import UnsupportedModelError

_POINTS = 8  # rows of each kind; four kinds make 32 rows, since integer products on GPUs want more than 16
_TOLERANCE = 0.1  # of the size; forward noise is 1e-6 (float32) to 2e-2 (bfloat16, 8-bit inputs)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_linear_layers(model: nn.Module) -> bool:
    """Tests <W^T u, v> = <u, W v> at random vectors for every linear layer that is not a plain one of plain floats.

    Tested are modules with ``in_features`` and ``out_features``: quantised replacements of ``nn.Linear``, adapters around
    them, and ``nn.Linear`` itself where the weight is a tensor subclass. Not tested: quantised weights that no such module
    holds, and layers that are not linear, of which only a missing gradient is noticed.

    Returns:
        True.

    Raises:
        UnsupportedModelError: a layer's backward pass fails, gives nothing, or gives something else than its forward pass
            calls for; or a quantised layer cannot be run by itself, so that nothing is known of it.
    """
    tested, wrong = 0, []
    usual = [parameter.dtype for parameter in model.parameters()]
    for name, layer in model.named_modules():
        if _is_suspect(layer):
            tested += 1
            with _evaluating(layer), torch.inference_mode(False):
                complaint = _complaint(layer, _device(layer, model), _dtypes(layer, usual))
            if complaint:
                wrong.append(f"{name or 'the model itself'} ({type(layer).__name__}) {complaint}")
    if wrong:
        raise UnsupportedModelError(
            f"The model's gradients cannot be trusted, nor what would be explained by them: {wrong[0]}; of {tested} linear "
            f"layers tested, {len(wrong)} failed. Load the model in float32 or bfloat16, or with quantisation of the weights "
            "alone and kernels that have a backward pass on this device."
        )
    return True


def _is_suspect(layer: nn.Module) -> bool:
    if not all(isinstance(getattr(layer, size, None), int) for size in ("in_features", "out_features")):
        return False
    if type(layer) is nn.Linear:
        return not _is_plain(layer.weight)
    if "_orig_mod" in layer._modules:  # torch.compile's wrapper; what it wraps comes next
        return False
    return not any(isinstance(module, nn.Embedding) for module in layer.modules())  # adapters of embeddings


def _is_plain(tensor: Tensor) -> bool:
    tensor = getattr(tensor, "_local_tensor", tensor)  # a shard of a distributed tensor
    return type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in _FLOATS


def _is_quantised(tensor: Tensor) -> bool:
    return not _is_plain(tensor) and tensor.dtype not in (torch.int64, torch.bool)  # those number and mask


def _complaint(layer: Any, device: torch.device, dtypes: Sequence[torch.dtype]) -> str | None:
    """What is wrong with a layer's gradient, if anything."""
    generator = torch.Generator().manual_seed(0)  # the global random state is the caller's
    p, v, w = torch.randn(3, _POINTS, layer.in_features, generator=generator)
    points = torch.cat((p, v, w, p + v - w)).to(device)
    failed = None
    for dtype in dtypes:
        x = points.to(dtype).requires_grad_()
        try:
            # Past the hooks, which are others'. First without gradients, as a model is tried before it is explained: some
            # layers change their weights' format then, and lose the gradient.
            with torch.no_grad():
                y = layer.forward(x.detach().clone())
            break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failed = failed or error
    else:
        # A layer of plain floats that takes something else than one tensor has torch's own gradients.
        quantised = any(map(_is_quantised, (*layer.parameters(), *layer.buffers())))
        return (
            f"is quantised and does not run by itself, so it cannot be tested ({_named(failed)})" if quantised else None
        )
    try:
        with torch.enable_grad():
            output = layer.forward(x.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"fails as soon as a gradient is wanted ({_named(error)})"
    if not all(
        isinstance(one, Tensor) and one.is_floating_point() and one.shape[:-1] == x.shape[:1] for one in (y, output)
    ):
        return None  # a router, say: no linear layer
    if not y.isfinite().all():
        return None  # for the explanation itself to report
    gradient = None
    if output.requires_grad:
        u = torch.randn(_POINTS, y.shape[1], generator=generator).to(output)
        try:
            (gradient,) = torch.autograd.grad(output, x, F.pad(u, (0, 0, 0, 3 * _POINTS)), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"fails in the backward pass ({_named(error)})"
    if gradient is None:
        return "lets no gradient through"
    difference, allowed = _measured(x, y, u, gradient)
    if difference <= allowed:
        return None
    return f"gives a gradient that differs from its outputs by {difference:.0%} of its size ({allowed:.0%} is allowed)"


def _measured(x: Tensor, y: Tensor, u: Tensor, gradient: Tensor) -> tuple[float, float]:
    """How far <gradient at p, d> is from <u, W d> over all pairs of a vector u and a direction d, and how far it may be.

    The directions do not depend on p: the gradient through the scale alone is right in the direction of p itself, by Euler's
    theorem. Nor does u depend on them: with u = W d an error of the gradient that has nothing to do with W would average out.
    Differences rid the outputs of the bias, and no input is zero, whose scale would be.
    """
    _, v, w, _ = x.detach().cpu().double().split(_POINTS)
    at_p, at_v, at_w, at_sum = y.detach().cpu().double().split(_POINTS)
    change = at_v - at_w  # W d for the directions d = v - w
    expected = u.cpu().double() @ change.T
    found = gradient.cpu().double()[:_POINTS] @ (v - w).T
    if not expected.any() and not found.any():
        return 0.0, _TOLERANCE
    error = float((found - expected).norm() / expected.norm())
    # The same step from elsewhere: noise of the layer's own rounding, or a layer that is not linear at all. What rounds its
    # inputs and passes the gradient straight through has an error of 0.4 times this, at 8 bits as at 3.
    roughness = float((at_sum - at_p - change).norm() / change.norm())
    return error, _TOLERANCE + (1.5 * roughness if found.any() else 0.0)


@contextlib.contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    """A layer in evaluation mode, put back as it was."""
    training = [module for module in layer.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _dtypes(layer: nn.Module, usual: Sequence[torch.dtype]) -> Sequence[torch.dtype]:
    """What a layer may take, the likeliest first. Some cast their bias to the input's type for good, so its own comes first."""
    own = (getattr(layer, "bias", None), getattr(layer, "weight", None))
    known = (*(tensor.dtype for tensor in own if isinstance(tensor, Tensor)), *usual)
    return list(dict.fromkeys(dtype for dtype in known if dtype in _FLOATS)) or [torch.get_default_dtype()]


def _device(layer: nn.Module, model: nn.Module) -> torch.device:
    """Where a layer lies; the model's device where its weights are elsewhere until it is called."""
    tensors = (tensor for module in (layer, model) for tensor in (*module.parameters(), *module.buffers()))
    return next((t.device for t in tensors if t.device.type != "meta"), torch.device("cpu"))


def _named(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
