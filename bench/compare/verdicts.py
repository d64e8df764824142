"""What was aimed at, and what is wrong whatever the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Found = dict[str, Any]  # by workload, then by part

METHOD_PEERS = {"signed": ("captum", "captum noisy baselines", "shap"), "unsigned": ("interpreto",)}
KNOWN = 0.05  # the largest error of an expectation, relative to its size
OURS = {"signed": "fastshap", "unsigned": "fastshap abs_mean"}


@dataclass(frozen=True)
class Target:
    """A figure aimed at: at most or at least ``limit``. ``figure`` is given a workload's parts.

    ``raised`` is what has been reached since, with room for the noise of timings, and must not be lost again.
    """

    workload: str
    what: str
    figure: Callable[[dict[str, Any]], float | None]
    limit: float
    at_most: bool = False
    raised: float | None = None

    @property
    def held(self) -> float:
        """What a run is judged by."""
        return self.limit if self.raised is None else self.raised

    def judge(self, found: Found) -> tuple[float | None, bool | None]:
        """The measured figure and whether it meets the limit; None where it was not measured."""
        try:
            value = self.figure(found[self.workload])
        except KeyError:
            return None, None
        if value is None:
            return None, None
        return value, value <= self.held if self.at_most else value >= self.held


def times(tool: str, other: str) -> Callable[[dict[str, Any]], float | None]:
    """How many times ``other``'s time a tool takes: the median over rounds."""
    return lambda parts: float(parts["time"]["ratios"][tool][other]["median"])


def equal_error(quantity: str, name: str | None = None) -> Callable[[dict[str, Any]], float | None]:
    """How many times our seconds the quickest peer takes to the same error of the same kind of quantity.

    ``name`` is that of our method, by default the one with default options. None unless both expectations are known.
    """

    def figure(parts: dict[str, Any]) -> float | None:
        methods = parts["error"]["methods"]
        ours = methods[name or OURS[quantity]]
        if not is_known(ours):
            return None
        peers = [methods[peer] for peer in METHOD_PEERS[quantity]]
        return min((peer["seconds"] / ours["seconds"] for peer in peers if is_known(peer)), default=None)

    return figure


def is_known(method: dict[str, Any]) -> bool:
    """Whether a method's expectation, which its errors are measured against, is known well enough to state them."""
    return "seconds" in method and method["reference_error"] <= KNOWN


SIGNED = "seconds to equal error, signed: best of captum and shap /"
UNSIGNED = "seconds to equal error, unsigned: interpreto / fastshap abs_mean"
DENSITY = "fastshap path_density=1"

TARGETS = (
    Target("b", "fastshap / floor", times("fastshap", "floor"), 1.06, True, raised=0.9),
    Target("a", "fastshap / floor", times("fastshap", "floor"), 1.12, True, raised=0.9),
    Target("a", "interpreto / fastshap", times("interpreto", "fastshap"), 2.3, raised=2.7),
    Target("a", "fastshap / captum by hand", times("fastshap", "captum by hand"), 1.05, True, raised=0.8),
    Target("b", "interpreto / fastshap", times("interpreto", "fastshap"), 1.0, raised=1.15),
    Target("b", "fastshap / captum by hand", times("fastshap", "captum by hand"), 1.05, True, raised=0.85),
    Target("c", "interpreto / fastshap", times("interpreto", "fastshap"), 1.3),
    Target("d", "interpreto / fastshap abs_mean", times("interpreto", "fastshap abs_mean"), 1.8),
    Target("d", "interpreto / fastshap", times("interpreto", "fastshap"), 1.9),
    Target("d", "a span of 8 tokens / its tokens one by one", lambda parts: float(parts["span"]["ratio"]), 0.35, True),
    Target("p", "interpreto / fastshap", times("interpreto", "fastshap"), 1.9),
    Target("a", f"{SIGNED} fastshap", equal_error("signed"), 3.0, raised=6.5),
    *(Target(name, f"{SIGNED} fastshap", equal_error("signed"), 3.0) for name in "bcd"),
    Target("a", f"{SIGNED} {DENSITY}", equal_error("signed", DENSITY), 3.0, raised=6.5),
    *(Target(name, f"{SIGNED} {DENSITY}", equal_error("signed", DENSITY), 3.0) for name in "bcd"),
    Target("a", UNSIGNED, equal_error("unsigned"), 6.0, raised=10.0),
    Target("b", UNSIGNED, equal_error("unsigned"), 3.0),
    Target("c", UNSIGNED, equal_error("unsigned"), 3.0),
    Target("d", UNSIGNED, equal_error("unsigned"), 6.0),
    Target("p", f"{SIGNED} fastshap", equal_error("signed"), 5.0),
    Target("p", UNSIGNED, equal_error("unsigned"), 3.0),
)


def failures(found: Found) -> list[str]:
    """What is wrong whatever the machine; empty where all is as it must be."""
    wrong = []
    for name, parts in found.items():
        for tool, its in parts.get("work", {}).items():
            share = its["backpropagated_over_needed"]
            if tool.startswith("fastshap") and round(share, 2) != 1:
                wrong.append(f"{name}: {tool} backpropagated {share:.2f} times the rows needed")
            # Embeddings, perturb, the targets' scores, attribute for each target; several targets' scores put together, or what
            # is done once for many calls.
            operators, most = its["operators_per_call"], 4 + its["targets"]
            if tool.startswith("fastshap") and name not in "dp" and operators > most:
                wrong.append(f"{name}: {tool} ran {operators:.1f} operators a call beside the model; {most} are enough")
        for pair, apart in parts.get("error", {}).get("agreement", {}).items():
            if apart > 4:
                wrong.append(f"{name}: {pair} lie {apart:.1f} standard errors apart")
        padding = parts.get("list", {}).get("padding_share", 0)
        if padding >= 0.1:
            wrong.append(f"{name}: {padding:.0%} of the tokens sent to the model are padding")
        errors = parts.get("list", {}).get("errors", 0)
        if errors:
            wrong.append(f"{name}: {errors} texts were not explained")
    methods = found.get("a", {}).get("error", {}).get("methods")
    if methods and methods["fastshap"]["samples"] > methods["captum"]["samples"] / 2:
        wrong.append("a: fastshap needs more than half of captum's samples for the same error")
    return wrong
