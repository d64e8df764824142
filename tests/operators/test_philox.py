"""The generator is Random123's, its layout never changes, and its normals are right."""

import hashlib
import math
import struct

import numpy as np
import pytest
import torch

from fastshap.reference import normals, philox4x32
from fastshap.reference.philox import _box_muller, one_philox4x32
from fastshap.sampling import draw_samples, text_key

ONES = 0xFFFFFFFF

GOLDEN_KEY = (0x467B4F5A, 0xBCAC2804)
GOLDEN_ANTITHETIC = [0.02893747, 0.22240552, 0.56640476, 0.738861, 0.9003182]
GOLDEN_IID = [0.14468735, 0.112027586, 0.8320238, 0.694305, 0.501591]
GOLDEN_MEMBERS = {1: [0, 0, 0, 0, 0], 7: [2, 3, 5, 0, 6], 100: [1, 29, 83, 11, 11]}  # by how many there are
GOLDEN_NOISE = [-1.15635, -0.743533, -0.752741, -0.225824, -0.173575, 1.144366]


def one(*values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, words):
    assert tuple(int(word) for word in philox4x32(one(*counter), one(*key))) == words


def slow_philox(counter, key):
    """Philox4x32-10 with Python integers, as the paper writes it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c


def slow_normal(stream, draw, position, d):
    """The layout of docs/adr/0001 written out in float64."""
    words = slow_philox((d // 4, position, draw, stream[2] << 8), stream[:2])
    radius_word, angle_word = words[:2] if d % 4 < 2 else words[2:]
    radius = math.sqrt(-2 * math.log((radius_word + 0.5) / 2**32))
    angle = 2 * math.pi * angle_word / 2**32
    return radius * (math.cos(angle) if d % 2 == 0 else math.sin(angle))


def test_layout_of_the_noise():
    generator = np.random.default_rng(0)
    for _ in range(20):
        stream = (*(int(v) for v in generator.integers(0, 2**32, 2)), int(generator.integers(0, 1000)))
        draw, position = (int(v) for v in generator.integers(0, 5000, 2))
        ours = normals(torch.tensor([stream]), torch.tensor([draw]), torch.tensor([position]), 11)[0]
        theirs = torch.tensor([slow_normal(stream, draw, position, d) for d in range(11)])
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


def test_golden_vectors():
    """Fixed for good: explanations are reproducible a year later only while these hold."""
    assert text_key(0, [101, 2025, 2204, 102]) == GOLDEN_KEY
    samples = draw_samples(0, [101, 2025, 2204, 102], 5, "antithetic", round_=3)
    assert samples.stream == (*GOLDEN_KEY, 3)
    np.testing.assert_array_equal(samples.alphas, np.array(GOLDEN_ANTITHETIC, np.float32))
    np.testing.assert_array_equal(samples.draws, [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(samples.signs, [1, -1, 1, -1, 1])
    iid = draw_samples(0, [101, 2025, 2204, 102], 5, "iid", round_=3)
    np.testing.assert_array_equal(iid.alphas, np.array(GOLDEN_IID, np.float32))
    np.testing.assert_array_equal(iid.draws, range(5))
    noise = normals(torch.tensor([samples.stream]), torch.tensor([2]), torch.tensor([1]), 6)[0]
    np.testing.assert_allclose(noise, GOLDEN_NOISE, atol=5e-6)


def test_golden_members():
    """Of sets of baselines: the same for both samplings and any n; the noise and the positions stay as they are."""
    for count, members in GOLDEN_MEMBERS.items():
        for sampling in ("antithetic", "iid"):
            samples = draw_samples(0, [101, 2025, 2204, 102], 5, sampling, round_=3, baselines=count)
            assert samples.members.tolist() == members
            assert samples.members.dtype == np.int64
            more = draw_samples(0, [101, 2025, 2204, 102], 90, sampling, round_=3, baselines=count)
            assert more.members[:5].tolist() == members
            plain = draw_samples(0, [101, 2025, 2204, 102], 5, sampling, round_=3)
            assert plain.members is None
            for one, other in zip(plain[:-1], samples[:-1], strict=True):
                np.testing.assert_array_equal(one, other)
    words = slow_philox((1, 100, 0, (3 << 8) | 2), GOLDEN_KEY)  # the layout of docs/adr/0001, of sample 4
    assert words[0] * 100 >> 32 == GOLDEN_MEMBERS[100][4]


def test_key_is_the_beginning_of_sha256():
    for seed, ids in ((0, [5, 6]), (-3, [1]), (2**40, list(range(50)))):
        digest = hashlib.sha256(b"".join(struct.pack("<q", v) for v in (seed, *ids))).digest()
        assert text_key(seed, ids) == struct.unpack("<II", digest[:8])


def test_box_muller_against_float64():
    edges = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**30, 3 * 2**30, 2**29, 2**32 - 2**7]
    random = np.random.default_rng(1).integers(0, 2**32, 200_000)
    words = torch.from_numpy(np.concatenate([edges, random]))
    angles = words.flip(0)
    cosine, sine = torch.empty(len(words)), torch.empty(len(words))
    _box_muller(words, angles, cosine, sine)
    squared = -2 * ((words.double() + 0.5) / 2**32).log()
    ours = cosine.double() ** 2 + sine.double() ** 2
    assert ((ours - squared).abs() <= 1e-6 + 1e-6 * squared).all()
    angle, radius = 2 * math.pi * angles.double() / 2**32, ours.sqrt()
    there = radius > 0
    assert (cosine / radius - angle.cos())[there].abs().max() < 2e-6
    assert (sine / radius - angle.sin())[there].abs().max() < 2e-6


def test_normals_are_normal_and_uncorrelated():
    tokens, dim = 4000, 128
    noise = normals(
        torch.tensor([[1, 2, 0]]).expand(tokens, 3), torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens), dim
    ).double()
    count = noise.numel()
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    correlation = torch.corrcoef(noise.T) - torch.eye(dim)
    assert correlation.abs().max() < 6 / tokens**0.5


def test_chunks_do_not_show(monkeypatch):
    arguments = (torch.tensor([[7, 8, 1]]).expand(50, 3), torch.arange(50), torch.arange(50) % 7, 20)
    whole = normals(*arguments)
    monkeypatch.setattr("fastshap.reference.philox._CALLS_PER_PASS", 12)
    assert torch.equal(normals(*arguments), whole)


def test_no_two_draws_share_noise():
    positions = torch.zeros(4, dtype=torch.int64)
    streams = torch.tensor([[1, 2, 0], [1, 2, 0], [1, 2, 1], [1, 3, 0]])
    noise = normals(streams, torch.tensor([0, 1, 0, 0]), positions, 8)
    assert torch.unique(noise).numel() == noise.numel()


def test_few_words_are_those_of_many(monkeypatch):
    """One is made by Python's operators, few by NumPy's, many by PyTorch's."""
    generator = torch.Generator().manual_seed(0)
    *counter, k0, k1 = (torch.randint(2**32, (5, 1, 1), generator=generator) for _ in range(6))
    counter[0] = torch.randint(2**32, (7, 9), generator=generator)
    few = philox4x32(tuple(counter), (k0, k1))
    monkeypatch.setattr("fastshap.reference.philox._FEW", 0)
    many = philox4x32(tuple(counter), (k0, k1))
    assert [word.shape for word in few] == [(5, 7, 9)] * 4
    assert all(torch.equal(one, other) for one, other in zip(few, many, strict=True))
    words = (word.expand(5, 7, 9)[4, 3, 2].item() for word in (*counter, k0, k1))
    assert one_philox4x32(*words) == tuple(word[4, 3, 2].item() for word in few)
