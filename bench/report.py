"""What ``python -m bench`` found: JSON, a table in Markdown, two pictures, and what was aimed at."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, Any]  # by workload, then by part

METHOD_PEERS = {"signed": ("captum", "captum noisy baselines", "shap"), "unsigned": ("interpreto",)}
OURS = {"signed": "fastshap", "unsigned": "fastshap abs_mean"}


# ------------------------------------------------------------------ targets


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

    ``name`` is that of our method, by default the one with default options.

    Where expectations are not known well enough, by the variances alone, with peers whose expectation is ours.
    """

    def figure(parts: dict[str, Any]) -> float | None:
        methods = parts["error"]["methods"]
        ours = methods[name or OURS[quantity]]
        peers = [methods[peer] for peer in METHOD_PEERS[quantity]]
        if "seconds" in ours:
            theirs = [peer["seconds"] / ours["seconds"] for peer in peers if "seconds" in peer]
        else:
            theirs = [by_variance(methods[peer], ours) for peer in METHOD_PEERS[quantity] if peer != "captum"]
        return min(theirs, default=None)

    return figure


def by_variance(method: dict[str, Any], ours: dict[str, Any]) -> float:
    """Seconds to the same variance, in times ours: the geometric mean over texts."""
    samples = [a / b for a, b in zip(method["variances"], ours["variances"], strict=True)]
    return math.exp(statistics.mean(map(math.log, samples))) * method["seconds_per_sample"] / ours["seconds_per_sample"]


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
    Target("d", "interpreto / fastshap", times("interpreto", "fastshap"), 2.3),
    Target("a", f"{SIGNED} fastshap", equal_error("signed"), 3.0, raised=6.5),
    *(Target(name, f"{SIGNED} fastshap", equal_error("signed"), 3.0) for name in "bcd"),
    Target("a", f"{SIGNED} {DENSITY}", equal_error("signed", DENSITY), 3.0, raised=6.5),
    *(Target(name, f"{SIGNED} {DENSITY}", equal_error("signed", DENSITY), 3.0) for name in "bcd"),
    Target("a", UNSIGNED, equal_error("unsigned"), 6.0, raised=10.0),
    Target("b", UNSIGNED, equal_error("unsigned"), 3.0),
    Target("c", UNSIGNED, equal_error("unsigned"), 3.0),
    Target("d", UNSIGNED, equal_error("unsigned"), 6.0),
)


# ------------------------------------------------------------------ what does not depend on the machine


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
            if tool.startswith("fastshap") and name != "d" and operators > most:
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


# ------------------------------------------------------------------ Markdown


def markdown(record: dict[str, Any]) -> str:
    """All tables."""
    found: Found = record["workloads"]
    lines = ["# fastshap beside other tools", ""]
    if record["quick"]:
        lines += [
            "**A quick run: few texts, and small models with random weights for b, c and d. No figures to quote.**",
            "",
        ]
    lines += [
        f"{made_on(record)}, {record['seconds'] / 60:.0f} minutes.",
        "",
    ]
    if not record["quick"]:
        lines += ["## What was aimed at", "", *target_table(found), ""]
    for name, parts in found.items():
        title = next((part["title"] for part in parts.values() if isinstance(part, dict) and "title" in part), "")
        lines += [f"## {name}: {title}", ""]
        if "time" in parts:
            lines += [*time_table(parts), ""]
        if "targets" in parts:
            found_for = parts["targets"]
            lines += [
                f"Finding the predicted classes: {found_for['median']:.2f} ({found_for['min']:.2f} to "
                f"{found_for['max']:.2f}) times fastshap's time with targets given.",
                "",
            ]
        elif name == "d":
            lines += ["Targets are given; what it takes to generate them is no explanation's time.", ""]
        if "error" in parts:
            lines += [*error_table(parts["error"]), ""]
        if "list" in parts:
            lines += [*list_lines(parts["list"]), ""]
    lines += NOTES
    return "\n".join(lines) + "\n"


def made_on(record: dict[str, Any]) -> str:
    """Machine, versions, commit and date."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {versions}; commit {record['commit']}, "
        f"{record['date']}"
    )


def target_table(found: Found) -> list[str]:
    lines = ["| workload | figure | aimed at | held to since | measured | |", "| --- | --- | --- | --- | --- | --- |"]
    for target in TARGETS:
        value, met = target.judge(found)
        sign = "at most" if target.at_most else "at least"
        held = "" if target.raised is None else f"{target.raised:g}"
        shown = "–" if value is None else f"{value:.2f}"
        verdict = {True: "met", False: "**not met**", None: "not measured"}[met]
        lines.append(f"| {target.workload} | {target.what} | {sign} {target.limit:g} | {held} | {shown} | {verdict} |")
    return lines


def time_table(parts: dict[str, Any]) -> list[str]:
    timed, work, memory = parts["time"], parts.get("work", {}), parts.get("memory", {})
    lines = [
        "| tool | batch size | seconds | times fastshap | times the floor | rows back / needed | padding | operators a call | "
        "memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    unit = {tool: its["unit"] for tool, its in parts.get("sweep", {}).get("tools", {}).items()}
    for tool, its in timed["tools"].items():
        ratio = timed["ratios"][tool]
        cells = [tool, f"{its['batch_size']} {unit.get(tool, '')}".strip(), f"{its['median']:.3g}"]
        for other in ("fastshap", "floor"):
            one = ratio.get(other)
            cells.append("1" if one is None else f"{one['median']:.2f} ({one['min']:.2f}–{one['max']:.2f})")
        done = work.get(tool)
        if done is None:
            cells += ["", "", ""]
        else:
            cells += [
                f"{done['backpropagated_over_needed']:.2f}",
                f"{done['padding_share']:.1%}",
                f"{done['operators_per_call']:.1f}",
            ]
        cells.append(f"{memory[tool] / 2**20:.0f} MiB" if tool in memory else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def error_table(part: dict[str, Any]) -> list[str]:
    lines = [
        f"To an error of {part['level']:.0%} of each method's own expectation ({part['texts']} texts):",
        "",
        "| method | quantity | error at n | samples a text | model rows | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, its in part["methods"].items():
        if "samples" not in its:
            known = f"its expectation is known to {its['reference_error']:.0%} only"
            if method != "captum":
                ratio = by_variance(its, part["methods"][OURS[its["quantity"]]])
                known += f"; the same variance takes {ratio:.2f} times {OURS[its['quantity']]}'s seconds"
            lines.append(f"| {method} | {its['quantity']} | {known} | | | |")
            continue
        errors = ", ".join(f"{value:.1%} at {n}" for n, value in its["error"].items())
        star = "*" if its["extrapolated"] else ""
        cells = [
            method,
            its["quantity"],
            errors,
            f"{its['samples']:.1f}{star}",
            f"{its['rows']:.0f}",
            f"{its['seconds']:.3g}",
        ]
        if its["texts_left_out"]:
            cells[2] += f" (without {its['texts_left_out']} of {its['texts']} texts)"
        lines.append("| " + " | ".join(cells) + " |")
    apart = ", ".join(f"{pair} {value:.1f}" for pair, value in part["agreement"].items())
    return [*lines, "", f"Distance of the means, in combined standard errors, of the worst text: {apart}."]


def list_lines(part: dict[str, Any]) -> list[str]:
    resident, settled = (
        ", ".join(f"{value / 2**20:.0f}" for value in part[f"{kind}_bytes_at_quarters"])
        for kind in ("resident", "settled")
    )
    return [
        f"- {part['texts']:,} texts of {part['tokens']:,} tokens in {part['seconds']:.1f} s: "
        f"{part['texts_per_second']:.0f} texts a second, n = {part['n']}, {part['errors']} errors.",
        f"- Time: of {len(part['points'])} points the farthest is {part['largest_deviation_from_line']:.1%} off the straight "
        "line; the "
        f"second half of the texts takes {part['second_half_over_first']:.3f} times the first half's time.",
        f"- Resident memory after each quarter: {resident} MiB; once the C library gave its free blocks back: {settled} MiB.",
        f"- Padding: {part['padding_share']:.1%} of the tokens sent to the model.",
    ]


NOTES = """\
Every tool runs at the best batch size of its grid, with targets given, on the same texts and the same model in evaluation
mode whose parameters ask for no gradient, all tools in turn in each round. Seconds are medians; ratios are medians of the
rounds' ratios with the least and the largest. fastshap and interpreto give scores of words, the others of tokens.

The floor is one forward pass over the rows needed and a backward pass for each target, without noise and without scores;
for a language model with logits at the target's positions and of its tokens only. It runs the whole model; fastshap leaves
out what a classifier does not read of its last layer, and runs two calls side by side, so that it can take less. "Alike"
are calls whose rows have one length, so that no mask is needed. Rows needed are texts x samples x targets; for fastshap's
signed scores of a language model one backward pass a target word serves. Operators are those dispatched outside the model's
forward and backward between its first and its last call, views not counted. Padding is what the attention mask leaves out.
Memory is the largest resident size above that before the run, looked at every 2 ms.

Errors are root mean squares over the tokens of a text, relative to that of the expectation, then over texts. Seconds are
linear in the samples. An asterisk marks samples outside those measured, taken as 1/sqrt(n). "captum" adds its noise to the
input, as its parameter does, so that its expectation is another; with noisy baselines its expectation is ours.
""".splitlines()


# ------------------------------------------------------------------ pictures

# Okabe and Ito's colours, which colour-blind readers can tell apart; ours have filled markers.
STYLES = {
    "fastshap": ("#0072B2", "o"),
    "fastshap path_density=1": ("#56B4E9", "v"),
    "fastshap abs_mean": ("#009E73", "D"),
    "interpreto": ("#D55E00", "s"),
    "captum by hand": ("#E69F00", "^"),
    "captum": ("#E69F00", "^"),
    "captum one by one": ("#F0E442", "<"),
    "captum noisy baselines": ("#999933", "<"),
    "shap": ("#CC79A7", "P"),
    "floor": ("#000000", "_"),
    "floor, one backward a group": ("#777777", "_"),
}


def draw(record: dict[str, Any], directory: Path) -> list[Path]:
    """Both pictures, the same bytes for the same record; their metadata say where they were made."""
    import matplotlib as mpl

    mpl.use("svg")
    settings: Any = {"svg.hashsalt": "fastshap", "svg.fonttype": "path", "font.size": 9, "font.family": "DejaVu Sans"}
    drawn = []
    with mpl.rc_context(settings):
        for name, picture in (("comparison_time", time_picture), ("comparison_error", error_picture)):
            figure = picture(record["workloads"])
            if figure is not None:
                drawn.append(directory / f"{name}.svg")
                figure.savefig(drawn[-1], metadata={"Date": None, "Description": made_on(record)})
    return drawn


def time_picture(found: Found) -> Any:
    """Times of all tools over the floor's, a panel a workload."""
    from matplotlib.figure import Figure

    timed = {name: parts["time"] for name, parts in found.items() if "time" in parts}
    if not timed:
        return None
    heights = [len(part["tools"]) for part in timed.values()]
    figure = Figure(figsize=(8, 0.5 + 0.28 * sum(h + 1 for h in heights)), layout="constrained")
    panels = figure.subplots(len(timed), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (name, part) in zip(panels, timed.items(), strict=True):
        tools = [tool for tool in part["tools"] if tool != "floor"]
        for place, tool in enumerate(tools):
            ratio = part["ratios"][tool]["floor"]
            colour = STYLES[tool][0]
            panel.barh(place, ratio["median"], color=colour, edgecolor="black", linewidth=0.5)
            panel.plot([ratio["min"], ratio["max"]], [place, place], color="black", linewidth=1.2)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # so that the floor's line does not cross it
            right = max(ratio["median"], ratio["max"]) + 0.04
            panel.text(right, place, f"{ratio['median']:.2f}", va="center", bbox=box)
        panel.axvline(1, color="black", linestyle="--", linewidth=1)
        panel.set_yticks(range(len(tools)), tools)
        panel.invert_yaxis()
        panel.set_title(f"{name}: {part['title']}", loc="left", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.08)
    panels[-1].set_xlabel("time, in times the floor (dashed); line: least and largest of the rounds")
    return figure


def error_picture(found: Found) -> Any:
    """Errors against model rows (above) and seconds (below), a column a workload."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    measured = {name: parts for name, parts in found.items() if "error" in parts}
    if not measured:
        return None
    figure = Figure(figsize=(3.1 * len(measured) + 0.6, 6.6), layout="constrained")
    panels = figure.subplots(2, len(measured), sharey="col", squeeze=False)
    labelled: dict[str, Any] = {}
    for column, (name, parts) in enumerate(measured.items()):
        part, texts = parts["error"], parts["time"]["texts"]
        for method, its in part["methods"].items():
            if "samples" not in its:
                continue
            colour, marker = STYLES[method]
            points = sorted((int(n), error) for n, error in its["error"].items())
            filled = colour if method.startswith("fastshap") else "white"
            for row, factor in enumerate((texts, its["seconds_per_sample"])):
                panel = panels[row, column]
                x, y = [n * factor for n, _ in points], [100 * error for _, error in points]
                if its["extrapolated"]:
                    nearest = -1 if its["samples"] > points[-1][0] else 0
                    line = [x[nearest], its["samples"] * factor], [y[nearest], 100 * part["level"]]
                    panel.plot(*line, ":", color=colour, linewidth=1.2)
                (line,) = panel.plot(
                    x, y, "-", color=colour, marker=marker, markerfacecolor=filled, markersize=6, linewidth=1.5
                )
                labelled.setdefault(method, line)
        for row, unit in enumerate(("model rows", "seconds")):
            panel = panels[row, column]
            panel.set(xscale="log", yscale="log", xlabel=unit)
            panel.axhline(100 * part["level"], color="black", linestyle="--", linewidth=1)
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g} %" if f"{value:.0e}"[0] in "25" else "")
            panel.tick_params(axis="y", which="both", labelsize=8)
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3, which="major")
        panels[0, column].set_title(f"{name}: {parts['time']['title']}", fontsize=8, wrap=True)
    panels[0, 0].set_ylabel("error of token scores (RMS)")
    panels[1, 0].set_ylabel("error of token scores (RMS)")
    figure.legend(
        list(labelled.values()),
        [f"{method} ({_quantity(measured, method)})" for method in labelled],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
    )
    return figure


def _quantity(measured: Found, method: str) -> str:
    return next(str(parts["error"]["methods"][method]["quantity"]) for parts in measured.values())


def write(record: dict[str, Any], directory: Path) -> list[Path]:
    """comparison.json, comparison.md and the pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    data, text = directory / "comparison.json", directory / "comparison.md"
    data.write_text(json.dumps(record, indent=1) + "\n")
    text.write_text(markdown(record))
    return [data, text, *draw(record, directory)]
