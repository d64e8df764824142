"""The GPU day: nothing that one case does loses another's result, and every claim can be proved, refuted, or not run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu.day import kernels, leading, report
from bench.gpu.day.claims import CLAIMS, MODELS, PACKAGED, TINY
from bench.gpu.day.leading import Lane, Step
from bench.gpu.day.record import FAILED, OK, SKIPPED, STARTED, UNFINISHED, Record, cases, is_spoilt, lines
from bench.gpu.day.steps import ON_A_GPU, steps
from bench.gpu.day.verdicts import NOT_RUN, PROVED, REFUTED, Found, judged

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- processes that fail

PROCESS = """
import os, sys, time
from pathlib import Path
from bench.gpu.day.record import AbsentError, Record
def crash(): os.abort()
def hang(): time.sleep(60)
def spoil(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def absent(): raise AbsentError("it is not installed")
def wrong(): raise ValueError("off by one")
record = Record(Path(sys.argv[1]) / "results.jsonl", sys.argv[2])
for name in sys.argv[3:]:
    record.case(name, globals().get(name.split()[0], lambda: {"figure": 1}))
"""


def step(name, out, *its, quiet=30.0, share=1.0):
    command = (sys.executable, "-c", PROCESS, str(out), name, *its)
    return Step(name, [Lane("0", command, {"PYTHONPATH": str(ROOT)})], share, quiet)


def states(out, name):
    return {case: line["status"] for (its, case), line in cases(out / "results.jsonl").items() if its == name}


@pytest.mark.parametrize(
    ("case", "status", "why"),
    [
        ("crash", FAILED, "SIGABRT"),
        ("spoil", FAILED, "illegal memory access"),
        ("hang", FAILED, "nothing was heard of it for 2 seconds"),
        ("wrong", FAILED, "ValueError: off by one"),
        ("absent", "absent", "it is not installed"),
    ],
)
def test_a_case_that_fails_loses_no_other(tmp_path, case, status, why):
    its = step("some", tmp_path, "first", case, "last", quiet=2.0)
    leading.run_step(its, tmp_path, time.monotonic() + 60)
    assert states(tmp_path, "some") == {"first": OK, case: status, "last": OK, "(step)": "ended"}
    assert why in cases(tmp_path / "results.jsonl")["some", case]["why"]


def test_a_process_that_never_begins_is_not_tried_for_ever(tmp_path):
    nothing = Lane("0", (sys.executable, "-c", "import nothing_of_this_name"))
    leading.lead(
        [Step("broken", [nothing], 1.0), step("next", tmp_path, "one")], tmp_path, time.monotonic() + 60, lambda: True
    )
    assert states(tmp_path, "broken")["(process 0)"] == FAILED
    assert "ModuleNotFoundError" in cases(tmp_path / "results.jsonl")["broken", "(process 0)"]["why"]
    assert states(tmp_path, "next")["one"] == OK


def test_the_deadline_holds_and_later_steps_get_their_share(tmp_path):
    start, seen = time.monotonic(), []
    some = [step("long", tmp_path, "one", "hang", "never"), step("short", tmp_path, "two")]
    leading.lead(some, tmp_path, start + 8, lambda: seen.append(len(lines(tmp_path / "results.jsonl"))) is None)
    assert time.monotonic() - start < 10
    assert states(tmp_path, "long") == {"one": OK, "hang": UNFINISHED, "(process 0)": UNFINISHED, "(step)": "ended"}
    assert states(tmp_path, "short")["two"] == OK
    assert len(seen) == 2  # the table is written after each step


@pytest.mark.parametrize("text", ["torch.OutOfMemoryError: CUDA out of memory. Tried", "ValueError: 3"])
def test_what_spoils_no_context(text):
    assert not is_spoilt(text)
    assert is_spoilt("torch.AcceleratorError: CUDA error: unspecified launch failure")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_gpu_the_day_ends_at_once(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--day", "--out", str(tmp_path)]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "there is no GPU" in done.stdout
    assert {name for name, _ in cases(tmp_path / "results.jsonl")} == {"day", "environment"}
    counts = json.loads((tmp_path / "claims.json").read_text())["counts"]
    assert counts == {"proved": 0, "refuted": 0, "not run": len(CLAIMS)}


def test_the_leader_needs_the_standard_library_alone():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'numpy', 'transformers', 'triton', 'pytest', 'fastshap']))\n"
        "import bench.gpu.day.command"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_the_command_keeps_the_results_of_another_day(tmp_path):
    (tmp_path / "results.jsonl").touch()
    command = [sys.executable, "-m", "bench.gpu", "--day", "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "holds the results of another day" in done.stderr


# ---------------------------------------------------------------- tests as cases

SOME_TESTS = """
import pytest
@pytest.mark.parametrize("k", range(5))
def test_many(k):
    assert k != 3
def test_spoils():
    raise RuntimeError("CUDA error: device-side assert triggered")
def test_skipped():
    pytest.skip("there is one device only")
def test_tells(record_property):
    record_property("variants", {"perturb": 1})
"""


def test_tests_are_cases_in_parts(tmp_path):
    """In two processes; one meets an error that spoils its context, ends, and is started again."""
    path = tmp_path / "test_some.py"
    path.write_text(SOME_TESTS)

    def lane(part):
        name = f"part {part}"
        own = {"FASTSHAP_DAY": str(tmp_path / "results.jsonl"), "FASTSHAP_DAY_LANE": name}
        own |= {"FASTSHAP_DAY_PART": f"{part}/2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
        command = (sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.day.plugin", "-c", os.devnull, str(path))
        return Lane(name, command, own, frozenset({0, 1, 5}))

    leading.run_step(Step("tests", [lane(0), lane(1)], 1.0), tmp_path, time.monotonic() + 60)
    found = {case.split("::")[-1]: status for case, status in states(tmp_path, "tests").items() if "::" in case}
    assert found == {
        **{f"test_many[{k}]": FAILED if k == 3 else OK for k in range(5)},
        "test_spoils": FAILED,
        "test_skipped": SKIPPED,
        "test_tells": OK,
    }
    all_lines = cases(tmp_path / "results.jsonl")
    (told,) = (line for (_, case), line in all_lines.items() if case.endswith("test_tells"))
    assert told["data"] == {"variants": {"perturb": 1}}
    wanted, begun = Found(all_lines).tests("test_many")
    assert wanted == len(begun) == 5
    order = [line["case"] for line in lines(tmp_path / "results.jsonl") if line["status"] == STARTED]
    assert "test_many" not in order[0]  # the only test of its kind comes first


# ---------------------------------------------------------------- claims


def functions():
    """Of the GPU's tests."""
    return [
        name for file in ON_A_GPU for name in re.findall(r"^def (test_\w+)\(", (ROOT / file).read_text(), re.MULTILINE)
    ]


def good_day(out):
    """What a day writes if all is as it is hoped; cases have the names that the steps give them on a GPU."""
    write = lambda step, case, data: Record(out / "results.jsonl", step).write(case, OK, data=data)  # noqa: E731
    write("day", "device", "cuda")
    write("environment", "environment", {"gpu_result": True, "device": "a GPU", "devices": 1, "absent": {}})
    write("tests", "(collected gpu 0)", dict.fromkeys(functions(), 1))
    for name in functions():
        write("tests", f"tests/operators/test_gpu.py::{name}[one]", None)
    write("kernels", "check", {})
    write("kernels", "copy", {"bytes": 2 * 2**30, "median": 0.7})
    for size in kernels.sizes(torch.device("cuda")):
        for operator in ("perturb", "attribute"):
            for shape in size.shapes:
                for dim in size.dims:
                    for dtype in ("float32", "bfloat16"):
                        name = f"{operator}, {shape.name}, D = {dim}, {dtype}"
                        elements = sum(shape.tokens) * shape.rows * dim
                        taken = {"median": elements * 1e-9}
                        data = {"kernel": taken, "kernel_device": taken, "eager": {"median": 1.0}, "elements": elements}
                        size_of = 4 if dtype == "float32" else 2
                        write("kernels", name, data | {"least_bytes": elements * size_of})
                        write("kernels", f"compiled {name}", {"compiled_device": {"median": 0.8}})
    seconds = lambda **its: {"seconds": {name: {"median": median} for name, median in its.items()}}  # noqa: E731
    for model in MODELS:
        write("explanations", f"{model}: batch sizes", seconds(auto=1.0, **{"32": 2.0, "128": 1.0}))
        write("explanations", f"{model}: share of the kernels", {"share": 0.004})
        write("explanations", f"{model}: interpreto", seconds(**{"16": 3.0}))
        write("explanations", f"{model}: captum", seconds(**{"4": 1.5}))
    for model in (TINY, PACKAGED):
        write("calls", f"one text, {model}", {"bare": 20.0, "class given": 22.0, "by graphs": 7.0})
    write("calls", "many texts, packaged", {"device_share": 0.7, "texts_per_second": 9000.0})
    write("calls", f"graph, {TINY}, 10 x 16", {"plain_ms": 9.0, "replay_ms": 3.0, "apart": 1e-7})
    together = seconds(**{"together": 0.9, "one after the other": 1.0})
    write("explanations", "6 classes: scores that share a pass", together)
    its = {"ran_out": False, "share_of_free": 0.7, "tokens": 4000, "bound_by_memory": True}
    write("memory", "what auto plans", its)
    for case in ("so many rows", "auto"):
        write("memory", f"out of memory, {case}", {"ran_out": True, "apart": 1e-7})


def verdicts(out):
    found = Found(cases(out / "results.jsonl"))
    return {claim.text: judged(claim.judge, found) for claim in CLAIMS}


ONE_GPU = "Two GPUs share the work, and give the same numbers"


def test_a_good_day_proves_all_that_one_gpu_can(tmp_path):
    good_day(tmp_path)
    found = verdicts(tmp_path)
    assert {text: verdict.why for text, verdict in found.items() if verdict.status != PROVED} == {
        ONE_GPU: "needs two GPUs; there is 1. This day does not measure it"
    }
    text = report.write(tmp_path, 8.2)
    assert f"{len(CLAIMS) - 1} proved, 0 refuted, 1 not run" in text
    assert json.loads((tmp_path / "claims.json").read_text())["counts"]["proved"] == len(CLAIMS) - 1
    assert (tmp_path / "claims.md").read_text() == text
    assert report.all_ran(tmp_path)


def test_a_bad_day_refutes_all_that_one_gpu_can(tmp_path):
    good_day(tmp_path)
    for (name, case), line in cases(tmp_path / "results.jsonl").items():
        record, data = Record(tmp_path / "results.jsonl", name), line["data"] if name != "day" else None
        if (name == "tests" and "::" in case) or case == "check":
            record.write(case, FAILED, "CheckFailedError: off by 3")
        elif "kernel" in (data or {}):
            slow = {"median": 5.0}
            record.write(case, OK, data={**data, "kernel": slow, "kernel_device": slow})
        elif "bare" in (data or {}):
            record.write(case, OK, data={**data, "class given": 29.0, "by graphs": 21.0})
        elif "device_share" in (data or {}):
            record.write(case, OK, data={**data, "device_share": 0.1})
        elif "replay_ms" in (data or {}):
            record.write(case, OK, data={**data, "replay_ms": 8.0})
        elif "auto" in (data or {}).get("seconds", {}):
            record.write(case, OK, data={"seconds": {"auto": {"median": 9.0}, "32": {"median": 7.0}}})
        elif "together" in (data or {}).get("seconds", {}):
            data["seconds"]["together"]["median"] = 2.0
            record.write(case, OK, data=data)
        elif "share" in (data or {}):
            record.write(case, OK, data={"share": 0.02})
        elif "share_of_free" in (data or {}):
            record.write(case, OK, data={**data, "ran_out": True})
        elif "apart" in (data or {}):
            record.write(case, OK, data={**data, "apart": 0.1})
    found = verdicts(tmp_path)
    assert {text for text, verdict in found.items() if verdict.status != REFUTED} == {ONE_GPU}
    assert "off by 3" in found["Random words are equal bit by bit"].why
    assert not report.all_ran(tmp_path)


@pytest.mark.parametrize("apart", [0.1, float("nan")])
def test_a_graph_with_other_scores_is_refuted(tmp_path, apart):
    good_day(tmp_path)
    data = {"plain_ms": 9.0, "replay_ms": 3.0, "apart": apart}
    Record(tmp_path / "results.jsonl", "calls").write(f"graph, {TINY}, 10 x 16", OK, data=data)
    verdict = verdicts(tmp_path)["A small call is 1.5 times as fast as a CUDA graph, with the same scores"]
    assert (verdict.status, "of the largest apart" in verdict.why) == (REFUTED, True)


def test_what_did_not_run_proves_nothing(tmp_path):
    report.write(tmp_path)
    assert {verdict.status for verdict in verdicts(tmp_path).values()} == {NOT_RUN}
    good_day(tmp_path)
    for (name, case), line in cases(tmp_path / "results.jsonl").items():
        if name not in ("environment", "day") and not case.startswith("(collected"):
            why = "not installed" if "interpreto" in case else "the time of this step was up"
            Record(tmp_path / "results.jsonl", name, line["lane"]).write(case, UNFINISHED, why)
    found = verdicts(tmp_path)
    assert {verdict.status for verdict in found.values()} == {NOT_RUN}
    assert "not installed" in found["Faster than interpreto at its best batch size"].why
    assert "0 of 1 ran" in found["Random words are equal bit by bit"].why


def test_a_cpu_proves_nothing_of_a_gpu(tmp_path):
    good_day(tmp_path)
    Record(tmp_path / "results.jsonl", "day").write("device", OK, data="cpu")
    found = verdicts(tmp_path)
    assert {verdict.status for verdict in found.values()} == {NOT_RUN}
    assert found["Random words are equal bit by bit"].why.startswith("no GPU; the rehearsal would say proved")


def test_claims_name_tests_that_exist_and_no_gpu_test_is_left_out():
    source = (ROOT / "bench" / "gpu" / "day" / "claims.py").read_text()
    named = set(re.findall(r'"(test_\w+)"', source))
    of_the_gpu = {name for name in functions() if "without_a_device" not in name and "rehearsal" not in name}
    assert named == of_the_gpu


def test_what_comes_back_fits_the_lent_machine(tmp_path):
    """Four files with plain names; steps that fill nine minutes; GPU tests in several processes."""
    on_a_gpu = steps(tmp_path, "cuda")
    assert [its.name for its in on_a_gpu] == ["environment", "tests", "kernels", "calls", "explanations", "memory"]
    assert 500 < sum(its.share for its in on_a_gpu) <= 540
    assert all(lane.environment["PYTHONPATH"].startswith(str(ROOT)) for its in on_a_gpu for lane in its.lanes)


# ---------------------------------------------------------------- the rehearsal

# What the lent machine had when it was last looked at, and no more.
VERSIONS = ("torch==2.11.0", "triton==3.6.0", "transformers==5.17.0", "numpy==2.5.*")
BESIDE = ("pytest", "hypothesis", "safetensors", "typer", "rich", "tqdm")


def python312():
    """One that runs: a version manager may have a name for what it does not start."""
    installed = sorted(map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python3.12")))
    check = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))"
    for python in (sys.executable, shutil.which("python3.12"), *installed):
        if python and subprocess.run([python, "-c", check], capture_output=True).returncode == 0:
            return python
    return None


@pytest.mark.slow
def test_a_rehearsal_with_the_versions_of_the_lent_machine(tmp_path):
    """In an environment of its own (5 GB, removed afterwards). All of a day runs on this CPU, and nothing fails."""
    python = python312()
    if python is None:
        pytest.skip("needs Python 3.12, for numpy 2.5")
    own = tmp_path / "env"
    try:
        subprocess.run([python, "-m", "venv", own], check=True)
        install = [own / "bin" / "python", "-m", "pip", "install", "-q", *VERSIONS, *BESIDE]
        subprocess.run(install, check=True, env={**os.environ, "PIP_NO_COMPILE": "1"}, timeout=1800)
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "TRITON"))
        }
        out, start = tmp_path / "out", time.monotonic()
        command = [own / "bin" / "python", "-m", "bench.gpu", "--day", "--device", "cpu", "--out", out]
        done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=700)
        seconds = time.monotonic() - start
    finally:
        shutil.rmtree(own, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()[-5000:]
    assert seconds < 540
    summary = json.loads((out / "claims.json").read_text())
    versions = summary["environment"]["versions"]
    assert {name: versions[name] for name in ("torch", "triton", "transformers")} == {
        "torch": "2.11.0",
        "triton": "3.6.0",
        "transformers": "5.17.0",
    }
    assert {"interpreto", "captum", "jsonschema"} <= summary["environment"]["absent"].keys()
    assert summary["failures"] == []
    assert {status for statuses in summary["steps"].values() for status in statuses} <= {OK, "absent"}
    assert summary["steps"]["tests"][OK] > 400
    assert {one["verdict"] for one in summary["claims"]} == {NOT_RUN}
    assert not [one for one in summary["claims"] if "cannot be judged" in one["why"]]
    assert len(list(out.iterdir())) == 4
    print(done.stdout)
