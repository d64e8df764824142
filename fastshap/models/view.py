"""A model as explanations run it: modules of their own around the user's weights, so that the user's model stays untouched.

The modules of a view are copies that share everything with the model's but what explanations change: they are in evaluation
mode, their parameters ask for no gradient, and hooks or replaced methods put there by a task are theirs alone. So another
thread may use, copy or train the model meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastshap.errors import SharedModelWarning
from fastshap.models.forked import prepare_threads
from fastshap.models.locks import lock_of
from fastshap.models.replicas import hooks_on, is_plain, watched
from fastshap.models.tree import modules_of, standing

_views: weakref.WeakKeyDictionary[nn.Module, _View] = weakref.WeakKeyDictionary()


class Desk:
    """Lends a model, or a view of it, to one caller at a time. All callers of a model share its view."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @contextlib.contextmanager
    def at_work(self) -> Iterator[nn.Module]:
        """The view, in evaluation mode and without parameters that ask for gradients.

        Where no view can be made (hooks, replaced methods, compiled parts, quantised weights) it is the model itself,
        which is put back as it was. The caller's inference mode, in which nothing has a gradient, is off meanwhile.
        """
        with lock_of(self._model), torch.inference_mode(False):
            prepare_threads()
            view = self._view()
            if view is None or watched():  # hooks on all modules may look for the model's own
                with _frozen(self._model) as model:
                    yield model
            else:
                with view.lent() as model, standing([self._model, *view.below], view.modules):
                    yield model

    def _view(self) -> _View | None:
        view = _views.get(self._model)
        if view is not None and view.fits(self._model):
            return view
        _views.pop(self._model, None)
        if not _can_be_viewed(self._model):
            return None
        view = _views[self._model] = _View(self._model)
        return view

    def __reduce__(self) -> Any:
        return Desk, (self._model,)


class _State(NamedTuple):
    """What modules were, and held: an entry for each."""

    kinds: list[type]
    attributes: list[dict[str, Any]]
    parameters: list[dict[str, nn.Parameter | None]]
    buffers: list[dict[str, Tensor | None]]
    modules: list[dict[str, nn.Module | None]]
    order: list[nn.Module | None]  # of those in all ``modules``, one after the other

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> _State:
        """As it is now. The dictionaries are the modules' own."""
        attributes = [vars(module) for module in modules]
        parameters, buffers, held = ([own[name] for own in attributes] for name in _TREE)
        return cls(
            [type(module) for module in modules],
            attributes,
            parameters,
            buffers,
            held,
            [one for some in held if some for one in some.values()],
        )

    def kept(self) -> _State:
        """With dictionaries that stay as they are."""
        return self._replace(
            attributes=[dict(one) for one in self.attributes],
            parameters=[dict(one) for one in self.parameters],
            buffers=[dict(one) for one in self.buffers],
            modules=[dict(one) for one in self.modules],
        )

    def is_now(self, now: _State) -> bool:
        """Whether that is the same, but for the modules' training mode."""
        return self._replace(attributes=[]) == now._replace(attributes=[]) and (
            self.attributes == now.attributes
            or [one | {"training": None} for one in self.attributes]
            == [one | {"training": None} for one in now.attributes]
        )


class _View:
    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, nn.Module] = {}
        self._weights: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the model's and ours
        self._model = self._copied(model)
        self.modules = modules_of(self._model)
        self.below = modules_of(model)[1:]  # the model's; itself is not kept alive
        self._then = _State.of([model, *self.below]).kept()
        self._hooks = [hooks for module in (model, *self.below) for hooks in hooks_on(module)]
        self._lent = 0  # times at once: a caller's function may explain another text meanwhile

    def fits(self, model: nn.Module) -> bool:
        """Whether the model's modules are what they were, so that only values of weights may have changed.

        A walk would find the same modules if each of these holds the same ones, in the same order. They were plain, and still
        are if they hold the same and no hooks.
        """
        try:
            return not any(self._hooks) and self._then.is_now(_State.of([model, *self.below]))
        except Exception:  # arrays and tensors that were replaced do not compare
            return False

    @contextlib.contextmanager
    def lent(self) -> Iterator[nn.Module]:
        """With the model's weights as they are now; between calls no memory is held."""
        self._lent += 1
        try:
            for theirs, ours in self._weights.values():
                ours.data = theirs
            yield self._model
        finally:
            self._lent -= 1
            if self._lent == 0:
                nothing = torch.empty(0, device="cpu")
                for _, ours in self._weights.values():
                    ours.data = nothing

    def _copied(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        made = self._copies[id(module)] = object.__new__(type(module))
        own = {
            name: value.copy() if name.endswith("_hooks") and isinstance(value, dict) else value
            for name, value in vars(module).items()
        }
        vars(made).update(own, training=False, _buffers=module._buffers.copy())
        vars(made)["_parameters"] = {name: self._parameter(one) for name, one in module._parameters.items()}
        vars(made)["_modules"] = {name: one and self._copied(one) for name, one in module._modules.items()}
        return made

    def _parameter(self, theirs: nn.Parameter | None) -> nn.Parameter | None:
        if theirs is None:
            return None
        if id(theirs) not in self._weights:
            ours = nn.Parameter(torch.empty(0, dtype=theirs.dtype, device="cpu"), requires_grad=False)
            vars(ours).update(vars(theirs))
            self._weights[id(theirs)] = theirs, ours
        return self._weights[id(theirs)][1]


def _can_be_viewed(model: nn.Module) -> bool:
    """Whether nothing in the model leads from one of its modules to another but the tree of modules."""
    return all(
        is_plain(module)
        and not isinstance(module, torch.jit.ScriptModule)
        and not hasattr(module, "_orig_mod")
        and all(type(one) is nn.Parameter for one in module._parameters.values() if one is not None)
        and not any(_leads_to_module(value) for name, value in vars(module).items() if name not in _TREE)
        for module in modules_of(model)
    )


_TREE = ("_parameters", "_buffers", "_modules")
_VALUES = (int, float, complex, str, bytes, type(None), type, types.ModuleType, torch.dtype, torch.device, Enum)
_KNOWN = {
    "builtins",
    "collections",
    "io",
    "_io",
    "logging",
    "numpy",
    "re",
    "_thread",
    "threading",
    "torch",
    "transformers",
}


def _leads_to_module(value: Any, seen: set[int] | None = None) -> bool:
    """Whether a value may lead to a module. What is not known to lead to none may: functions and objects of the user's."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, _VALUES) or type(value) is Tensor:
        return False
    seen.add(id(value))
    if isinstance(value, nn.Module | nn.Parameter):
        return True
    if isinstance(value, Mapping):
        return any(_leads_to_module(one, seen) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return any(_leads_to_module(one, seen) for one in value)
    if isinstance(value, functools.partial):
        return any(_leads_to_module(one, seen) for one in (value.func, value.args, value.keywords))
    if isinstance(value, types.FunctionType):
        return not _is_known(value.__globals__.get("__name__")) or any(
            _leads_to_module(one, seen) for one in _held_by(value)
        )
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        return _leads_to_module(getattr(value, "__func__", None), seen) or _leads_to_module(value.__self__, seen)
    known = any(_is_known(base.__module__) for base in type(value).__mro__[:-1])
    return not known or _leads_to_module(getattr(value, "__dict__", None), seen)


def _is_known(module: str | None) -> bool:
    return (module or "").split(".")[0] in _KNOWN


def _held_by(function: types.FunctionType) -> list[Any]:
    held: list[Any] = [function.__defaults__, function.__kwdefaults__, vars(function)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            held.append(cell.cell_contents)
    return held


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself in evaluation mode, no parameter asking for a gradient; put back as it was."""
    training = [module for module in modules_of(model) if module.training]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    changed = False
    try:
        for module in training:
            module.training = False
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield model
        changed = any(module.training for module in training) or any(p.requires_grad for p in wanting)
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
    if changed:
        warnings.warn(
            "Something else changed the model's training mode or its parameters' requires_grad while it was explained, so "
            "the numbers cannot be trusted. A model with hooks, compiled or quantised parts is used itself: give "
            "explanations a copy, or wait for them.",
            SharedModelWarning,
            stacklevel=2,
        )
