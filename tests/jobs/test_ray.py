"""Jobs on Ray, in network namespaces of their own: killed, resumed, refused."""

import json
import os
import sys
import time
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fastshap import BatchExplainer, JobError, WorkerDiedError
from fastshap.integrations.ray import workers
from fastshap.integrations.ray.ledger import Ledger
from fastshap.integrations.ray.lost import RETRIES
from fastshap.integrations.ray.workers import Worker
from fastshap.jobs.columns import Columns
from fastshap.jobs.job import identity
from fastshap.jobs.local import explain_files
from fastshap.jobs.store import MANIFEST, NEXT
from fastshap.jobs.verdict import verify
from fastshap.models.provenance import library_versions
from helpers import namespace
from helpers.jobs import damaged_page, make_texts, rows, same_numbers, write

pytestmark = pytest.mark.ray

FASTSHAP = [
    sys.executable,
    "-c",
    "import fastshap.jobs.job as job; job._SECONDS = 0.3; from fastshap.cli import app; app()",
]
SETTINGS = ["--n-perturbations", "4", "--workers", "2"]


# Put before everything else that a Python process imports. It dies over certain texts, as memory that runs out would have it,
# and its model fails on others. Where TICKETS names a directory, each batch waits for a file in it, and takes it away. DEATHS
# is how often a process may die over the same rows.
HOOK = """
import importlib.abc, importlib.util, os, sys, time

def table(module):
    outputs, window = module.BatchExplainer.outputs, module.GradientShap._explain_window

    def deadly(self, texts):
        if "TICKETS" in os.environ:
            take(os.environ["TICKETS"])
        if any("deadly" in text for text in texts if isinstance(text, str)):
            os.kill(os.getpid(), 9)
        return outputs(self, texts)

    def failing(self, texts, *arguments):
        if any("broken" in text for text in texts if isinstance(text, str)):
            raise IndexError("index out of range in self")
        return window(self, texts, *arguments)

    module.BatchExplainer.outputs, module.GradientShap._explain_window = deadly, failing

def take(place):
    open(os.path.join(place, f"waits {os.getpid()}"), "w").close()
    while True:
        tickets = [name for name in os.listdir(place) if name.startswith("ticket")]
        try:
            return os.unlink(os.path.join(place, tickets[0]))
        except (IndexError, FileNotFoundError):  # there is none, or another process took it
            time.sleep(0.05)

def workers(module):
    module._DEATHS = int(os.environ.get("DEATHS", module._DEATHS))

CHANGES = {"fastshap.jobs.table": table, "fastshap.integrations.ray.workers": workers}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        change = CHANGES.pop(name)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def hooked(tmp_path_factory):
    """The environment of processes that run ``HOOK``."""
    place = tmp_path_factory.mktemp("hook")
    (place / "sitecustomize.py").write_text(HOOK)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | namespace.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}


class Tickets:
    """Has a job in other processes explain one batch after the other, and no more than a test waits for."""

    def __init__(self, place):
        self._place, self._count, self._last = place, 0, 0.0
        place.mkdir()

    def give(self):
        """A ticket, if there is none and the last one was a while ago."""
        if not list(self._place.glob("ticket *")) and time.monotonic() > self._last + 0.15:
            (self._place / f"ticket {self._count}").touch()
            self._count, self._last = self._count + 1, time.monotonic()

    def waiting(self):
        """Processes that came with a batch."""
        return len(list(self._place.glob("waits *")))


@pytest.fixture(autouse=True)
def one_thread():
    """In this process, which has others beside it."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def waited(condition, process, tickets=None, seconds=600):
    """Waits for something that takes seconds where nothing else runs, and minutes where much does."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "nothing came of it in time"
        if tickets is not None:
            tickets.give()
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("count", "rows_each", "by_tickets"), [(2000, 32, True), pytest.param(10_000, 256, False, marks=pytest.mark.slow)]
)
def test_texts_with_a_killed_worker_and_a_killed_driver(tmp_path, hooked, count, rows_each, by_tickets):
    """A worker is killed, then the driver; parts are cut off and lost; then resumed. As an uninterrupted run in one process."""
    path, out = write(tmp_path / "a.parquet", make_texts(count)), tmp_path / "out"
    command = [*FASTSHAP, "run", str(path), str(out), *SETTINGS, "--rows-per-batch", str(rows_each)]
    tickets = Tickets(tmp_path / "tickets") if by_tickets else None

    def parts():
        return sorted(out.glob("part-*"))

    def at_work():
        return {worker.pid for worker in namespace.workers(process)}

    environment = hooked | {"TICKETS": str(tmp_path / "tickets")} if by_tickets else hooked
    with namespace.start(command, env=environment) as process:
        if by_tickets:
            waited(lambda: tickets.waiting() == 2, process)
        waited(lambda: len(parts()) >= 2 and len(at_work()) == 2, process, tickets)
        first, second = namespace.workers(process)
        first.kill()
        before = len(parts())
        waited(lambda: len(at_work() - {first.pid}) == 2, process)
        replaced = at_work()
        waited(lambda: len(parts()) >= before + 2, process, tickets)
        namespace.kill(process)
        process.communicate()
    assert second.pid in replaced
    assert first.pid not in replaced
    assert process.returncode != 0
    state = json.loads((out / MANIFEST).read_text())
    assert state["state"] == "running"
    done = sum(pq.read_metadata(part).num_rows for part in parts())
    assert 0 < done < count
    cut, lost, *_ = parts()
    cut.write_bytes(cut.read_bytes()[:-100])
    lost.unlink()
    assert not verify(out, path).good

    code, said, err = namespace.run([*command, "--resume"])
    assert code == 0, err
    assert f"{count:,} (" in said
    assert "damaged parts    1" in said
    assert verify(out, path).good
    assert pq.read_table(out).num_rows == count
    assert json.loads((out / MANIFEST).read_text())["state"] == "complete"
    explain_files(path, tmp_path / "whole", n_perturbations=4)
    same_numbers(rows(out), rows(tmp_path / "whole"))


@pytest.mark.slow  # without Ray, the usual run has it
def test_sigterm_ends_a_job_with_what_it_has(tmp_path, hooked):
    path, out, tickets = write(tmp_path / "a.parquet", make_texts(400)), tmp_path / "out", Tickets(tmp_path / "tickets")
    one = ["--n-perturbations", "4", "--workers", "1", "--rows-per-batch", "8"]
    environment = hooked | {"TICKETS": str(tmp_path / "tickets")}
    with namespace.start([*FASTSHAP, "run", str(path), str(out), *one], env=environment) as process:
        waited(lambda: len(list(out.glob("part-*"))) >= 1, process, tickets)
        assert verify(out, path).state == "running"
        namespace.inside(process).terminate()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "stopped; what was explained is in" in err
    found = verify(out, path)
    assert (found.state, found.damaged, found.twice) == ("interrupted", [], 0)
    assert 0 < found.summary.rows < 400


# In one process: what it has imported, and the cluster that it has joined, are there for the next.

JOINED = """
import os
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"
}
import ray
if not ray.is_initialized():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             _node_ip_address="127.0.0.1")
"""


@pytest.fixture(scope="module")
def host(hooked):
    started = namespace.Host(env=hooked | {"DEATHS": "1"})
    yield started
    started.close()


@pytest.fixture
def cluster(host):
    """The process, which has joined a cluster of two CPUs."""
    code, _, err = host.run(JOINED)
    assert code == 0, err
    return host


def shell(host, *arguments):
    return host.run(f"from fastshap.cli import app; app({['run', *map(str, arguments)]!r})")


REFUSED = """
import json, sys, time
if "ray" in sys.modules:
    sys.modules["ray"].shutdown()
from typer.testing import CliRunner
from fastshap.cli import app

for message, arguments in json.loads(REFUSALS).items():
    start = time.monotonic()
    result = CliRunner().invoke(app, ["run", *arguments])
    assert (result.exit_code, message in result.stderr) == (2, True), (message, result.exit_code, result.stderr)
    assert time.monotonic() - start < 60
print("good")
"""


def test_what_is_refused_before_ray_starts(tmp_path, host):
    """In one process, one after the other: none leaves a cluster behind for the next."""
    path, out = write(tmp_path / "a.parquet", make_texts(20)), tmp_path / "out"
    write(tmp_path / "twice.parquet", ["fine"] * 3, [1, 2, 1])
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-10])
    refusals = {
        "more than once: 1": [tmp_path / "twice.parquet", out],
        "cut.parquet could not be read": [tmp_path / "cut.parquet", out],
        "no column 'body'": [path, out, "--text-column", "body"],
        "cores of this machine": [path, out, "--workers", "500"],
        "no Ray cluster at 127.0.0.1:9": [path, out, "--address", "127.0.0.1:9"],
        "no Ray cluster at auto": [path, out, "--address", "auto"],
        "granularity must be one of": [path, out, "--granularity", "letter"],
    }
    given = json.dumps({message: [*map(str, arguments)] for message, arguments in refusals.items()})
    code, said, err = host.run(f"REFUSALS = {given!r}\n{REFUSED}")
    assert (code, said.splitlines()[-1:]) == (0, ["good"]), err
    assert not out.exists()


CLUSTER = """
import os, time
import ray
import pyarrow.parquet as pq
import fastshap
from fastshap.integrations.ray import explain_dataset

context = ray.data.DataContext.get_current()
bars = context.enable_progress_bars
texts = ["fine film", "", None, 5, "not good", "x " * 600_000]

def refused(match, *arguments, **options):
    start = time.monotonic()
    try:
        explain_dataset(*arguments, n_perturbations=4, **options)
    except fastshap.FastshapError as error:
        assert match in str(error), error
        assert time.monotonic() - start < 60
    else:
        raise AssertionError(match)

data = ray.data.from_items([{"key": f"k{i}", "body": text} for i, text in enumerate(texts)], override_num_blocks=1)
names = {"id_column": "key", "text_column": "body"}
refused("wait for ever", data, "out", workers=2, **names)
refused("take 1 GPUs", data, "out", workers=1, gpus_per_worker=1, **names)
refused("joined a Ray cluster already", data, "out", address="auto", **names)
refused("no column 'id'", data, "out", text_column="body")
refused("more than once: 'k0'", data.union(data), "out", **names)
refused("a ray.data.Dataset; got list", [1], "out")
assert not os.path.exists("out")
summary = explain_dataset(data, "out", n_perturbations=4, workers=1, **names)
assert (summary.rows, summary.errors.total(), summary.samples) == (6, 4, 8), summary
found = {row["id"]: row for row in pq.read_table("out").to_pylist()}
assert [found[f"k{i}"]["error"] is None for i in range(6)] == [True, False, False, False, True, False]
assert "got int" in found["k3"]["error"]
refused("finished job of 6 rows", data, "out", workers=1, **names)
changed = data.map(lambda row: row | {"body": "other"} if row["key"] == "k4" else row)
refused("have changed", changed, "out", workers=1, resume=True, **names)
more = ray.data.from_items([{"key": "more", "body": "fine film"}]).union(changed)
redone = explain_dataset(more, "out", n_perturbations=4, workers=1, resume=True, redo_changed=True, **names)
assert (redone.rows, redone.redone, redone.before) == (7, 1, 5), redone
assert explain_dataset(more, "out", n_perturbations=4, workers=1, resume=True, **names).before == 7

rows = [{"id": i, "text": "fine film " * (i % 5 + 1)} for i in range(40)]
expected = fastshap.BatchExplainer(n_perturbations=4)({"text": [row["text"] for row in rows]}).to_pylist()
several = [
    ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        fastshap.BatchExplainer, fn_constructor_kwargs={"n_perturbations": 4}, batch_format=form, batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=1))
    for form, blocks, size in (("pyarrow", 1, 7), ("numpy", 4, 16))
]
mapped = several[0].union(several[1]).materialize()  # both at once
for table in ray.get(mapped.to_arrow_refs()):
    assert str(table.schema.field("attributions").type) == "list<item: float>", table.schema
taken = sorted(mapped.take_all(), key=lambda row: row["id"])
assert len(taken) == 80
for i, row in enumerate(taken):
    other = expected[i // 2]
    assert row["elements"] == other["elements"]
    largest = max(map(abs, other["attributions"]))
    assert max(abs(a - b) for a, b in zip(row["attributions"], other["attributions"])) <= 1e-5 * largest
assert context.enable_progress_bars == bars
assert ray.is_initialized()
print("good")
"""


def test_a_cluster_that_is_there_and_datasets(tmp_path, cluster):
    """Refusals in bounded time on a cluster that is joined; a Dataset as input; BatchExplainer in map_batches."""
    code, said, err = cluster.run(f"import os\nos.chdir({str(tmp_path)!r})\n{CLUSTER}")
    assert code == 0, err
    assert said.splitlines()[-1] == "good"


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_text_that_kills_its_process_or_its_model_is_recorded(tmp_path, hooked, request, deaths):
    """Over an older output. A batch or a row may cost one death in our cluster; in one of its own two, as in real jobs."""
    given = {25: "deadly film", 45: "broken film", 60: ""} | ({26: "deadly film"} if deaths == 2 else {})
    texts = [given.get(i, text) for i, text in enumerate(make_texts(61))]
    path, out = write(tmp_path / "a.parquet", make_texts(61)), tmp_path / "out"
    explain_files(path, out, n_perturbations=4)
    write(path, texts)
    arguments = [path, out, "--n-perturbations", "4", "--rows-per-batch", "20", "--workers", str(deaths), "--overwrite"]
    if deaths == 1:
        code, said, err = shell(request.getfixturevalue("cluster"), *arguments)
    else:
        code, said, err = namespace.run([*FASTSHAP, "run", *map(str, arguments)], env=hooked)
    assert code == 0, err
    assert "WorkerDiedError" in said
    assert "ModelFailedError" in said
    assert verify(out, path).good
    assert not (out / NEXT).exists()
    found = rows(out)
    for i in (i for i, text in given.items() if text == "deadly film"):
        assert f"died {deaths} times over it alone" in found[i]["error"]
    assert found[45]["error"].startswith("ModelFailedError: The model failed on this text: IndexError: index out of")
    assert "empty" in found[60]["error"]
    explain_files(path, tmp_path / "whole", n_perturbations=4)
    whole = rows(tmp_path / "whole")
    others = [i for i in range(60) if i not in given]
    same_numbers({i: found[i] for i in others}, {i: whole[i] for i in others})


def test_a_process_may_die_twice_over_its_rows_and_twice_over_each_of_them(monkeypatch):
    """What the ledger says decides; here all in one process, which dies by an exception."""

    class Died(BaseException):
        pass

    outputs, began = BatchExplainer.outputs, []

    def deadly(self, texts):
        began.append(len(texts))
        if "deadly film" in texts:
            raise Died
        return outputs(self, texts)

    def worker(begin, end):
        ledger = SimpleNamespace(begin=SimpleNamespace(remote=begin), end=SimpleNamespace(remote=end))
        explainer = BatchExplainer(n_perturbations=2, keep=())
        return Worker(explainer, identity(explainer, Columns("id", "text"))["model"], ledger, 1, {})

    monkeypatch.setattr(BatchExplainer, "outputs", deadly)
    monkeypatch.setattr(workers, "needed", lambda *names: SimpleNamespace(get=lambda value: value))
    table = pa.table({"id": [1, 2, 3, 4], "text": ["fine film", "deadly film", "deadly film", "not good"]})
    table = table.append_column("problem", pa.nulls(4, pa.string()))
    ledger, made, deaths = Ledger(), None, 0
    while made is None:
        try:
            made = worker(ledger.begin, ledger.end)(table)
        except Died:
            deaths += 1
    assert began == [4] * 2 + [1] * (2 + 2 + 3 + 3 + 4)
    assert deaths == 2 + 2 * 2
    died = "WorkerDiedError: The process that explained this text died 2 times over it alone."
    assert made.column("error").to_pylist() == [None, died, died, None]
    assert not ledger._begun
    with pytest.raises(WorkerDiedError, match=f"{RETRIES + 1} times over the same 4 rows, from id 1"):
        worker(lambda key: RETRIES + 1, ledger.end)(table)


@pytest.mark.slow  # without Ray, the usual run has it
def test_a_model_that_fails_on_every_text_ends_the_job(tmp_path, cluster):
    path, out = write(tmp_path / "a.parquet", ["broken " + text for text in make_texts(30)]), tmp_path / "out"
    code, _, err = shell(cluster, path, out, "--n-perturbations", "4", "--workers", "1")
    assert code == 1, err
    assert "The model failed on each of 30 texts" in err
    assert "IndexError: index out of range" in err
    assert len(err.splitlines()) == 1, err
    summary = explain_files(path, out, n_perturbations=4, resume=True)  # in this process, where it does not fail
    assert (summary.rows, summary.before, summary.errors.total()) == (30, 0, 0)


def test_a_page_that_does_not_read_interrupts_the_job(tmp_path, cluster):
    path, out = damaged_page(tmp_path / "a.parquet"), tmp_path / "out"
    code, _, err = shell(cluster, path, out, "--n-perturbations", "4", "--workers", "1")
    assert code == 1, err
    assert "a.parquet could not be read" in err
    assert "--resume continues the job" in err
    assert len(err.splitlines()) == 1, err


def test_a_worker_with_another_model_stops():
    table = pa.table({"id": [1], "text": ["fine"], "problem": pa.nulls(1, pa.string())})
    same = identity(BatchExplainer(), Columns("id", "text"))["model"]
    for name, other in {
        "model_fingerprint": "0" * 16,
        "configuration": same["configuration"] | {"hidden_act": "relu"},
    }.items():
        with pytest.raises(JobError, match=f"{name}.* was .* and is .*led to another model"):
            Worker(BatchExplainer(), same | {name: other}, None, 1, library_versions())(table)
    with pytest.raises(JobError, match=r"has torch .* and the driver 0.0.0; install one everywhere"):
        Worker(BatchExplainer(), {}, None, 1, {"torch": "0.0.0"})(table)


@pytest.mark.slow
def test_two_workers_keep_up_with_one_process(tmp_path):
    """Texts a second after start-up, on the same cores: at least 85 % of what one process explains."""
    path = write(tmp_path / "a.parquet", make_texts(6000))
    rates = {}
    for name, options in {"one process": ["--local"], "two workers": ["--workers", "2"]}.items():
        code, said, err = namespace.run([*FASTSHAP, "run", str(path), str(tmp_path / name), *options], env=None)
        assert code == 0, err
        print(name, said)
        (line,) = (line for line in said.splitlines() if "texts a second" in line)
        rates[name] = float(line.split()[-4].replace(",", ""))
    assert rates["two workers"] >= 0.85 * rates["one process"], rates
