"""The GPU benchmark runs where there is no GPU, says so, and reports nothing when an operator is wrong."""

import json
import runpy

import pytest
import torch

from bench.gpu import command as gpu
from bench.gpu import explanations, operators


@pytest.mark.filterwarnings("default")  # as outside pytest
def test_the_least_of_it_on_a_cpu(monkeypatch, capsys):
    """As ``python -m bench.gpu`` runs, in this process: another one would import for longer than it measures."""
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--device", "cpu", "--quick", "--tiny"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert "Nothing in it is a GPU result" in captured.err
    result = json.loads(captured.out)
    assert result["gpu_result"] is False
    assert result["note"] == gpu.CPU_NOTE
    assert result["device"].startswith("CPU")
    assert result["driver"] is None
    assert {"torch", "triton", "transformers", "interpreto", "captum", "fastshap"} <= set(result["versions"])
    assert {"commit", "date", "quick", "tiny"} <= set(result)
    assert result["copy_bytes_per_second"] > 0

    measured = result["operators"]
    assert {(row["operator"], row["dtype"]) for row in measured} == {
        ("perturb", "float32"),
        ("perturb", "bfloat16"),
        ("attribute", "float32"),
        ("attribute", "bfloat16"),
        ("segment_reduce", "float32"),
        ("moments", "float32"),
    }
    for row in measured:
        assert "kernel" not in row  # a CPU has the torch side only
        times = row["eager torch"]["ms"]
        assert 0 < times["p20"] <= times["median"] <= times["p80"]
        assert row["least_bytes"] > 0
        assert row["eager torch"]["share_of_copy_bandwidth"] >= 0

    explained = result["explanations"]
    assert [(one["model"], one["dtype"]) for one in explained] == [
        ("BERT-base shape", "float32"),
        ("BERT-base shape", "bfloat16"),
        ("causal LM of 135M", "float32"),
        ("causal LM of 135M", "bfloat16"),
    ]
    for one in explained:
        assert set(one["tools"]) == {"fastshap", "interpreto", "captum"}
        for tool, its in one["tools"].items():
            if tool == "interpreto" and one["dtype"] == "bfloat16":  # it mixes float32 into the model
                assert list(its) == ["grid"]
                assert "Error: " in its["grid"]["4"]
                continue
            assert its["median_seconds"] > 0
            assert len(its["seconds"]) == 1
            assert str(its["batch_size"]) in its["grid"]
        assert one["tools"]["fastshap"]["times_fastshap"] == 1


def test_a_library_that_is_absent_loses_no_result(monkeypatch):
    monkeypatch.setattr(explanations, "is_there", lambda tool: tool == "fastshap")
    _, size = gpu.sizes(torch.device("cpu"), quick=True, tiny=True)
    subject = explanations.classifier(size, torch.float32)
    tools = explanations._measure(subject, "float32", size, torch.device("cpu"))["tools"]
    assert tools["interpreto"] == {"absent": "interpreto is not installed"}
    assert tools["captum"] == {"absent": "captum is not installed"}
    assert tools["fastshap"]["median_seconds"] > 0


def test_no_report_when_an_operator_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(operators, "moments", lambda values: (values.mean(1), values.std(1)))
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No report: moments" in captured.err


def test_the_check_sees_nan_and_shapes(monkeypatch):
    operators.check_operators(torch.device("cpu"))
    right = operators.perturb

    def with_nan(*arguments):
        z = right(*arguments)
        z[-1, 0, 0] = torch.nan
        return z

    for wrong in (with_nan, lambda *arguments: right(*arguments)[:, 1:]):
        monkeypatch.setattr(operators, "perturb", wrong)
        with pytest.raises(operators.CheckFailedError, match="perturb"):
            operators.check_operators(torch.device("cpu"))


def test_a_cpu_writes_nothing_among_the_results(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--out", str(gpu.RESULTS / "gpu_cpu.json")])
    assert "elsewhere" in capsys.readouterr().err
    assert not (gpu.RESULTS / "gpu_cpu.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda"])
    assert "is_available() is False" in capsys.readouterr().err
