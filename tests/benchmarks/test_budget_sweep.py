"""`python -m benchmarks budgets --examples`: ten budgets, what is forced beside, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner
from support import once

from benchmarks import budget_sweep
from benchmarks.__main__ import main
from benchmarks.estimates import Subject
from mixflow.planner.pipeline import PREPARE, parse_passes


def meta(eta: Any) -> Any:
    def step(theta: Any, rate: Any) -> Any:
        return theta - rate * jax.grad(lambda theta: jnp.sum(jnp.tanh(theta) ** 2))(theta), None

    return jnp.sum(jax.lax.scan(step, jnp.ones(64), eta)[0] ** 2)


@once
def test_ten_budgets_from_the_least_to_plain_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    step = "checkpoint-inner-loop{levels=2}"
    plans = [f"{PREPARE},{rest}" for rest in ("forward-over-reverse", step, f"{step},segment-loss")]
    monkeypatch.setattr(budget_sweep, "forced_plans", lambda: plans)
    row = budget_sweep.budget_sweep(Subject("small.meta", jax.grad(meta), (jnp.full(40, 0.1),)))
    budgets = [one["budget_bytes"] for one in row["budgets"]]
    assert len(budgets) == budget_sweep.BUDGETS
    assert budgets == sorted(budgets)
    assert row["least_bytes"] < row["plain_bytes"]
    assert 0.5 < row["least_ratio"] < 1.1
    for one in row["budgets"]:
        assert one["needed_bytes"] <= one["budget_bytes"]
        assert one["plan"] in plans
        assert one["cpu_ratio"] > 0.0


def test_forced_plans_are_pipelines_and_each_stands_once() -> None:
    plans = budget_sweep.forced_plans()
    assert len(set(plans)) == len(plans) > 60
    for plan in plans:
        parse_passes(plan)


@pytest.mark.parametrize(("needed", "code"), [(90, 0), (None, 1)])
def test_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needed: Any, code: int) -> None:
    kept = {"budget_bytes": 10**8, "needed_bytes": 9 * 10**7, "cpu_ratio": 1.02, "plan": "cse"}
    other = kept | {"needed_bytes": needed, "cpu_ratio": needed and 1.1}
    row = {
        "program": "small",
        "plain_bytes": 10**9,
        "least_bytes": 10**7,
        "least_ratio": 1.01,
        "budgets": [kept, other],
    }
    monkeypatch.setattr("benchmarks.__main__.budget_sweep", lambda subject: row)
    monkeypatch.setattr("benchmarks.__main__.examples", lambda folder, pattern: [pattern])
    page = tmp_path / "sweep.md"
    command = ["budgets", "--examples", str(tmp_path), "--match", "small", "--out", str(page)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == code
    assert json.loads(result.stdout)["rows"] == [row]
    figures = "2 of 2 | 1.06 | 1.10" if needed else "1 of 2 | 1.02 | 1.02"
    assert f"| small | 1000 | 10 | 1.010 | {figures} |" in page.read_text()
