"""Every class that transformers maps: explained as by a plain forward and backward pass, or refused by our own error."""

import re

import every_class
import pytest

CASES = every_class.mapped()
# A fixed sample of many kinds: encoders, decoders, state spaces, experts, convolutions, relative positions; and those on
# which a shortcut, a small configuration or a message was wrong before.
SAMPLE = {
    *("BartForSequenceClassification", "BertForSequenceClassification", "ConvBertForSequenceClassification"),
    *("DebertaV2ForSequenceClassification", "FNetForSequenceClassification", "FunnelForSequenceClassification"),
    *("GPT2ForSequenceClassification", "LlamaForSequenceClassification", "ModernBertForSequenceClassification"),
    *("RobertaForSequenceClassification", "T5ForSequenceClassification", "XLNetForSequenceClassification"),
    *("YosoForSequenceClassification", "BigBirdForCausalLM (attention_type='original_full')", "BloomForCausalLM"),
    *("CTRLLMHeadModel", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Gemma3ForConditionalGeneration"),
    *("Gemma3nForCausalLM", "Gemma4ForCausalLM", "Gemma4ForCausalLM (hidden_size_per_layer_input=0)"),
    *("GPT2LMHeadModel", "Glm4MoeLiteForCausalLM", "KimiLinearForCausalLM", "LlamaForCausalLM", "MambaForCausalLM"),
    *("MiniCPM3ForCausalLM", "MixtralForCausalLM", "MoshiForCausalLM", "MusicgenForCausalLM", "XLNetLMHeadModel"),
}
# What the message of a refusal says.
REASONS = {
    "Gemma3nForCausalLM": "embeddings per layer",
    "Gemma4ForCausalLM": "embeddings per layer",
    "MusicgenForCausalLM": "makes audio",
    "XLNetLMHeadModel": "not causal",
}


def cases(names):
    return [pytest.param(*case, id=case[2]) for case in CASES if case[2] in names]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "kind", "name"), cases(SAMPLE))
def test_a_sample(task, kind, name):
    check(task, kind, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "kind", "name"), cases({case[2] for case in CASES} - SAMPLE))
def test_all_others(task, kind, name):
    check(task, kind, name)


def check(task, kind, name):
    what, why, trace = every_class.verdict(task, kind, name)
    assert what != "wrong", f"{why}\n{trace}"
    assert what != "refused" or re.search(REASONS.get(name, ""), why), why
    if every_class.of_this_version():
        known = every_class.row_of(task, name)
        assert known is not None, f"docs/models.md does not know {name}; now {what}: {why}"
        assert what == known[0], f"docs/models.md says {known}; now {what}: {why}"


def test_the_page_holds_the_sample_and_nothing_wrong():
    rows = {name: every_class.row_of(task, name) for task, _, name in CASES}
    assert not [name for name in SAMPLE if rows.get(name) is None]
    assert not [name for name, row in rows.items() if row and row[0] == "wrong"]


@pytest.mark.skipif(
    not every_class.of_this_version(), reason="the page was written with another version of transformers"
)
def test_the_page_holds_every_class():
    assert not [name for task, _, name in CASES if every_class.row_of(task, name) is None]
