"""Two checkouts in turn: whose times are compared with whose, and what is called slower."""

import pytest

from bench.compare import pair_worker, pairs
from bench.paths import ROOT


def side(log, name, times, digests=("same",)):
    """Answers as a worker does, with these times in turn."""
    answers = [{"cpu": time, "wall": 2 * time, "digest": digests[k % len(digests)]} for k, time in enumerate(times)]

    def run(workload):
        log.append(f"{name} {workload}")
        return answers.pop(0)

    return run


def test_a_pair_is_run_in_turn_and_each_time_the_other_one_begins():
    log = []
    found = pairs.pair(side(log, "before", [2.0, 1.0, 3.0]), side(log, "after", [2.0, 4.0, 1.5]), "x", 3, 0)
    assert log == ["before x", "after x", "after x", "before x", "before x", "after x"]
    assert found == pairs.Pair(cpu=1.5, wall=1.5, equal=True)
    log.clear()
    pairs.pair(side(log, "before", [1.0]), side(log, "after", [1.0]), "x", 1, 1)
    assert log == ["after x", "before x"]


def test_numbers_that_differ_are_seen():
    found = pairs.pair(side([], "before", [1.0, 1.0]), side([], "after", [1.0, 1.0], ("same", "other")), "x", 2, 0)
    assert not found.equal


def test_the_median_is_judged():
    found = {
        "fast": [pairs.Pair(ratio, 9.0, True) for ratio in (0.9, 1.03, 1.5)],
        "slow": [pairs.Pair(ratio, 1.0, False) for ratio in (1.0, 1.04, 1.05)],
    }
    assert pairs.slowed(found, 1.03) == ["slow"]
    _, fast, slow = pairs.table(found, 1.03).splitlines()
    assert "1.030 (0.900 to 1.500)" in fast
    assert fast.endswith("equal")
    assert slow.endswith("differ   slower than 1.03")


@pytest.mark.parametrize(
    "names",
    [("moments", "perturb"), pytest.param(tuple(pairs.names()), marks=pytest.mark.slow)],
    ids=("operators", "all"),
)
def test_a_checkout_beside_itself(capsys, names):
    """In earnest, but for a limit that nothing keeps."""
    only = [word for name in names for word in ("--only", name)]
    arguments = [str(ROOT), str(ROOT), "--pairs", "1", "--runs", "1", "--limit", "0.001", *only]
    assert pairs.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:20].rstrip() for line in lines] == list(names)
    assert all("equal   slower" in line for line in lines)


def test_a_language_models_workload_repeats_its_numbers():
    """Made anew in this process, which has imported such models already."""
    first, again = (pair_worker.measured(pair_worker.generation()) for _ in range(2))
    assert first["digest"] == again["digest"]
    assert first["cpu"] > 0
    assert len(pair_worker.generation()()) == 6


def test_no_slowdown_is_status_0(monkeypatch, capsys):
    class Steady:
        def __init__(self, checkout, threads):
            pass

        def run(self, workload):
            return {"cpu": 1.0, "wall": 1.0, "digest": ""}

        def close(self):
            pass

    monkeypatch.setattr(pairs, "Worker", Steady)
    assert pairs.main([str(ROOT), str(ROOT)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(pairs.names())


def test_a_folder_that_is_no_checkout(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pairs.main([str(ROOT), str(tmp_path)])
    assert "is no checkout of fastshap" in capsys.readouterr().err


def test_a_checkout_that_cannot_run(tmp_path):
    (tmp_path / "fastshap").mkdir()
    (tmp_path / "fastshap" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(SystemExit, match="ended with status 1"):
        pairs.Worker(tmp_path, 1)
