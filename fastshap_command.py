"""The command ``fastshap``: a module beside the package, so that Ctrl-C is heeded while the package and PyTorch load."""

import os
import signal


def main() -> None:
    """Runs the command line. Ctrl-C while it loads ends the process with exit code 130: nothing has begun that needs an end."""
    before = signal.getsignal(signal.SIGINT)
    heeded = before is signal.default_int_handler  # not where the process was told to ignore it, as nohup does
    if heeded:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from fastshap.cli import app

    if heeded:
        signal.signal(signal.SIGINT, before)
    app()
