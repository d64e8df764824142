"""Draws the picture of a pair's page in docs/tasks.md from a real explanation: ``python -m tools.pair_image``.

It takes MiniLM and Chromium.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

import fastshap
from tools.assets import minilm_dir

PAIR = ("A gorgeous film, but far too long.", "What a beautiful movie!")
SAMPLES = 100
OUT = Path(__file__).parent.parent / "docs" / "images" / "pair.png"
_SIZE = "840,330"


def main() -> None:
    """Writes the picture."""
    model = AutoModel.from_pretrained(minilm_dir())
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    (output,) = fastshap.GradientShap(model, tokenizer, "auto", n_perturbations=SAMPLES)([PAIR])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        output.to_html(page, title="Similarity of two texts")
        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=2",
        )
        subprocess.run(
            ["chromium", *flags, f"--screenshot={OUT}", f"--window-size={_SIZE}", page.as_uri()],
            check=True,
            capture_output=True,
        )


if __name__ == "__main__":
    main()
