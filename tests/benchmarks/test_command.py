"""`python -m benchmarks reference`: its JSON, its files, and what it does when a program dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import budgets, compare, estimates
from benchmarks.__main__ import main
from benchmarks.child import Job
from benchmarks.compare import Comparison
from benchmarks.programs import UNIT
from benchmarks.ratios import ratios
from benchmarks.reference import Size
from benchmarks.sizes import LONG_LOOP, sizes
from mixflow.errors import BudgetError

FIGURES = {"temp_bytes", "resident_bytes", "run_s", "compile_s", "gradient_steps"}


def reference(*options: str) -> Result:
    return CliRunner().invoke(main, ["reference", *options])


def stand_in(job: Job) -> dict[str, Any]:
    """What a process would report: an expert that takes 100 bytes and 4 s, mixflow half of it."""
    scale = {"mixflow": 0.5, UNIT: 0.25}.get(job.program, 1.0)
    if job.program == "plain":
        raise compare.ChildDied("killed")
    figures = {"temp_bytes": round(100 * scale), "compile_s": 1.0}
    return figures | ({"run_s": 4 * scale, "resident_bytes": 200} if job.runs else {})


def test_memory_only() -> None:
    result = reference("--memory-only", "--programs=expert", "--layers=1", "--tokens=8")
    report = json.loads(result.stdout)
    assert report["versions"].keys() >= {"python", "jax", "mixflow"}
    assert report["machine"].keys() >= {"cpu", "cores"}
    assert report["size"] == {**vars(Size()), "layers": 1, "tokens": 8}
    (row,) = report["rows"]
    assert row["failed"] is None
    assert row["temp_bytes"] > 0
    assert row["run_s"] is None


def test_a_program_that_dies_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_in_process", stand_in)
    rows = json.loads(reference("--rounds=2").stdout)["rows"]
    assert [row["failed"] for row in rows] == ["killed", None, None, None]
    assert [len(row["rounds"]) for row in rows] == [0, 2, 2, 2]
    assert all(row[name] is None for row in rows[:1] for name in FIGURES)
    assert rows[-1]["gradient_steps"] == 1.0  # 2 s for two steps, of 1 s each


def test_an_unusable_program_says_why() -> None:
    size = Size(layers=1, tokens=8)
    (row,) = compare.compare(size, Comparison(("unheard-of",), rounds=1, runs=0))
    assert "unheard-of" in row["failed"]


def test_a_killed_process_gives_the_likely_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    (row,) = compare.compare(Size(), Comparison(("expert",)))
    assert "out of memory" in row["failed"]


def test_a_sweep_has_ratios_and_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(compare, "_in_process", stand_in)
    result = reference("--sweep", "--layers=4", "--out", str(tmp_path))
    report = json.loads(result.stdout)
    assert "tokens" not in report["size"]
    assert report["size"]["layers"] == 4
    assert len(report["rows"]) == 2 * 3 * 2
    assert report["ratios"]["run_s"]["median"] == report["ratios"]["run_s"]["worst"] == 0.5
    assert json.loads((tmp_path / "reference.json").read_text()) == report
    assert {path.name for path in tmp_path.iterdir()} == {
        "reference.json",
        "reference.md",
        "run_s.png",
        "temp_bytes.png",
    }


def test_ratios_without_a_pair() -> None:
    assert ratios([{"program": "mixflow", "size": {}, "rounds": [{"run_s": 1.0}]}]) is None


def test_sizes() -> None:
    assert sizes({}) == [Size()]
    assert len(sizes({}, sweep=True)) == 18
    assert {size.steps for size in sizes({"steps": 3}, sweep=True)} == {3}
    assert sizes({}, long_loop=True) == [LONG_LOOP]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--programs=plian"], "there is no 'plian'"),
        (["--programs=expert@1GB"], "there is no 'expert@1GB'"),
        (["--sweep", "--long-loop"], "cannot both"),
        (["--steps=0"], "--steps"),
    ],
)
def test_wrong_calls(options: list[str], message: str) -> None:
    result = reference(*options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_table_beside_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_in_process", stand_in)
    reference("--rounds=1", "--steps=3", f"--out={tmp_path}")
    lines = (tmp_path / "reference.md").read_text().splitlines()
    assert "| 3 | 12 | 512 | plain | killed |" in lines
    (mixflow,) = [line for line in lines if "| mixflow |" in line]
    assert "| 2.00 |" in mixflow
    assert any(line.startswith("| time | 0.500 | 0.500 | 3 steps") for line in lines)


@pytest.mark.parametrize(("needed", "code"), [(150, 0), (250, 1)])
def test_budgets(monkeypatch: pytest.MonkeyPatch, needed: int, code: int) -> None:
    def stand_in(_loss: Any, _args: Any, passes: str | None = None, memory_budget: int = 0) -> int:
        if memory_budget and memory_budget < 100:
            raise BudgetError("the least is 100 bytes")
        return needed if memory_budget else 400 if passes else 100

    monkeypatch.setattr(budgets, "_needed", stand_in)
    result = CliRunner().invoke(main, ["budgets", "--layers=1", "--tokens=8"])
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["budget_bytes"], row["needed_bytes"]) == (200, needed)
    assert row["refused"] == "the least is 100 bytes"
    assert result.exit_code == code


def test_estimates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(estimates, "PLANS", {"plain JAX": ""})
    page = tmp_path / "estimates.md"
    options = ["--steps=1", "--layers=1", "--tokens=8", f"--out={page}"]
    result = CliRunner().invoke(main, ["estimates", *options])
    (row,) = json.loads(result.stdout)["rows"]
    assert row["estimated_bytes"] == pytest.approx(row["ratio"] * row["temp_bytes"])
    assert 0.5 < row["ratio"] < 2.0
    assert f"| {row['ratio']:.2f} |" in page.read_text()
    assert f"- ratios from {row['ratio']:.2f} to {row['ratio']:.2f}" in page.read_text()


def an_estimate(plan: str, truth: int, estimate: int) -> dict[str, Any]:
    figures = {"temp_bytes": truth, "estimated_bytes": estimate, "ratio": estimate / truth}
    return {"program": "p", "plan": plan, **figures}


@pytest.mark.parametrize(
    ("estimate", "complaint"),
    [
        (110, None),
        (126, "b: 1.26 of XLA's figure"),
        (94, "a / b are ranked the wrong way round"),
    ],
)
def test_an_estimate_that_is_far_off_or_misleads(estimate: int, complaint: str | None) -> None:
    rows = [an_estimate("a", 88, 95), an_estimate("b", 100, estimate)]
    found = estimates.complaints(rows)
    assert found == ([] if complaint is None else [f"p: {complaint}"])


def test_plans_that_are_near_each_other_need_not_be_ranked() -> None:
    assert not estimates.complaints([an_estimate("a", 100, 101), an_estimate("b", 109, 100)])


def test_the_examples_can_be_estimated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(estimates, "PLANS", {"plain JAX": ""})
    lines = ["import jax, mixflow", "@mixflow.compile", "def f(x): return (x ** 2).sum(), {}"]
    lines += ["@f.example_args", "def _(): return (jax.numpy.ones(8),)"]
    (tmp_path / "model.py").write_text("\n".join(lines))
    (subject,) = estimates.examples(tmp_path)
    assert (subject.name, subject.args[0].shape) == ("model.f", (8,))
    (value, _), (gradient,) = subject.gradient(*subject.args)
    assert (value, gradient.shape) == (8, (8,))
