"""Draws the picture of a generation's page in README from a real explanation: ``python -m tools.page_image``.

It takes SmolLM2-135M, Chromium with its driver, and selenium (the extra ``browser``).
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import fastshap
from tools.assets import smollm2_dir

PROMPT, TARGET = "The capital of France is", " Paris, and the capital of Italy is Rome."
CHOSEN, POINTED_AT = "Rome", "Italy"
SAMPLES = 200
OUT = Path(__file__).parent.parent / "docs" / "images" / "page.png"
_WIDTH, _HEIGHT = 840, 530


def explained() -> fastshap.AttributionOutput:
    """The probabilities of the words that the model wrote."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir())
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir())
    explainer = fastshap.GradientShap(
        model, tokenizer, "auto", inference_mode="softmax", n_perturbations=SAMPLES, noise_std=0.1
    )
    (output,) = explainer(PROMPT, TARGET)
    return output


def photographed(page: Path) -> bytes:
    """The page with a target chosen, a word in focus and its settings unfolded, as PNG."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        size = {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": 2, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        named = lambda tag, text: next(  # noqa: E731
            one for one in browser.find_elements(By.CSS_SELECTOR, tag) if one.is_displayed() and one.text == text
        )
        named("label bdi", CHOSEN).click()
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        browser.execute_script("arguments[0].focus({focusVisible: true})", named("[tabindex='0']", POINTED_AT))
        picture: Any = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        return base64.b64decode(picture["data"])
    finally:
        browser.quit()


def main() -> None:
    """Writes docs/images/page.png, and prints how reliable each target's scores are."""
    output = explained()
    for name, share in zip(output.target_names, output.reliability.tolist(), strict=True):
        print(f"{name!r}: reliability {share:.2f}")
    with tempfile.TemporaryDirectory() as place:
        page = Path(place, "page.html")
        output.to_html(page, title="What each generated word draws on")
        OUT.write_bytes(photographed(page))


if __name__ == "__main__":
    main()
