"""Commands in a network namespace of their own: nothing of what they start reaches beyond it, or outlives them."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

_ENTER = ["unshare", "-rn", "--pid", "--fork", "--mount-proc", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]

# One thread for each process, and none that waits by spinning: there are more processes than cores, and others beside them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def start(command, **options):
    """A process inside; where this system allows no such namespace, the test fails and says so."""
    options = {"env": os.environ | ENVIRONMENT} | options
    tried = subprocess.run([*_ENTER, "true"], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, (
        f"These tests start Ray in a network namespace, which this system does not allow ({tried.stderr.strip()}). "
        "They need unshare and ip, and the right to make user namespaces, or root."
    )
    return subprocess.Popen([*_ENTER, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(command, timeout=900, **options):
    """What a command printed, and its exit code; it is killed with all that it started when the time is over."""
    with start(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            out, err = process.communicate()
            raise AssertionError(f"{command} took more than {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def inside(process):
    """The first process inside; the others end with it."""
    (first,) = psutil.Process(process.pid).children()
    return first


def kill(process):
    """SIGKILL, for all that runs inside."""
    inside(process).kill()


def workers(process):
    """Ray's processes that explain."""
    return [one for one in inside(process).children(recursive=True) if "ray::MapWorker" in _title(one)]


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# Runs what it is told, one line of standard input after the other, with its output in a file.
_HOST = """
import json, os, sys, traceback

answers, place = os.fdopen(os.dup(1), "w"), sys.argv[1]
for line in sys.stdin:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(place, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    code = 0
    try:
        exec(json.loads(line), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    print(json.dumps(code), file=answers, flush=True)
"""


class Host:
    """A Python process inside that runs one script after the other: what it has imported and started is there for the next."""

    def __init__(self, **options):
        self._place = tempfile.TemporaryDirectory()
        command = [sys.executable, "-c", _HOST, self._place.name]
        self._process = start(command, stdin=subprocess.PIPE, **options)

    def run(self, script, timeout=600):
        """As :func:`run`: the exit code, and what the script and all that is native in it printed."""
        timer = threading.Timer(timeout, kill, [self._process])
        timer.start()
        self._process.stdin.write(json.dumps(script) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        timer.cancel()
        out, err = (Path(self._place.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert code, f"the process ended, by itself or after {timeout} s:\n{out}\n{err}"
        return json.loads(code), out, err

    def close(self):
        if self._process.poll() is None:
            kill(self._process)
        self._process.communicate()
        self._place.cleanup()
