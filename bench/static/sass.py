"""SASS as ``nvdisasm -c`` prints it: basic blocks, loops, blocks that a condition may skip, and which tensor is accessed.

Anything unexpected (calls, indirect branches, loops with two entries) raises ValueError: a count is right or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

_LABEL = re.compile(r"^(\.L_[\w$]+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_GOAL = re.compile(r"`\((\.L_[\w$]+)\)")
_PREDICATE = re.compile(r"^!?U?P\d")
_REFUSED = ("CALL", "RET", "BRX", "BRXU", "JMP", "JMX", "JMXU", "BREAK", "RPCMOV", "KILL")


@dataclass(frozen=True)
class Instruction:
    """One instruction, which a warp issues once each time its block runs, whatever its guard says."""

    guard: str
    opcode: str
    operands: str
    address: int

    @property
    def name(self) -> str:
        """The opcode without what it is modified by."""
        return self.opcode.split(".")[0]

    @property
    def access_bytes(self) -> int:
        """What one lane loads or stores."""
        for width, size in (("128", 16), ("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)):
            if width in self.opcode.split("."):
                return size
        return 4


@dataclass
class Block:
    """Instructions that run one after the other."""

    instructions: list[Instruction] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # the blocks that may come next


@dataclass(frozen=True)
class Loop:
    """A natural loop: where it is entered, from where it goes round, and all its blocks."""

    header: int
    latches: frozenset[int]
    blocks: frozenset[int]


def blocks(text: str) -> list[Block]:
    """The basic blocks of one kernel; the first is where it begins."""
    found: list[Block] = [Block()]
    labels: dict[str, int] = {}
    ends: list[tuple[int, str, bool]] = []  # block, label to go to ("" for none), whether the next block may follow
    for text_line in text.splitlines():
        if name := _LABEL.match(text_line):
            if found[-1].instructions:
                ends.append((len(found) - 1, "", True))
                found.append(Block())
            labels[name.group(1)] = len(found) - 1
        elif match := _INSTRUCTION.search(text_line):
            address, guard, opcode, operands = match.groups()
            instruction = Instruction(guard or "", opcode, operands.strip(), int(address, 16))
            found[-1].instructions.append(instruction)
            if instruction.name in _REFUSED:
                raise ValueError(f"{instruction.opcode} {instruction.operands} cannot be followed.")
            if instruction.name in ("BRA", "EXIT"):
                goal = _GOAL.search(operands)
                if instruction.name == "BRA" and goal is None:
                    raise ValueError(f"{instruction.opcode} {instruction.operands} goes nowhere that is known.")
                maybe = bool(guard) or bool(_PREDICATE.match(instruction.operands)) or "DIV" in opcode
                ends.append((len(found) - 1, goal.group(1) if goal else "", maybe))
                found.append(Block())
        elif re.search(r"/\*[0-9a-f]{4,}\*/.*;", text_line):
            raise ValueError(f"Not understood: {text_line.strip()}")
    if not found[-1].instructions:
        found.pop()
    if not found:
        raise ValueError("There are no instructions.")
    for block, label, falls in ends:
        if label:
            found[block].after.append(labels[label])
        if falls and block + 1 < len(found):
            found[block].after.append(block + 1)
    return found


def reached(flow: list[Block], start: Iterable[int], without: Set[int] = frozenset()) -> set[int]:
    """Blocks that can run from any of ``start`` on, these included, never entering ``without``."""
    seen: set[int] = set()
    waiting = [block for block in start if block not in without]
    while waiting:
        block = waiting.pop()
        if block not in seen:
            seen.add(block)
            waiting += [other for other in flow[block].after if other not in without]
    return seen


def loops(flow: list[Block]) -> list[Loop]:
    """The natural loops that can be reached, those with one header taken together."""
    all_blocks = reached(flow, [0])
    latches: dict[int, set[int]] = {}
    for header in all_blocks:
        elsewhere = reached(flow, [0], without={header})
        for block in all_blocks - elsewhere:  # all that the header dominates
            if header in flow[block].after:
                latches.setdefault(header, set()).add(block)
    found = []
    for header, sources in latches.items():
        elsewhere = reached(flow, [0], without={header})
        # Of what the header dominates, the loop is what can go round without passing the header again.
        barred = elsewhere | {header}
        members = {block for block in all_blocks - barred if reached(flow, [block], without=barred) & sources}
        found.append(Loop(header, frozenset(sources), frozenset(members | sources | {header})))
    _only_natural(flow, all_blocks, found)
    return found


def _only_natural(flow: list[Block], all_blocks: Set[int], found: list[Loop]) -> None:
    """Raises where a cycle remains once every natural loop's way back is cut."""
    cut = {(latch, loop.header) for loop in found for latch in loop.latches}
    left = {block: {b for b in flow[block].after if (block, b) not in cut} for block in all_blocks}
    while ends := [block for block, after in left.items() if not after & left.keys()]:
        for block in ends:
            del left[block]
    if left:
        raise ValueError("A loop with two entries cannot be counted.")


def always(flow: list[Block], loop: Loop) -> set[int]:
    """The blocks of a loop that no turn can skip."""
    outside = set(range(len(flow))) - loop.blocks
    needed = {loop.header}
    for block in loop.blocks - needed:
        if not reached(flow, [loop.header], without=outside | {block}) & loop.latches:
            needed.add(block)
    return needed


def pieces(flow: list[Block], chosen: Set[int]) -> list[set[int]]:
    """``chosen`` in parts that no branch connects."""
    neighbours: dict[int, set[int]] = {block: set() for block in chosen}
    for block in chosen:
        for other in set(flow[block].after) & chosen:
            neighbours[block].add(other)
            neighbours[other].add(block)
    parts: list[set[int]] = []
    left = set(chosen)
    while left:
        part, waiting = set(), [left.pop()]
        while waiting:
            block = waiting.pop()
            part.add(block)
            waiting += [other for other in neighbours[block] if other not in part]
        left -= part
        parts.append(part)
    return parts


# ---------------------------------------------------------------- whose memory

PARAMETERS = 0x210  # where sm_90 keeps a kernel's parameters in constant bank 0
TABLE = "a table"  # what the compiler's own functions read, by addresses in constant bank 4
_CONSTANT = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
_REGISTER = re.compile(r"\bU?R\d+\b")
_NO_RESULT = ("STG", "STS", "STL", "R2P")
_PREDICATE_REGISTER = re.compile(r"\bU?P\d\b")
Origins = dict[str, frozenset[str]]


def accesses(flow: list[Block], pointers: dict[int, str]) -> dict[int, str]:
    """The argument behind every load and store of global memory, by the instruction's address.

    ``pointers`` names the pointer arguments by their places among the parameters. A pointer is followed from its parameter
    through all that is computed from it; what was loaded from memory is no pointer.
    """
    names = {PARAMETERS + place + half: name for place, name in pointers.items() for half in (0, 4)}
    incoming: list[Origins | None] = [None] * len(flow)
    incoming[0] = {}
    waiting = [0]
    found: dict[int, frozenset[str]] = {}
    while waiting:
        block = waiting.pop()
        state = _State(dict(incoming[block] or {}), names)
        for instruction in flow[block].instructions:
            if instruction.name in ("LDG", "STG"):
                origins = state.read(_address(instruction), instruction.guard)
                found[instruction.address] = found.get(instruction.address, frozenset()) | origins
            state.step(instruction)
        for other in flow[block].after:
            known = incoming[other]
            merged = _merged(known or {}, state.origins)
            if known is None or merged != known:
                incoming[other] = merged
                waiting.append(other)
    unclear = {hex(address): origins for address, origins in found.items() if len(origins) != 1}
    if unclear:
        raise ValueError(f"Accesses of unknown origin: {unclear}.")
    return {address: next(iter(origins)) for address, origins in found.items()}


class _State:
    """Which pointers the registers come from, between two instructions of a block."""

    def __init__(self, origins: Origins, names: dict[int, str]) -> None:
        self.origins = origins
        self.names = names
        self.guarded: dict[
            tuple[str, str], frozenset[str]
        ] = {}  # (guard, register): what it holds where the guard is true

    def read(self, text: str, guard: str) -> frozenset[str]:
        """All that the operands in ``text`` come from."""
        found: frozenset[str] = frozenset()
        for place in _CONSTANT.findall(text):
            found |= {self.names[int(place, 16)]} if int(place, 16) in self.names else frozenset()
        if "c[0x4]" in text:
            found |= {TABLE}
        for register in _REGISTER.findall(text):
            found |= self.guarded.get((guard, register), self.origins.get(register, frozenset()))
        return found

    def step(self, instruction: Instruction) -> None:
        """Goes past one instruction."""
        guard = instruction.guard
        changed = set(_PREDICATE_REGISTER.findall(instruction.operands))  # or only read: forgetting is always right
        self.guarded = {key: value for key, value in self.guarded.items() if key[0].lstrip("!") not in changed}
        if instruction.name in _NO_RESULT or instruction.name.endswith("SETP"):
            return
        operands = [operand.strip() for operand in instruction.operands.split(",")]
        while operands and re.match(r"U?P(\d|T)$", operands[0]):
            operands = operands[1:]
        if not operands or not (result := re.match(r"(U?R)(\d+)\b", operands[0])):
            return
        loads = instruction.name in ("LDG", "LDS", "LDL", "LD")
        origins = frozenset[str]() if loads else self.read(", ".join(operands[1:]), guard)
        parts = instruction.opcode.split(".")
        for k in range(4 if "128" in parts else 2 if {"64", "WIDE"} & set(parts) else 1):
            register = f"{result.group(1)}{int(result.group(2)) + k}"
            before = self.origins.get(register, frozenset()) if guard else frozenset()
            self.origins[register] = origins | before
            self.guarded = {key: value for key, value in self.guarded.items() if key[1] != register}
            if guard:
                self.guarded[guard, register] = origins


def _address(instruction: Instruction) -> str:
    brackets = re.findall(r"\[([^\]]*)\]", instruction.operands)
    with_register = [text for text in brackets if re.match(r"U?R\d+(\.64|\.U32)?\b", text)]
    if not with_register:
        raise ValueError(f"{instruction.opcode} {instruction.operands} has no address.")
    return with_register[-1]


def _merged(one: Origins, other: Origins) -> Origins:
    merged = dict(one)
    for register, origins in other.items():
        merged[register] = merged.get(register, frozenset()) | origins
    return merged
