"""What was found, in Markdown."""

from __future__ import annotations

from typing import Any

from bench.compare.verdicts import KNOWN, TARGETS, Found, is_known


def markdown(record: dict[str, Any]) -> str:
    """All tables."""
    found: Found = record["workloads"]
    lines = ["# fastshap beside other tools", ""]
    if record["quick"]:
        lines += [
            "**A quick run: few texts, and small models with random weights for b, c, d and p. No figures to quote.**",
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
        elif name in "dp":
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
    lines = [
        "| workload | figure | aimed at | limit kept since | measured | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        value, met = target.judge(found)
        sign = "at most" if target.at_most else "at least"
        held = "" if target.raised is None else f"{target.raised:g}"
        shown = "–" if value is None else f"{value:.2f}"
        missing = "not known" if "error" in found.get(target.workload, {}) else "not measured"
        verdict = {True: "met", False: "**not met**", None: missing}[met]
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
        "| method | quantity | error at n | expectation known to | samples a text | model rows | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, its in part["methods"].items():
        if not is_known(its):
            known = f"not stated: its expectation is known to {its['reference_error']:.0%} only"
            lines.append(f"| {method} | {its['quantity']} | {known} | | | | |")
            continue
        errors = ", ".join(f"{value:.1%} at {n}" for n, value in its["error"].items())
        star = "*" if its["extrapolated"] else ""
        cells = [
            method,
            its["quantity"],
            errors,
            f"{its['reference_error']:.1%}",
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


NOTES = f"""\
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
linear in the samples. An error is stated where the expectation is known to {KNOWN:.0%} of its size. An asterisk marks samples
outside those measured, taken as 1/sqrt(n). "captum" adds its noise to the input, as its parameter does, so that its
expectation is another; with noisy baselines its expectation is ours.
""".splitlines()
