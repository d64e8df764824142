"""What the bytes of a binary for NVIDIA say without a disassembler, whose every start takes a third of a second.

An instruction is 128 bits, from sm_70 on. Of its lowest 12 bits 9 say what it does and 3 where its operands come from.
"""

from __future__ import annotations

import struct

_INSTRUCTION, _OPERATION = 16, 0x1FF
_LOCAL = {0x183: "LDL", 0x187: "STL"}


def code(cubin: bytes) -> bytes:
    """The instructions of the one kernel in it."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    count, names = struct.unpack_from("<HH", cubin, 0x3C)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + 64 * place) for place in range(count)]
    found = []
    for name, _, _, _, start, size, *_ in sections:
        if cubin.startswith(b".text.", sections[names][4] + name):
            found.append(cubin[start : start + size])
    if len(found) != 1:
        raise ValueError(f"One kernel was expected, {len(found)} were found.")
    return found[0]


def of_local_memory(cubin: bytes) -> dict[int, str]:
    """Addresses of the instructions that load from local memory or store to it, with their names."""
    words = struct.iter_unpack("<QQ", code(cubin))
    found = {_INSTRUCTION * place: _LOCAL.get(word & _OPERATION, "") for place, (word, _) in enumerate(words)}
    return {address: name for address, name in found.items() if name}
