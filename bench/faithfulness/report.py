"""The figures as tables for the docs, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.paths import RESULTS, ROOT

PAGE = ROOT / "docs" / "faithfulness.md"
PICTURE = RESULTS / "faithfulness.svg"
BEGIN, END = "<!-- begin: python -m bench faithfulness -->", "<!-- end: python -m bench faithfulness -->"
MAIN = "comprehensiveness at 20 %"
COLUMNS = {
    MAIN: "comprehensiveness",
    "sufficiency at 20 %": "sufficiency",
    "log-odds at 20 %": "log-odds",
    "normalised AOPC comprehensiveness": "normalised AOPC",
    "AOPC sufficiency": "AOPC sufficiency",
}
_CLEARLY = 2.0

Figures = dict[str, Any]


def tables(record: dict[str, Any]) -> str:
    """All subjects and what became of the hypotheses, in Markdown."""
    parts = [_table(its) for its in record["subjects"].values()]
    return "\n\n".join([*parts, _verdicts(record)])


def write(record: dict[str, Any]) -> list[Path]:
    """The tables in the docs, and the picture."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{after}", encoding="utf-8")
    draw(record, PICTURE)
    return [PAGE, PICTURE]


def _table(its: dict[str, Any]) -> str:
    replacements = [*its["results"]]
    first = its["results"][replacements[0]]
    chosen = [label for label in COLUMNS if label in first]
    default = next(iter(its["methods"]))
    arrows = {label: "higher" if first[label]["higher_is_better"] else "lower" for label in chosen}
    heads = ["method", "rows", *(f"{COLUMNS[label]} ({arrows[label]})" for label in chosen)]
    heads += [f"comprehensiveness, {one}" for one in replacements[1:]]
    lines = [_row(heads), _row(["---", "---:", *["---:"] * (len(heads) - 2)])]
    for method, of in its["methods"].items():
        cells = [_cell(first[label], method, default) for label in chosen]
        cells += [_cell(its["results"][one][MAIN], method, default) for one in replacements[1:]]
        lines.append(_row([method, of["rows"], *cells]))
    lost = ", ".join(f"{count} skipped ({why})" for why, count in first[MAIN]["skipped"].items())
    plan, machine, known = its["plan"], its["machine"], its["versions"]
    words = ", ".join(f"{name} {known[name]}" for name in ("torch", "transformers", "interpreto", "captum"))
    said = (
        f"{first[MAIN]['texts']} texts{f'; {lost}' if lost else ''}; {plan['seeds']} seeds of each random method; words are "
        f"replaced by: {replacements[0]}. {its['date']}, {machine['cpu']}, {machine['threads']} thread, {words}, commit "
        f"{its['commit']}."
    )
    return "\n".join([f"#### {its['title']}", "", said, "", *lines])


def _cell(of: Figures, method: str, default: str) -> str:
    """A mean with its standard error; ▲ or ▼ where it is clearly better or worse than the default, paired by text."""
    one = of["methods"][method]
    if one["mean"] is None:
        return "–"
    sign = "" if method == default else _sign(one, of["higher_is_better"])
    return f"{one['mean']:.3f} ± {one['standard_error'] or 0:.3f}{sign}"


def _sign(one: Figures, higher: bool) -> str:
    difference, error = one["difference"], one["difference_standard_error"]
    if difference is None or error is None or abs(difference) <= _CLEARLY * error:
        return ""
    return " ▲" if (difference > 0) == higher else " ▼"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _verdicts(record: dict[str, Any]) -> str:
    lines = [
        _row(["said before the run", "model, replacement", "difference ± standard error", "verdict"]),
        _row(["---"] * 2 + ["---:", "---"]),
    ]
    for stated in record["hypotheses"]:
        said = stated["text"]
        for its in record["subjects"].values():
            for one in its["claims"]:
                if one["name"] == stated["name"]:
                    place, figure = (
                        f"{its['title']}, {one['replacement']}",
                        f"{one['difference']:+.3f} ± {one['standard_error']:.3f}",
                    )
                    lines.append(_row([said, place, figure, one["verdict"]]))
                    said = ""
        if said:
            lines.append(_row([said, "–", "–", "not measured"]))
    return "\n".join(["#### Hypotheses", "", *lines])


_COLOURS = {"fastshap": "#0072B2", "captum": "#E69F00", "integrated": "#CC79A7", "interpreto": "#D55E00"}


def draw(record: dict[str, Any], path: Path) -> None:
    """The paired difference from fastshap's default, a panel a subject; the same bytes for the same record."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    subjects = record["subjects"]
    methods = list(dict.fromkeys(m for its in subjects.values() for m in its["methods"]))
    settings: Any = {"svg.hashsalt": "fastshap", "svg.fonttype": "path", "font.size": 8, "font.family": "DejaVu Sans"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(2.6 * len(subjects) + 2.6, 0.19 * len(methods) + 1.1), layout="constrained")
        panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
        for panel, its in zip(panels, subjects.values(), strict=True):
            _panel(panel, its, methods)
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].invert_yaxis()
        figure.supxlabel(
            "comprehensiveness at 20 %: difference from fastshap's default, ± 2 standard errors", fontsize=8
        )
        figure.savefig(path, metadata={"Date": None})


def _panel(panel: Any, its: dict[str, Any], methods: list[str]) -> None:
    replacement, found = next(iter(its["results"].items()))
    for place, method in enumerate(methods):
        one = found[MAIN]["methods"].get(method)
        if one is None or one["difference"] is None:
            continue
        colour = _COLOURS.get(method.split()[0].rstrip(","), "#777777")
        error = 2 * (one["difference_standard_error"] or 0)
        panel.errorbar(one["difference"], place, xerr=error, fmt="o", color=colour, markersize=4, linewidth=1.2)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_title(f"{its['title']}\n({replacement})", fontsize=7.5)
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.02)
