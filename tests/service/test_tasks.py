"""Models of other tasks over HTTP: what their instances hold."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from fastshap.errors import FastshapError
from helpers import models
from helpers.services import app_of, service_of

pytestmark = pytest.mark.serve

ENTAILS = {0: "contradiction", 1: "neutral", 2: "entailment"}


def made(kind, tokenizer, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = BertConfig(
        vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=64, **sizes, **options
    )
    return kind(config).eval()


def answered(pair, instances, **settings):
    """The service of a model, and what it answers."""
    service = service_of(pair, name="m", settings=settings)
    with app_of(service) as client:
        assert service.state == "ready"
        assert client.get("/openapi.json").status_code == 200
        assert client.get("/", headers={"accept": "text/html"}).status_code == 200
        found = []
        for form in ("summary", "full", "html"):
            answer = client.post("/v1/models/m:explain", params={"format": form}, json={"instances": instances})
            assert answer.status_code == 200, answer.text
            found.append(answer)
        plain = [{k: v for k, v in one.items() if k in service.predicting.fields} for one in instances]
        answer = client.post("/v1/models/m:predict", json={"instances": plain})
        assert answer.status_code == 200, answer.text
        assert not any("error" in one for one in answer.json()["predictions"])
        return service, found[0].json()["explanations"]


def test_a_language_model(llama_pair):
    instances = [
        {"text": "ab", "max_new_tokens": 3},
        {"text": "ab", "target": "cd", "granularity": "token"},
        {"text": "ab", "target": "cd", "contrast": "ef"},
    ]
    service, (written, given, contrast) = answered(llama_pair, instances, inference_mode="softmax")
    assert "pair" not in service.explaining.fields
    assert 1 <= len(written["targets"]) <= 3
    assert given["targets"] == [" c", "d"]
    assert given["importances"][0][-1] is None  # what a target cannot see is null
    assert len(contrast["targets"]) == 1


def test_labels_of_ones_own(default_pair):
    tokenizer = models.typed(default_pair[1])
    pair = (
        made(BertForSequenceClassification, tokenizer, id2label=ENTAILS, label2id={v: k for k, v in ENTAILS.items()}),
        tokenizer,
    )
    _, (one,) = answered(pair, [{"text": "A film.", "targets": ["cinema", "sports"]}], task="zero_shot")
    assert one["targets"] == ["cinema", "sports"]


def test_a_text_and_its_choices(default_pair):
    tokenizer = models.typed(default_pair[1])
    pair = made(BertForMultipleChoice, tokenizer), tokenizer
    service, (one,) = answered(pair, [{"text": "A film.", "choices": ["Dull.", "Good."]}])
    assert len(one["targets"]) == 1
    with app_of(service_of(pair, name="m")) as client:
        answer = client.post("/v1/models/m:explain", json={"instances": [{"text": "A film."}]})
        assert answer.status_code == 422
        assert "choices" in answer.json()["error"]
    assert service.explaining.fields["choices"]["minItems"] == 1


@pytest.mark.parametrize(
    ("kind", "instance"),
    [
        (BertForQuestionAnswering, {"text": "Who came?", "pair": "Nobody came."}),
        (BertForTokenClassification, {"text": "Ann met Bob."}),
        (BertForMaskedLM, {"text": "A [MASK] film."}),
    ],
)
def test_others(default_pair, kind, instance):
    tokenizer = models.typed(default_pair[1])
    try:
        _, (one,) = answered((made(kind, tokenizer), tokenizer), [instance])
    except FastshapError as error:
        pytest.fail(str(error))
    assert one["targets"]
