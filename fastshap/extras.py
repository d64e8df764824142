"""Packages that only some users need."""

from __future__ import annotations

import importlib
from typing import Any

from fastshap.errors import MissingPackageError


def needed(module: str, extra: str | None = None) -> Any:
    """The module, or an error that says how to install it.

    Args:
        extra: the extra of fastshap's that brings it; None where it is a package of its own.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name != package:  # it is there, but lacks something itself
            raise
        how = installing(extra) if extra else f"pip install {package}"
        raise MissingPackageError(f"This needs the package {package}, which is not installed: {how}") from None


def installing(extra: str) -> str:
    """How to install an extra, as a package and in a clone."""
    return f"pip install 'fastshap-text[{extra}]' (in a clone: pip install -e '.[{extra}]')"
