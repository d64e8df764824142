"""The arithmetic of ``python -m bench faithfulness``: verdicts, tables, and models that see masks."""

import random

import pytest

from bench.faithfulness import hypotheses, report
from tools.masked_model import with_masks


@pytest.mark.parametrize(
    ("claim", "difference", "error", "higher", "verdict"),
    [
        ("better", 0.3, 0.1, True, "held"),
        ("better", 0.2, 0.1, True, "did not hold"),
        ("better", -0.3, 0.1, True, "did not hold"),
        ("better", -0.3, 0.1, False, "held"),
        ("alike", 0.1, 0.1, True, "held"),
        ("alike", -0.3, 0.1, True, "did not hold"),
        ("alike", 0.1, float("nan"), True, "unknown"),
    ],
)
def test_verdicts(claim, difference, error, higher, verdict):
    pair = hypotheses.Pair("name", "text", "a", "b", claim)
    assert hypotheses.decided(pair, difference, error, higher) == verdict


def figures(mean, difference):
    return {"mean": mean, "standard_error": 0.01, "difference": difference, "difference_standard_error": 0.01}


def record():
    of = {"texts": 2, "skipped": {"short": 1}, "higher_is_better": True, "notes": {}}
    methods = {"fastshap": figures(0.5, 0.0), "better": figures(0.6, 0.1), "worse": figures(0.4, -0.1)}
    pair = hypotheses.HYPOTHESES[0]
    claim = {"name": pair.name, "replacement": "delete", "difference": -0.1, "standard_error": 0.1, "verdict": "held"}
    subject = {
        "title": "a model",
        "plan": {"seeds": 2},
        "methods": {name: {"rows": "50", "seeds": 2} for name in methods},
        "results": {"delete": {report.MAIN: {**of, "methods": methods}}},
        "claims": [claim],
        "date": "2026-01-01",
        "machine": {"cpu": "a processor", "threads": 1},
        "versions": dict.fromkeys(("torch", "transformers", "interpreto", "captum"), "1"),
        "commit": "abc",
        "seconds": 1.0,
    }
    return {"hypotheses": hypotheses.stated(), "subjects": {"packaged": subject}}


def test_tables_say_what_is_clear_and_what_was_expected():
    text = report.tables(record())
    assert "| fastshap | 50 | 0.500 ± 0.010 |" in text
    assert "| better | 50 | 0.600 ± 0.010 ▲ |" in text
    assert "| worse | 50 | 0.400 ± 0.010 ▼ |" in text
    assert "2 texts; 1 skipped (short); 2 seeds" in text
    assert "| a model, delete | -0.100 ± 0.100 | held |" in text
    assert text.count("not measured") == len(hypotheses.HYPOTHESES) - 1


def test_tables_stand_between_marks_and_the_picture_is_the_same_again(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PICTURE", tmp_path / "picture.svg")
    report.write(record())
    first = (tmp_path / "picture.svg").read_bytes()
    report.write(record())
    assert (tmp_path / "picture.svg").read_bytes() == first
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("#### a model") == 1


def test_masks_leave_the_first_and_last_token():
    rng, row = random.Random(0), [1, 5, 6, 7, 8, 2]
    rows = [with_masks(row, 9, rng) for _ in range(200)]
    assert all((one[0], one[-1], len(one)) == (1, 2, 6) for one in rows)
    assert 60 < sum(one != row for one in rows) < 140
    assert any(one[1:-1] == [9] * 4 for one in rows)
