"""The Triton helpers in the interpreter (a process of its own) and compiled for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

interpreting = os.environ.get("TRITON_INTERPRET") == "1"

if interpreting:
    import triton.language as tl

    from fastshap.kernels.philox import philox4x32

    @triton.jit
    def _words_kernel(p_in, p_out, N: tl.constexpr):
        i = tl.arange(0, N)
        w0, w1, w2, w3 = philox4x32(
            tl.load(p_in + i).to(tl.uint32),
            tl.load(p_in + N + i).to(tl.uint32),
            tl.load(p_in + 2 * N + i).to(tl.uint32),
            tl.load(p_in + 3 * N + i).to(tl.uint32),
            tl.load(p_in + 4 * N + i).to(tl.uint32),
            tl.load(p_in + 5 * N + i).to(tl.uint32),
        )
        tl.store(p_out + i, w0.to(tl.int64))
        tl.store(p_out + N + i, w1.to(tl.int64))
        tl.store(p_out + 2 * N + i, w2.to(tl.int64))
        tl.store(p_out + 3 * N + i, w3.to(tl.int64))


def test_the_interpreter_suite():
    """Runs the tests marked ``interpret`` below with TRITON_INTERPRET=1, which must be set before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "interpret", __file__],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.interpret
@pytest.mark.parametrize(("tokens", "dim"), [(1, 1), (3, 8), (5, 37), (2, 384), (2, 1030), (0, 16)])
def test_normals_equal_torch(tokens, dim):
    from fastshap import reference
    from fastshap.kernels import philox

    torch.manual_seed(0)
    streams = torch.randint(0, 2**32, (tokens, 3)) % torch.tensor([2**32, 2**32, 2**24])
    draws, positions = torch.randint(0, 2**31, (2, tokens))
    ours = philox.normals(streams, draws, positions, dim)
    right = reference.normals(streams, draws, positions, dim)
    torch.testing.assert_close(ours, right, atol=5e-6, rtol=2e-6)


@pytest.mark.interpret
def test_words_equal_torch_bitwise():
    from fastshap import reference

    torch.manual_seed(1)
    words = torch.randint(0, 2**32, (6, 256))
    words[:, 0], words[:, 1] = 0, 2**32 - 1
    out = torch.full((4, 256), -1)
    _words_kernel[(1,)](words, out, N=256)
    right = torch.stack(reference.philox4x32(tuple(words[:4]), tuple(words[4:])))
    assert torch.equal(out, right)


@pytest.mark.compile_only
@pytest.mark.parametrize(
    "target", [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)], ids=str
)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_normals_compile_without_local_memory(target, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastshap.kernels import philox

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = philox._normals_kernel
    signature = {
        "p_streams": "*i64",
        "p_draws": "*i64",
        "p_positions": "*i64",
        "p_out": "*fp32",
        "dim": "i32",
        "CALLS": "constexpr",
    }
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(5)}
    source = ASTSource(fn=kernel, signature=signature, constexprs={(5,): 64}, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget(*target), options={"num_warps": 1})
    assembly = compiled.asm["ptx" if target[0] == "cuda" else "amdgcn"]
    if target[0] == "cuda":
        assert ".local" not in assembly
        assert "st.global.v4" in assembly
    else:
        assert "scratch_" not in assembly
