"""Do outputs that say ``converged`` keep their word, and how many samples does that save?

``python -m bench.studies.adaptive`` explains 200 held-out sentences with the packaged model under rtol=0.05, and compares
with a reference of 3,000 samples a text from another seed. Writes ``bench/results/adaptive.json``.
"""

from __future__ import annotations

import json
import platform

import torch
import transformers

import fastshap
from bench.models import subject
from bench.paths import RESULTS

RTOL, TEXTS, REFERENCE = 0.05, 200, 3000


def main() -> None:
    chosen = subject("embedded", TEXTS)
    pair = chosen.model, chosen.tokenizer
    adaptive = fastshap.GradientShap(*pair, "auto", rtol=RTOL)(chosen.texts)
    targets = [output.targets.tolist() for output in adaptive]
    reference = fastshap.GradientShap(*pair, "auto", n_perturbations=REFERENCE, seed=1)(chosen.texts, targets)
    largest_error, at_worst, everywhere, used = [], [], [], []
    for output, truth in zip(adaptive, reference, strict=True):
        used.append(output.n_perturbations)
        if not output.converged:
            continue
        error, standard = (output.attributions - truth.attributions).abs()[0], output.standard_error[0]
        largest_error.append(bool(error.max() <= 2 * RTOL * output.attributions.abs().max()))
        worst = int(standard.argmax())
        at_worst.append(bool(error[worst] <= 2 * standard[worst]))
        everywhere.append(bool((error <= 2 * standard).all()))
    count = len(at_worst)
    record = {
        "what": f"rtol={RTOL} on {TEXTS} texts, rounds of 10 samples, packaged model, WORD, MEAN",
        "converged": count,
        "largest error within 2 rtol of the largest score": sum(largest_error) / count,
        "element of the largest standard error within 2 standard errors": sum(at_worst) / count,
        "all elements within 2 standard errors": sum(everywhere) / count,
        "mean samples": sum(used) / TEXTS,
        "median samples": sorted(used)[TEXTS // 2],
        "samples that 95 % of the texts needed": sorted(used)[int(0.95 * TEXTS) - 1],
        "most samples": max(used),
        "reference error": float(
            torch.stack([(r.standard_error / r.attributions.abs().max()).max() for r in reference]).median()
        ),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (RESULTS / "adaptive.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
