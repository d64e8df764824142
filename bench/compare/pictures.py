"""What was found, in two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.compare.tables import made_on
from bench.compare.verdicts import Found, is_known

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
            if not is_known(its):
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
