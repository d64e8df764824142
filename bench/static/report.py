"""What the compiler made of every kernel, for an H100 that need not be here.

    python -m bench.static [--json | --write]

This is the compiler's account: instructions are counted in the machine code for sm_90, and nothing was run on a GPU. Counted is
a text of 16 tokens with 10 rows, one target, a number as baseline (variants "set": background texts in the model's dtype), no
held tokens, right padding. A program has all rows of its text, as in a large launch. What runs once a program, once a row, or
once a noise vector is weighted accordingly: independent draws need fresh noise in every row, pairs in every second one.
Branches not taken for real tokens (padding) do not count. Then follow estimates of whole launches (see
``bench/static/estimate.py``).

    instructions_per_element   lane instructions per useful element: 32 lanes of every issued instruction, masked or not
    bytes_per_element          issued for the embedding-sized tensors; least: z or gradients once, x once per token
    picoseconds_per_element    the longer of issuing the instructions (132 SMs x 4 schedulers x one warp instruction a clock
                               at 1.755 GHz) and moving the bytes (3.0 TB/s)

An element is one of z or of the gradients; for segment_kernel one of a group of two tokens, for moments_kernel one value of ten
samples. These two work on float32 scores and know no D; their branches count in full. ``plain_kernel`` is perturb written the
obvious way with ``tl.randn``: a program for 256 dimensions of one token in one row, so that no lane is masked at these D;
its slow paths for large angles never run and do not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.paths import RESULTS
from bench.static import sass
from bench.static.compiled import Binary, Launch, pointers, versions
from bench.static.estimate import BYTES_A_SECOND, Program, Task, microseconds, warps_at_once
from bench.static.flow import Flow, loop_flow, rows_flow, straight_flow
from bench.static.launches import (
    MEMBERS,
    PLAIN_SIZE,
    ROWS,
    TOKENS,
    attribute_launch,
    moments_launch,
    perturb_launch,
    plain_launch,
    segment_launch,
)
from fastshap.kernels.attribute import WARPS_OF_A_PROCESSOR, tiles
from fastshap.kernels.moments import COLUMNS
from fastshap.kernels.perturb import calls
from fastshap.kernels.segment import STRATEGIES
from fastshap.kernels.sharing import splits

Entry = dict[str, Any]
REPORT = RESULTS / "static.json"
DIMS = (768, 4096)
ISSUES_A_SECOND = 132 * 4 * 1.755e9
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# The share of rows that need fresh noise.
NOISE = {"independent": 1.0, "pairs": 0.5}


@dataclass(frozen=True)
class Work:
    """What one program does: how often its regions run, for how many useful elements, on which tensors."""

    weights: dict[str, float]
    elements: float
    lanes: Mapping[str, float]  # for each tensor that counts, the lanes that move something
    least: float  # bytes an element


def _entry(
    launch: Launch, binary: Binary, flow: Flow, access: dict[int, str], work: Work, about: dict[str, Any]
) -> Entry:
    instructions, moved, widths = 0.0, 0.0, defaultdict[str, set[str]](set)
    for region, weight in work.weights.items():
        for instruction in flow.instructions(region):
            instructions += weight * 32 * binary.num_warps / work.elements
            tensor = access.get(instruction.address, "")
            if tensor in work.lanes:
                moved += weight * instruction.access_bytes * work.lanes[tensor] / work.elements
                widths[tensor].add(instruction.opcode)
            if instruction.name in ("LDL", "STL") and binary.local_bytes == 0:
                raise ValueError("Local memory is used that cuobjdump does not list.")
    if widths.keys() != work.lanes.keys():
        raise ValueError(f"{launch.kernel.__name__} was expected to access {set(work.lanes)}; it does {set(widths)}.")
    issue = instructions / 32 / ISSUES_A_SECOND * 1e12
    memory = moved / BYTES_A_SECOND * 1e12
    return {
        "kernel": launch.kernel.__name__,
        "target": "sm_90",
        "variant": "",
        "dtype": "fp32",
        "D": None,
        "ptx": False,
        "noise": None,
        **about,
        "rows": ROWS,
        "instructions_per_element": round(instructions, 2),
        "registers": binary.registers,
        "shared_bytes": binary.shared_bytes,
        "local_bytes": binary.local_bytes,
        "bytes_per_element": round(moved, 3),
        "least_bytes_per_element": round(work.least, 3),
        "accesses": {name.removeprefix("p_"): sorted(opcodes) for name, opcodes in sorted(widths.items())},
        "picoseconds_per_element": round(max(issue, memory), 3),
        "picoseconds_to_issue": round(issue, 3),
        "picoseconds_to_move": round(memory, 3),
        "num_warps": binary.num_warps,
        "warps_at_once": warps_at_once(binary.registers, binary.num_warps),
    }


def _perturb_entries(name: str, dim: int) -> Iterator[Entry]:
    dtype = DTYPES[name]
    block = 4 * calls(dtype.itemsize == 2)  # elements of a program
    if TOKENS * dim % block:
        raise ValueError("Lanes are masked at this D; bytes would be counted for them.")
    for of_a_set, ptx in itertools.product((False, True), (False, True)):
        launch = perturb_launch(dtype, dim, of_a_set).having(PTX=ptx)
        binary = launch.compile()
        access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
        flow = rows_flow(binary, access, "p_z")
        for noise, share in NOISE.items():
            work = Work(
                weights={"once": 1, "row": ROWS, "noise": ROWS * share},
                elements=block * ROWS,
                lanes=dict.fromkeys(("p_x", "p_z", "p_baseline") if of_a_set else ("p_x", "p_z"), 32),
                least=dtype.itemsize * (1 + 1 / ROWS + of_a_set),
            )
            about = {"variant": "set" if of_a_set else "", "dtype": name, "D": dim, "ptx": ptx, "noise": noise}
            yield _entry(launch, binary, flow, access, work, about)


def _plain_entries(name: str, dim: int) -> Iterator[Entry]:
    dtype = DTYPES[name]
    if dim % PLAIN_SIZE:
        raise ValueError("Lanes are masked at this D; bytes would be counted for them.")
    launch = plain_launch(dtype, dim)
    binary = launch.compile()
    access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
    flow = straight_flow(binary, access)
    work = Work({"once": 1}, PLAIN_SIZE, {"p_x": 32, "p_z": 32}, dtype.itemsize * (1 + 1 / ROWS))
    yield _entry(launch, binary, flow, access, work, {"dtype": name, "D": dim, "noise": "independent"})


# By how gradients are weighted: the arguments of attribute, and the tensors read beside them.
WEIGHTED = {
    "difference": ("sum", True, {"p_x"}),
    "difference, set": ("sum", True, {"p_x", "p_baseline"}),
    "nothing": ("sum", False, set[str]()),
    "point": ("abs_mean", True, {"p_z"}),
}


def _attribute_entries(name: str, dim: int) -> Iterator[Entry]:
    dtype = DTYPES[name]
    if sum(tiles(dim)) != dim:
        raise ValueError("Lanes are masked at this D; bytes would be counted for them.")
    for variant, (reduction, input_x_gradient, beside) in WEIGHTED.items():
        differs, of_a_set = "p_x" in beside, "p_baseline" in beside
        for ptx in (False, True) if differs else (False,):
            launch = attribute_launch(dtype, dim, reduction, input_x_gradient, of_a_set).having(PTX=ptx)
            binary = launch.compile()
            access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
            flow = rows_flow(binary, access, "p_gradients")
            for noise, share in NOISE.items() if differs else ((None, 0.0),):
                work = Work(
                    weights={"once": 1, "row": ROWS, "noise": ROWS * share, "target": 0},  # further targets: none
                    elements=dim * ROWS,
                    lanes=dict.fromkeys({"p_gradients", *beside}, 32 * binary.num_warps),
                    least=dtype.itemsize * (1 + differs / ROWS + ("p_z" in beside) + of_a_set),
                )
                about = {"variant": variant, "dtype": name, "D": dim, "ptx": ptx, "noise": noise}
                yield _entry(launch, binary, flow, access, work, about)


def _segment_entries() -> Iterator[Entry]:
    for strategy in STRATEGIES:
        launch = segment_launch(strategy)
        binary = launch.compile()
        access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
        # A turn loads for more members than the two; what is masked moves nothing.
        flow = loop_flow(binary)
        loads = flow.count("turn", "LDG", access, "p_values")
        share = MEMBERS / loads
        lanes = {"p_values": ROWS * share, "p_members": share, "p_offsets": 1, "p_out": ROWS}
        work = Work({"once": 1, "turn": 1}, ROWS * MEMBERS, lanes, 4 + 8 / ROWS + 4 / MEMBERS + 8 / (ROWS * MEMBERS))
        yield _entry(launch, binary, flow, access, work, {"variant": strategy})


def _moments_entries() -> Iterator[Entry]:
    for pairs in (False, True):
        launch = moments_launch(pairs)
        binary = launch.compile()
        access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
        flow = loop_flow(binary)
        loads = {region: flow.count(region, "LDG", access, "p_values") for region in ("once", "turn")}
        peeled, rest = divmod(loads["once"], loads["turn"])
        if rest or not 0 <= peeled < ROWS:
            raise ValueError("The loop over samples is not as expected.")
        lanes = {"p_values": 32, "p_mean": 32, "p_error": 32}
        work = Work({"once": 1, "turn": ROWS - peeled}, COLUMNS * ROWS, lanes, 4 * (1 + 2 / ROWS))
        yield _entry(launch, binary, flow, access, work, {"variant": "pairs" if pairs else "independent"})


# Of whole launches of attribute: one text, one target, 1,000 rows.
ESTIMATED_ROWS, ESTIMATED_LENGTHS, ESTIMATED_DIM = 1000, (16, 32, 128), 768


def estimates() -> list[Entry]:
    """Launches of attribute as NVIDIA's GPUs get them, with rows over the grid and without."""
    found = []
    for name, dtype in DTYPES.items():
        launch = attribute_launch(dtype, ESTIMATED_DIM, "sum", True).having(PTX=True)
        binary = launch.compile()
        access = sass.accesses(sass.blocks(binary.sass), pointers(launch))
        program = Program.of(binary, rows_flow(binary, access, "p_gradients"), access)
        for length in ESTIMATED_LENGTHS:
            chosen = splits(program.warps * length, 1, ESTIMATED_ROWS, torch.device("meta"), WARPS_OF_A_PROCESSOR)
            for noise, share in NOISE.items():
                task = Task(ESTIMATED_ROWS, length, ESTIMATED_DIM, dtype.itemsize, share)
                about = {"kernel": "attribute_kernel", "dtype": name, "L": length, "noise": noise}
                about |= {"D": ESTIMATED_DIM, "rows": ESTIMATED_ROWS, "early": program.early}
                found += [{**about, "splits": many, **microseconds(program, task, many)} for many in (1, chosen)]
    return found


def report(sizes: Iterable[tuple[str, int]] = tuple(itertools.product(DTYPES, DIMS))) -> list[Entry]:
    """An entry for each kernel, dtype, D and kind of noise.

    Args:
        sizes: the dtypes and D of the kernels that know a D.
    """
    entries = []
    for name, dim in sizes:
        entries += [*_perturb_entries(name, dim), *_plain_entries(name, dim), *_attribute_entries(name, dim)]
    return [*sorted(entries, key=lambda entry: entry["kernel"]), *_segment_entries(), *_moments_entries()]


COLUMNS_SHOWN = {
    "kernel": "kernel",
    "variant": "variant",
    "dtype": "dtype",
    "D": "D",
    "ptx": "PTX",
    "noise": "noise",
    "instructions_per_element": "instr",
    "registers": "regs",
    "shared_bytes": "shared",
    "local_bytes": "local",
    "bytes_per_element": "bytes",
    "least_bytes_per_element": "least",
    "picoseconds_per_element": "ps",
}


def _table(entries: list[Entry]) -> str:
    rows = [[*COLUMNS_SHOWN.values(), "accesses"]]
    for entry in entries:
        cells = ["-" if entry[key] in (None, "") else str(entry[key]) for key in COLUMNS_SHOWN]
        rows.append([*cells, ", ".join(f"{tensor} {' '.join(kinds)}" for tensor, kinds in entry["accesses"].items())])
    return _aligned(rows)


def _estimate_table(found: list[Entry]) -> str:
    shown = ("dtype", "L", "noise", "splits", "programs", "lower", "upper", "move", "issue", "wait")
    return _aligned([[*shown], *([str(entry[name]) for name in shown] for entry in found)])


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> None:
    """Prints the table or the list, or writes the list with the versions to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=(__doc__ or "").splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="print one object")
    kind.add_argument("--write", action="store_true", help=f"write {REPORT.name}, which the tests compare with")
    arguments = parser.parse_args()
    entries, whole = report(), estimates()
    if arguments.write:
        found = {"versions": versions(), "entries": entries, "estimates": whole}
        REPORT.write_text(json.dumps(found, indent=1) + "\n")
    elif arguments.json:
        print(json.dumps({"entries": entries, "estimates": whole}, indent=1))
    else:
        print(f"The compiler's account for sm_90, nothing was run: {versions()}. Per element; ps: picoseconds implied.")
        print(_table(entries))
        print(
            f"\nEstimated microseconds of attribute: one text, {ESTIMATED_ROWS} rows, D = {ESTIMATED_DIM}, one target."
        )
        print(_estimate_table(whole))
