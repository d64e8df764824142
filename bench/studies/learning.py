"""Learned path densities, replayed from pools of gradients: errors, intervals, and what stopping by ``rtol`` does to scores.

``python -m bench.studies.learning embedded`` and so on for minilm, and smollm2 (asked for a probability). For each text a
pool holds the token scores for some noise vectors with both signs, at many positions of the path; scores between positions are
interpolated. So rounds whose density depends on earlier ones can be drawn thousands of times, with the library's own fit,
moments and rule for stopping, and the expectation is known. ``--pools FILE`` keeps the pools, and takes them from there.
Adds to ``bench/results/learning.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.models import Subject, subject
from bench.paths import RESULTS
from fastshap import ops
from fastshap.engine import learned
from fastshap.engine.estimate import RoundMoments, Running, student_quantile
from fastshap.sampling import Samples, piecewise

RESULT = RESULTS / "learning.json"
NOISE = 0.1
FINE = (np.arange(1000) + 0.5) / 1000
DENSITIES = ("uniform", "learned", "auto")


class Pool:
    """One text's scores (J, K, 2, L) at the positions t^power of equal steps t, for K noise vectors and their negatives."""

    def __init__(self, values: np.ndarray, power: float) -> None:
        self.values, self.power = values, power
        count = values.shape[1]
        grid = np.stack([[self.at(FINE, np.full(1000, k), np.full(1000, s)) for s in range(2)] for k in range(count)])
        self.truth = grid.mean((0, 1, 2))
        self.size = float((self.truth**2).sum())
        self.independent = (
            float((grid**2).sum(-1).mean() - self.size) / self.size
        )  # relative variance of one i.i.d. sample

    def at(self, alphas: np.ndarray, noise: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Scores at any position, by cubic interpolation."""
        count = len(self.values)
        place = alphas ** (1 / self.power) * (count - 1)
        low = np.clip(place.astype(int), 0, count - 2)
        t = (place - low)[..., None]
        p0, p1, p2, p3 = (self.values[np.clip(low + d, 0, count - 1), noise, side].astype(float) for d in (-1, 0, 1, 2))
        p0 = np.where((low == 0)[..., None], 2 * p1 - p2, p0)
        p3 = np.where((low == count - 2)[..., None], 2 * p2 - p1, p3)
        return p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))


class Round(NamedTuple):
    """One round's samples: positions and weights (n,), and scores (n, L) without weights."""

    alphas: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


def draw(pool: Pool, rng: np.random.Generator, n: int, density: np.ndarray | None) -> Round:
    """An antithetic round, as the library draws it."""
    uniform = ((np.arange(n) + rng.random(n)) / n)[None]
    alphas, weights = (uniform, np.ones((1, n))) if density is None else piecewise(uniform, density[None])
    half = -(-n // 2)
    noise = np.repeat(rng.integers(pool.values.shape[1], size=half), 2)[:n]
    side = np.repeat(rng.integers(2, size=half), 2)[:n] ^ (np.arange(n) % 2)
    return Round(alphas[0], weights[0], pool.at(alphas[0], noise, side))


class Replay:
    """One text's rounds, with the density of each from those before if it is "auto"."""

    def __init__(self, pool: Pool, rng: np.random.Generator, n: int, density: np.ndarray | str | None) -> None:
        self.pool, self.rng, self.n, self.density = pool, rng, n, density
        self.running = Running(SimpleNamespace(linear=True), "antithetic")  # type: ignore[arg-type]
        self.seen = learned.Learned(True)

    def step(self) -> None:
        """One round more."""
        density = self.density
        if isinstance(density, str):
            density = (
                learned.density([self.seen.variance(self.running.tokens.numpy())]) if self.running.rounds else None
            )
        drawn = draw(self.pool, self.rng, self.n, density)
        weighted = torch.from_numpy(drawn.scores * drawn.weights[:, None]).float()[None]
        mean, error = ops.moments(weighted, pairs=True, backend="torch")
        self.running.add(self.n, RoundMoments(mean, error, mean))
        if isinstance(self.density, str):
            none = np.zeros(0)
            samples = Samples((0, 0, 0), drawn.alphas.astype(np.float32), none, none, drawn.weights.astype(np.float32))
            self.seen.add(samples, learned.spreads(weighted, samples, True).numpy())

    def scores(self) -> np.ndarray:
        """(L,)"""
        return self.running.tokens[0].numpy().astype(float)


def fits(pools: list[Pool], n: int = 200) -> list[np.ndarray]:
    """For each text the density that is fitted on the others."""
    rng, variances = np.random.default_rng(5), []
    for pool in pools:
        replay = Replay(pool, rng, n, "auto")
        replay.step()
        variances.append(replay.seen.variance(replay.running.tokens.numpy()))
    return [learned.density(variances[:i] + variances[i + 1 :]) for i in range(len(pools))]


def errors(pools: list[Pool], fitted: list[np.ndarray], n: int, rounds: int, times: int) -> dict[str, float]:
    """Variance of the mean of so many rounds of n, as a share of that of as many i.i.d. samples."""
    independent = np.mean([pool.independent for pool in pools]) / (n * rounds)
    found = {}
    for name in DENSITIES if rounds > 1 else DENSITIES[:2]:
        rng, squares = np.random.default_rng(1), []
        for pool, density in zip(pools, fitted, strict=True):
            for _ in range(times):
                replay = Replay(pool, rng, n, {"uniform": None, "learned": density, "auto": "auto"}[name])
                for _ in range(rounds):
                    replay.step()
                squares.append(float(((replay.scores() - pool.truth) ** 2).sum()) / pool.size)
        found[name] = float(np.mean(squares) / independent)
    return found


def coverage(pools: list[Pool], n: int, rounds: tuple[int, ...], times: int) -> dict[str, dict[int, float]]:
    """How often 95 % intervals hold the truth, all tokens."""
    found: dict[str, dict[int, float]] = {}
    for name, density in (("uniform", None), ("auto", "auto")):
        rng = np.random.default_rng(2)
        inside: dict[int, list[float]] = {count: [] for count in rounds}
        for pool in pools:
            for _ in range(times):
                replay = Replay(pool, rng, n, density)
                for count in range(1, max(rounds) + 1):
                    replay.step()
                    if count in inside:
                        half = (
                            student_quantile(0.975, replay.running.freedom) * replay.running.standard_error()[0].numpy()
                        )
                        inside[count].append(float((abs(replay.scores() - pool.truth) <= half).mean()))
        found[name] = {count: float(np.mean(values)) for count, values in inside.items()}
    return found


def stopping(pools: list[Pool], fitted: list[np.ndarray], n: int, rtol: float, times: int) -> dict[str, Any]:
    """Bias of the score that is truly the largest, relative to it, where rounds end by ``rtol``: mean, at worst, samples."""
    found = {}
    for name in DENSITIES:
        rng, biases, deviations, samples, ended = np.random.default_rng(3), [], [], [], []
        for pool, density in zip(pools, fitted, strict=True):
            top = int(abs(pool.truth).argmax())
            values = []
            for _ in range(times):
                replay = Replay(pool, rng, n, {"uniform": None, "learned": density, "auto": "auto"}[name])
                for _ in range(64):
                    replay.step()
                    if met := replay.running.meets(rtol):
                        break
                values.append(replay.scores()[top] / pool.truth[top])
                samples.append(replay.running.samples)
                ended.append(met)
            biases.append(np.mean(values) - 1)
            deviations.append(np.std(values) / math.sqrt(times))
        worst = int(np.abs(biases).argmax())
        found[name] = {
            "mean bias in %": 100 * float(np.mean(biases)),
            "its standard error": 100 * math.sqrt(sum(d * d for d in deviations)) / len(pools),
            "at worst": 100 * float(biases[worst]),
            "standard error there": 100 * float(deviations[worst]),
            "samples": float(np.mean(samples)),
            "converged": float(np.mean(ended)),
        }
    return found


def gradients(its: Subject, index: int, alphas: torch.Tensor, noises: int) -> np.ndarray:
    """Signed token scores (J, K, 2, L) of one text and target."""
    ids = its.tokenizer(its.texts[index])["input_ids"]
    x = its.model.get_input_embeddings()(torch.tensor(ids)).detach()
    if its.targets is None:
        target = int(its.model(torch.tensor([ids])).logits.argmax())
    else:
        target = its.tokenizer(" " + its.targets[index], add_special_tokens=False)["input_ids"][0]
    generator = torch.Generator().manual_seed(77 + index)
    found = np.zeros((len(alphas), noises, 2, len(ids)), np.float32)
    for k in range(noises):
        noise = NOISE * torch.randn(x.shape, generator=generator)
        for s, sign in enumerate((1, -1)):
            baseline = sign * noise
            z = ((1 - alphas)[:, None, None] * x + alphas[:, None, None] * baseline).requires_grad_()
            if its.targets is None:
                scores = its.model(inputs_embeds=z).logits[:, target]
            else:
                scores = its.model(inputs_embeds=z, logits_to_keep=1).logits[:, -1].softmax(-1)[:, target]
            (g,) = torch.autograd.grad(scores.sum(), z)
            found[:, k, s] = ((x - baseline) * g).sum(-1).numpy()
    return found


def pools_of(name: str, texts: int, noises: int, positions: int, kept: Path | None) -> list[Pool]:
    """From the file, if there is one, or computed."""
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return [Pool(file[key], float(file["power"])) for key in file.files if key != "power"][:texts]
    power = 1.5 if name == "smollm2" else 1.0  # where probabilities change most
    its = subject(name, texts)
    its.model.requires_grad_(False)
    alphas = torch.linspace(0, 1, positions) ** power
    found = [gradients(its, i, alphas, noises) for i in range(len(its.texts))]
    if kept is not None:
        np.savez(kept, power=power, **{f"p{i}": one for i, one in enumerate(found)})  # type: ignore[arg-type]
    return [Pool(values, power) for values in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("subject", choices=["embedded", "minilm", "smollm2"])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--noises", type=int, default=24)
    parser.add_argument("--positions", type=int, default=25)
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--pools", type=Path)
    parser.add_argument("--parts", nargs="*", default=["errors", "coverage", "stopping"])
    arguments = parser.parse_args()
    pools = pools_of(arguments.subject, arguments.texts, arguments.noises, arguments.positions, arguments.pools)
    fitted = fits(pools)
    times = arguments.times
    size = {"texts": len(pools), "noises": pools[0].values.shape[1], "positions": len(pools[0].values)}
    loud = arguments.subject == "smollm2"

    def keep(key: str, value: Any) -> None:
        print(key, json.dumps(value), flush=True)
        record = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        table = record.setdefault(arguments.subject, size)
        table[key] = {"times": times} | value
        record["what"] = (
            "learned path densities replayed from pools of gradients; noise 0.1, signed token scores, antithetic"
        )
        record["machine"] = f"{platform.machine()}, no GPU, torch {torch.__version__}"
        RESULT.write_text(json.dumps(record, indent=1) + "\n")

    for n, rounds in ((10, 1), (20, 1), (50, 1), (100, 1), (200, 1), (10, 4), (10, 10), (50, 4)):
        if "errors" in arguments.parts:
            keep(f"variance over i.i.d., rounds of {n}: {rounds}", errors(pools, fitted, n, rounds, times))
    if "coverage" in arguments.parts:
        keep("coverage of 95 % intervals, rounds of 10", coverage(pools, 10, (4, 8, 16), times))
    for n, rtol in ((10, 0.3), (20, 0.3)) if loud else ((5, 0.2), (10, 0.1)):
        if "stopping" in arguments.parts:
            keep(f"stopping, rounds of {n}, rtol {rtol}", stopping(pools, fitted, n, rtol, times))


if __name__ == "__main__":
    main()
