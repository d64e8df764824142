"""An instance of a request, as :meth:`fastshap.Batcher.submit` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastshap.checks import near
from fastshap.errors import FastshapError
from fastshap.explainer import GradientShap
from fastshap.models.locks import lock_of
from fastshap.one_call import one_round
from fastshap.output.checked import compiled, short
from fastshap.service import fields
from fastshap.service.limits import Limits
from fastshap.service.problems import ProblemError
from fastshap.settings import PARAMETERS
from fastshap.types.targets import Contrast

_USUAL_ROUNDS = 64  # of n_perturbations samples, with rtol and without max_perturbations
_USUAL_NEW_TOKENS = 20
_SPECIAL = 16  # tokens that a template may add


class Asked(NamedTuple):
    """What an instance asks for."""

    text: Any
    target: Any
    options: dict[str, Any]
    strings: tuple[str, ...]  # all that the model would read


class Reader:
    """Reads the instances of a service's requests."""

    def __init__(self, explainer: GradientShap, limits: Limits, explaining: bool = True) -> None:
        self.explainer, self.limits, self.explaining = explainer, limits, explaining
        self.fields = fields.properties(explainer.task, limits, explaining)
        self._rules = {name: compiled(one) for name, one in self.fields.items()}

    def asked(self, given: Any, shared: Mapping[str, Any] | None = None) -> Asked:
        """What is asked for.

        Args:
            given: a string, or an object of the instance's fields.
            shared: fields that hold for all instances of the request.

        Raises:
            ProblemError: it cannot be asked for; ``field`` says where it is wrong, within the instance.
        """
        one = {"text": given} if isinstance(given, str) else given
        if not isinstance(one, dict):
            raise _wrong("", f"An instance is a string or an object; got {short(given)}.")
        one = {**(shared or {}), **one}
        self.check(one)
        text = self._text(one)
        target = self._target(one)
        return Asked(text, target, self._options(one, target), tuple(_strings([text, target])))

    def check(self, one: Mapping[str, Any]) -> None:
        """Nothing, if all are fields of an instance, and hold what they may hold.

        Raises:
            ProblemError: one does not.
        """
        for name, value in one.items():
            if (rule := self._rules.get(name)) is None:
                there = f"There is no field {short(name)}{near(name, self.fields)}; there are {', '.join(self.fields)}."
                raise _wrong(_step(name), there)
            if (problem := rule(value)) is not None:
                where = _step(name) + problem.place
                empty = isinstance(value, str) and not value.strip()
                what = "is empty or only white space" if empty else problem.what
                raise _wrong(where, f"{where.lstrip('.')} {what}.")

    def is_long(self, asked: Asked) -> bool:
        """Whether it may have too many tokens. A token is a byte at least, so most texts need not be tokenised to be sure."""
        room = self.limits.max_text_tokens - _SPECIAL
        return (
            sum(len(one) for one in asked.strings) > room
            or sum(len(one.encode("utf-8", "replace")) for one in asked.strings) > room
        )

    def check_length(self, asked: Asked) -> None:
        """Counts the tokens, which takes a while.

        Raises:
            ProblemError: there are too many.
        """
        tokenizer: Any = self.explainer.tokenizer
        with lock_of(tokenizer):
            core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
            truncation = None if core is None else core.truncation
            count = sum(len(tokenizer(one, verbose=False, truncation=False)["input_ids"]) for one in asked.strings)
            if core is not None and truncation is not None:
                core.enable_truncation(**truncation)
        if count > self.limits.max_text_tokens:
            most = self.limits.max_text_tokens
            raise ProblemError(
                413, "TooLarge", f"The text has {count} tokens and the service takes {most}; split it.", ".text"
            )

    def _text(self, one: Mapping[str, Any]) -> Any:
        if ("text" in one) == ("messages" in one):
            others = " or messages" if "messages" in self.fields else ""
            raise _wrong(
                "", f"An instance needs text{others}." if "text" not in one else "Send text or messages, not both."
            )
        beside = [name for name in ("pair", "choices") if name in one]
        if "messages" in one:
            if beside:
                raise _wrong(_step(beside[0]), f"{beside[0]} stands beside text, not beside messages.")
            return one["messages"]
        if "pair" in one:
            return one["text"], one["pair"]
        if "choices" in self.fields and "choices" not in one:
            raise _wrong("", "An instance needs choices.")
        return {"text": one["text"], "choices": one["choices"]} if "choices" in one else one["text"]

    def _target(self, one: Mapping[str, Any]) -> Any:
        if "targets" in one and one.get("target") is not None:
            raise _wrong(".targets", "Send target or targets, not both.")
        target = one.get("targets", one.get("target"))
        if "contrast" not in one:
            return target
        if target is None or isinstance(target, list):
            raise _wrong(".contrast", "A contrast stands beside one target.")
        try:
            return Contrast(target, one["contrast"])
        except FastshapError as error:
            raise _wrong(".contrast", str(error)) from None

    def _options(self, one: Mapping[str, Any], target: Any) -> dict[str, Any]:
        if not self.explaining:
            found: dict[str, Any] = {"n_perturbations": 1, "return_convergence_delta": False} | one_round(
                self.explainer
            )
        else:
            found = {
                name: None if one[name] is None else PARAMETERS[name].from_plain(one[name])
                for name in fields.OPTIONS
                if name in one and (name != "max_perturbations" or one[name] is not None)
            }
            found = self._rounds(one) | found
            if found.get("reduction", "sum") != "sum" or not found.get("input_x_gradient", True):
                found["return_convergence_delta"] = False  # such scores do not add up
        most = one.get("max_new_tokens", min(_USUAL_NEW_TOKENS, self.limits.max_new_tokens))
        if "max_new_tokens" in one or (target is None and most < _USUAL_NEW_TOKENS and "max_new_tokens" in self.fields):
            found["generation_kwargs"] = {"max_new_tokens": most}
        return found

    def _rounds(self, one: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from a request's choice of accuracy or samples, where it leaves the rest open."""
        its = self.explainer.settings
        if one.get("rtol", its.rtol) is None:
            return {} if its.rtol is None else one_round(self.explainer)
        if one.keys().isdisjoint(("rtol", "n_perturbations")):
            own, most = its.max_perturbations, self.limits.max_samples
            return {"max_perturbations": most} if own is not None and own > most else {}
        many = one.get("n_perturbations", its.n_perturbations)
        return {"max_perturbations": max(many, min(_USUAL_ROUNDS * many, self.limits.max_samples))}


def _strings(value: Any) -> list[str]:
    """All strings within a text or target."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Contrast):
        return _strings([value.target, value.other])
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for one in inside for found in _strings(one)]


def _step(name: str) -> str:
    return f".{name}" if name.isidentifier() and len(name) < 64 else f"[{short(name)}]"


def _wrong(where: str, message: str) -> ProblemError:
    return ProblemError(422, "InvalidArgumentError", message, where)
