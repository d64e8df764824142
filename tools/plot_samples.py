"""Draws docs/images/samples.svg from ``bench/results/estimators_*.json``: how far scores are off with n samples."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
NAMES = {"embedded": "packaged model", "minilm": "MiniLM, fine-tuned"}


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "fastshap", "svg.fonttype": "none", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, (subject, title) in zip(axes, NAMES.items(), strict=True):
        table = json.loads((ROOT / "bench" / "results" / f"estimators_{subject}.json").read_text())["table"]
        for noise_std, dash in ((0.1, "-"), (0.02, "--")):
            for design, colour, marker in (("iid", "#d6600a", "s"), ("antithetic", "#2166de", "o")):
                values = [100 * table[f"{noise_std} signed {n}"][design] for n in (10, 20, 50)]
                label = f"{design}, noise {noise_std:g}"
                axis.plot((10, 20, 50), values, dash, color=colour, marker=marker, label=label)
        axis.set(title=title, xlabel="samples a text", xscale="log", yscale="log")
        axis.set_xticks((10, 20, 50), ("10", "20", "50"))
        axis.set_yticks((2, 5, 10, 20, 50), ("2 %", "5 %", "10 %", "20 %", "50 %"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error of token scores (RMS)")
    axes[1].legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "samples.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
