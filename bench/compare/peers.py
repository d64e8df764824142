"""How each tool is called: from a workload to a function that runs it once.

Every tool is given the targets, and parameters that ask for no gradient. Scores are asked for by word, the default of
those that have words, or by token for the comparison of errors. The floor computes what no tool can do without, and no scores.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastshap
from bench.compare.workloads import NOISE_STD, Workload

Scores = list[np.ndarray]


@dataclass(frozen=True)
class Runner:
    """A tool ready for one workload: ``run(batch_size, n, seed)`` gives (T, elements) for each text."""

    run: Callable[[Any, int, int], Scores]
    model: Any


@dataclass(frozen=True)
class Tool:
    """A tool, with what its batch sizes count, and the quantity that it computes."""

    name: str
    prepare: Callable[..., Runner]  # takes a workload and tokens=True or False
    grid: Callable[[Workload], Sequence[Any]]
    unit: str
    quantity: str = ""  # "signed" or "unsigned"; none for the floor
    core: bool = True  # timed in every round
    causal_only: bool = False


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Without warnings, and with global random states that are put back afterwards."""
    state = np.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def prepare_fastshap(workload: Workload, tokens: bool = False, targets: bool = True, **options: Any) -> Runner:
    """``batch_size``: rows of a model call."""

    @functools.lru_cache(maxsize=4)
    def explainer(batch_size: Any, n: int, seed: int) -> fastshap.GradientShap:
        granularity = "all_tokens" if tokens else "tokenizer_word"
        return fastshap.GradientShap(
            workload.model,
            workload.tokenizer,
            batch_size,
            granularity,
            n_perturbations=n,
            noise_std=NOISE_STD,
            inference_mode=workload.inference_mode,
            seed=seed,
            **options,
        )

    def run(batch_size: Any, n: int, seed: int) -> Scores:
        outputs = explainer(batch_size, n, seed)(workload.inputs, workload.targets if targets else None)
        return [output.attributions.numpy() for output in outputs]

    return Runner(run, workload.model)


def prepare_interpreto(workload: Workload, tokens: bool = False) -> Runner:
    """``batch_size``: rows of a model call. It writes to the model's configuration and the tokenizer, so it has its own."""
    with quiet(0):
        import interpreto  # type: ignore[import-untyped]

    model, tokenizer = copy.deepcopy(workload.model), copy.deepcopy(workload.tokenizer)
    granularity = interpreto.Granularity.ALL_TOKENS if tokens else interpreto.Granularity.WORD
    device = torch.device("cpu")
    # It takes the first dimension off a language model's targets, whatever its size.
    targets: Any = [torch.tensor([each] if workload.causal else each) for each in workload.targets]
    checked = False

    @functools.lru_cache(maxsize=4)
    def explainer(batch_size: int, n: int) -> Any:
        return interpreto.GradientShap(
            model,
            tokenizer,
            batch_size=batch_size,
            granularity=granularity,
            n_perturbations=n,
            noise_std=NOISE_STD,
            inference_mode=interpreto.attributions.InferenceModes[workload.inference_mode.upper()],
            device=device,
        )

    def run(batch_size: int, n: int, seed: int) -> Scores:
        nonlocal checked
        with quiet(seed):
            outputs = explainer(batch_size, n)(workload.texts, targets)
        if not checked:
            for output, ids, wanted in zip(outputs, workload.ids, workload.targets, strict=True):
                assert output.model_inputs_to_explain["input_ids"].flatten().tolist() == ids
                assert output.targets.flatten().tolist() == wanted
            checked = True
        return [output.attributions.numpy().reshape(-1, len(output.elements)) for output in outputs]

    return Runner(run, model)


def prepare_captum(
    workload: Workload, tokens: bool = True, by_hand: bool = True, noisy_baselines: bool = False
) -> Runner:
    """``batch_size``: texts of a model call, which captum repeats n times. It has no words: its scores are those of tokens.

    By hand: length-sorted batches with padding and mask, and of a language model's logits only those of the target's positions.
    ``noisy_baselines`` makes its quantity ours: it then draws baselines from noise, and adds none to the input.
    """
    with quiet(0):
        import captum.attr  # type: ignore[import-untyped]

    model, table = workload.model, workload.model.get_input_embeddings()
    order = sorted(range(len(workload.ids)), key=lambda i: (len(workload.targets[i]), len(workload.ids[i])))

    def forward(embeddings: Tensor, mask: Tensor | None, place: Tensor) -> Tensor:
        if not workload.causal:
            scores: Tensor = workload.scores(model(inputs_embeds=embeddings, attention_mask=mask).logits)
            return scores
        back = embeddings.shape[1] - place  # from the end
        keep = int(back.max()) if by_hand else 0
        logits = model(inputs_embeds=embeddings, attention_mask=mask, logits_to_keep=keep).logits
        return workload.scores(logits[torch.arange(len(place)), -back])

    def run(batch_size: int, n: int, seed: int) -> Scores:
        scores: Scores = [np.zeros(0)] * len(workload.ids)
        with quiet(seed):
            method = captum.attr.GradientShap(forward)
            for lo in range(0, len(order), batch_size):
                batch = order[lo : lo + batch_size]
                ids, mask, lengths = padded([workload.ids[i] for i in batch])
                x = table(ids).detach()
                baselines = torch.zeros_like(x[:1])
                if noisy_baselines:
                    baselines = NOISE_STD * torch.randn(max(64, n * len(batch)), *x.shape[1:])
                found: list[list[np.ndarray]] = [[] for _ in batch]
                for k in range(max(len(workload.targets[i]) for i in batch)):
                    # A text with fewer targets than its neighbours asks for its last one again.
                    which = [min(k, len(workload.targets[i]) - 1) for i in batch]
                    wanted = [workload.targets[i][j] for i, j in zip(batch, which, strict=True)]
                    place = [
                        len(workload.ids[i]) - len(workload.targets[i]) + j - 1
                        for i, j in zip(batch, which, strict=True)
                    ]
                    result = method.attribute(
                        x,
                        baselines,
                        n_samples=n,
                        stdevs=0.0 if noisy_baselines else NOISE_STD,
                        target=torch.tensor(wanted),
                        additional_forward_args=(mask, torch.tensor(place)),
                    )
                    for row, score in enumerate(result.sum(-1).numpy()):
                        if k < len(workload.targets[batch[row]]):
                            found[row].append(score[: lengths[row]])
                for i, rows in zip(batch, found, strict=True):
                    scores[i] = np.stack(rows)
        return scores

    return Runner(run, model)


class _Chosen(nn.Module):
    """The scores (R, T) of one text's targets, from embeddings."""

    def __init__(self, workload: Workload, targets: list[int]) -> None:
        super().__init__()
        self.model, self.workload, self.targets = workload.model, workload, targets

    def forward(self, embeddings: Tensor) -> Tensor:
        """(R, L, D) to (R, T)."""
        if not self.workload.causal:
            scores: Tensor = self.workload.scores(self.model(inputs_embeds=embeddings).logits)
            return scores[:, self.targets]
        count = len(self.targets)
        logits = self.model(inputs_embeds=embeddings, logits_to_keep=count + 1).logits
        scores = self.workload.scores(logits[:, :count])
        return scores[:, torch.arange(count), self.targets]


def prepare_shap(workload: Workload, tokens: bool = True) -> Runner:
    """``batch_size``: rows of a model call. One text at a time, since all of an explainer's inputs need one shape."""
    with quiet(0):
        import shap  # type: ignore[import-untyped]

    table = workload.model.get_input_embeddings()
    wrapped = [_Chosen(workload, targets).eval() for targets in workload.targets]

    def run(batch_size: int, n: int, seed: int) -> Scores:
        scores = []
        with quiet(seed):
            for i, (ids, model) in enumerate(zip(workload.ids, wrapped, strict=True)):
                x = table(torch.tensor([ids])).detach()
                background = NOISE_STD * torch.randn(n, *x.shape[1:])
                explainer = shap.GradientExplainer(model, background, batch_size=batch_size)
                values = np.asarray(explainer.shap_values(x, nsamples=n, rseed=(seed + 7919 * i) % 2**32))
                # (1, L, D) for one output, (1, L, D, T) for several
                values = values.reshape(len(ids), x.shape[2], -1).sum(1)
                scores.append(values.T)
        return scores

    return Runner(run, workload.model)


def prepare_floor(workload: Workload, tokens: bool = False, by_group: bool = False) -> Runner:
    """``batch_size``: tokens of a model call. A bare forward pass over the rows needed, and a backward pass for each target.

    Embeddings are looked up, rows repeated, and calls cut from texts sorted by length, without a mask where all rows of a
    call have one length; with "2048 alike" all calls are such, since attention is slower under a mask. A language model gives
    logits at the target's positions and, where no probability is asked for, of the target's tokens only.
    ``by_group`` walks back once for each word of a target instead of each of its tokens.
    """
    model, table = workload.model, workload.model.get_input_embeddings()
    order = sorted(
        range(len(workload.ids)), key=lambda i: (len(workload.targets[i]), len(workload.ids[i])), reverse=True
    )

    def parts(i: int) -> list[list[int]]:
        """Which of a text's targets are walked back together."""
        count = len(workload.targets[i])
        groups = workload.target_groups[i] if by_group else count
        return [part.tolist() for part in np.array_split(np.arange(count), groups)]

    @functools.lru_cache(maxsize=2)
    def calls(batch_size: int | str, n: int) -> list[list[tuple[int, int]]]:
        """Texts with their numbers of rows; texts of a call have targets alike."""
        budget, alike = int(str(batch_size).split()[0]), isinstance(batch_size, str)
        found: list[list[tuple[int, int]]] = []
        room, first = 0, -1
        for i in order:
            left = n
            while left:
                apart = alike and len(workload.ids[i]) != len(workload.ids[first])
                if room == 0 or apart or parts(i) != parts(first):
                    room, first = max(1, budget // len(workload.ids[i])), i
                    found.append([])
                rows = min(left, room)
                found[-1].append((i, rows))
                room, left = room - rows, left - rows
        return found

    def scores_of(
        z: Tensor, mask: Tensor | None, texts: Sequence[int], counts: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """(R, T)"""
        targets = torch.tensor([workload.targets[i] for i in texts])
        if not workload.causal:
            scores: Tensor = workload.scores(model(inputs_embeds=z, attention_mask=mask).logits)
            return scores.gather(1, targets.repeat_interleave(counts, 0))
        count = targets.shape[1]
        place = (torch.tensor(lengths)[:, None] - count - 1 + torch.arange(count)).repeat_interleave(counts, 0)
        hidden = model.base_model(inputs_embeds=z, attention_mask=mask, use_cache=False).last_hidden_state
        asked, head = hidden[torch.arange(len(z))[:, None], place], model.get_output_embeddings()
        if workload.probabilities:
            scores = workload.scores(head(asked))
            return scores.gather(2, targets.repeat_interleave(counts, 0)[..., None]).squeeze(2)
        rows = head.weight[targets].repeat_interleave(counts, 0)  # (R, T, D)
        return (asked * rows).sum(-1)

    def run(batch_size: int | str, n: int, seed: int) -> Scores:
        for call in calls(batch_size, n):
            texts, counts = [i for i, _ in call], torch.tensor([rows for _, rows in call])
            ids, mask, lengths = padded([workload.ids[i] for i in texts])
            with torch.no_grad():
                z = table(ids).repeat_interleave(counts, 0).requires_grad_()
            if mask is not None:
                mask = mask.repeat_interleave(counts, 0)
            outputs = scores_of(z, mask, texts, counts, lengths)
            ones = torch.ones(len(z))
            groups = parts(texts[0])
            for k, group in enumerate(groups):
                wanted = outputs[:, group[0]] if len(group) == 1 else outputs[:, group].sum(1)
                torch.autograd.grad(wanted, z, ones, retain_graph=k + 1 < len(groups))
        return []

    return Runner(run, model)


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None, list[int]]:
    """Token ids (B, L), their mask where there is padding, and their lengths."""
    lengths = [len(each) for each in ids]
    tensor = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in ids], batch_first=True)
    if min(lengths) == max(lengths):
        return tensor, None, lengths
    return tensor, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(), lengths


def rows_grid(workload: Workload) -> list[Any]:
    """fastshap's: it finds its own."""
    return ["auto"]


def near_n(workload: Workload) -> list[int]:
    """interpreto walks the whole batch back for each text in it, so n rows are its best."""
    return [workload.n, max(1, workload.n // 2), 2 * workload.n]


def texts_grid(workload: Workload) -> list[int]:
    """captum's."""
    grid = (4, 8, 16, 32) if workload.name == "a" else (1, 2, 4)
    return [b for b in grid if b <= len(workload.ids)] or [len(workload.ids)]


def tokens_grid(workload: Workload) -> list[int | str]:
    """The floor's."""
    if workload.causal:
        return [288, 576]
    return ["1024 alike", "2048 alike", 1024, *((2048, "512 alike", 512) if workload.name == "a" else (2048,))]


ONE_BACKWARD_A_GROUP = "floor, one backward a group"

TOOLS = {
    tool.name: tool
    for tool in (
        Tool("fastshap", prepare_fastshap, rows_grid, "rows", "signed"),
        Tool(
            "fastshap abs_mean",
            functools.partial(prepare_fastshap, reduction="abs_mean"),
            rows_grid,
            "rows",
            "unsigned",
        ),
        Tool("interpreto", prepare_interpreto, near_n, "rows", "unsigned"),
        Tool("captum by hand", prepare_captum, texts_grid, "texts", "signed"),
        Tool(
            "captum one by one",
            functools.partial(prepare_captum, by_hand=False),
            lambda workload: [1],
            "texts",
            "signed",
            core=False,
        ),
        Tool(
            "shap", prepare_shap, lambda workload: [workload.n, max(1, workload.n // 2)], "rows", "signed", core=False
        ),
        Tool("floor", prepare_floor, tokens_grid, "tokens"),
        Tool(
            ONE_BACKWARD_A_GROUP,
            functools.partial(prepare_floor, by_group=True),
            tokens_grid,
            "tokens",
            causal_only=True,
        ),
    )
}


def tools_for(workload: Workload) -> list[Tool]:
    """Those that make sense for a workload."""
    return [tool for tool in TOOLS.values() if workload.causal or not tool.causal_only]
