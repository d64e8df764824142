"""Batches, backward passes and the model's own state."""

import copy
import threading

import pytest
import torch

import fastshap
from fastshap.engine.budget import Budget
from fastshap.engine.cutting import plan
from fastshap.engine.estimate import summaries

CPU = torch.device("cpu")


def rows_of(calls):
    return [sum(piece.hi - piece.lo for piece in call) for call in calls]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100, "auto"])
def test_plan_holds_every_row_once_and_keeps_to_the_batch_size(batch_size):
    lengths, targets, rows = [5, 9, 5, 300, 9, 2], [1, 1, 2, 1, 2, 1], [10, 3, 4, 7, 1, 10]
    calls = list(plan(lengths, targets, rows, Budget(batch_size, CPU), equal_lengths=False))
    seen = sorted((piece.item, i) for call in calls for piece in call for i in range(piece.lo, piece.hi))
    assert seen == [(item, i) for item in range(6) for i in range(rows[item])]
    for call in calls:
        assert len({targets[piece.item] for piece in call}) == 1
        if batch_size != "auto":
            assert rows_of([call])[0] <= batch_size
        tops = [lengths[piece.item] for piece in call]
        assert tops == sorted(tops, reverse=True)


def test_plan_with_equal_lengths_never_pads():
    calls = list(plan([5, 9, 5, 9], [1] * 4, [3] * 4, Budget(4, CPU), equal_lengths=True))
    assert all(len({[5, 9, 5, 9][piece.item] for piece in call}) == 1 for call in calls)
    assert sum(rows_of(calls)) == 12


@pytest.fixture
def counted(bert_pair, monkeypatch):
    """Counts model calls, the rows of each, and the rows of each backward pass."""
    model = bert_pair[0]
    counts = {"forward": [], "backward": []}
    grad = torch.autograd.grad

    def forward(module, args, kwargs):
        if torch.is_grad_enabled():
            counts["forward"].append(kwargs["inputs_embeds"].shape[0])

    def counting_grad(outputs, inputs, **kwargs):
        counts["backward"].append(inputs.shape[0])
        return grad(outputs, inputs, **kwargs)

    handle = model.register_forward_pre_hook(forward, with_kwargs=True)
    monkeypatch.setattr(torch.autograd, "grad", counting_grad)
    yield counts
    handle.remove()


@pytest.mark.parametrize("batch_size", [4, 10, 40, 240])
def test_no_row_is_backpropagated_twice(bert_pair, texts, counted, batch_size):
    explainer = fastshap.GradientShap(*bert_pair, batch_size=batch_size)
    explainer(texts[0], 1)  # the model is tried
    for count in counted.values():
        count.clear()
    explainer([f"{word} {text}" for word in ("a", "the", "film") for text in texts], 1)
    needed = len(texts) * 3 * 10
    assert sum(counted["forward"]) == sum(counted["backward"]) == needed
    assert len(counted["backward"]) == len(counted["forward"]) == -(-needed // batch_size)
    assert max(counted["forward"]) <= batch_size


def test_one_backward_for_each_call_and_target(bert_pair, texts, counted, monkeypatch):
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 0})
    explainer = fastshap.GradientShap(*bert_pair, batch_size=16)
    explainer(texts[0], 1)  # the model is tried
    for count in counted.values():
        count.clear()
    explainer(texts, torch.tensor([[0, 1, 2]] * len(texts)))
    assert len(counted["backward"]) == 3 * len(counted["forward"])


def state_of(model):
    return (
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        model.config.to_dict(),
    )


def settings_of(tokenizer):
    core = tokenizer.backend_tokenizer
    return core.truncation, core.padding, tokenizer.padding_side, tokenizer.pad_token, len(tokenizer)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_tokenizer_come_back_as_they_were(bert_pair, texts, fails):
    model, tokenizer = bert_pair
    model.train()
    model.bert.encoder.layer[1].eval()
    model.classifier.weight.requires_grad_(False)
    before, settings = state_of(model), settings_of(tokenizer)

    def mode(logits):
        assert state_of(model) == before  # also meanwhile, as a view of it runs
        running = explainer.task.model
        assert running is not model
        assert not any(module.training for module in running.modules())
        assert not any(p.requires_grad for p in running.parameters())
        if fails:
            raise RuntimeError("on purpose")
        return logits

    try:
        explainer = fastshap.GradientShap(model, tokenizer, inference_mode=mode)
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                explainer(texts)
        else:
            explainer(texts)
        assert state_of(model) == before
        assert settings_of(tokenizer) == settings
    finally:
        model.eval()
        model.classifier.weight.requires_grad_(True)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(bert_pair, context):
    explainer = fastshap.GradientShap(*bert_pair)
    expected = explainer("not good at all")[0].attributions
    with context():
        assert torch.equal(explainer("not good at all")[0].attributions, expected)
        assert not torch.is_grad_enabled()


def test_threads_share_an_explainer(bert_pair, texts):
    explainer = fastshap.GradientShap(*bert_pair)
    expected = [output.attributions for output in explainer(texts)]
    results = {}

    def work(k):
        results[k] = [explainer(text)[0].attributions for text in texts]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for scores in results.values():
        for ours, right in zip(scores, expected, strict=True):
            torch.testing.assert_close(ours, right, atol=1e-5 * right.abs().max().item(), rtol=0)
    assert all(p.requires_grad for p in bert_pair[0].parameters())


@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_rows_and_keeps_the_numbers(bert_pair, texts, most):
    model = bert_pair[0]
    expected = fastshap.GradientShap(*bert_pair, batch_size=32)(texts)
    seen = []

    def forward(module, args, kwargs):
        rows = next(iter(kwargs.values())).shape[0]
        seen.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("made up")

    handle = model.register_forward_pre_hook(forward, with_kwargs=True)
    try:
        ours = fastshap.GradientShap(*bert_pair, batch_size=32)(texts)
    finally:
        handle.remove()
    assert max(seen) > most
    for one, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(
            one.attributions, right.attributions, atol=1e-5 * right.attributions.abs().max().item(), rtol=0
        )


def test_out_of_memory_with_a_single_row_is_told(bert_pair):
    def fail(module, args, kwargs):
        raise torch.OutOfMemoryError("made up")

    handle = bert_pair[0].register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            fastshap.GradientShap(*bert_pair)("fine", 1)
    finally:
        handle.remove()
    assert all(p.requires_grad for p in bert_pair[0].parameters())


@pytest.mark.not_quick
def test_compiled_models_of_several_targets(bert_pair, texts):
    """A compiled graph can be walked back once only. One layer, as compiling takes seconds for each."""
    model, tokenizer = copy.deepcopy(bert_pair[0]), bert_pair[1]
    del model.bert.encoder.layer[1:]
    options = {"batch_size": 4, "n_perturbations": 4}
    expected = fastshap.GradientShap(model, tokenizer, **options)(texts[:1], "all")
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    outputs = fastshap.GradientShap(compiled, tokenizer, **options)(texts[:1], "all")
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.attributions, theirs.attributions)


def test_scores_are_handed_on_group_by_group(bert_pair, texts, monkeypatch):
    """However many texts there are, the scores of a few calls are on the device at once."""
    explainer = fastshap.GradientShap(*bert_pair, batch_size=16)
    calls, seen = [], []
    handle = bert_pair[0].register_forward_pre_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)
    expected = explainer(texts, 1)
    calls.clear()
    monkeypatch.setattr("fastshap.engine.run._CALLS_AHEAD", 2)

    def watched(running, scores):
        seen.append((len(calls), len(running)))
        return summaries(running, scores)

    monkeypatch.setattr("fastshap.engine.rounds.summaries", watched)
    outputs = explainer(texts, 1)
    handle.remove()
    assert [done for done, _ in seen] == [2, 4, 5]  # 8 texts of 10 rows are 5 calls
    assert sum(count for _, count in seen) == len(texts)
    for ours, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.attributions, right.attributions)
