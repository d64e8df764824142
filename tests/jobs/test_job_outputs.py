"""What an output goes through: overwritten, resumed with another model, damaged, its texts corrected, its run stopped."""

import json
import os
import random
import signal
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import fastshap
from fastshap import BatchExplainer, JobError
from fastshap.cli import app
from fastshap.jobs import opening
from fastshap.jobs.columns import Columns
from fastshap.jobs.digests import with_digests, wrong
from fastshap.jobs.inputs import rows_of_files
from fastshap.jobs.job import Job, identity
from fastshap.jobs.local import explain_files
from fastshap.jobs.progress import JobProgress
from fastshap.jobs.reading import Files
from fastshap.jobs.stopping import Terminated
from fastshap.jobs.store import MANIFEST, NEXT, Store
from fastshap.jobs.verdict import verify
from helpers.damage import mutated, scratched
from helpers.jobs import QUICK, SETTINGS, make_texts, refused, rows, run, same_numbers, write

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    """So that few rows are several parts."""
    monkeypatch.setattr("fastshap.jobs.local._FEWEST", 16)


class Killed(BaseException):
    """Nothing gets to run after it, not even what is run for every exception."""


@pytest.fixture
def killed_after(monkeypatch):
    """Has a run die after so many written parts, as SIGKILL would have it."""

    def arrange(parts):
        written = []
        write_table = pq.write_table

        def write_then_die(*arguments, **options):
            if len(written) == parts:
                raise Killed
            written.append(write_table(*arguments, **options))

        monkeypatch.setattr(pq, "write_table", write_then_die)
        monkeypatch.setattr("fastshap.jobs.job._ROWS", 16)

    return arrange


@pytest.fixture
def done(tmp_path, monkeypatch):
    """An input of 80 texts and its finished output, of one part however slow the machine is."""
    path, out = write(tmp_path / "a.parquet", make_texts(80)), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("fastshap.jobs.job._SECONDS", 1e9)
        explain_files(path, out, **SETTINGS)
    return path, out


# Overwriting


def test_a_finished_output_stays_until_the_new_one_is_complete(done, killed_after, monkeypatch):
    path, out = done
    before = rows(out)
    killed_after(2)
    with pytest.raises(Killed):
        explain_files(path, out, overwrite=True, seed=1, **SETTINGS)
    monkeypatch.undo()
    assert rows(out) == before, "readers of the directory see the old output alone"
    found = verify(out, path)
    assert (found.good, found.replacing) == (True, "interrupted")
    assert "An overwrite of this output was interrupted." in "\n".join(found.lines())
    assert "an overwrite of it that was interrupted" in refused(path, out)
    assert "settings.seed was 1 and is 0" in refused(path, out, "--resume")
    summary = explain_files(path, out, resume=True, seed=1, **SETTINGS)
    assert 0 < summary.before < 80
    assert (verify(out, path).good, verify(out, path).replacing) == (True, "")
    assert sorted(os.listdir(out)) == sorted([MANIFEST, *(part.name for part in out.glob("part-*"))])
    after = rows(out)
    assert after.keys() == before.keys()
    assert after[0]["attributions"] != before[0]["attributions"]


def test_an_interrupted_overwrite_can_be_begun_anew(done, killed_after, monkeypatch):
    path, out = done
    killed_after(1)
    with pytest.raises(Killed):
        explain_files(path, out, overwrite=True, seed=1, **SETTINGS)
    monkeypatch.undo()
    summary = explain_files(path, out, overwrite=True, seed=2, **SETTINGS)
    assert (summary.before, summary.rows) == (0, 80)
    assert not (out / NEXT).exists()
    assert json.loads((out / MANIFEST).read_text())["identity"]["settings"]["seed"] == 2


STEPS = ("write_manifest", "move_out", "remove", "clear")


@pytest.mark.parametrize("step", range(8))
def test_a_kill_in_the_middle_of_the_switch_loses_nothing(done, monkeypatch, step):
    """Whichever step it falls on, the next run finishes it."""
    path, out = done
    explain_files(path, out, resume=True, **SETTINGS)
    monkeypatch.setattr("fastshap.jobs.job._ROWS", 24)
    take_next, left = Store.take_next, [step]

    def dying(self):
        if not (out / NEXT / MANIFEST).exists():
            return take_next(self)
        with monkeypatch.context() as patched:
            for name in STEPS:
                inner = getattr(Store, name)

                def counted(*arguments, inner=inner):
                    if not left[0]:
                        raise Killed
                    left[0] -= 1
                    return inner(*arguments)

                patched.setattr(Store, name, counted)
            return take_next(self)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "take_next", dying)
        with pytest.raises(Killed) if step < 7 else pytest.MonkeyPatch.context():
            explain_files(path, out, overwrite=True, seed=1, **SETTINGS)
    if step < 7:
        state = verify(out, path)
        assert (state.missing, state.damaged) == (0, [])
    summary = explain_files(path, out, resume=True, seed=1, **SETTINGS)
    assert (summary.before, summary.rows) == (80, 80)
    assert verify(out, path).good
    assert not (out / NEXT).exists()
    assert pq.read_table(out).num_rows == 80


# What tells one model from another


@pytest.mark.parametrize(
    ("entry", "value"),
    [("hidden_act", "relu"), ("num_attention_heads", 1), ("id2label", {"0": "a", "1": "b", "2": "c"})],
)
def test_a_model_with_another_configuration_is_refused(tmp_path, bert_pair, entry, value):
    path, out, model = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out", tmp_path / "model"
    for one in bert_pair:
        one.save_pretrained(model)
    run(path, out, "--model", model, *QUICK)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {entry: value}))
    said = refused(path, out, "--model", model, "--resume")
    assert ("labels_fingerprint" if entry == "id2label" else f"model.configuration.{entry} was") in said


def test_every_part_names_the_versions_it_was_computed_with(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", ["fine film"]), tmp_path / "out"
    run(path, out, *QUICK)
    write(path, ["fine film", "not good"])
    known = dict(fastshap.models.provenance._known_versions()) | {"torch": "9.9"}
    monkeypatch.setattr("fastshap.models.provenance._known_versions", lambda: tuple(known.items()))
    said = run(path, out, "--resume", *QUICK).stdout
    both = ", ".join(sorted(["9.9", torch.__version__]))
    assert f"torch            {both}: rows of several versions" in said
    abouts = [json.loads(pq.read_schema(part).metadata[b"fastshap"]) for part in out.glob("part-*")]
    assert {about["versions"]["torch"] for about in abouts} >= {"9.9"}
    assert len({about["versions"]["torch"] for about in abouts}) == 2


def test_identities_are_compared_once_nobody_else_can_write(done, monkeypatch):
    """Another run finishes with other settings between the first look and the lock."""
    path, out = done
    alone = Store.alone

    def late(self):
        manifest = json.loads((out / MANIFEST).read_text())
        manifest["identity"]["settings"]["seed"] = 5
        (out / MANIFEST).write_text(json.dumps(manifest))
        return alone(self)

    monkeypatch.setattr(Store, "alone", late)
    with pytest.raises(JobError, match=r"settings\.seed was 5 and is 0"):
        explain_files(path, out, resume=True, **SETTINGS)


def test_manifest_and_parts_are_on_the_disk_before_they_appear(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", ["fine film"]), tmp_path / "out"
    kept = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (kept.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    explain_files(path, out, **SETTINGS)
    (part,) = out.glob("part-*")
    for name in (f".{MANIFEST}.tmp", f".{part.name}.tmp"):
        place = kept.index(str(out / name))
        assert kept[place + 1] == str(out)


# Damage


def test_digests_depend_on_every_value():
    table = pa.table(
        {
            "id": ["a", "b"],
            "names": pa.array([["x", "yz"], None]),
            "scores": pa.array([[1.0, 2.0], None], pa.list_(pa.float32())),
            "count": [1, 2],
            "flag": [True, False],
        }
    )
    whole = with_digests(table)
    assert not wrong(whole).any()
    assert not wrong(pa.concat_tables([whole[1:], whole[:1]])).any()
    others = {
        "id": ["a", "c"],
        "names": [["xy", "z"], []],
        "scores": pa.array([[2.0, 1.0], []], pa.list_(pa.float32())),
        "count": [1, None],
        "flag": [True, None],
    }
    for name, column in others.items():
        place = table.schema.names.index(name)
        changed = whole.set_column(place, whole.schema.field(name), [pa.array(column, whole.schema.field(name).type)])
        assert wrong(changed).tolist() == [name in ("names", "scores"), True], name


def test_scores_that_were_exchanged_cut_or_removed_are_noticed_and_computed_again(done):
    path, out = done
    before = rows(out)
    (part,) = out.glob("part-*")
    table = pq.read_table(part)
    place = table.schema.names.index("attributions")
    scores = table.column("attributions").to_pylist()
    for edited, count in (
        ([scores[1], scores[0], *scores[2:]], 2),
        ([scores[0][:1], *scores[1:]], 1),
        ([None, *scores[1:]], 1),
    ):
        field = table.schema.field(place)
        pq.write_table(table.set_column(place, field, [pa.array(edited, field.type)]), part)
        found = verify(out, path)
        assert (found.wrong, found.good) == (count, False)
        assert f"damaged rows     {count}" in "\n".join(found.lines())
    exchanged = table.set_column(place, field, [pa.array([scores[1], scores[0], *scores[2:]], field.type)])
    digests = table.column("digest").to_pylist()
    for lost, count in (([None] * 2 + digests[2:], 2), ([None] * 80, 80), (None, 80)):
        without = exchanged.drop_columns(["digest"])
        kept = pa.array(lost, pa.string()) if lost else None
        pq.write_table(without.append_column("digest", kept) if lost else without, part)
        assert (verify(out, path).wrong, verify(out, path).unchecked) == (count, 0), "a digest that is gone tells too"
    assert "damaged parts    1, their rows computed again" in run(path, out, "--resume", *QUICK).stdout
    assert verify(out, path).good
    same_numbers(rows(out), before)


@pytest.mark.parametrize("count", [80, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_mutated_manifest_is_used_or_refused(tmp_path, count):
    """Whatever stands in it: verify and resume give a result or an error of ours, and lose no part."""
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good", ""]), tmp_path / "out"
    explain_files(path, out, **SETTINGS)
    batch, columns = BatchExplainer(keep=(), **SETTINGS), Columns("id", "text")
    same, found = identity(batch, columns), rows_of_files(Files(path, columns))
    whole, before = (out / MANIFEST).read_text(), rows(out)
    how = {"overwrite": False, "redo": None, "shown": False, "started": 0.0}

    def resumed():
        with opening.opened(out, found, same, batch.provenance.versions, resume=True, **how) as job:
            job.finish()

    def refused_anew():
        opening.refuse_unfit(Store(out), same, resume=False, overwrite=False, redo=False)

    dice, ours = random.Random(count), 0
    for k in range(count):
        text = json.dumps(mutated(json.loads(whole), dice)) if k % 3 else scratched(whole, dice)
        (out / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        for attempt in (lambda: verify(out, path).lines(), refused_anew, resumed):
            try:
                attempt()
            except fastshap.FastshapError:
                ours += 1
        assert rows(out) == before
    assert count < ours < 3 * count


# Corrected texts


def test_a_corrected_text_is_explained_anew_and_nothing_else(tmp_path, monkeypatch):
    texts = make_texts(80)
    path, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    monkeypatch.setattr("fastshap.jobs.job._ROWS", 24)
    explain_files(path, out, **SETTINGS)
    before = rows(out)
    write(path, ["a corrected text", *texts[1:60], None, *texts[61:]])
    assert "--redo-changed" in refused(path, out, "--resume")
    assert "--redo-changed" in "\n".join(verify(out, path).lines())
    assert "pass resume too" in refused(path, out, "--redo-changed")
    counted = []
    add = Job.add
    monkeypatch.setattr(Job, "add", lambda self, table: (counted.append(len(table)), add(self, table)))
    said = run(path, out, "--resume", "--redo-changed", *QUICK).stdout
    assert "changed texts    2, explained again" in said
    assert sum(counted) == 2
    assert verify(out, path).good
    after = rows(out)
    assert after[0]["elements"] == ["a", "corrected", "text"]
    assert "got null" in after[60]["error"]
    assert {i: after[i] for i in range(80) if i not in (0, 60)} == {i: before[i] for i in range(80) if i not in (0, 60)}
    assert "80 (80 from before)" in run(path, out, "--resume", "--redo-changed", *QUICK).stdout


def test_a_kill_while_rows_are_taken_out_doubles_nothing(tmp_path, monkeypatch):
    texts = make_texts(80)
    path, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    monkeypatch.setattr("fastshap.jobs.job._ROWS", 24)
    explain_files(path, out, **SETTINGS)
    write(path, ["one", *texts[1:40], "two", *texts[41:-1], "three"])
    write_part, written = Store.write, []

    def dying(self, name, table):
        if written:
            raise Killed
        written.append(write_part(self, name, table))

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", dying)
        with pytest.raises(Killed):
            explain_files(path, out, resume=True, redo_changed=True, **SETTINGS)
    found = verify(out, path)
    assert (found.state, found.missing, found.changed, found.twice) == ("interrupted", 1, 2, 0)
    explain_files(path, out, resume=True, redo_changed=True, **SETTINGS)
    assert verify(out, path).good


# Runs that are running, and runs that are stopped


def test_a_running_job_is_told_from_an_interrupted_one(done, monkeypatch):
    path, out = done
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"state": "running"}))
    with Store(out).alone():
        assert verify(out, path).lines()[-1] == "The job is still running."
        assert "Another run is writing" in refused(path, out)
    assert "The job was interrupted." in verify(out, path).lines()
    assert "was interrupted" in refused(path, out)
    Store(out).busy()
    with Store(out).alone():
        assert Store(out).busy()


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_what_is_computed_is_written_when_a_run_is_stopped(tmp_path, monkeypatch, stop, code):
    path, out = write(tmp_path / "a.parquet", make_texts(200)), tmp_path / "out"
    add, counts = JobProgress.add, []

    def stopped(self, count):
        add(self, count)
        counts.append(count)
        if len(counts) == 2:
            if stop is Terminated:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise stop

    monkeypatch.setattr(JobProgress, "add", stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert "--resume continues" in run(path, out, *QUICK, code=code).stderr
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert f"({sum(counts)} from before)" in run(path, out, "--resume", *QUICK).stdout


def test_a_job_in_another_thread_than_the_main_one(tmp_path):
    path, out = write(tmp_path / "a.parquet", ["fine film"]), tmp_path / "out"
    found = []
    thread = threading.Thread(target=lambda: found.append(explain_files(path, out, **SETTINGS)))
    thread.start()
    thread.join()
    assert found[0].rows == 1


# What is said


def test_what_is_said_cannot_steer_the_terminal(tmp_path, monkeypatch):
    evil = "\x1b]0;title\x07\x1b]52;c;eA==\x07\x1b[2J"
    path, out = write(tmp_path / "a.parquet", ["fine film"]), tmp_path / f"out{evil}"

    window = fastshap.GradientShap._explain_window

    def broken(self, texts, *arguments):
        if any(isinstance(text, str) for text in texts):
            raise type(f"Odd{evil}", (RuntimeError,), {})("no")
        return window(self, texts, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(fastshap.GradientShap, "_explain_window", broken)
        results = [run(path, out, *QUICK, code=1)]
    assert "Odd�]0;title��]52;c;eA==��[2J" in results[0].stderr
    results += [run(path, out, *QUICK, code=2), run(path, out, "--resume", *QUICK)]
    (part,) = out.glob("part-*")
    table = pq.read_table(part).drop_columns(["digest"])
    said = table.set_column(table.schema.names.index("error"), "error", pa.array([f"Odd{evil}: no"]))
    pq.write_table(with_digests(said), part)
    results.append(CliRunner().invoke(app, ["verify", str(out), str(path)]))
    assert re_error(results[-1].stdout) == "Odd�]0;title��]52;c;eA==��[2J"
    results.append(run(tmp_path / f"{evil}.parquet", out, *QUICK, code=2))
    for result in results:
        assert "\x1b" not in result.output
        assert "\x07" not in result.output


def re_error(said):
    (line,) = (line for line in said.splitlines() if line.startswith("  Odd"))
    return line.split()[0]


def test_options_that_do_not_go_together():
    with pytest.raises(fastshap.InvalidArgumentError, match="one of the two"):
        opening.refuse_unfit(Store("nowhere"), {}, resume=True, overwrite=True, redo=False)
