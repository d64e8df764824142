"""A text's rows shared out among programs, so that a long run of one text keeps the whole device busy (docs/adr/0008)."""

import torch
import triton
import triton.language as tl

from .device import processors

_MOST_PROGRAMS = 65_535  # of a grid's third dimension


@triton.jit
def rows_of_program(p_row_offsets, text):
    """First row and end of this program's part: an even number of rows, so that pairs stay together."""
    of_text = tl.load(p_row_offsets + text).to(tl.int32)
    end = tl.load(p_row_offsets + text + 1).to(tl.int32)
    twice = 2 * tl.num_programs(2)
    share = 2 * ((end - of_text + twice - 1).to(tl.uint32) // twice.to(tl.uint32)).to(tl.int32)
    first = of_text + tl.program_id(2) * share
    return first, min(first + share, end)


def splits(warps: int, texts: int, rows: int, device: torch.device, warps_of_a_processor: int) -> int:
    """Programs that share a text's rows: as many as the device holds at once, with two rows or more for each.

    Args:
        warps: of all programs where none shares its rows.
        texts: of the call.
        rows: of the call.
        device: where it runs.
        warps_of_a_processor: that a multiprocessor holds at once, by the kernel's registers.
    """
    room = processors(device) * warps_of_a_processor // warps
    return max(1, min(room, triton.cdiv(rows, 2 * texts), _MOST_PROGRAMS))
