"""The methods of the table. Each is called for a seed and gives outputs of the same texts, targets and words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastshap
from bench.faithfulness.subjects import Plan, background
from bench.models import Subject
from fastshap import BaselineSet, metrics
from fastshap.metrics import controls, peers

Outputs = list[Any]


class Method(NamedTuple):
    """A method.

    Attributes:
        run: from a seed to outputs.
        rows: rows of a text that the model is asked for; "G" is one an element.
        random: whether seeds matter.
    """

    name: str
    run: Callable[[int], Outputs]
    rows: str
    random: bool = True


class Bench:
    """The methods for one subject."""

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self.subject, self.plan = subject, plan
        self.mode = "softmax" if subject.targets else "logits"
        self.explainer = self.ours(0)
        self.reference = self.explain(0, n_perturbations=1)  # for texts, targets and words; not its scores
        self.faithfulness = {
            one: metrics.Faithfulness(subject.model, subject.tokenizer, replacement=one) for one in plan.replacements
        }

    def ours(self, seed: int, **options: Any) -> fastshap.GradientShap:
        """Words are the tokenizer's, which are interpreto's."""
        settings: dict[str, Any] = {
            "n_perturbations": self.plan.rows,
            "inference_mode": self.mode,
            "seed": seed,
        } | options
        return fastshap.GradientShap(
            self.subject.model, self.subject.tokenizer, "auto", "tokenizer_word", on_error="record", **settings
        )

    def explain(self, seed: int, **options: Any) -> Outputs:
        return list(self.ours(seed, **options)(self.subject.texts, self.subject.targets))

    def methods(self) -> Iterator[Method]:
        """The default first: all others are compared with it."""
        rows, few = str(self.plan.rows), self.plan.few
        for name in self.plan.baselines:
            yield from self._family(name, rows)
        yield Method("fastshap, n = 10", functools.partial(self.explain, n_perturbations=10), "10")
        for name in self.plan.baselines if few else ("zero", "MASK"):
            also = _also(name)
            quiet = functools.partial(self.explain, baseline=self._ours(name), noise_std=0.0)
            yield Method(f"fastshap without noise{also}", quiet, rows)
        yield from self._captum(rows)
        for name in ("GradientShap", "Saliency", "Occlusion", "Lime", "KernelShap"):
            theirs = functools.partial(self._interpreto, name)
            many = {"Saliency": "1", "Occlusion": "G + 1"}.get(name, rows)
            yield Method(f"interpreto {name}", theirs, many, name in peers.INTERPRETO_RANDOM)
        for replacement, own in self.faithfulness.items():
            yield Method(f"leave one out ({replacement})", functools.partial(self._alone, own), "G + 1", random=False)
        yield Method(
            "gradient norm", lambda seed: controls.gradient_norm(self.explainer, self.reference), "1", random=False
        )
        yield Method("word length", lambda seed: controls.word_length(self.reference), "0", random=False)
        yield Method("random order", lambda seed: controls.random_order(self.reference, seed), "0")

    def _family(self, name: str, rows: str) -> Iterator[Method]:
        """Default and SUM for one baseline, abs_mean for some. SUM is the mean times the number of a word's tokens."""
        also, baseline = _also(name), self._ours(name)
        mean = functools.lru_cache(maxsize=None)(functools.partial(self.explain, baseline=baseline))
        yield Method(f"fastshap{also}", mean, rows)
        yield Method(f"fastshap SUM{also}", lambda seed: [_summed(one) for one in mean(seed)], rows)
        if name in ("zero", "MASK"):
            size = functools.partial(self.explain, baseline=baseline, reduction="abs_mean")
            yield Method(f"fastshap abs_mean{also}", size, rows)

    def _captum(self, rows: str) -> Iterator[Method]:
        n = self.plan.rows
        for name in self.plan.baselines:
            if name == "background":
                continue
            base, also = self._vector(name), f", {name}"
            if name in ("PAD", "MASK"):
                yield Method(
                    f"captum GradientShap as in the table{also}",
                    functools.partial(self._gradient_shap, base, 5, True),
                    "5",
                )
            yield Method(f"captum GradientShap{also}", functools.partial(self._gradient_shap, base, n, False), rows)
            yield Method(f"integrated gradients{also}", functools.partial(self._integrated, base), rows, random=False)

    def _gradient_shap(self, base: Tensor | float, n: int, with_input: bool, seed: int) -> Outputs:
        return peers.captum_gradient_shap(
            self.explainer, self.reference, baseline=base, n_samples=n, with_input=with_input, seed=seed
        )

    def _integrated(self, base: Tensor | float, seed: int) -> Outputs:
        return peers.captum_integrated_gradients(self.explainer, self.reference, baseline=base, n_steps=self.plan.rows)

    def _alone(self, faithfulness: metrics.Faithfulness, seed: int) -> Outputs:
        return controls.leave_one_out(faithfulness, self.reference)

    def _interpreto(self, name: str, seed: int) -> Outputs:
        return peers.interpreto_scores(self.explainer, self.reference, name, n_perturbations=self.plan.rows, seed=seed)

    def _ours(self, name: str) -> Any:
        special = {"PAD": self.subject.tokenizer.pad_token, "MASK": self.subject.tokenizer.mask_token}
        if name == "background":
            return BaselineSet(background())
        return {"zero": None, "mean": "mean"}.get(name, special.get(name))

    def _vector(self, name: str) -> Tensor | float:
        table = self.subject.model.get_input_embeddings().weight.detach()
        if name == "zero":
            return 0.0
        if name == "mean":
            return table.float().mean(0)
        ids = {"PAD": self.subject.tokenizer.pad_token_id, "MASK": self.subject.tokenizer.mask_token_id}
        return table[ids[name]]


def _also(name: str) -> str:
    return "" if name == "zero" else f", {name}"


def _summed(output: Any) -> Any:
    if output.error is not None:
        return output
    return controls.with_scores(output, output.attributions * torch.tensor([len(m) for m in output.element_tokens]))


def checked_alike(outputs: Sequence[Any]) -> None:
    """Nothing may be missing from the table without a word."""
    assert all(one.error is None for one in outputs), [one.error for one in outputs if one.error is not None][:3]
