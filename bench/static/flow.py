"""Which blocks of a kernel run how often."""

from __future__ import annotations

from dataclasses import dataclass

from bench.static import sass
from bench.static.compiled import Binary

# Philox multiplies 32 by 32 bits to 64, twenty times a call; nothing else does so often.
MULTIPLICATION, FEWEST = "IMAD.WIDE.U32", 18


@dataclass(frozen=True)
class Flow:
    """The blocks of a kernel by how often they run: "once" a program, and others as their finder says."""

    blocks: list[sass.Block]
    regions: dict[str, frozenset[int]]
    early: frozenset[int] = frozenset()  # blocks of a row that run before its noise is made

    def instructions(self, region: str) -> list[sass.Instruction]:
        """All of one region."""
        return [
            instruction for block in sorted(self.regions[region]) for instruction in self.blocks[block].instructions
        ]

    def count(self, region: str, opcode: str, access: dict[int, str], tensor: str) -> int:
        """Loads or stores of one tensor."""
        return sum(i.name == opcode and access[i.address] == tensor for i in self.instructions(region))


def rows_flow(binary: Binary, access: dict[int, str], tensor: str) -> Flow:
    """For kernels that walk over rows: "once", "row", "noise" (each fresh noise vector), "target" (each target of a row).

    The loop over rows is the one outermost loop that accesses ``tensor``.
    """
    blocks = sass.blocks(binary.sass)
    all_loops = sass.loops(blocks)
    working = [
        loop
        for loop in all_loops
        if any(access.get(i.address) == tensor for block in loop.blocks for i in blocks[block].instructions)
    ]
    outermost = [loop for loop in working if not any(loop.blocks < other.blocks for other in working)]
    if len(outermost) != 1:
        raise ValueError(f"One loop over rows was expected, {len(outermost)} were found.")
    rows = outermost[0]
    inner = [loop for loop in all_loops if loop.blocks < rows.blocks]
    if len(inner) > 1:
        raise ValueError(f"At most one loop inside the loop over rows was expected, {len(inner)} were found.")

    row, noise, target = sass.always(blocks, rows), set[int](), set[int]()
    for piece in sass.pieces(blocks, rows.blocks - row):
        if inner and inner[0].header in piece:
            target |= piece
        elif _multiplications(blocks, piece) >= FEWEST and not noise:
            noise = piece
        else:
            raise ValueError(f"The branch to blocks {sorted(piece)} in the loop over rows is unknown.")
    if inner:
        row -= inner[0].blocks  # without a guard of its own, no turn skips the loop over targets
        target |= inner[0].blocks
        if sass.always(blocks, inner[0]) != inner[0].blocks:
            raise ValueError("The loop over targets has branches.")
        if _multiplications(blocks, target) >= FEWEST:
            raise ValueError("The noise is generated once a target.")
    if _multiplications(blocks, row) >= FEWEST:
        raise ValueError("The noise is generated in every row, whatever its draw.")
    around = _around(blocks, rows, all_loops)
    regions = {"once": around, "row": row, "noise": noise, "target": target}
    later = sass.reached(blocks, noise, without={rows.header})
    early = row - later if noise else set[int]()
    return Flow(blocks, {name: frozenset(region) for name, region in regions.items()}, frozenset(early))


def _around(blocks: list[sass.Block], loop: sass.Loop, all_loops: list[sass.Loop]) -> set[int]:
    """The blocks on the way to ``loop`` and from it; those that a branch may skip count, those of other ways do not."""
    before = {b for b in sass.reached(blocks, [0], without=loop.blocks) if loop.header in sass.reached(blocks, [b])}
    after = sass.reached(blocks, loop.blocks) - loop.blocks
    if before & after or any(other.blocks & (before | after) for other in all_loops):
        raise ValueError("The loop lies in another loop, or another loop before or behind it.")
    return before | after


def _multiplications(blocks: list[sass.Block], chosen: set[int]) -> int:
    return sum(i.opcode == MULTIPLICATION for block in chosen for i in blocks[block].instructions)


def loop_flow(binary: Binary) -> Flow:
    """For kernels with one loop: "once" and "turn", branches counted in full."""
    blocks = sass.blocks(binary.sass)
    all_loops = sass.loops(blocks)
    if len(all_loops) != 1:
        raise ValueError(f"One loop was expected, {len(all_loops)} were found.")
    return Flow(blocks, {"once": frozenset(_around(blocks, all_loops[0], all_loops)), "turn": all_loops[0].blocks})


def straight_flow(binary: Binary, access: dict[int, str]) -> Flow:
    """For kernels without loops: "once", less the branches to the slow paths of sine and cosine, which read a table."""
    blocks = sass.blocks(binary.sass)
    body = sass.reached(blocks, [0])
    ends = {block for block in body if not blocks[block].after}
    needed = {block for block in body if not sass.reached(blocks, [0], without={block}) & (ends - {block})}
    for piece in sass.pieces(blocks, body - needed):
        if not any(access.get(i.address) == sass.TABLE for block in piece for i in blocks[block].instructions):
            raise ValueError(f"The branch to blocks {sorted(piece)} is unknown.")
    return Flow(blocks, {"once": frozenset(needed)})
