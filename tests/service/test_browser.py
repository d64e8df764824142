"""The page at / in Chromium, under its own policy: by keyboard, wide and narrow, light and dark."""

import os
import shutil

import pytest

from helpers.pages import EVIL
from helpers.services import Process, wait_until

pytestmark = [
    pytest.mark.serve,
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium"),
]


@pytest.fixture(scope="module")
def service():
    with Process("--n-perturbations", "60") as process:
        yield process


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync"),
        *("disable-component-update", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(params=[(1280, "light"), (400, "dark")], ids=str)
def page(request, driver, service):
    width, scheme = request.param
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(f"{service.address}/")
    yield driver
    assert driver.get_log("browser") == []  # where a policy that was broken shows
    if kept := os.environ.get("FASTSHAP_SCREENSHOTS"):
        driver.save_screenshot(f"{kept}/page-{width}-{scheme}-{request.function.__name__}.png")


def type_in(driver, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(driver).send_keys(getattr(Keys, key) if key.isupper() else key).perform()


def shown(driver, selector):
    wait_until(lambda: driver.find_elements("css selector", selector), 20)
    return driver.find_elements("css selector", selector)


def said(driver):
    return driver.execute_script("return document.getElementById('result').innerText")


def look(driver, element):
    return driver.execute_script(
        "const look = getComputedStyle(arguments[0]); return [look.color, look.backgroundColor]", element
    )


def fits(driver):
    return driver.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_text_is_typed_and_coloured_by_keyboard_alone(page):
    type_in(page, "not a gorgeous film", "ENTER")
    words = shown(page, "#result .s > [tabindex]")
    assert [word.text for word in words] == ["not", "a", "gorgeous", "film"]
    coloured = [word for word in words if look(page, word)[1] != "rgba(0, 0, 0, 0)"]
    assert coloured
    assert shown(page, "#result")[0].get_attribute("aria-live") == "polite"
    assert fits(page)
    focused = page.switch_to.active_element
    assert focused.get_attribute("id") == "text"  # ready for the next text
    type_in(page, "TAB", "TAB", "negative", "TAB", "ENTER")  # past the second text to the target, then the button
    wait_until(lambda: "supports negative" in said(page), 20)
    ink, paper = look(page, page.find_element("tag name", "body"))
    assert ink != paper


def test_what_is_wrong_is_said(page):
    type_in(page, "TAB", "TAB", "nobody", "TAB", "SPACE")
    wait_until(lambda: "Type a text first" in said(page), 20)
    page.find_element("id", "text").send_keys("A film.")
    page.find_element("css selector", "button").click()
    wait_until(lambda: "no label 'nobody'" in said(page), 20)
    assert fits(page)
    assert [one["source"] for one in page.get_log("browser")] == ["network"]  # the 422


def test_hostile_texts_stay_texts(page):
    field = page.find_element("id", "text")
    for text in EVIL[:4]:
        field.clear()
        field.send_keys(text)
        page.find_element("css selector", "button").click()
        wait_until(lambda text=text: text in said(page), 20)
    assert page.execute_script("return window.ran") is None
    assert fits(page)
