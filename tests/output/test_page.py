"""The HTML page: what it holds, read with a parser, and what a browser makes of it."""

import contextlib
import copy
import dataclasses
import http.server
import io
import re
import sys
import threading
import time
import tracemalloc
import unicodedata

import pytest
import torch
from transformers import BatchEncoding

import fastshap
from fastshap.models.provenance import Provenance
from fastshap.output.record import Record
from fastshap.output.render import style
from fastshap.output.render.markup import marked
from fastshap.output.render.page import fragment, write_page
from fastshap.settings import DEFAULTS, Settings
from fastshap.types import CustomMode, Granularity, GranularityAggregationStrategy, InferenceModes, ModelTask
from helpers.pages import EVIL, Parsed


def record_of(text, targets=("positive",), /, **changes):
    """Elements are what white space parts; scores fall from 1 and alternate in sign."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    steps = torch.arange(len(spans))
    scores = torch.stack([(1 - 2 * ((steps + t) % 2)) / (steps + 1 + t) for t in range(len(targets))])
    fields = {
        "attributions": scores,
        "elements": [text[a:b] for a, b in spans],
        "model_inputs_to_explain": BatchEncoding({}),
        "targets": torch.arange(len(targets)),
        "model_task": ModelTask.CLASSIFICATION,
        "target_names": list(targets),
        "standard_error": scores.abs() / 100,
        "degrees_of_freedom": 9,
        "unassigned": torch.zeros(len(targets)),
        "text": text,
        "element_spans": spans,
    }
    given = {name: changes.pop(name) for name in changes.keys() & DEFAULTS.keys()}
    return Record(settings=unchecked(Settings(), given), **fields | changes)


def unchecked(settings, changes):
    """Settings with anything in them, as if checks had failed."""
    own = copy.copy(settings)
    for name, value in changes.items():
        object.__setattr__(own, name, value)
    return own


def with_settings(record, **changes):
    return dataclasses.replace(record, settings=unchecked(record.settings, changes))


def failed(message, text=""):
    nothing = torch.zeros(0, 0)
    changes = {
        "elements": [],
        "element_spans": [],
        "target_names": [],
        "attributions": nothing,
        "standard_error": nothing,
    }
    return record_of(text, error=message, **changes)


def generation(prompt, target, **changes):
    """Each word of the target sees what stands before it."""
    count, words = len(prompt.split()), len(target.split())
    hidden = torch.ones(words, count + words, dtype=torch.bool).triu(count)
    record = record_of(f"{prompt} {target}", target.split(), model_task=ModelTask.GENERATION, **changes)
    record.attributions = record.attributions.masked_fill(hidden, torch.nan)
    record.standard_error = record.standard_error.masked_fill(hidden, torch.nan)
    return record


def everything_evil():
    """Untrusted text wherever it can stand."""
    for text in EVIL:
        origin = Provenance(*[text] * 8, versions={text: text})
        yield record_of(text, [text, text[::-1]], provenance=origin, sampling=text)
        yield record_of(
            text, [text], probability=0.5, predicted_label=text, text="", element_spans=[], provenance=origin
        )
        chips = record_of(f"{text} b")
        yield dataclasses.replace(
            chips, elements=[text] * len(chips.elements), element_spans=[(0, 0)] * len(chips.elements)
        )
        yield failed(text, text)
    yield generation(" ".join(EVIL), " ".join(EVIL))


def page_of(*records, **options):
    file = io.StringIO()
    write_page(records, file, **options)
    return file.getvalue()


def test_words_stand_in_the_text_with_their_scores():
    record = record_of("  Not  good,\tat\n\nall! ", ["positive", "negative"])
    found = Parsed(page_of(record))
    assert found.sentences == [record.text, record.text]
    assert [word for word, _ in found.words] == ["Not", "good,", "at", "all!"] * 2
    exact = [attrs["aria-description"] for _, attrs in found.words]
    assert exact[:3] == ["+1 ± 0.01", "−0.5 ± 0.005", "+0.333333 ± 0.00333"]
    assert [attrs.get("class") for _, attrs in found.words] == ["p8", "n4", "p3", "n2", "n8", "p5", "n4", "p3"]
    assert all(attrs["tabindex"] == "0" for _, attrs in found.words)


def test_small_scores_are_not_shaded_and_zeros_have_no_sign():
    record = record_of("a b c", attributions=torch.tensor([[1.0, -0.01, -0.0]]), standard_error=torch.zeros(0, 0))
    words = Parsed(page_of(record)).words
    assert [attrs.get("class") for _, attrs in words] == ["p8", None, None]
    assert [attrs["aria-description"] for _, attrs in words] == ["+1", "−0.01", "+0"]


def test_infinite_scores():
    record = record_of("a b c", attributions=torch.tensor([[torch.inf, 1.0, -torch.inf]]))
    assert [attrs.get("class") for _, attrs in Parsed(page_of(record)).words] == ["p8", None, "n8"]


def test_all_scores_zero():
    record = record_of("a b", attributions=torch.zeros(1, 2), standard_error=torch.zeros(1, 2))
    assert [attrs.get("class") for _, attrs in Parsed(page_of(record)).words] == [None, None]


def test_several_targets_open_on_the_predicted_one_with_every_probability():
    labels = ["joy", "fear", " anger"]
    predicted = {
        "predicted_label": "fear",
        "probability": 0.75,
        "target_probabilities": torch.tensor([0.125, 0.75, 0.0625]),
    }
    found = Parsed(page_of(record_of("not good", labels, **predicted)))
    radios = [attrs for tag, attrs in found.tags if tag == "input"]
    assert ["checked" in attrs for attrs in radios] == [False, True, False]
    for shown in ("joy 0.125", "fear 0.750", "anger 0.062", "predicted fear, probability 0.750"):
        assert shown in found.text
    elsewhere = page_of(record_of("not good", labels[::2], predicted_label="fear", probability=0.75))
    radios = [attrs for tag, attrs in Parsed(elsewhere).tags if tag == "input"]
    assert ["checked" in attrs for attrs in radios] == [True, False]


def test_the_probability_of_a_target_that_was_not_predicted():
    predicted = {"predicted_label": "fear", "probability": 0.75, "target_probabilities": torch.tensor([0.125])}
    text = Parsed(page_of(record_of("not good", ["joy"], **predicted))).text
    assert "predicted fear, probability 0.750" in text
    assert "probability of this target 0.125" in text


@pytest.mark.parametrize(
    ("mode", "called"),
    [
        (InferenceModes.LOGITS, "explains the logit;"),
        (InferenceModes.SOFTMAX, "explains the probability;"),
        (InferenceModes.LOG_SOFTMAX, "explains the log-probability;"),
        (torch.sigmoid, "explains the score of sigmoid;"),
    ],
)
def test_the_page_says_what_the_numbers_are(mode, called):
    assert called in Parsed(page_of(record_of("not good", inference_mode=mode))).text


def test_settings_that_are_markup_are_text():
    evil = '"><script>ran=1</script>'
    source = fragment(record_of("not good", n_perturbations=evil, inference_mode=CustomMode(evil)), "one")
    assert "<script" not in source
    assert evil in Parsed(source).text


def test_a_function_s_name_stays_within_its_comment():
    """People copy the settings and run them; a name out of a file must not become a line of its own."""
    page = page_of(record_of("not good", inference_mode=CustomMode("mine\nimport os\u2028os.abort()")))
    (code,) = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    assert [line[:1] for line in code.splitlines()] == ["f", "#"]


def test_the_scale_is_each_targets_own():
    text = Parsed(page_of(record_of("not good", ["joy", "fear"]))).text
    assert "opposes −1  +1 supports joy" in text
    assert "opposes −0.5  +0.5 supports fear" in text


def test_unsigned_scores():
    record = record_of("not good", attributions=torch.tensor([[2.0, 1.0]]), reduction="abs_mean")
    found = Parsed(page_of(record))
    assert "0  2 larger weighs more for positive" in found.text
    assert "opposes" not in found.text
    assert [attrs["aria-description"] for _, attrs in found.words] == ["2 ± 0.01", "1 ± 0.005"]


def test_elements_without_characters_of_their_own_are_chips():
    record = record_of(
        "good 🙂!",
        attributions=torch.tensor([[0.0, 1, 2, 3, 4, 5]]),
        standard_error=torch.full((1, 6), torch.nan),
        elements=["[CLS]", "good", "🙂", "🙂", "!", "[SEP]"],
        element_spans=[(0, 0), (0, 4), (5, 6), (5, 6), (6, 7), (0, 0)],
        granularity=Granularity.ALL_TOKENS,
    )
    found = Parsed(page_of(record))
    assert found.sentences == ["good 🙂!"]
    assert [attrs.get("aria-label", word) for word, attrs in found.words] == record.elements
    assert [word for word, _ in found.words] == ["", "good", "🙂", "", "!", ""]
    assert "one score per token;" in found.text


def test_white_space_counted_to_an_element_is_not_shaded():
    record = record_of("a  b\n\n", elements=["a", "  b", "\n\n"], element_spans=[(0, 1), (1, 4), (4, 6)])
    record.attributions = record.standard_error = torch.ones(1, 3)
    found = Parsed(page_of(record))
    assert [word for word, _ in found.words] == ["a", "b", "\n\n"]
    assert found.sentences == ["a  b\n\n"]


def test_overlapping_spans_and_spans_past_the_end_lose_no_text():
    record = record_of("abcdef", elements=["abc", "bcd", "x"], element_spans=[(0, 3), (1, 4), (9, 12)])
    record.attributions = record.standard_error = torch.ones(1, 3)
    found = Parsed(page_of(record))
    assert found.sentences == ["abcdef"]
    assert [word for word, _ in found.words] == ["abc", "d", ""]


def test_without_a_text_the_elements_are_joined():
    for changes in ({"text": ""}, {"element_spans": []}):
        assert Parsed(page_of(record_of("not good", **changes))).sentences == ["not good"]


def test_generated_words_choose_what_is_shown():
    record = generation("The capital is", "Paris of course")
    found = Parsed(page_of(record))
    radios = [attrs for tag, attrs in found.tags if tag == "input"]
    labels = [attrs for tag, attrs in found.tags if tag == "label"]
    assert [attrs["id"] for attrs in radios] == [attrs["for"] for attrs in labels]
    assert len({attrs["name"] for attrs in radios}) == 1
    assert ["checked" in attrs for attrs in radios] == [True, False, False]
    assert found.sentences == [record.text] * 3
    seen = ["The", "capital", "is"]
    assert [word for word, _ in found.words] == [*seen, *seen, "Paris", *seen, "Paris", "of"]
    own = [attrs for tag, attrs in found.tags if attrs.get("class") == "own"]
    faint = [attrs for tag, attrs in found.tags if tag == "span" and attrs.get("class") == "f"]
    assert (len(own), len(faint)) == (3, 2 + 1 + 0 + 3)  # the legend's three too
    assert "nan" not in found.text.lower()


def test_many_targets_need_no_more_rules():
    small, large = (fragment(generation("a", " ".join("b" * n)), "x") for n in (2, 60))
    assert re.findall("<style>.*?</style>", small) == re.findall("<style>.*?</style>", large)
    assert large.count("<input") == 60


def test_names_of_white_space_can_be_chosen():
    found = Parsed(page_of(record_of("a b", ["\n", " "])))
    assert "↵" in found.text
    assert "␣" in found.text


def test_the_line_below_says_how():
    record = record_of(
        "not good",
        granularity_aggregation_strategy=GranularityAggregationStrategy.SUM,
        unassigned=torch.tensor([-0.25]),
        convergence_delta=torch.tensor([0.003]),
        n_perturbations=10,
        rounds=4,
        rtol=0.05,
        max_perturbations=640,
        converged=True,
        truncated=True,
    )
    text = Parsed(page_of(record)).text
    assert (
        "explains the logit; one score per word (sum of its tokens); 40 samples in 4 rounds; within rtol 0.05; "
        "elsewhere −0.25; convergence delta +0.003; reliability 1.00; the text was cut to what the model takes" in text
    )
    assert (
        "rtol 0.05 not met within max_perturbations=640"
        in Parsed(page_of(dataclasses.replace(record, converged=False))).text
    )
    plain = Parsed(page_of(record_of("not good"))).text
    assert "one score per word (mean of its tokens); 10 samples; reliability 1.00\nSettings" in plain


def test_what_was_not_explained_says_why():
    found = Parsed(page_of(failed("ValueError: too <b>long</b>", "a text"), failed("no text at all")))
    assert "not explained: ValueError: too <b>long</b>" in found.text
    assert found.sentences == ["a text"]
    assert "Settings" not in found.text
    assert 'on_error="record"' in Parsed(page_of(failed("empty"), record_of("a b"))).text


def test_captions():
    record = record_of("not good", probability=0.8184, predicted_label="positive")
    found = Parsed(page_of(record, record, captions=[None, "<i>mine</i>"], title="A & B"))
    assert found.text.count("predicted positive, probability 0.818") == 1
    assert "predicted" not in Parsed(page_of(record_of("not good"))).text
    assert "<i>mine</i>" in found.text
    assert found.text.startswith("A & B")
    with pytest.raises(ValueError, match="shorter"):
        page_of(record, record, captions=["one"])


def test_ids_stand_in_place_of_numbers():
    record, evil = record_of("not good"), "<i>\x07</i>"
    found = Parsed(page_of(("r-17", record), (8, record), (evil, record), record))
    named = [attrs.get("class") for tag, attrs in found.tags if tag == "article"]
    assert named == ["i", "i", "i", None]
    assert "r-17" in found.text
    assert "<i>" in found.text
    assert "\x07" not in page_of((evil, record)).replace('data-u="U+0007">\x07', "")
    assert ":not(.i)::before{content:counter(text)" in page_of(record)


def test_the_call_names_what_is_not_a_default():
    assert "fastshap.GradientShap(model, tokenizer)" in page_of(record_of("a b", baseline=0.0))
    record = record_of(
        "a b",
        granularity=Granularity.TOKEN,
        inference_mode=InferenceModes.SOFTMAX,
        n_perturbations=20,
        rounds=3,
        rtol=0.1,
        max_perturbations=64 * 20,
        baseline=torch.zeros(2),
        seed=7,
        convergence_delta=torch.zeros(1),
        perturb_special_tokens=False,
    )
    assert (
        'fastshap.GradientShap(model, tokenizer, granularity="token", inference_mode="softmax", n_perturbations=20, '
        "baseline=baseline, seed=7, rtol=0.1, perturb_special_tokens=False, return_convergence_delta=True)\n"
        "# baseline: a tensor of shape (2,), SHA-256 in float64 374708fff7719dd5" in Parsed(page_of(record)).text
    )
    assert "max_perturbations=99," in page_of(with_settings(record, max_perturbations=99))
    assert 'baseline="[MASK]"' in Parsed(page_of(with_settings(record, baseline="[MASK]"))).text
    of_a_set = page_of(with_settings(record, baseline=fastshap.BaselineSet(["a", "b"])))
    assert "# baseline: a fastshap.BaselineSet of 2 texts, fingerprint " in of_a_set
    own = page_of(with_settings(record, inference_mode=torch.sigmoid))
    assert "inference_mode=inference_mode," in own
    assert "# inference_mode: your own sigmoid" in own


def test_each_combination_of_settings_once_and_twenty_at_most():
    different = [record_of("a b", seed=i % 30) for i in range(90)]
    assert page_of(*different[:20], *different[30:50]).count("<pre>") == 20
    assert "There are more" not in page_of(*different[:20], *different[30:50])
    assert page_of(*different).count("<pre>") == 20
    assert "There are more" in page_of(*different)
    same = [record_of("a b", n_perturbations=10, rounds=n, rtol=0.1, max_perturbations=640) for n in (1, 2, 5)]
    assert page_of(*same).count("<pre>") == 1


def test_provenance_is_listed():
    names = ("model", "model_class", "model_fingerprint", "tokenizer_class", "tokenizer_fingerprint")
    names += ("dtype", "attention", "device")
    values = ("mine", "BertModel", "00ff", "BertTokenizer", "ff00", "float32", "sdpa", "cpu")
    origin = Provenance(**dict(zip(names, values, strict=True)), versions={"torch": "2.9"})
    text = Parsed(page_of(record_of("a b", provenance=origin))).text
    assert "modelmine, BertModelweights00fftokenizerBertTokenizer, ff00" in text
    assert "computed infloat32, sdpa attention, cpuversionstorch 2.9" in text
    assert "<dl>" not in page_of(record_of("a b"))


def test_an_explainers_own_outputs(default_pair):
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=4, seed=5, granularity="all_tokens")
    texts = ["not good at all", "A gorgeous, witty film 🙂, but\tthe ending…"]
    outputs = explainer(texts)
    found = Parsed(page_of(*outputs))
    assert found.sentences == texts
    assert found.text.count("predicted ") == 2
    assert [attrs.get("aria-label") or word for word, attrs in found.words[:6]] == outputs[0].elements
    call = re.search(r"fastshap\.GradientShap\(.*?\)", found.text)[0]
    again = eval(call, {"fastshap": fastshap, "model": default_pair[0], "tokenizer": default_pair[1]})
    assert torch.equal(again(texts[0])[0].attributions, outputs[0].attributions)


def test_an_explainers_own_generation(llama_pair):
    outputs = fastshap.GradientShap(*llama_pair, n_perturbations=4)(["The acting was"], targets=["superb! Would I"])
    found = Parsed(page_of(*outputs))
    assert set(found.sentences) == {outputs[0].text}
    assert len(found.sentences) == len(outputs[0].attributions)


def possible(text):
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def test_nothing_untrusted_becomes_markup():
    records = list(everything_evil())
    found = Parsed(page_of(*records, title="".join(EVIL), captions=[*EVIL, *[None] * (len(records) - len(EVIL))]))
    assert {tag for tag, _ in found.tags} == set(
        "html head meta title style body main h1 article p span i bdi div input label details summary pre code dl dt dd".split()
    )
    assert {name for _, attrs in found.tags for name in attrs} == set(
        "lang charset http-equiv content name class dir id tabindex aria-description aria-label role data-u type checked for "
        "open".split()
    )
    texts = (
        [possible(record.text or " ".join(record.elements))] * max(1, len(record.attributions)) for record in records
    )
    assert found.sentences == [text for each in texts for text in each]


def test_what_is_not_seen_is_marked_and_nothing_else():
    every = [chr(i) for i in range(1, sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    boxed = {char for char in every if "data-u" in marked(char)}
    unseen = {char for char in every if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")}
    signs = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
    assert unseen - boxed == set("\t\n\u200c\u200d") | signs
    assert all(unicodedata.category(char) in ("Cn", "Lo", "Mn", "So") for char in boxed - unseen)
    assert "data-u" not in marked("a\r\nb")
    for text in ("a\0b\ud800", "".join(every)):
        assert Parsed(page_of(record_of(text, elements=[], element_spans=[], attributions=torch.zeros(1, 0)))).sentences
        page_of(failed(text, text), title=text).encode()


def test_every_rule_is_for_our_class_alone():
    style = re.search("<style>(.*?)</style>", fragment(record_of("a b"), "x"))[1]
    inner = re.sub(r"@(media|supports)[^{]*\{", "", style)
    selectors = [rule.split("{")[0] for rule in inner.split("}") if rule]
    assert len(selectors) > 50
    assert all(selector.strip().startswith(".fastshap:not(#_)") for selector in selectors)


def test_text_stands_out_from_every_shade():
    for palette in (style.LIGHT, style.DARK):
        pairs = re.findall("background-color: (#.{6}); color: #(.)", style.colours(palette))
        assert len(pairs) == 16
        for shade, ink in pairs:
            light = style.luminance(bytes.fromhex(shade[1:]))
            assert max(1.05 / (light + 0.05) * (ink == "f"), (light + 0.05) / 0.05 * (ink == "0")) > 4.5
        paper, ink, quiet, faint = (
            style.luminance(bytes.fromhex(palette[n][1:])) for n in ("paper", "ink", "quiet", "faint")
        )
        for colour, least in ((ink, 12), (quiet, 4.5), (faint, 4)):
            low, high = sorted((paper, colour))
            assert (high + 0.05) / (low + 0.05) > least


def test_the_same_bytes_for_the_same_records():
    def build():
        return page_of(*everything_evil(), generation("a b", "c d"))

    assert build() == build()


def test_fragments_on_one_page_do_not_share_names():
    record = generation("a b", "c d")
    one, two = (Parsed(fragment(record, name)) for name in ("first", 'se"cond'))
    assert {a["name"] for tag, a in one.tags if tag == "input"} == {"first"}
    assert {a["name"] for tag, a in two.tags if tag == "input"} == {'se"cond'}
    assert one.tags[0] == ("div", {"class": "fastshap"})
    assert "Settings" not in one.text


WORDS = "the a film book plot is was were and but very truly dull witty good bad slow bright end start".split()


def many(count, words=20):
    for i in range(count):
        text = " ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(words))
        yield record_of(text, probability=0.5 + i % 500 / 1000)


class Nowhere(io.StringIO):
    def write(self, text):
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)


def peak(count):
    tracemalloc.start()
    write_page(many(count), Nowhere())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_number_of_records():
    peak(10)
    assert peak(1500) < peak(50) + 100_000


def test_a_thousand_texts_take_less_than_5_mb():
    assert len(page_of(*many(1000)).encode()) < 5_000_000


# In a browser.


class Pages(http.server.BaseHTTPRequestHandler):
    """Pages held in memory, under the strictest policy; what was asked for is kept."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.pages.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        if self.server.policy:
            self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(body or b"")

    do_POST = do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    served.pages, served.asked, served.policy = {}, [], True
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def visit(browser, server):
    """Opens a page in a window of a width; the browser."""

    def opened(source, width=1000):
        server.pages["/page"] = source.encode()
        server.asked.clear()
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(f"http://127.0.0.1:{server.server_port}/page")
        return browser

    yield opened
    server.policy = True
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def shown(browser, selector):
    return [element for element in find(browser, selector) if element.is_displayed()]


def press(browser, key, times=1):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for _ in range(times):
        ActionChains(browser).send_keys(getattr(Keys, key)).perform()
    return browser.switch_to.active_element


def tooltip(browser, element):
    """The box (left, top, right, bottom) of what stands at the focused element, in pixels of the window, or None."""
    browser.execute_cdp_cmd("DOM.enable", {})
    browser.execute_cdp_cmd("DOM.getDocument", {"depth": 0})
    browser.execute_script("arguments[0].id = 'asked'", element)
    held = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": "document.getElementById('asked')"})["result"]
    node = browser.execute_cdp_cmd("DOM.describeNode", {"objectId": held["objectId"]})["node"]
    browser.execute_script("arguments[0].removeAttribute('id')", element)
    after = [one for one in node.get("pseudoElements", []) if one["pseudoType"] == "after"]
    if not after:
        return None
    model = browser.execute_cdp_cmd("DOM.getBoxModel", {"backendNodeId": after[0]["backendNodeId"]})["model"]
    xs, ys = model["border"][::2], model["border"][1::2]
    return min(xs), min(ys), max(xs), max(ys)


def fits(browser):
    return browser.execute_script(
        "const page = document.documentElement; return page.scrollWidth <= page.clientWidth && scrollX == 0"
    )


@pytest.mark.browser
@pytest.mark.parametrize("targets", [["positive"], ["joy", "fear"]])
def test_what_may_be_zero_gets_its_colour_by_the_keyboard(visit, targets):
    record = record_of("not good at all", targets)
    record.standard_error = record.attributions.abs() * torch.tensor([0.01, 10, 0.01, 10])
    browser = visit(page_of(record))

    def looks():
        """Whether each word that is shown has a background and a line below."""
        return browser.execute_script(
            "return [...document.querySelectorAll('.s > [tabindex]')].filter(e => e.offsetParent).map(e => {"
            "const look = getComputedStyle(e); return [look.backgroundColor, look.borderBottomColor].map("
            "colour => colour !== 'rgba(0, 0, 0, 0)')})"
        )

    assert looks() == [[True, True], [False, False]] * 2
    switch = press(browser, "TAB")
    assert switch.get_attribute("type") == "checkbox"
    (label,) = shown(browser, "label.l")
    assert label.value_of_css_property("outline-style") == "solid"
    press(browser, "SPACE")
    assert looks() == [[True, True]] * 4
    label.click()
    assert looks() == [[True, True], [False, False]] * 2
    browser = visit(page_of(record, uncertain=True))
    assert looks() == [[True, True]] * 4


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False])
def test_nothing_runs_and_nothing_is_fetched(visit, server, policy):
    from selenium.common.exceptions import NoAlertPresentException

    records = list(everything_evil())
    source = page_of(*records, title="".join(EVIL), captions=[*EVIL, *[None] * (len(records) - len(EVIL))])
    server.policy = policy
    if not policy:  # nor where nothing forbids it
        source, count = re.subn("<meta http-equiv=.*?>", "", source)
        assert count == 1
    browser = visit(source)
    for element in find(browser, "label, .s > [tabindex]")[:80]:
        browser.execute_script("arguments[0].focus(); arguments[0].click()", element)
    time.sleep(0.3)
    with contextlib.suppress(NoAlertPresentException):
        pytest.fail(browser.switch_to.alert.text)
    assert browser.execute_script("return typeof window.ran") == "undefined"
    assert set(server.asked) <= {"/page", "/favicon.ico"}
    assert browser.title.startswith(EVIL[0])


@pytest.mark.browser
def test_the_sentence_is_the_text(visit):
    texts = [
        *EVIL,
        "  two  spaces\n\n\n",
        "\n first",
        "nul \0 and \ud83d half",
        "שלום, עולם (abc) 12.5!",
        "مرحبا\u200cبالعالم",
    ]
    wanted = [possible(text) for text in texts]
    browser = visit(page_of(*map(record_of, texts)))
    assert browser.execute_script("return [...document.querySelectorAll('.s')].map(e => e.textContent)") == wanted
    for record in everything_evil():
        browser = visit(fragment(record, "one"))
        found = browser.execute_script("return [...document.querySelectorAll('.s')].map(e => e.textContent)")
        assert set(found) == {possible(record.text) or possible(" ".join(record.elements))}


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_scrolling_to_the_side_on_a_telephone(visit, browser, scheme):
    long = "x" * 300
    origin = Provenance(*[long] * 8, versions={"torch": long})
    records = [
        *everything_evil(),
        record_of(f"{long} b", [long, long], provenance=origin, sampling=long, convergence_delta=torch.zeros(2)),
        record_of("a b", elements=[long, long], element_spans=[(0, 0), (0, 0)]),
        failed(long, long),
        generation(" ".join(WORDS), " ".join(WORDS)),
    ]
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    visit(page_of(*records, title=long, captions=[long] * len(records)), width=400)
    assert fits(browser)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(24, 26, 30)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.browser
def test_scores_are_shown_by_keyboard_inside_the_window(visit):
    right_to_left = "مرحبا بالعالم هذا اختبار طويل بعض الشيء ليملأ أكثر من سطر واحد في الشاشة الضيقة"
    records = [*many(1, words=15), record_of(right_to_left), record_of("a b", elements=["[CLS]", "b"])]
    records[2].element_spans = [(0, 0), (2, 3)]
    browser = visit(page_of(*records), width=400)
    words = find(browser, ".s > [tabindex]")
    assert all(tooltip(browser, word) is None for word in words[:3])
    for word, record_word in zip(words, Parsed(page_of(*records)).words, strict=True):
        assert press(browser, "TAB") == word
        assert word.text == record_word[0]
        shown_by = browser.execute_script("return getComputedStyle(arguments[0], '::after').content", word)
        assert record_word[1]["aria-description"] in shown_by
        assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", word) == "solid"
        left, top, right, bottom = tooltip(browser, word)
        assert 0 <= left < right <= 400
        assert fits(browser)
        box = browser.execute_script("return [...arguments[0].getClientRects()].pop().toJSON()", word)
        assert top >= box["bottom"] - 1
        assert top < box["bottom"] + 20
        assert left <= box["right"]
        assert right >= box["left"]
        assert bottom <= browser.execute_script("return document.documentElement.scrollHeight - scrollY")
    assert tooltip(browser, words[0]) is None


@pytest.mark.browser
def test_scores_stay_in_the_window_where_browsers_cannot_anchor(visit):
    source = page_of(*many(1, words=15))
    assert source.count("@supports (position-area:bottom)") == 1
    browser = visit(
        source.replace("@supports (position-area:bottom)", "@supports (position-area:nowhere-at-all)"), width=400
    )
    for word in find(browser, ".s > [tabindex]"):
        assert press(browser, "TAB") == word
        left, top, right, _ = tooltip(browser, word)
        assert 0 <= left < right <= 400
        assert 0 <= top - word.rect["y"] - word.rect["height"] < 20
        assert fits(browser)


@pytest.mark.browser
def test_scores_are_shown_under_the_pointer(visit):
    from selenium.webdriver import ActionChains

    browser = visit(page_of(record_of("not good at all")))
    word = find(browser, ".s > [tabindex]")[1]
    assert tooltip(browser, word) is None
    ActionChains(browser).move_to_element(word).perform()
    assert tooltip(browser, word) is not None


@pytest.mark.browser
def test_targets_are_switched_by_keyboard_alone(visit):
    emotions = ["anger", "joy", "fear"]
    browser = visit(page_of(record_of("not good", emotions), generation("The capital is", "Paris of course")))
    sides = [["p8", "n4"], ["n8", "p5"], ["p8", "n6"]]
    radio = press(browser, "TAB")
    assert radio.get_attribute("type") == "radio"
    for emotion, side in zip([*emotions, emotions[0]], [*sides, sides[0]], strict=True):
        label = find(browser, f"label[for='{radio.get_attribute('id')}']")[0]
        assert label.text == emotion
        assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", label) == "solid"
        panels = shown(browser, "article:first-of-type .v")
        assert len(panels) == 1
        words = panels[0].find_elements("css selector", "[tabindex]")
        assert [word.get_attribute("class") for word in words] == side
        assert f"supports {emotion}" in panels[0].text
        radio = press(browser, "ARROW_RIGHT")
    assert press(browser, "TAB").text == "not"
    assert press(browser, "TAB").text == "good"
    radio = press(browser, "TAB")
    assert radio.get_attribute("name") == "t2"
    press(browser, "ARROW_LEFT")  # round to the last
    assert [
        word.text for word in shown(browser, "article:last-of-type .s > *")
    ] == "The capital is Paris of course".split()
    assert [word.text for word in shown(browser, ".own")] == ["course"]
    assert len(shown(browser, "article:first-of-type .v")) == 1


@pytest.mark.browser
def test_sixty_targets_can_be_chosen(visit):
    browser = visit(page_of(generation("a", " ".join(f"w{i}" for i in range(60)))))
    find(browser, "label")[59].click()
    assert [word.text for word in shown(browser, ".own")] == ["w59"]


@pytest.mark.browser
def test_colour_does_not_move_the_text(visit):
    """Letters stand where they stand in a plain paragraph, in scripts from right to left and mixed ones too."""
    texts = [
        "A gorgeous, witty film, but the ending is dull. " * 3,
        "مرحبا بالعالم، هذا فيلم (IMDb 7.5) رائع جدا! " * 3,
        "שלום עולם, abc 12.5 (ראו here) סוף. " * 3,
        "He said שלום עולם, and 12 מילים left",
    ]
    records = list(map(record_of, texts))
    within = record_of(texts[1])  # letters that join, in elements of their own
    spans = [(i, i + 1) for i, char in enumerate(within.text) if not char.isspace()]
    scores = torch.ones(1, len(spans))
    changes = {"elements": [within.text[a:b] for a, b in spans], "element_spans": spans}
    records.append(dataclasses.replace(within, **changes, attributions=scores, standard_error=scores))
    browser = visit(page_of(*records), width=500)
    moved = browser.execute_script(
        """
        const places = p => {
            const found = [], walk = document.createTreeWalker(p, NodeFilter.SHOW_TEXT), from = p.getBoundingClientRect();
            for (let node; (node = walk.nextNode());) for (let i = 0; i < node.length; i++) {
                const range = document.createRange();
                range.setStart(node, i);
                range.setEnd(node, i + 1);
                const box = range.getBoundingClientRect();
                found.push(box.left - from.left, box.top - from.top, box.width);
            }
            return found;
        };
        return [...document.querySelectorAll('.s')].map(p => {
            const plain = p.cloneNode();
            plain.textContent = p.textContent;
            p.after(plain);
            const ours = places(p), theirs = places(plain);
            return Math.max(...ours.map((place, i) => Math.abs(place - theirs[i])));
        });
        """
    )
    assert len(moved) == len(records)
    assert max(moved) < 1


@pytest.mark.browser
def test_overrides_end_where_they_begin(visit):
    """What follows stands where it stands without them."""
    plain, evil = "abc def ghi", "abc def\u202e\u2067\u2066\u202d\u2069\u2069 ghi"
    browser = visit(page_of(record_of(f"{plain} jkl"), record_of(f"{evil} jkl")))
    order = """
        const word = (s, text) => [...s.children].find(e => e.textContent.startsWith(text)).getBoundingClientRect();
        return [...document.querySelectorAll('.s')].map(s => ['abc', 'def', 'ghi', 'jkl'].map(t => word(s, t).left));
    """
    before, after = browser.execute_script(order)
    assert before == sorted(before)
    assert after == sorted(after)
    assert before[:2] == after[:2]
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.u')].map(e => getComputedStyle(e, '::before').content)"
    )
    assert labels[:2] == ['"U+202E"', '"U+2067"']
    assert all(mark.rect["width"] > 10 for mark in find(browser, ".u"))


@pytest.mark.browser
def test_a_notebook_and_a_fragment_leave_each_other_alone(visit):
    theirs = """<!doctype html><meta charset="utf-8"><style>
        .cell p{margin:40px;color:red} .cell label{font-weight:900;display:block;margin-bottom:5px} .cell *{letter-spacing:3px}
        .cell input{margin:9px} .cell span{background:pink;padding:9px} .cell{font:30px serif;text-align:right;direction:rtl}
        </style><div class="cell"><p class="s t">x <span tabindex="0" class="p8">y</span></p><label>z</label>%s</div>"""
    ours = fragment(record_of("not good at all", ["a", "b"]), "one")
    look = """
        const sizes = /^(width|height|inline-size|block-size|perspective-origin|transform-origin)$/;
        return [...document.querySelectorAll(arguments[0])].map(e => {
            const style = getComputedStyle(e);
            return [...style].filter(name => !sizes.test(name)).map(name => name + style.getPropertyValue(name));
        });
    """
    outer, inner = ".cell > p, .cell > p > span, .cell > label", ".fastshap, .fastshap :not(style)"
    around = visit(theirs % "").execute_script(look, outer)
    browser = visit(theirs % ours)
    assert browser.execute_script(look, outer) == around
    inside = browser.execute_script(look, inner)
    assert visit(f"<!doctype html><meta charset='utf-8'>{ours}").execute_script(look, inner) == inside


@pytest.mark.browser
def test_print_keeps_colours_and_the_chosen_target(visit):
    browser = visit(page_of(record_of("not good", ["joy", "fear"])))
    find(browser, "label")[1].click()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    style = "const s = getComputedStyle(arguments[0]); return [s.printColorAdjust, s.backgroundColor]"
    word = shown(browser, ".s > .n8")[0]
    assert browser.execute_script(style, word) == ["exact", "rgb(214, 96, 10)"]
    assert len(shown(browser, ".v")) == 1
    assert shown(browser, "details pre")
    word = press(browser, "TAB")
    assert word.text == "not"
    assert tooltip(browser, word) is None
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", word) == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.browser
def test_a_thousand_texts_open_within_three_seconds(visit):
    source = page_of(*many(1000))
    times = []
    for _ in range(2):  # the first warms the browser up
        start = time.perf_counter()
        browser = visit(source)
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        times.append(time.perf_counter() - start)
    assert len(find(browser, "article")) == 1000
    assert min(times) < 3
