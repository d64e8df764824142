"""Threads that come and go: forked children, threads that cannot start, interrupts."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

import fastshap
from fastshap.engine import run as engine

# In one process: each start of one takes seconds. What is tested says that it went well by its name.
FORKS = """
import multiprocessing, os, sys, threading, traceback, warnings
import torch, fastshap
from fastshap.models import forked
from fastshap.models.locks import lock_of

torch.set_num_threads(2)
pair = fastshap.load_default_model()
texts = [f"a gorgeous and witty film, number {i}, but the ending is dull" for i in range(8)]


def same(some):
    return all(float((a.attributions - b.attributions).abs().max()) < 1e-5 for a, b in zip(right, some, strict=True))


def status_of(act):
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = act()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def never_explained():
    def act():
        forked.prepare_threads()
        return torch.get_num_threads()
    assert status_of(act) == 2


def child_explains():
    def act():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            good = same(explainer(texts)) and same(fastshap.GradientShap(*pair, n_perturbations=40)(texts))
        told = [str(one.message) for one in said if "forked" in str(one.message)]
        return 0 if good and len(told) == 1 and torch.get_num_threads() == 1 else 1
    assert status_of(act) == 0


def parent_goes_on():
    assert torch.get_num_threads() == 2 and same(explainer(texts))


def idle():
    child_explains()
    parent_goes_on()


def while_a_thread_explains():
    held, release = threading.Event(), threading.Event()
    def hold():
        with lock_of(pair[0]):
            held.set()
            release.wait()
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    child_explains()
    release.set()
    parent_goes_on()


def explained(text):
    return explainer(text)[0].attributions


def in_a_pool():
    class Found:
        def __init__(self, attributions):
            self.attributions = attributions
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(explained, texts)
    assert same(map(Found, found))


def tried(act):
    try:
        act()
        print(act.__name__, flush=True)
    except BaseException:
        traceback.print_exc()


tried(never_explained)
explainer = fastshap.GradientShap(*pair, batch_size="auto", n_perturbations=40)
right = explainer(texts)
for act in (idle, in_a_pool, while_a_thread_explains):
    tried(act)
"""


@pytest.fixture(scope="module")
def forks():
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=False, timeout=240, env=environment
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("how", ["idle", "while_a_thread_explains", "in_a_pool"])
def test_a_forked_child_explains(forks, how):
    """As in gunicorn with preload: the parent has explained with two threads, which are not in the child."""
    assert how in forks.stdout.split(), forks.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_of_a_process_that_never_explained_keeps_its_threads(forks):
    assert "never_explained" in forks.stdout.split(), forks.stderr


def explained(queue, texts):
    torch.set_num_threads(2)
    queue.put([output.attributions.tolist() for output in fastshap.GradientShap(*fastshap.load_default_model())(texts)])


@pytest.mark.slow
def test_spawned_processes_explain():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    texts = ["not good at all", "a gorgeous film"]
    process = context.Process(target=explained, args=(queue, texts))
    process.start()
    found = queue.get(timeout=600)
    process.join()
    expected = [one.attributions for one in fastshap.GradientShap(*fastshap.load_default_model())(texts)]
    assert all(torch.allclose(torch.tensor(a), b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def two_threads():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def threads_of_a_new_thread():
    """What torch.get_num_threads() says in one that begins now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()), name="new")
    thread.start()
    thread.join()
    return found[0]


def ends(act):
    """Whether it ends, and what it raises; a hang is left behind in a thread of its own."""
    found = []

    def run():
        try:
            act()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    return found


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_threads_that_cannot_start(default_pair, two_threads, monkeypatch, last):
    """The third to start is the one that keeps the number of threads; the error comes out, and nobody waits for it."""
    model, start = default_pair[0], threading.Thread.start
    started = []

    def limited(thread):
        if thread.name != "runner" and threading.current_thread() is runner:
            started.append(thread)
            if len(started) > last:
                raise RuntimeError("can't start new thread")
        start(thread)

    def run():
        with engine._pool([model, model]) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1

    def act():
        nonlocal runner
        runner = threading.current_thread()
        run()

    runner = None
    running = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", limited)
    errors = ends(act)
    monkeypatch.undo()
    assert threads_of_a_new_thread() == 2
    assert [str(error) for error in errors] == ["can't start new thread"] * (last < 3)
    assert threading.active_count() == running


def test_an_interrupt_while_threads_start(default_pair, two_threads, monkeypatch):
    barrier, running = threading.Barrier.wait, threading.active_count()

    def interrupted(self, timeout=None):
        if threading.current_thread() is runner:
            raise KeyboardInterrupt
        return barrier(self, timeout)

    def act():
        nonlocal runner
        runner = threading.current_thread()
        with engine._pool([default_pair[0]] * 2):
            pass

    runner = None
    monkeypatch.setattr(threading.Barrier, "wait", interrupted)
    (error,) = ends(act)
    monkeypatch.undo()
    assert isinstance(error, KeyboardInterrupt)
    assert threading.active_count() == running
    assert threads_of_a_new_thread() == 2


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]], ids=["two threads", "replicas"])
@pytest.mark.parametrize("who", ["caller", "worker"])
def test_an_interrupt_while_models_run(default_pair, two_threads, monkeypatch, devices, who):
    """Ctrl-C reaches the caller, who waits for results; a worker's comes out as it is. The next call is right."""
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=40, batch_size="auto", device=devices)
    texts = [f"a gorgeous and witty film, number {i}, but the ending is dull" for i in range(8)]
    right, running = explainer(texts, 1), threading.active_count()
    if who == "worker":
        done, runs = engine._group_done, []

        def interrupted(*arguments):
            runs.append(threading.current_thread())
            if runs[-1] is not caller[0]:
                raise KeyboardInterrupt
            return done(*arguments)

        monkeypatch.setattr(engine, "_group_done", interrupted)
    else:
        result = engine.Future.result

        def waits(self, timeout=None):
            if threading.current_thread() is caller[0] and self in waited:
                raise KeyboardInterrupt
            return result(self, timeout)

        submit, waited = engine.ThreadPoolExecutor.submit, set()

        def submitted(self, work, *arguments):
            future = submit(self, work, *arguments)
            if getattr(work, "__name__", "") == "work":
                waited.add(future)
            return future

        monkeypatch.setattr(engine.ThreadPoolExecutor, "submit", submitted)
        monkeypatch.setattr(engine.Future, "result", waits)
    caller, counts = [], []

    def act():
        caller.append(threading.current_thread())
        try:
            explainer(texts, 1)
        finally:
            counts.append(torch.get_num_threads())

    (error,) = ends(act)
    monkeypatch.undo()
    assert isinstance(error, KeyboardInterrupt)
    assert counts == [2]
    assert threads_of_a_new_thread() == 2
    assert threading.active_count() == running
    for one, other in zip(explainer(texts, 1), right, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=0)


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]], ids=["two threads", "replicas"])
def test_texts_are_explained_where_no_thread_can_start(default_pair, two_threads, monkeypatch, devices):
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=40, batch_size="auto", device=devices)
    texts = [f"a gorgeous and witty film, number {i}, but the ending is dull" for i in range(8)]
    right, asked = explainer(texts, 1), []

    def none_left(models):
        asked.append(len(models))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(engine, "_pool", none_left)
    for one, other in zip(explainer(texts, 1), right, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=0)
    assert asked
