"""Kernels compiled for GPUs that need not be here, exactly as their launchers would, and what the compiler made of them.

    with recorded(SM90) as launches:
        perturb(x, ...)  # tensors on the meta device will do; nothing is launched
    binary = launches[0].compile()

Triton itself specialises the recorded launch (divisible by 16, equal to 1, 32-bit or 64-bit), for the target given.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

SM80, SM90, SM100 = (GPUTarget("cuda", capability, 32) for capability in (80, 90, 100))
GFX942 = GPUTarget("hip", "gfx942", 64)
TARGETS = {"sm_80": SM80, "sm_90": SM90, "sm_100": SM100, "gfx942": GFX942}


class _Absent:
    """A driver for a GPU that is not here: enough of one to specialise a launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"no device, compiled for {self.target}"  # Triton keeps what it knows of a kernel by device

    def get_current_stream(self, device: str) -> int:
        return 0


@dataclass(frozen=True)
class Binary:
    """What the compiler made of one specialisation of one kernel."""

    target: GPUTarget
    assembly: str  # PTX or AMDGCN
    cubin: bytes  # empty for AMD
    registers: int
    shared_bytes: int
    local_bytes: int  # stack, spills and local arrays
    num_warps: int

    @property
    def sass(self) -> str:
        """Disassembled; empty for AMD."""
        return _disassembled(self.cubin) if self.cubin else ""


@dataclass(frozen=True)
class Launch:
    """One launch as Triton would compile it."""

    kernel: Any
    target: GPUTarget
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], Any]
    num_warps: int
    enable_fp_fusion: bool
    maxnreg: int | None  # registers of a thread, at most; None: as the assembler likes

    def having(self, **constants: Any) -> Launch:
        """The same launch with other values of compile-time arguments."""
        unknown = constants.keys() - self.constants.keys()
        if unknown:
            raise ValueError(f"{self.kernel.__name__} has no compile-time arguments {sorted(unknown)}.")
        return replace(self, constants={**self.constants, **constants})

    def compile(self) -> Binary:
        """Compiled."""
        places = {name: place for place, name in enumerate(self.kernel.arg_names)}
        source = ASTSource(
            fn=self.kernel,
            signature=self.signature,
            constexprs={(places[name],): value for name, value in self.constants.items()},
            attrs=self.attributes,
        )
        options = {"num_warps": self.num_warps, "enable_fp_fusion": self.enable_fp_fusion}
        if self.maxnreg is not None:
            options["maxnreg"] = self.maxnreg
        with _fusing():
            compiled = triton.compile(source, target=self.target, options=options)
        shared = compiled.metadata.shared
        if self.target.backend == "cuda":
            cubin = compiled.asm["cubin"]
            usage = _of_file(cubin, knobs.nvidia.cuobjdump.path, "-res-usage")
            registers = _number(r"\bREG:(\d+)", usage)
            local = _number(r"\bSTACK:(\d+)", usage) + _number(r"\bLOCAL:(\d+)", usage)
            return Binary(self.target, compiled.asm["ptx"], cubin, registers, shared, local, self.num_warps)
        assembly = compiled.asm["amdgcn"]
        registers = _number(r"^\s*\.vgpr_count:\s*(\d+)", assembly)
        local = _number(r"^\s*\.private_segment_fixed_size:\s*(\d+)", assembly)
        return Binary(self.target, assembly, b"", registers, shared, local, self.num_warps)


@contextmanager
def recorded(target: GPUTarget) -> Iterator[list[Launch]]:
    """Launches inside this block go to a list, specialised for ``target``, and nowhere else."""
    launches: list[Launch] = []

    def keep(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = fn.jit_function.arg_names
        launches.append(
            Launch(
                kernel=fn.jit_function,
                target=target,
                signature=dict(compile["signature"]),
                constants={names[place]: value for (place,), value in compile["constants"].items()},
                attributes=dict(compile["configs"][0]),
                num_warps=compile["num_warps"],
                enable_fp_fusion=compile["enable_fp_fusion"],
                maxnreg=json.loads(compile["specialization_data"])["options"].get("maxnreg"),
            )
        )
        return True  # do not compile, do not launch

    before = driver._active, knobs.runtime.jit_cache_hook, torch.version.hip  # driver.active would ask for a GPU
    torch.version.hip = "of a GPU that is not here" if target.backend == "hip" else None  # launchers look at it
    driver.set_active(_Absent(target))
    knobs.runtime.jit_cache_hook = keep
    try:
        with _fusing():
            yield launches
    finally:
        driver.set_active(before[0])
        knobs.runtime.jit_cache_hook, torch.version.hip = before[1:]


@contextmanager
def _fusing() -> Iterator[None]:
    """Multiplications and additions are fused where a launcher leaves it open, Triton 3.9's default: it warns when unsaid."""
    unset = "TRITON_DEFAULT_FP_FUSION" not in os.environ
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        yield
    finally:
        if unset:
            del os.environ["TRITON_DEFAULT_FP_FUSION"]


@functools.cache
def _disassembled(cubin: bytes) -> str:
    return _of_file(cubin, knobs.nvidia.nvdisasm.path, "-c")


def _of_file(cubin: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(*command, file.name)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"{pattern} was expected once and found {len(found)} times.")
    return int(found[0])


_SIZES = {"i64": 8, "u64": 8, "fp64": 8, "i32": 4, "u32": 4, "fp32": 4, "i16": 2, "i8": 1, "u1": 1, "i1": 1}


def pointers(launch: Launch) -> dict[int, str]:
    """Names of the pointer arguments by their places among the parameters, in bytes."""
    places: dict[int, str] = {}
    end = 0
    for name, kind in launch.signature.items():
        if kind == "constexpr":
            continue
        size = 8 if kind.startswith("*") else _SIZES[kind]
        place = -(-end // size) * size
        if kind.startswith("*"):
            places[place] = name
        end = place + size
    return places


@functools.cache
def versions() -> dict[str, str]:
    """Of Triton and of the assembler that it uses for sm_90."""
    release = re.search(r"V(\d+(?:\.\d+)+)", _run(knobs.nvidia.ptxas.path, "--version"))
    if release is None:
        raise ValueError("ptxas does not say its version.")
    return {"triton": triton.__version__, "ptxas": release.group(1)}
