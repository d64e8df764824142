"""pytest in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def pytest_alone(*arguments: str, timeout: float = 600, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Without plugins, whose imports take seconds, and without the settings that need them; warnings are errors as ever.

    TRITON_INTERPRET is as given here, not as in this process.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    strict = "addopts=--strict-markers --strict-config"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", strict, *arguments],
        cwd=Path(__file__).parents[2],
        env={**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
