"""Models that public packages quantised: run with ``pytest -m slow``, after ``pip install 'fastshap-text[quantised]'``."""

import importlib

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, TorchAoConfig

import fastshap
from fastshap.models.adjoint import check_linear_layers
from fastshap.models.default import DEFAULT_MODEL_PATH

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = "A gorgeous, witty film, but the ending is dull."


@pytest.fixture(autouse=True)
def packages():
    """A run that was asked for and cannot take place has failed."""
    for name in ("accelerate", "bitsandbytes", "torchao"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.fail(f"needs {name}: pip install 'fastshap-text[quantised]' ({error})", pytrace=False)


def load(kind, path, config):
    return kind.from_pretrained(
        path, dtype=torch.float32, device_map="cpu", local_files_only=True, quantization_config=config
    ).eval()


def classifier(config):
    return load(AutoModelForSequenceClassification, DEFAULT_MODEL_PATH, config)


@pytest.fixture
def language_model(llama_pair, tmp_path):
    """Loads a Llama, which has no biases and residual connections past every layer but the last."""
    llama_pair[0].save_pretrained(tmp_path)
    return lambda config: load(AutoModelForCausalLM, tmp_path, config)


def nf4():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def gradient(model, tokenizer):
    """Of one output at the embeddings of a text."""
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    (found,) = torch.autograd.grad(model(inputs_embeds=x).logits[0].flatten()[-1], x)
    return found.flatten()


def cosine(model, pair):
    """Of a quantised model's gradient and the float32 model's."""
    value = float(F.cosine_similarity(gradient(model, pair[1]), gradient(*pair), 0))
    print(f"cosine {value:.4f}")
    return value


def same_outputs(model, pair):
    with torch.no_grad():
        inputs = {"input_ids": pair[1](TEXT, return_tensors="pt")["input_ids"]}
        found, expected = model(**inputs).logits, pair[0](**inputs).logits
    return float((found - expected).norm() / expected.norm()) < 0.15


def test_torchao_weights_alone_are_accepted(default_pair):
    from torchao.quantization import Int8WeightOnlyConfig

    model = classifier(TorchAoConfig(Int8WeightOnlyConfig(version=2)))
    assert type(model.bert.encoder.layer[0].intermediate.dense.weight).__name__ == "Int8Tensor"
    check_linear_layers(model)
    assert cosine(model, default_pair) > 0.999


def test_torchao_dynamic_inputs_are_refused_and_deserve_it(llama_pair, language_model):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    model = language_model(TorchAoConfig(Int8DynamicActivationInt8WeightConfig(version=2)))
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    assert same_outputs(model, llama_pair)  # nothing wrong to see here
    assert cosine(model, llama_pair) < 0.5  # nor here, where torch raises nothing
    with pytest.raises(
        fastshap.UnsupportedModelError, match=r"model\.layers\.0\..*\(Linear\) lets no gradient through"
    ):
        check_linear_layers(model)


def test_bitsandbytes_8_bits_are_accepted(default_pair):
    import bitsandbytes

    model = classifier(BitsAndBytesConfig(load_in_8bit=True))
    assert isinstance(model.bert.encoder.layer[0].intermediate.dense, bitsandbytes.nn.Linear8bitLt)
    check_linear_layers(model)
    assert cosine(model, default_pair) > 0.999


def test_bitsandbytes_4_bits_are_accepted(default_pair):
    import bitsandbytes

    model = classifier(nf4())
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert layers
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # see the next test
    check_linear_layers(model)
    assert cosine(model, default_pair) > 0.95


def test_bitsandbytes_4_bits_that_a_cpu_repacks_are_refused_and_deserve_it(llama_pair):
    """With AVX-512 BF16 the first run without gradients repacks the weights, and no gradient goes through afterwards."""
    import bitsandbytes

    model = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(128, 128, bias=False, quant_type="nf4")).to("cpu").eval()
    if not model[0].support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no AVX-512 BF16")
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (before,) = torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():
        expected = model(x.detach())
    torch.testing.assert_close(model(x), expected)
    (after,) = torch.autograd.grad(model(x).sum(), x, allow_unused=True)
    assert before.norm() > 1
    assert after is None
    with pytest.raises(fastshap.UnsupportedModelError, match=r"0 \(Linear4bit\) lets no gradient through"):
        check_linear_layers(model)
