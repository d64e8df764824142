"""Triton's interpreter with numpy 2.4 and later.

The interpreter keeps a scalar as an array of one element and calls ``int`` on it, in loops over ``range``. numpy 2.4 refuses
that for arrays of one dimension or more; Triton 3.6 and earlier do not know.
"""

from typing import Any

import numpy as np


def int_of_one_element_fails() -> bool:
    try:
        int(np.ones(1, np.int32))  # type: ignore[call-overload]
    except TypeError:
        return True
    except Warning:  # an error in tests: an older numpy announces it
        return False
    return False


def take_scalars_out_of_their_arrays() -> None:
    """In place of what the interpreter does, wherever it prepares a kernel; does nothing where it works as it is."""
    from triton.runtime import interpreter

    if not int_of_one_element_fails():
        return
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patched
