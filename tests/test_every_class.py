"""Every class that transformers maps: explained as by a plain forward and backward pass, or refused by our own error."""

import every_class
import pytest

CASES = every_class.mapped()
# A fixed sample of many kinds: encoders, decoders, state spaces, experts, convolutions, relative positions.
SAMPLE = {
    *("AlbertForSequenceClassification", "BertForSequenceClassification", "ConvBertForSequenceClassification"),
    *("DebertaV2ForSequenceClassification", "DistilBertForSequenceClassification", "ElectraForSequenceClassification"),
    *("FNetForSequenceClassification", "GPT2ForSequenceClassification", "LlamaForSequenceClassification"),
    *("ModernBertForSequenceClassification", "MPNetForSequenceClassification", "RobertaForSequenceClassification"),
    *("T5ForSequenceClassification", "XLNetForSequenceClassification", "YosoForSequenceClassification"),
    *("BertGenerationDecoder", "BloomForCausalLM", "CTRLLMHeadModel", "DeepseekV3ForCausalLM", "FalconForCausalLM"),
    *(
        "Gemma3ForConditionalGeneration",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "LlamaForCausalLM",
        "MambaForCausalLM",
    ),
    *("MixtralForCausalLM", "MoshiForCausalLM", "OPTForCausalLM", "Qwen2ForCausalLM", "XLNetLMHeadModel"),
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
    known = every_class.row_of(task, name)
    if known is not None and "not built" not in (what, known[0]):
        assert what == known[0], f"docs/models.md says {known}; now {what}: {why}"


def test_the_page_holds_the_sample_and_nothing_wrong():
    rows = {name: every_class.row_of(task, name) for task, _, name in CASES}
    assert not [name for name in SAMPLE if rows.get(name) is None]
    assert not [name for name, row in rows.items() if row and row[0] == "wrong"]
