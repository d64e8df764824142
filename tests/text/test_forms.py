"""Conversations, groups of one's own, and texts longer than the model takes."""

import copy
import re

import pytest
import torch

import fastshap
from fastshap import GradientShap
from helpers.texts import SENTENCES

CHAT = [
    {"role": "system", "content": "  be kind and dull "},
    {"role": "user", "content": "is the film good ?"},
]
TEMPLATE = (
    "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def close(ours, theirs, most=1e-5):
    ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < most


def back(output):
    kept = fastshap.AttributionOutput.from_json(output.to_json())
    assert kept.to_json() == output.to_json()
    return kept


@pytest.fixture(scope="module")
def chatting(llama_pair):
    tokenizer = copy.deepcopy(llama_pair[1])
    tokenizer.chat_template = TEMPLATE
    return llama_pair[0], tokenizer


# Conversations


def test_a_conversation_is_its_template_filled_in(chatting):
    tokenizer = chatting[1]
    explainer = GradientShap(*chatting, n_perturbations=4)
    (output,) = explainer(CHAT, [" good"])
    words = [one.strip() for one in output.elements]
    assert words == ["be", "kind", "and", "dull", "is", "the", "film", "good", "?", "good"]
    assert output.segments == [0] * 4 + [1] * 5 + [2]
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert output.text.startswith(rendered)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert output.model_inputs_to_explain["input_ids"][0, : len(ids)].tolist() == ids
    (same,) = explainer(ids, [" good"], granularity="all_tokens")
    close(explainer(CHAT, [" good"], granularity="all_tokens")[0].attributions, same.attributions)
    assert fastshap.reproduce(back(output), *chatting).identical
    together = explainer(["dull", CHAT], [" good"] * 2)[1]
    close(together.attributions, output.attributions)


def test_the_template_can_be_held(chatting):
    """Its tokens get no score at WORD, and no noise if special tokens are held."""
    explainer = GradientShap(*chatting, n_perturbations=4, granularity="all_tokens", perturb_special_tokens=False)
    (output,) = explainer(CHAT, [" good"])
    special = output.model_inputs_to_explain["special_tokens_mask"][0].bool()
    assert special.sum() > 8
    assert float(output.attributions[:, special].nan_to_num().abs().max()) == 0
    assert float(output.attributions[:, ~special].nan_to_num().abs().max()) > 0


def test_conversations_for_who_can_read_them(chatting, bert_pair, llama_pair):
    assert len(GradientShap(*chatting, n_perturbations=2)(CHAT, generation_kwargs={"max_new_tokens": 3})) == 1
    for call, message in (
        (lambda: GradientShap(*llama_pair)(CHAT, ["good"]), "no chat template"),
        (lambda: GradientShap(*chatting)([[{"role": "user", "content": 3}]], ["x"]), "Message 0 .* strings; got int"),
        (lambda: GradientShap(*chatting)([{"role": "user", "content": " "}], ["x"]), "messages are empty"),
        (lambda: GradientShap(*chatting)({"role": "user", "content": "x"}, ["x"]), "one message of a conversation"),
    ):
        with pytest.raises(fastshap.FastshapError, match=message):
            call()
    tokenizer = copy.deepcopy(bert_pair[1])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (judged,) = GradientShap(bert_pair[0], tokenizer, n_perturbations=2)([CHAT])
    assert judged.segments == [0] * 4 + [1] * 5


# Groups


def clauses(text):
    return [match.span() for match in re.finditer(r"[^,.]+", text)]


def test_groups_of_ones_own(bert_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=4, granularity_aggregation_strategy="sum")
    (words,) = explainer(SENTENCES[0])
    for granularity in (clauses, clauses(SENTENCES[0])):
        (output,) = explainer(SENTENCES[0], granularity=granularity)
        assert output.elements == ["A gorgeous", "witty film", "but the ending is dull"]
        for element, score in zip(output.elements, output.attributions[0], strict=True):
            inside = [i for i, word in enumerate(words.elements) if word in element.split()]
            assert torch.allclose(score, words.attributions[0, inside].sum(), atol=1e-4)
        assert torch.allclose(
            output.attributions.sum() + output.unassigned, words.attributions.sum() + words.unassigned, atol=1e-4
        )
        assert fastshap.reproduce(back(output), *bert_pair).same
        assert "one score per group" in str(output)
    many = explainer(SENTENCES, granularity=clauses)
    close(many[0].attributions, explainer(SENTENCES[0], granularity=clauses)[0].attributions)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([(0, 400)], "ends at character 400"),
        ([(0, 5), (3, 9)], "overlap"),
        ([(3, 4)], r"No token begins in the group \(3, 4\), 'o'"),
        (lambda text: [], "no group for this text"),
        (lambda text: 1 / 0, "failed on this text: ZeroDivisionError"),
        (lambda text: "abc", r"\(start, end\)"),
        ([3], r"\(start, end\)"),
        ("words", "must be one of ALL_TOKENS"),
    ],
)
def test_groups_that_do_not_fit(bert_pair, groups, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        GradientShap(*bert_pair, n_perturbations=2)(SENTENCES[0], granularity=groups)


def test_groups_that_fit_some_texts(bert_pair):
    first, second = GradientShap(*bert_pair, n_perturbations=2, on_error="record")(
        ["fine", SENTENCES[0]], granularity=[(0, 10)]
    )
    assert "ends at character 10" in first.error
    assert second.elements == ["A gorgeous"]
    with pytest.raises(fastshap.InvalidArgumentError, match=r"was a function.*pass the function"):
        GradientShap(
            *bert_pair, granularity=back(GradientShap(*bert_pair, granularity=clauses)("fine")[0]).granularity
        )("fine")


# Long texts

LONG = " ".join(SENTENCES * 3)


def test_windows_hold_all_of_the_text(bert_pair):
    """The score is the mean of the windows' own, each as the model reads such a text."""
    model = bert_pair[0]
    limit = model.config.max_position_embeddings
    explainer = GradientShap(*bert_pair, n_perturbations=4, long_text="window", granularity="all_tokens")
    (output,) = explainer(LONG, 1)
    mask = output.model_inputs_to_explain["sequences_mask"][0]
    ids = output.model_inputs_to_explain["input_ids"][0]
    assert mask.shape[1] > 2
    assert mask.sum(0).tolist() == [limit] * mask.shape[1]
    assert mask.any(1).all()
    assert mask[0].all()  # the template's tokens stand around each
    assert mask[-1].all()
    assert not output.truncated
    assert f"mean of {mask.shape[1]} windows" in str(output)
    with torch.no_grad():
        logits = torch.stack([model(input_ids=ids[row.bool()][None]).logits[0] for row in mask.T])
    (seen,) = explainer(LONG)
    assert seen.targets.tolist() == [int(logits.mean(0).argmax())]
    # Without noise, by a plain loop over the windows.
    (still,) = explainer(LONG, 1, noise_std=0.0, sampling="antithetic", return_convergence_delta=True)
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        at = [
            torch.stack([model(inputs_embeds=z[row.bool()][None]).logits[0, 1] for row in mask.T]).mean()
            for z in (x, 0 * x)
        ]
    assert abs(float(still.attributions.sum() - still.convergence_delta - (at[0] - at[1]))) < 1e-3
    assert fastshap.reproduce(back(output), *bert_pair).same
    together = explainer(["fine", LONG, SENTENCES[0]], [1, 1, 1], batch_size=3)
    close(together[1].attributions, output.attributions)
    close(together[2].attributions, explainer(SENTENCES[0], 1, long_text="truncate")[0].attributions)


def test_the_probability_of_windows_is_a_mean_too(bert_pair):
    (output,) = GradientShap(*bert_pair, n_perturbations=2, long_text="window", inference_mode="softmax")(LONG)
    assert fastshap.reproduce(back(output), *bert_pair).same


def test_long_texts_can_be_refused(bert_pair, llama_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=2, long_text="error", on_error="record")
    first, second = explainer([LONG, "fine"])
    assert "more tokens than the 128" in first.error
    assert second.error is None
    for call, message in (
        (lambda: GradientShap(*llama_pair, long_text="window"), "is for classifiers"),
        (lambda: GradientShap(*bert_pair, long_text="window")([(LONG, LONG)]), "Only a single text"),
        (lambda: GradientShap(*bert_pair, long_text="cut"), "must be one of 'truncate', 'error', 'window'"),
    ):
        with pytest.raises(fastshap.FastshapError, match=message):
            call()


def test_what_messages_say_is_told_from_what_the_template_says(llama_pair):
    """Also where the template holds the same words."""
    tokenizer = copy.deepcopy(llama_pair[1])
    tokenizer.chat_template = (
        "system: You are a good film by Alibaba.\n"
        + "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )
    explainer = GradientShap(llama_pair[0], tokenizer, n_perturbations=2)
    for said in (["A"], ["a good film", "a", "user"], ["assistant", "film"]):
        chat = [{"role": "user", "content": content} for content in said]
        (output,) = explainer(chat, ["dull"])
        words = [element.strip() for element, segment in zip(output.elements, output.segments, strict=True)]
        assert words == [*" ".join(said).split(), "dull"]
        assert output.segments[-1] == len(said)
        first = output.text.index("user:")
        assert all(start > first for start, _ in output.element_spans)


def test_a_conversation_that_is_too_long(bert_pair):
    tokenizer = copy.deepcopy(bert_pair[1])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    long, short = [{"role": "user", "content": "the film " * 300}], CHAT
    first, second = GradientShap(bert_pair[0], tokenizer, n_perturbations=2, on_error="record")([long, short])
    assert "the model takes 128; leave out or shorten messages" in first.error
    assert second.error is None


def test_groups_of_an_input_alone(llama_pair):
    """Each token of the target is explained by itself; a group does not reach into another part."""
    explainer = GradientShap(*llama_pair, n_perturbations=4)
    (output,) = explainer("the film was", ["not good"], granularity=[(0, 8)])
    assert output.elements[0] == "the film"
    assert len(output.target_names) == len(output.targets) == len(output.elements) - 1
    assert output.attributions[:, 0].isfinite().all()
    with pytest.raises(fastshap.InvalidArgumentError, match="two parts"):
        explainer("the film was", ["not good"], granularity=[(4, 16)])


def test_a_mask_is_no_special_token(default_pair):
    """Of a text and of its ids."""
    tokenizer = default_pair[1]
    explainer = GradientShap(*default_pair, n_perturbations=2, perturb_special_tokens=False)
    text = "a [MASK] film"
    close(explainer(text)[0].attributions, explainer(tokenizer(text)["input_ids"])[0].attributions)
    assert explainer(tokenizer(text)["input_ids"])[0].elements == ["a", "[MASK]", "film"]
