"""Philox4x32-10 and standard normals from it, as device helpers and as an operator.

    words(k, q) = philox(counter=(q, position[k], draw[k], 256 * round[k]), key=(key0[k], key1[k]))
    out[k, 4q .. 4q+3] = r(w0) cos(w1), r(w0) sin(w1), r(w2) cos(w3), r(w2) sin(w3)              out (K, D)

The same words as fastshap.reference.philox, bit by bit. Angles are reduced to an eighth of the circle on the integer, which is
exact, so that a short polynomial serves and no slow path exists.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NOISE_DOMAIN = tl.constexpr(0)
_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four uint32 words for each counter; all arguments uint32, broadcast together."""
    for _ in tl.static_range(10):
        h0 = tl.umulhi(c0, _M0)
        h1 = tl.umulhi(c2, _M1)
        l0 = c0 * _M0
        l1 = c2 * _M1
        c0 = h1 ^ c1 ^ k0
        c2 = h0 ^ c3 ^ k1
        c1 = l1
        c3 = l0
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius_word, angle_word):
    """Two independent standard normals, float32, from two uint32 words."""
    uniform = radius_word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(-1.3862943611198906 * tl.log2(uniform))
    # The nearest quarter turn, and what is left of the angle in [-1/8, 1/8) of a turn: exact on the integer.
    quarter = (angle_word + 0x20000000) >> 30
    left = (angle_word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    square = left * left
    sine = left * (1.0 + square * (-0.16666654611 + square * (0.0083321608736 + square * -0.00019515295891)))
    cosine = 1.0 + square * (
        -0.5 + square * (0.041666645683 + square * (-0.0013887316255 + square * 2.443315711809948e-05))
    )
    odd = (quarter & 1) != 0
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    # The cosine is negative in the second and third quarter, the sine in the third and fourth.
    first = tl.where(((quarter + 1) & 2) != 0, -first, first)
    second = tl.where((quarter & 2) != 0, -second, second)
    return radius * first, radius * second


@triton.jit
def _normals_kernel(p_streams, p_draws, p_positions, p_out, dim, CALLS: tl.constexpr):
    """One program: CALLS Philox calls, that is 4 * CALLS dimensions, of one token."""
    token = tl.program_id(0).to(tl.int64)
    call = tl.program_id(1) * CALLS + tl.arange(0, CALLS)
    k0 = tl.load(p_streams + token * 3).to(tl.uint32)
    k1 = tl.load(p_streams + token * 3 + 1).to(tl.uint32)
    domain = tl.load(p_streams + token * 3 + 2).to(tl.uint32) * 256 + NOISE_DOMAIN
    zero = tl.zeros((CALLS,), tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        call.to(tl.uint32),
        zero + tl.load(p_positions + token).to(tl.uint32),
        zero + tl.load(p_draws + token).to(tl.uint32),
        zero + domain,
        k0,
        k1,
    )
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    # join(join(n0, n2), join(n1, n3)) lays n0 n1 n2 n3 side by side in registers.
    b_out = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (CALLS * 4,))
    dims = tl.program_id(1) * CALLS * 4 + tl.arange(0, CALLS * 4)
    tl.store(p_out + token * dim + dims, b_out, mask=dims < dim)


def normals(streams: Tensor, draws: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Standard normals (K, D) float32; arguments as for fastshap.reference.normals."""
    tokens = draws.shape[0]
    out = torch.empty(tokens, dim, dtype=torch.float32, device=draws.device)
    if out.numel():
        # 64 calls: 256 dimensions, of which 384, 768, 1024 and 4096 waste none or little, and eight a thread in one warp.
        grid = (tokens, triton.cdiv(dim, 256))
        _normals_kernel[grid](
            streams.contiguous(), draws.contiguous(), positions.contiguous(), out, dim, CALLS=64, num_warps=1
        )
    return out
