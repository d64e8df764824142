"""Which way of drawing samples gives the smallest error for the same number of model calls?

``python -m bench.studies.estimators embedded --texts 16`` and so on for minilm and smollm2; results go to ``bench/results/``.

For each text a pool of gradients is computed once: K noise vectors with both signs, at J positions of the path. Scores between
positions are interpolated, so every design can be drawn thousands of times without another model call, and the expectation over
the pool (the K vectors and their negatives, the whole path) is known exactly. Every design is unbiased for that expectation.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from bench.models import Subject, subject
from bench.paths import RESULTS
from fastshap.sampling import _towards_baseline

REPLICATES = 400

Draw = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray
]  # alphas, noise numbers, signs, weights: (replicates, n) each


# ---------------------------------------------------------------- pool


def nodes(count: int) -> np.ndarray:
    """Path positions, closer together towards the baseline, where models that normalise their input change fastest."""
    return 1 - (1 - np.linspace(0, 1, count)) ** 2


def pool(
    subject_: Subject, index: int, noise_std: float, noises: int, positions: int, seed: int
) -> dict[str, np.ndarray]:
    """Signed and absolute token scores (J, K, 2, L) and model outputs (J, K, 2) of one text, for one target."""
    model, tokenizer = subject_.model, subject_.tokenizer
    ids = tokenizer(subject_.texts[index])["input_ids"]
    if subject_.targets is None:
        target = int(model(torch.tensor([ids])).logits.argmax())
        at = None
    else:
        target = tokenizer(" " + subject_.targets[index], add_special_tokens=False)["input_ids"][0]
        at = len(ids) - 1
    x = model.get_input_embeddings()(torch.tensor(ids)).detach()
    generator = torch.Generator().manual_seed(1000 * seed + index)
    alphas = torch.tensor(nodes(positions), dtype=torch.float32)
    signed = np.zeros((positions, noises, 2, len(ids)), np.float32)
    absolute, outputs = np.zeros_like(signed), np.zeros(signed.shape[:3], np.float32)
    for k in range(noises):
        noise = noise_std * torch.randn(x.shape, generator=generator)
        for s, sign in enumerate((1, -1)):
            baseline = sign * noise
            z = ((1 - alphas)[:, None, None] * x + alphas[:, None, None] * baseline).requires_grad_()
            logits = model(inputs_embeds=z).logits
            scores = logits[:, target] if at is None else logits[:, at, target]
            (g,) = torch.autograd.grad(scores.sum(), z)
            signed[:, k, s] = ((x - baseline) * g).sum(-1).numpy()
            absolute[:, k, s] = (z.detach() * g).abs().mean(-1).numpy()
            outputs[:, k, s] = scores.detach().numpy()
    return {"signed": signed, "abs_mean": absolute, "outputs": outputs}


def at_positions(values: np.ndarray, alphas: np.ndarray, noise: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Values (J, K, 2, L) at any position, by cubic interpolation in the nodes' own parameter."""
    count = len(values)
    place = (1 - np.sqrt(1 - alphas)) * (count - 1)
    low = np.clip(place.astype(int), 0, count - 2)
    t = (place - low)[..., None]
    p0, p1, p2, p3 = (values[np.clip(low + d, 0, count - 1), noise, side] for d in (-1, 0, 1, 2))
    p0 = np.where((low == 0)[..., None], 2 * p1 - p2, p0)
    p3 = np.where((low == count - 2)[..., None], 2 * p2 - p1, p3)
    return p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))


def expectation(values: np.ndarray) -> np.ndarray:
    """(L,) the mean over the whole path and all noise of the pool."""
    fine = (np.arange(4000) + 0.5) / 4000
    total = np.zeros(values.shape[-1])
    for k in range(values.shape[1]):
        for s in range(2):
            here = np.full(len(fine), k), np.full(len(fine), s)
            total += at_positions(values, fine, *here).mean(0)
    return total / (2 * values.shape[1])


# ---------------------------------------------------------------- designs

Design = Callable[[np.random.Generator, int, int, int], Draw]  # generator, replicates, n, noises


def iid(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """Independent positions and noise."""
    return rng.random((r, n)), rng.integers(k, size=(r, n)), rng.integers(2, size=(r, n)), np.ones((r, n))


def stratified(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """One position in each of n strata, independent noise."""
    alphas = (np.arange(n) + rng.random((r, n))) / n
    return alphas, rng.integers(k, size=(r, n)), rng.integers(2, size=(r, n)), np.ones((r, n))


def _pairs(rng: np.random.Generator, r: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of pairs with opposite signs; an odd last one stands alone."""
    half = -(-n // 2)
    noise = np.repeat(rng.integers(k, size=(r, half)), 2, axis=1)[:, :n]
    first = np.repeat(rng.integers(2, size=(r, half)), 2, axis=1)[:, :n]
    return noise, first ^ (np.arange(n) % 2)


def antithetic(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """One independent position in each of n strata; neighbours carry opposite noise."""
    return (np.arange(n) + rng.random((r, n))) / n, *_pairs(rng, r, n, k), np.ones((r, n))


def _mirrored(u: np.ndarray) -> np.ndarray:
    """Positions in n strata from uniforms (r, n), those of a pair at equal distances from the border between them."""
    n = u.shape[1]
    u = u.copy()
    u[:, 1::2] = 1 - u[:, 0 : n - n % 2 : 2]
    return (np.arange(n) + u) / n


def mirrored(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """As antithetic, with the two positions of a pair at equal distances from the border between their strata."""
    return _mirrored(rng.random((r, n))), *_pairs(rng, r, n, k), np.ones((r, n))


def same_position(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """Both signs at one position, in n / 2 strata: the linear part of the noise cancels exactly."""
    half = -(-n // 2)
    alphas = np.repeat((np.arange(half) + rng.random((r, half))) / half, 2, axis=1)[:, :n]
    return alphas, *_pairs(rng, r, n, k), np.ones((r, n))


def lattice(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """Mirrored pairs that all share one offset: a randomly shifted quadrature rule."""
    return _mirrored(np.repeat(rng.random((r, 1)), n, axis=1)), *_pairs(rng, r, n, k), np.ones((r, n))


def quadruples(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """Four samples share a noise vector: both signs at both of two mirrored positions."""
    quarter = -(-n // 4)
    u = rng.random((r, quarter))
    middle, width = (np.arange(quarter) + 0.5) / quarter, 0.5 / quarter
    offset = (u - 0.5) * 2 * width
    alphas = np.stack([middle + offset, middle + offset, middle - offset, middle - offset], -1).reshape(r, -1)[:, :n]
    noise = np.repeat(rng.integers(k, size=(r, quarter)), 4, axis=1)[:, :n]
    first = np.repeat(rng.integers(2, size=(r, quarter)), 4, axis=1)[:, :n]
    return alphas, noise, first ^ (np.arange(n) % 2), np.ones((r, n))


def shared_noise(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
    """Mirrored pairs, two neighbouring pairs share their noise: fewer noise vectors, as many positions."""
    alphas, noise, side, weights = mirrored(rng, r, n, k)
    noise[:, 2::4] = noise[:, 0 : n - n % 4 + (2 if n % 4 > 2 else 0) : 4][:, : noise[:, 2::4].shape[1]]
    noise[:, 3::4] = noise[:, 2::4][:, : noise[:, 3::4].shape[1]]
    return alphas, noise, side, weights


def dense_at_baseline(power: float) -> Design:
    """Mirrored pairs in t, with a = 1 - (1 - t)^power and weights da/dt."""

    def design(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
        t, noise, side, _ = mirrored(rng, r, n, k)
        return 1 - (1 - t) ** power, noise, side, power * (1 - t) ** (power - 1)

    design.__doc__ = (
        f"Mirrored pairs, positions denser towards the baseline: a = 1 - (1 - t)^{power}, weighted by da/dt."
    )
    return design


def dense_at_input(power: float) -> Design:
    """Mirrored pairs in t, with a = t^power and weights da/dt."""

    def design(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
        t, noise, side, _ = mirrored(rng, r, n, k)
        return t**power, noise, side, power * t ** (power - 1)

    design.__doc__ = f"Mirrored pairs, positions denser towards the text: a = t^{power}, weighted by da/dt."
    return design


def towards_baseline(width: float) -> Design:
    """Antithetic in t, with path density proportional to 1 / ((1 - a)^2 + (width a)^2), weighted by its inverse."""

    def design(rng: np.random.Generator, r: int, n: int, k: int) -> Draw:
        t, noise, side, _ = antithetic(rng, r, n, k)
        alphas, weights = _towards_baseline(t, width)
        return alphas, noise, side, weights

    design.__doc__ = f"Antithetic, with the library's path_density={width}."
    return design


DESIGNS: dict[str, Design] = {
    "iid": iid,
    "stratified": stratified,
    "antithetic": antithetic,
    "mirrored": mirrored,
    "same position": same_position,
    "lattice": lattice,
    "quadruples": quadruples,
    "shared noise": shared_noise,
    "baseline 1.5": dense_at_baseline(1.5),
    "baseline 2": dense_at_baseline(2.0),
    "input 1.5": dense_at_input(1.5),
    "density 0.1": towards_baseline(0.1),
    "density 0.3": towards_baseline(0.3),
    "density 1": towards_baseline(1.0),
}


CALLS_FOR = ("iid", "antithetic", "mirrored", "density 0.1", "density 0.3", "density 1")


def errors(values: np.ndarray, design: Design, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (replicates, L) minus the expectation (L,), and the expectation."""
    rng = np.random.default_rng(seed)
    alphas, noise, side, weights = design(rng, REPLICATES, n, values.shape[1])
    estimates = (at_positions(values, alphas, noise, side) * weights[..., None]).mean(1)
    expected = expectation(values)
    return estimates - expected, expected


def controlled(signed: np.ndarray, outputs: np.ndarray, design: Design, n: int, seed: int) -> float:
    """Share of the variance that is left when the sum over tokens is known (F(x) - E F(b)) and regressed on, at its best."""
    error, _ = errors(signed, design, n, seed)
    residual = error.sum(1)
    slope = (error * residual[:, None]).mean(0) / (residual**2).mean()
    return float(((error - residual[:, None] * slope) ** 2).mean() / (error**2).mean())


def limits(pools: list[dict[str, np.ndarray]], kind: str) -> dict[str, float]:
    """What no number of samples changes: shares of the i.i.d. variance, and ratios of variances that pairs cannot go below.

    Strata remove what the mean does along the path, opposite signs what is odd in the noise. What is even in the noise stays,
    and n samples hold only n / 2 draws of it.
    """
    fine = (np.arange(1000) + 0.5) / 1000
    sums = np.zeros(4)
    for pool_ in pools:
        values = pool_[kind]
        count = values.shape[1]
        scores = np.stack(
            [[at_positions(values, fine, np.full(1000, k), np.full(1000, s)) for s in range(2)] for k in range(count)]
        ).astype(np.float64)  # (K, 2, positions, L)
        mean = scores.mean((0, 1))
        scale = (mean.mean(0) ** 2).sum()
        even = scores.mean(1).var(0).sum(-1)  # (positions,)
        odd = ((scores[:, 0] - scores[:, 1]) ** 2).mean(0).sum(-1) / 4
        path = (mean**2).sum(-1) - scale
        sums += np.array([path.mean(), odd.mean(), even.mean(), np.sqrt(even).mean() ** 2]) / scale
    path_, odd_, even_, best = sums
    total = path_ + odd_ + even_
    return {
        "path": path_ / total,
        "odd": odd_ / total,
        "even": even_ / total,
        "least ratio of pairs": 2 * even_ / total,
        "least ratio of pairs at any path density": 2 * best / total,
    }


def relative_error(pools: list[dict[str, np.ndarray]], kind: str, design: Design, n: int) -> np.ndarray:
    """Mean square error of the token scores of each text, as a share of the mean square of what they estimate."""
    found = [errors(p[kind], design, n, i) for i, p in enumerate(pools)]
    return np.array([(e**2).mean() / (expected**2).mean() for e, expected in found])


def calls_for(pools: list[dict[str, np.ndarray]], design: Design, level: float) -> float:
    """Samples a text for a relative root mean square error of ``level``, signed: between powers of two, on a log scale."""
    before, n = math.inf, 8
    while True:
        here = math.sqrt(relative_error(pools, "signed", design, n).mean())
        if here <= level:
            share = 1.0 if math.isinf(before) else math.log(before / level) / math.log(before / here)
            return n / 2 * 2**share
        if n == 512:  # from here on the noise alone is left, which falls with the root of n
            return n * (here / level) ** 2
        before, n = here, 2 * n


def ratio_of_variances(pools: list[dict[str, np.ndarray]], kind: str, n: int) -> tuple[float, float]:
    """Antithetic over i.i.d., and its standard error by leaving out one text at a time."""
    ours, theirs = (relative_error(pools, kind, design, n) for design in (antithetic, iid))
    texts = len(pools)
    without = [(ours.sum() - ours[i]) / (theirs.sum() - theirs[i]) for i in range(texts)]
    spread = math.sqrt((texts - 1) / texts * float(((np.array(without) - np.mean(without)) ** 2).sum()))
    return float(ours.sum() / theirs.sum()), spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("subject", choices=["embedded", "minilm", "smollm2"])
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--noises", type=int, default=32)
    parser.add_argument("--positions", type=int, default=33)
    arguments = parser.parse_args()
    subject_ = subject(arguments.subject, arguments.texts)
    table: dict[str, Any] = {}
    for noise_std in (0.1, 0.02):
        pools = [
            pool(subject_, i, noise_std, arguments.noises, arguments.positions, 0) for i in range(len(subject_.texts))
        ]
        for kind in ("signed", "abs_mean"):
            for n in (10, 20, 50):
                row = {}
                for name, design in DESIGNS.items():
                    row[name] = math.sqrt(relative_error(pools, kind, design, n).mean())
                if kind == "signed":
                    left = [controlled(p["signed"], p["outputs"], mirrored, n, i) for i, p in enumerate(pools)]
                    row["variance left with the sum known"] = float(np.mean(left))
                table[f"{noise_std} {kind} {n}"] = row
                if n != 20:
                    ratio, spread = ratio_of_variances(pools, kind, n)
                    row["variance of antithetic over iid"], row["its standard error"] = ratio, spread
                print(noise_std, kind, n, {name: round(value, 4) for name, value in row.items()}, flush=True)
            table[f"{noise_std} {kind} limits"] = limits(pools, kind)
            print(noise_std, kind, table[f"{noise_std} {kind} limits"], flush=True)
        calls = {name: calls_for(pools, DESIGNS[name], 0.1) for name in CALLS_FOR}
        table[f"{noise_std} samples for 10 % error"] = calls
        print(noise_std, {name: round(value, 1) for name, value in calls.items()}, flush=True)
    record = {
        "what": "relative root mean square error of token scores by design, noise, reduction and n",
        "subject": arguments.subject,
        "texts": len(subject_.texts),
        "noises": arguments.noises,
        "positions": arguments.positions,
        "replicates": REPLICATES,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "table": table,
    }
    (RESULTS / f"estimators_{arguments.subject}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
