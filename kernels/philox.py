"""Philox4x32-10 and standard normals from it: device helpers.

    words = philox(counter=(quad, position, draw, 256 * round), key=(key0, key1))
    normals at dimensions 4 quad .. 4 quad + 3 = r(w0) cos(w1), r(w0) sin(w1), r(w2) cos(w3), r(w2) sin(w3)
    r(w) = sqrt(-2 ln((w + 1/2) / 2^32)),   the angle of w is 2 pi w / 2^32

The same words as fastshap.reference.philox, bit by bit. Angles are reduced to half a circle on the integer, which is exact, so
that short polynomials serve and no slow path exists. Against float64: squared radius within 1e-6 absolute plus 1e-6 relative,
sine and cosine within 2e-6.
"""

import triton
import triton.language as tl

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_SQRT_HALF = tl.constexpr(0x3F3504F3)  # the bits of sqrt(1/2)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four uint32 words for each counter; all arguments uint32, broadcast together."""
    for _ in tl.static_range(10):
        # One multiplication gives both halves of the product.
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _log2_of_uniform(word):
    """log2((word + 1/2) / 2^32) of uint32 words, to 5e-7: exponent and polynomial, as every target can."""
    bits = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True) - _SQRT_HALF
    mantissa = ((bits & 0x007FFFFF) + _SQRT_HALF).to(tl.float32, bitcast=True)  # in [sqrt(1/2), sqrt(2))
    exponent = ((bits - 0x10000000) >> 23).to(tl.float32)  # less 32
    m = mantissa - 1.0
    p = 1.4426997 + m * (
        -0.721375828 + m * (0.480466244 + m * (-0.358963192 + m * (0.297250502 + m * (-0.272686702 + m * 0.170658435))))
    )
    return m * p + exponent


@triton.jit
def box_muller(radius_word, angle_word, PTX: tl.constexpr):
    """Two independent standard normals, float32, from uint32 words. PTX: with the special function units of NVIDIA GPUs."""
    if PTX:
        uniform = radius_word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
        # lg2.approx may lie above 0 just below 1. The absolute value is part of the multiplication that follows.
        log2 = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1; abs.ftz.f32 $0, $0;", "=f,f", [uniform], tl.float32, True, 1
        )
        square = log2 * 1.3862943611198906
        radius = tl.inline_asm_elementwise("sqrt.approx.ftz.f32 $0, $1;", "=f,f", [square], tl.float32, True, 1)
    else:
        square = _log2_of_uniform(radius_word) * -1.3862943611198906 + 1e-30  # never 0, whose inverse root is infinite
        radius = square * tl.rsqrt(square)
    # Half a turn is a change of sign; what is left of the angle lies in [-1/4, 1/4) of a turn, exactly, on the integer.
    doubled = angle_word << 1
    flip = (angle_word ^ doubled) & 0x80000000
    radius = (radius.to(tl.uint32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    t = doubled.to(tl.int32, bitcast=True).to(tl.float32) * 7.314590396335798e-10  # pi / 2^32
    s = t * t
    sine = t * (0.999996622 + s * (-0.166648298 + s * (0.0083063355 + s * -0.000183638732)))
    cosine = 0.999999953 + s * (-0.499999053 + s * (0.0416635847 + s * (-0.00138537043 + s * 2.31539316e-05)))
    return radius * cosine, radius * sine


@triton.jit
def call_numbers(first, CALLS: tl.constexpr, WIDE: tl.constexpr):
    """Which calls a block of 4 CALLS elements needs, as :func:`block_normals` takes them: even and odd ones, or all of them."""
    if WIDE:
        calls = first + 2 * tl.arange(0, CALLS // 2)
    else:
        calls = first + tl.arange(0, CALLS)
    return calls, calls + 1


@triton.jit
def call_normals(quad, position, draw, domain, k0, k1, PTX: tl.constexpr):
    """(K, 2, 2) float32: the four normals of each of K calls in order."""
    w0, w1, w2, w3 = philox4x32(quad.to(tl.uint32), position.to(tl.uint32), draw.to(tl.uint32), domain, k0, k1)
    n0, n1 = box_muller(w0, w1, PTX)
    n2, n3 = box_muller(w2, w3, PTX)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3))


@triton.jit
def block_normals(
    quad0, position0, quad1, position1, draw, domain, k0, k1, CALLS: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr
):
    """(4 CALLS,) float32: the normals of a block of elements, in the registers where its loads and stores want them.

    A thread that moves 128 bits holds four elements of float32 but eight of half precision, two calls' worth (WIDE).
    """
    b_noise = call_normals(quad0, position0, draw, domain, k0, k1, PTX)
    if WIDE:
        b_odd = call_normals(quad1, position1, draw, domain, k0, k1, PTX)
        b_noise = tl.permute(tl.join(b_noise, b_odd), (0, 3, 1, 2))
    return tl.reshape(b_noise, (CALLS * 4,))
