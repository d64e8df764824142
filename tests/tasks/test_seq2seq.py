"""Sequence to sequence: the input and the target's earlier tokens, on small T5, BART and Marian models."""

import copy

import pytest
import torch
from tokenizers import processors

import fastshap
from fastshap import Contrast, GradientShap
from fastshap.reference import normals
from fastshap.sampling import draw_samples

N = 6
TEXTS = ["the film was not good at all", "superb", "a dull ending, while nobody knew why it began"]
TARGETS = ["superb and dull", None, "good"]
WRITING = {"generation_kwargs": {"max_new_tokens": 4}}
EVERY = {"granularity": "all_tokens", "n_perturbations": N, "return_convergence_delta": True}


def made(kind, known, end):
    """Two layers each, large weights; what the kinds do with embeddings differs."""
    import transformers

    torch.manual_seed(0)
    ids = dict.fromkeys(("decoder_start_token_id", "pad_token_id", "eos_token_id", "bos_token_id"), end)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=known, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **ids)
        return transformers.T5ForConditionalGeneration(config).eval()
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2) | dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim"), 48
    )
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    sizes |= {
        "vocab_size": known,
        "d_model": 32,
        "max_position_embeddings": 64,
        "init_std": 0.3,
        "scale_embedding": True,
    }
    names = {"bart": ("BartConfig", "BartForConditionalGeneration"), "marian": ("MarianConfig", "MarianMTModel")}[kind]
    return getattr(transformers, names[1])(getattr(transformers, names[0])(**sizes, **ids)).eval()


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    """Its texts end with the end's token, as those of T5 do."""
    own = copy.deepcopy(byte_tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", own.eos_token_id)]
    )
    return own


@pytest.fixture(scope="module", params=["t5", "bart", "marian"])
def pair(request, tokenizer):
    return made(request.param, len(tokenizer), tokenizer.eos_token_id), tokenizer


@pytest.fixture(scope="module")
def t5(tokenizer):
    return made("t5", len(tokenizer), tokenizer.eos_token_id), tokenizer


def plain(model, tokenizer, output, noise=0.1):
    """(T, L): a loop with the same draws. Marian's encoder multiplies ids' embeddings, and takes embeddings as they are."""
    ids = output.model_inputs_to_explain["input_ids"][0]
    first = int(output.model_inputs_to_explain["sequences_mask"][0, :, 0].sum())
    x = model.get_input_embeddings()(ids).detach()
    scale = model.get_encoder().embed_scale if type(model).__name__ == "MarianMTModel" else 1
    its = draw_samples(output.seed, ids.tolist(), N, "antithetic")
    streams, places = torch.tensor([its.stream] * len(ids)), torch.arange(len(ids))
    total = torch.zeros(len(output.targets), len(ids))
    for alpha, draw, sign in zip(its.alphas, its.draws, its.signs, strict=True):
        b = noise * float(sign) * normals(streams, torch.full((len(ids),), int(draw)), places, x.shape[1])
        z = ((1 - float(alpha)) * x + float(alpha) * b).requires_grad_()
        given = {"inputs_embeds": z[None, :first] * scale, "decoder_inputs_embeds": z[None, first:]}
        logits = model(**given).logits[0]
        for t, target in enumerate(output.targets.tolist()):
            (gradient,) = torch.autograd.grad(logits[t, target], z, retain_graph=True)
            total[t] += ((x - b) * gradient).sum(1) / N
    return total


def close(ours, theirs, most=1e-4):
    ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < most


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_same_as_a_plain_loop(pair, noise):
    outputs = GradientShap(*pair, "auto", noise_std=noise, **EVERY)(TEXTS, TARGETS, **WRITING)
    for output in outputs:
        theirs = plain(*pair, output, noise)
        seen = ~output.attributions.isnan()
        close(output.attributions[seen], theirs[seen])
        assert float(theirs[~seen].abs().max()) < 1e-5 * float(theirs.abs().max())  # what is hidden counts nothing
        assert not bool((seen[:, -1]).any())


def test_in_any_company_and_again(pair):
    explainer = GradientShap(*pair, "auto", n_perturbations=N)
    together = explainer(TEXTS, TARGETS, **WRITING)
    for text, target, output in zip(TEXTS, TARGETS, together, strict=True):
        options = {} if target else WRITING
        close(explainer(text, [target], batch_size=1, **options)[0].attributions, output.attributions, 1e-5)
        kept = fastshap.AttributionOutput.from_json(output.to_json())
        assert kept.to_json() == output.to_json()
        again = fastshap.reproduce(kept, *pair)
        assert again.relative_difference < 1e-5
        assert not again.changed
    first = together[0]
    words = len(TEXTS[0].split())
    assert first.model_task == "seq2seq"
    assert [element.strip() for element in first.elements] == [*TEXTS[0].split(), *TARGETS[0].split()]
    assert first.segments == [0] * words + [1] * 3
    assert [name.strip() for name in first.target_names] == TARGETS[0].split()
    assert first.attributions[:, :words].isfinite().all()
    assert first.attributions[:, words:].isnan().tolist() == [[j >= i for j in range(3)] for i in range(3)]


def test_completeness(tokenizer):
    """All positions' scores add up to the difference that they explain. (T5's norms have a jump at zero.)"""
    model = made("bart", len(tokenizer), tokenizer.eos_token_id)
    options = EVERY | {"n_perturbations": 300}
    (output,) = GradientShap(model, tokenizer, "auto", noise_std=0.0, **options)(TEXTS[0], ["superb"])
    ids = output.model_inputs_to_explain["input_ids"]
    first = int(output.model_inputs_to_explain["sequences_mask"][0, :, 0].sum())
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        ends = [model(inputs_embeds=z[:, :first], decoder_inputs_embeds=z[:, first:]).logits[0] for z in (x, 0 * x)]
    gap = torch.stack([ends[0][t, one] - ends[1][t, one] for t, one in enumerate(output.targets)])
    total = output.attributions.nansum(1) + output.unassigned
    assert torch.allclose(total, gap, atol=0.05 * float(gap.abs().max()))
    assert torch.allclose(output.convergence_delta, total - gap, atol=1e-3)


def test_what_is_written_is_what_the_model_generates(t5):
    model, tokenizer = t5
    (output,) = GradientShap(*t5, n_perturbations=2)(TEXTS[0], **WRITING)
    ids = model.generate(**tokenizer(TEXTS[0], return_tensors="pt"), max_new_tokens=4, do_sample=False)[0, 1:].tolist()
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    assert output.targets.tolist() == ids


def test_spans_and_contrasts(t5):
    explainer = GradientShap(*t5, "auto", n_perturbations=N, granularity="all_tokens")
    (span,) = explainer(TEXTS[0], ["superb and dull"], span=True)
    (each,) = explainer(TEXTS[0], ["superb and dull"], score="log_probability")
    close(span.attributions[0, :9], each.attributions.nan_to_num().sum(0)[:9])
    (contrast,) = explainer(TEXTS[0], Contrast("superb and dull", "superb film"))
    assert contrast.target_names == ["superb and dull rather than superb film"]
    for output in (span, contrast):
        assert (
            fastshap.reproduce(fastshap.AttributionOutput.from_json(output.to_json()), *t5).relative_difference < 1e-5
        )


def test_what_cannot_be_explained_says_why(t5, tokenizer):
    model = copy.deepcopy(t5[0])
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
    model.generation_config.bos_token_id = model.config.bos_token_id = None
    with pytest.raises(fastshap.UnsupportedModelError, match="decoder begins with"):
        GradientShap(model, tokenizer)(TEXTS[0], ["good"])
    model = copy.deepcopy(t5[0])
    model.decoder.set_input_embeddings(torch.nn.Embedding(len(tokenizer), 32))
    with pytest.raises(fastshap.UnsupportedModelError, match="table of embeddings of its own"):
        GradientShap(model, tokenizer)(TEXTS[0], ["good"])
    bart = made("bart", len(tokenizer), tokenizer.eos_token_id)
    (long, _) = GradientShap(bart, tokenizer, on_error="record", n_perturbations=2)(TEXTS[:2], ["dull " * 80, "good"])
    assert "the decoder takes 64; shorten it" in long.error
    with pytest.warns(fastshap.TruncationWarning):
        (cut,) = GradientShap(bart, tokenizer, n_perturbations=2)("dull " * 80, ["good"])
    assert cut.truncated
