"""What stands at the masks of a text."""

import copy

import numpy as np
import pytest
import torch

import fastshap
from fastshap import Contrast, GradientShap
from fastshap.tasks.heads import placed_logits, target_logits
from helpers.checks import assert_equal, assert_same
from helpers.families import CONFIGURATIONS, tiny, with_slow_ones
from helpers.gradients import by_a_loop, by_captum, close

N = 6
TEXTS = [
    "A gorgeous, [MASK] film.",
    "The [MASK] is dull, but the ending is not good at [MASK].",
    "[MASK]",
    "An unbelievably overproduced, [MASK] mess, and yet I could not look away for one [MASK] moment of it.",
]
FAMILIES = [family for family in CONFIGURATIONS if family not in ("XLNet", "GPT2", "Llama")]  # those have no such class
MODES = {"logits": lambda x: x, "softmax": lambda x: x.softmax(-1), "log_softmax": lambda x: x.log_softmax(-1)}


@pytest.fixture(scope="module")
def pair(default_pair):
    return tiny("Bert", "ForMaskedLM", default_pair[1]), default_pair[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_predicted_token_at_every_mask(pair, mode, monkeypatch):
    """Against plain loops of each text alone, with noise and without, and captum."""
    model, tokenizer = pair
    for noise_std in (0.1, 0):
        explainer = GradientShap(
            *pair, "auto", granularity="all_tokens", n_perturbations=N, noise_std=noise_std, inference_mode=mode
        )
        for output in explainer(TEXTS[:3]):
            ids = output.model_inputs_to_explain["input_ids"]
            (places,) = output.model_inputs_to_explain["target_positions"]
            assert (ids[0, places] == tokenizer.mask_token_id).all()
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, places]
            assert output.targets.tolist() == logits.argmax(1).tolist()
            torch.testing.assert_close(output.target_probabilities, logits.softmax(1).amax(1))
            for row, place, token in zip(output.attributions, places, output.targets, strict=True):

                def score(outputs, place=place, token=token):
                    return MODES[mode](outputs.logits[:, place])[:, token]

                close(row, by_a_loop(model, output, lambda outputs: score(outputs)[0]))
                if noise_std == 0:
                    close(row, by_captum(model, output, score, monkeypatch))


def test_it_is_warmed_up_on_a_mask(pair):
    fastshap.warm_up(GradientShap(*pair, "auto", n_perturbations=2))


@pytest.mark.parametrize("family", with_slow_ones(FAMILIES, "Bert", "ModernBert"))
def test_alone_and_in_company(default_pair, family):
    pair = tiny(family, "ForMaskedLM", default_pair[1]), default_pair[1]
    options = {"n_perturbations": 4, "return_convergence_delta": True}
    together = GradientShap(*pair, "auto", **options)
    outputs = together(TEXTS)
    assert together.task._proven == (target_logits, placed_logits)
    assert_equal(GradientShap(*pair, 1, **options)(TEXTS[::-1])[::-1], outputs)


class Scaled(torch.nn.Linear):
    """An output layer that is not what its weights say."""

    def forward(self, hidden):
        return super().forward(hidden) * hidden.shape[1] / 10


def test_ways_that_leave_something_out(pair, default_pair):
    """They give what the full logits give, and are not taken where that does not hold."""
    model = tiny("Bert", "ForMaskedLM", default_pair[1])
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, out: sizes.append(out.shape[-2:]))
    for mode in ("logits", "softmax"):
        options = {"n_perturbations": N, "inference_mode": mode}
        ours = GradientShap(model, pair[1], **options)
        sizes.clear()
        outputs = ours(TEXTS[1])
        small = [size for size in sizes if size.numel() <= 2 * len(pair[1])]
        plain = GradientShap(model, pair[1], **options)
        plain.task.find_shortcuts = lambda: None
        assert_equal(outputs, plain(TEXTS[1]))
        assert small
        assert not plain.task._proven
    head = model.get_output_embeddings()
    head.__class__ = Scaled
    other = GradientShap(model, pair[1], n_perturbations=N)
    assert_equal(other(TEXTS[1]), GradientShap(model, pair[1], 1, n_perturbations=N)(TEXTS[1]))
    assert other.task._proven == ()


def test_tokens_as_given(pair):
    tokenizer = pair[1]
    explainer = GradientShap(*pair, n_perturbations=N)
    film, dull = tokenizer.convert_tokens_to_ids(["film", "dull"])
    (output,) = explainer(TEXTS[1], [["film", dull]])
    assert output.target_names == ["film", "dull"]
    assert output.targets.tolist() == [film, dull]
    (mixed,) = explainer(TEXTS[1], [[None, Contrast("dull", "film")]])
    assert mixed.target_names[1] == "dull rather than film"
    assert mixed.targets.tolist()[1:] == [dull, film]
    assert mixed.target_probabilities is None
    assert_same(explainer(TEXTS[0], ["film"])[0].attributions, explainer(TEXTS[0], [[film]])[0].attributions)
    assert_same(explainer(TEXTS[0], [[np.int64(film)]])[0].attributions, explainer(TEXTS[0], [[film]])[0].attributions)
    ending = next(token for token in tokenizer.get_vocab() if token.startswith("##"))
    assert explainer("un[MASK] film", [[ending]])[0].targets.tolist() == [tokenizer.convert_tokens_to_ids(ending)]


def test_tokens_with_the_space_before_them(byte_tokenizer):
    """Byte-level tokenizers have a word twice: with a space before it, and without."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    model = tiny("Roberta", "ForMaskedLM", tokenizer)
    known = tokenizer.get_vocab()
    word = next(token[1:] for token in known if token[0] == "Ġ" and token[1:] in known and len(token) > 2)
    explainer = GradientShap(model, tokenizer, n_perturbations=2)
    for text, token in (("not <mask> at all", f"Ġ{word}"), ("not<mask> at all", word)):
        (output,) = explainer(text, [[word]])
        assert output.targets.tolist() == [known[token]]
        assert output.target_names == [word]
    assert explainer("not<mask> at all", [[f"Ġ{word}"]])[0].targets.tolist() == [known[f"Ġ{word}"]]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("A film.", None, r"The text holds no mask, so there is nothing to fill in; write \[MASK\] for a token\."),
        (TEXTS[1], ["film"], "There are 2 masks in the text but 1 target; give a token for each, in their order."),
        (TEXTS[0], ["pseudointellectualism"], "'pseudointellectualism' is no single token of the model's vocabulary"),
        (TEXTS[0], [10**6], "There is no token 1000000; the model predicts those below"),
        (TEXTS[0], [1.5], "Targets of a text are None"),
        (TEXTS[0], [Contrast("film", " film")], "A contrast of 'film' with itself"),
    ],
)
def test_what_cannot_be_explained(pair, text, target, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        GradientShap(*pair, n_perturbations=2)([text], [target])
    outputs = GradientShap(*pair, n_perturbations=2, on_error="record")([text, TEXTS[0]], [target, None])
    assert [one.error is None for one in outputs] == [False, True]


def test_sums_files_and_reproduction(pair, tmp_path):
    explainer = GradientShap(
        *pair,
        "auto",
        granularity_aggregation_strategy="sum",
        n_perturbations=400,
        noise_std=0,
        return_convergence_delta=True,
    )
    (output,) = explainer(TEXTS[1], [["film", "dull"]])
    x = pair[0].get_input_embeddings()(output.model_inputs_to_explain["input_ids"])
    places = output.model_inputs_to_explain["target_positions"][0]
    with torch.no_grad():
        at, base = (pair[0](inputs_embeds=z).logits[0, places, output.targets] for z in (x, 0 * x))
    total = output.attributions.sum(1) + output.unassigned
    torch.testing.assert_close(total, at - base + output.convergence_delta, atol=1e-4, rtol=1e-4)
    assert (output.convergence_delta.abs() < 0.05 * (at - base).abs().max()).all()
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for (back,) in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    assert output.model_task == "masked_lm"
    assert "target film" in str(output)
    output.to_html(tmp_path / "page.html")
    assert "filled in" in (tmp_path / "page.html").read_text()
    assert explainer.task.spelled_targets(["film", 3], 2) == [["film", 3]] * 2
