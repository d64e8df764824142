"""Commands in a network namespace of their own: nothing of what they start reaches beyond it, or outlives them."""

import subprocess

import psutil

_ENTER = ["unshare", "-rn", "--pid", "--fork", "--mount-proc", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def start(command, **options):
    """A process inside; where this system allows no such namespace, the test fails and says so."""
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
