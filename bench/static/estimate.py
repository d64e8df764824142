"""How long a launch of ``attribute`` would take on an H100, from counts in its machine code. Nothing here was run on a GPU.

The model, all of it assumed: 132 multiprocessors of four schedulers, 1.755 GHz, 3.0 TB/s. A multiprocessor holds as many
programs as registers allow, 64 warps and 32 programs at most. Three times are compared:

    move   the gradients once, and x once a program, at full bandwidth
    issue  the warps of the busiest scheduler take turns, one warp instruction a clock
    wait   one program by itself, times the turns in which programs fit: an instruction takes 1 to 1.5 clocks, and a load
           that is waited for 800; if a row's gradient is asked for before its noise is made, the wait is that much shorter

The lower figure is the longest of the three, the upper one moves while nothing else happens. A launch itself is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.static.compiled import Binary
from bench.static.flow import Flow

PROCESSORS, SCHEDULERS, CLOCK, BYTES_A_SECOND = 132, 4, 1.755e9, 3.0e12
LOAD = 800  # clocks until a load from memory is there
LOADS_FIRST = 3  # that wait for each other before the first row: offsets, whether a token is held, x
CLOCKS_AN_INSTRUCTION = 1.0, 1.5  # of a warp by itself


def warps_at_once(registers: int, num_warps: int) -> int:
    """Warps that a multiprocessor holds, by their registers: 16384 a scheduler, eight a thread at a time."""
    warps = SCHEDULERS * (16384 // (32 * -(-registers // 8) * 8))
    return min(warps // num_warps, 64 // num_warps, 32) * num_warps


@dataclass(frozen=True)
class Program:
    """What one program of a kernel over rows does, in warp instructions."""

    once: int
    row: int
    noise: int
    target: int  # for each further target of a row; in a kernel that treats the first one alike, for each
    early: bool  # whether all of a row's gradient is asked for before its noise is made
    warps: int
    registers: int

    @classmethod
    def of(cls, binary: Binary, flow: Flow, access: dict[int, str]) -> Program:
        """Counted in the machine code."""
        counts = {region: len(flow.instructions(region)) for region in flow.regions}
        loads = [
            block
            for block in flow.regions["row"]
            if any(access.get(i.address) == "p_gradients" for i in flow.blocks[block].instructions)
        ]
        early = bool(loads) and flow.early >= set(loads)
        return cls(**counts, early=early, warps=binary.num_warps, registers=binary.registers)


@dataclass(frozen=True)
class Task:
    """One text and one target."""

    rows: int
    length: int
    dim: int
    itemsize: int
    noise: float  # the share of rows that need fresh noise
    targets_in_loop: int = 0  # how often a row runs the loop over targets


def microseconds(program: Program, task: Task, splits: int) -> dict[str, float]:
    """The estimate, lower and upper, and its three parts."""
    share = min(task.rows, 2 * -(-task.rows // (2 * splits)))
    programs = task.length * -(-task.rows // share)
    row = program.row + program.target * task.targets_in_loop
    instructions = program.once + share * (row + task.noise * program.noise)

    held = warps_at_once(program.registers, program.warps) // program.warps  # programs
    turns = -(-programs // (PROCESSORS * held))
    warps = -(-programs // PROCESSORS) * program.warps
    issue = -(-warps // SCHEDULERS) * instructions / CLOCK

    def wait(clocks: float) -> float:
        behind = max(0.0, LOAD - clocks * program.noise) if program.early else LOAD
        exposed = share * (task.noise * behind + (1 - task.noise) * LOAD)
        return turns * (LOADS_FIRST * LOAD + clocks * instructions + exposed) / CLOCK

    moved = task.itemsize * task.dim * (task.length * task.rows + programs)
    move = moved / BYTES_A_SECOND
    quick, slow = (wait(clocks) for clocks in CLOCKS_AN_INSTRUCTION)
    times = {
        "lower": max(move, issue, quick),
        "upper": move + max(issue, slow),
        "move": move,
        "issue": issue,
        "wait": slow,
    }
    return {"programs": programs, **{name: round(time * 1e6, 1) for name, time in times.items()}}
