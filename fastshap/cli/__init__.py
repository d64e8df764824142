"""The command line: arguments in, one call, output."""

from fastshap.cli.explain import app

__all__ = ["app"]
