"""Jobs on Ray, each in a network namespace of its own: killed, resumed, refused."""

import json
import os
import sys
import textwrap
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastshap import BatchExplainer, JobError
from fastshap.integrations.ray.workers import Worker
from fastshap.jobs.job import identity
from fastshap.jobs.local import explain_files
from fastshap.jobs.reading import Columns
from fastshap.jobs.store import MANIFEST
from fastshap.jobs.verdict import verify
from fastshap.models.provenance import library_versions
from helpers import namespace
from helpers.jobs import damaged_page, make_texts, rows, same_numbers, write

pytestmark = pytest.mark.ray

FASTSHAP = [
    sys.executable,
    "-c",
    "import fastshap.jobs.job as job; job._SECONDS = 1.0; from fastshap.cli import app; app()",
]
SETTINGS = ["--n-perturbations", "4", "--workers", "2"]


def waited(condition, process, seconds=600):
    """Waits for something that takes seconds where nothing else runs, and minutes where much does."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "nothing came of it in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "samples", "rows_each"), [(2000, 20, 32), pytest.param(10_000, 4, 256, marks=pytest.mark.slow)]
)
def test_texts_with_a_killed_worker_and_a_killed_driver(tmp_path, count, samples, rows_each):
    """A worker is killed, then the driver; parts are cut off and lost; then resumed. As an uninterrupted run in one process."""
    path, out = write(tmp_path / "a.parquet", make_texts(count)), tmp_path / "out"
    settings = ["--n-perturbations", str(samples), "--workers", "2", "--rows-per-batch", str(rows_each)]
    command = [*FASTSHAP, "run", str(path), str(out), *settings]

    def parts():
        return sorted(out.glob("part-*"))

    def at_work():
        return {worker.pid for worker in namespace.workers(process)}

    with namespace.start(command) as process:
        waited(lambda: len(parts()) >= 2 and len(at_work()) == 2, process)
        first, second = namespace.workers(process)
        first.kill()
        before = len(parts())
        waited(lambda: len(at_work() - {first.pid}) == 2, process)
        replaced = at_work()
        waited(lambda: len(parts()) >= before + 2, process)
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
    explain_files(path, tmp_path / "whole", n_perturbations=samples)
    same_numbers(rows(out), rows(tmp_path / "whole"))


# Put before everything else that a Python process imports: it dies over certain texts, as memory that runs out would have it,
# and its model fails on others.
DEADLY = """
import importlib.abc, importlib.util, os, sys

class Deadly(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "fastshap.jobs.table":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            outputs = module.BatchExplainer.outputs

            def deadly(self, texts):
                if any("deadly" in text for text in texts if isinstance(text, str)):
                    os.kill(os.getpid(), 9)
                return outputs(self, texts)

            module.BatchExplainer.outputs = deadly
            window = module.GradientShap._explain_window

            def failing(self, texts, *arguments):
                bad = [text for text in texts if isinstance(text, str) and ("broken" in text or "BROKEN" in os.environ)]
                if bad:
                    raise IndexError("index out of range in self")
                return window(self, texts, *arguments)

            module.GradientShap._explain_window = failing

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Deadly())
"""


@pytest.fixture
def deadly(tmp_path):
    """The environment of a process that runs ``DEADLY``."""
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly" / "sitecustomize.py").write_text(DEADLY)
    paths = [str(tmp_path / "deadly"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_a_text_that_kills_its_process_or_its_model_is_recorded(tmp_path, deadly):
    given = {70: "deadly film", 71: "deadly film", 120: "broken film", 200: ""}
    texts = [given.get(i, text) for i, text in enumerate(make_texts(201))]
    path, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    command = [*FASTSHAP, "run", str(path), str(out), *SETTINGS, "--rows-per-batch", "50"]
    code, said, err = namespace.run(command, env=deadly)
    assert code == 0, err
    assert "WorkerDiedError" in said
    assert "ModelFailedError" in said
    assert verify(out, path).good
    found = rows(out)
    assert "died 2 times over it alone" in found[70]["error"]
    assert "died 2 times over it alone" in found[71]["error"]
    assert found[120]["error"].startswith("ModelFailedError: The model failed on this text: IndexError: index out of")
    assert "empty" in found[200]["error"]
    explain_files(path, tmp_path / "whole", n_perturbations=4)
    whole = rows(tmp_path / "whole")
    others = [i for i in range(200) if i not in given]
    same_numbers({i: found[i] for i in others}, {i: whole[i] for i in others})


def test_a_model_that_fails_on_every_text_ends_the_job(tmp_path, deadly):
    path, out = write(tmp_path / "a.parquet", make_texts(30)), tmp_path / "out"
    command = [*FASTSHAP, "run", str(path), str(out), *SETTINGS]
    code, _, err = namespace.run(command, env=deadly | {"BROKEN": "1"})
    assert code == 1, err
    assert "The model failed on each of 30 texts" in err
    assert "IndexError: index out of range" in err
    assert len(err.splitlines()) == 1, err
    code, said, err = namespace.run([*command, "--resume"])
    assert (code, "errors           0" in said) == (0, True), err


def test_sigterm_ends_a_job_with_what_it_has(tmp_path):
    path, out = write(tmp_path / "a.parquet", make_texts(2000)), tmp_path / "out"
    few = ["--n-perturbations", "20", "--workers", "1", "--rows-per-batch", "32"]
    with namespace.start([*FASTSHAP, "run", str(path), str(out), *few]) as process:
        waited(lambda: len(list(out.glob("part-*"))) >= 1, process)
        assert verify(out, path).state == "running"
        namespace.inside(process).terminate()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "stopped; what was explained is in" in err
    found = verify(out, path)
    assert (found.state, found.damaged, found.twice) == ("interrupted", [], 0)
    assert 0 < found.summary.rows < 2000


CLUSTER = """
import os, sys, time
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
import pyarrow.parquet as pq
import fastshap
from fastshap.integrations.ray import explain_dataset

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         _node_ip_address="127.0.0.1")
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
more = ray.data.from_items([{"key": "more", "body": "fine film"}]).union(data)
assert explain_dataset(more, "out", n_perturbations=4, workers=1, resume=True, **names).rows == 7
assert explain_dataset(more, "out", n_perturbations=4, workers=1, resume=True, **names).before == 7
changed = [{"key": key, "body": "other"} for key in ("more", *(f"k{i}" for i in range(6)))]
changed = ray.data.from_items(changed)
refused("have changed", changed, "out", workers=1, resume=True, **names)
redone = explain_dataset(changed, "out", n_perturbations=4, workers=1, resume=True, redo_changed=True, **names)
assert (redone.rows, redone.redone, redone.before) == (7, 7, 0), redone
anew = explain_dataset(changed, "out", n_perturbations=4, seed=1, workers=1, overwrite=True, **names)
assert (anew.rows, pq.read_table("out").num_rows) == (7, 7), anew
assert not os.path.exists("out/_fastshap_next")

rows = [{"id": i, "text": "fine film " * (i % 5 + 1)} for i in range(40)]
expected = fastshap.BatchExplainer(n_perturbations=4)({"text": [row["text"] for row in rows]}).to_pylist()
for form, blocks, size in (("pyarrow", 1, 7), ("numpy", 4, 16)):
    mapped = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        fastshap.BatchExplainer, fn_constructor_kwargs={"n_perturbations": 4}, batch_format=form, batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=1))
    mapped = mapped.materialize()  # once, for its schema and its rows
    assert str(mapped.schema().types[mapped.schema().names.index("attributions")]) == "list<item: float>", mapped.schema()
    taken = sorted(mapped.take_all(), key=lambda row: row["id"])
    for row, other in zip(taken, expected, strict=True):
        assert row["elements"] == other["elements"]
        largest = max(map(abs, other["attributions"]))
        assert max(abs(a - b) for a, b in zip(row["attributions"], other["attributions"])) <= 1e-5 * largest
assert context.enable_progress_bars == bars
assert ray.is_initialized()
print("good")
"""


def test_a_cluster_that_is_there_and_datasets(tmp_path):
    """Refusals in bounded time on a cluster that is joined; a Dataset as input; BatchExplainer in map_batches."""
    code, said, err = namespace.run([sys.executable, "-c", textwrap.dedent(CLUSTER)], cwd=tmp_path)
    assert code == 0, err
    assert said.splitlines()[-1] == "good"


REFUSED = """
import json, sys, time
from typer.testing import CliRunner
from fastshap.cli import app

for message, arguments in json.load(sys.stdin).items():
    start = time.monotonic()
    result = CliRunner().invoke(app, ["run", *arguments])
    assert (result.exit_code, message in result.stderr) == (2, True), (message, result.exit_code, result.stderr)
    assert time.monotonic() - start < 60
print("good")
"""


def test_what_is_refused_before_ray_starts(tmp_path):
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
    given = tmp_path / "refusals.json"
    given.write_text(json.dumps({message: [*map(str, arguments)] for message, arguments in refusals.items()}))
    with given.open() as file:
        code, said, err = namespace.run([sys.executable, "-c", REFUSED], stdin=file)
    assert (code, said.splitlines()[-1:]) == (0, ["good"]), err
    assert not out.exists()


def test_a_page_that_does_not_read_interrupts_the_job(tmp_path):
    path, out = damaged_page(tmp_path / "a.parquet"), tmp_path / "out"
    code, _, err = namespace.run([*FASTSHAP, "run", str(path), str(out), *SETTINGS], timeout=120)
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
        code, said, err = namespace.run([*FASTSHAP, "run", str(path), str(tmp_path / name), *options])
        assert code == 0, err
        print(name, said)
        (line,) = (line for line in said.splitlines() if "texts a second" in line)
        rates[name] = float(line.split()[-4].replace(",", ""))
    assert rates["two workers"] >= 0.85 * rates["one process"], rates
