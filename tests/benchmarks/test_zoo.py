"""`python -m benchmarks zoo` and `loops`: processes in turn, the replay, pages and wrong calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner
from support import assert_close, in_double_precision, once

from benchmarks.__main__ import main
from benchmarks.zoo import command
from benchmarks.zoo.loops import PROGRAMS, loops_page
from benchmarks.zoo.measure import HALVED, MATCHED, ZOO, How, measure
from benchmarks.zoo.page import BEGIN, END, verdict, with_summary, zoo_page
from benchmarks.zoo.replay import REPLAYED, backwards, most_held, replayed
from mixflow.runtime.entries import load_entries

TINY = """
import jax, jax.numpy as jnp, mixflow

STEPS = 3

@mixflow.compile
def meta_loss(eta, theta):
    def step(theta, _):
        loss = lambda theta: jnp.sum(jnp.tanh(theta * eta) ** 2)
        return theta - 0.1 * jax.grad(loss)(theta), None
    return jnp.sum(jax.lax.scan(step, theta, length=STEPS)[0] ** 2)

@meta_loss.example_args
def _():
    print("this is not an answer")
    return jnp.ones(40), jnp.linspace(0.0, 1.0, 40)
"""

REPORT = {
    "versions": {"jax": "0", "python": "3", "mixflow": "1"},
    "machine": {"cpu": "abacus", "cores": 2, "memory_bytes": 4e9},
    "rounds": 5,
    "runs": 5,
}


def figures(scale: float, **other: Any) -> dict[str, Any]:
    found = {"temp_bytes": 4e6 * scale, "total_bytes": 5e6, "run_s": 0.2 * scale, "compile_s": 1.0}
    remarks = {"plan": "cse", "rewrites": [], "declined": [{"pass": "p", "at": "", "text": "why"}]}
    return {**found, **remarks, "relative_error": 1e-7, "failed": None, **other}


def row(step: float = 0.5, mixflow: float = 0.25, **half: Any) -> dict[str, Any]:
    scales = zip(ZOO, (1.0, step, mixflow, step, 0.2), strict=True)
    programs = {name: figures(scale) for name, scale in scales}
    programs[HALVED].update(half)
    return {"example": "maml", "programs": programs}


def test_programs_run_in_turn_and_agree(tmp_path: Path) -> None:
    model = tmp_path / "tiny.py"
    model.write_text(TINY)
    how = How(rounds=2, runs=1, constants={"STEPS": 4})
    found = measure(model, how)
    assert list(found) == list(how.programs)
    ours = found["mixflow"]
    assert ours["failed"] is None
    assert len(ours["times"]) == 2
    assert ours["relative_error"] < 1e-5
    assert ours["plan"] == "" or ours["rewrites"]
    # Arguments and results are more than half of all: no plan can go below them.
    assert found[HALVED]["memory_budget"] == ours["total_bytes"] // 2
    assert "budget" in found[HALVED]["failed"]
    assert found[MATCHED]["total_bytes"] <= found["checkpointed-step"]["total_bytes"]


def test_a_model_that_fails_says_where(tmp_path: Path) -> None:
    model = tmp_path / "tiny.py"
    model.write_text(TINY.replace("jnp.tanh(theta * eta)", "1 / 0"))
    found = measure(model, How(programs=("plain",), rounds=1))["plain"]
    assert "tiny.py:9: ZeroDivisionError" in found["failed"]
    assert found["run_s"] is None


@pytest.mark.parametrize("length", [1, 2, 4, 5, 23, 64, 100])
def test_states_come_backwards_and_few_are_held(length: int) -> None:
    held, most = {0}, 1

    def forward(state: int, place: int, count: int) -> int:
        nonlocal most
        assert state == place
        held.add(state + count)
        most = max(most, len(held))
        return state + count

    found = []
    for place, state in backwards(length, 0, forward):
        assert place == state
        found.append(state)
        held -= {one for one in held if one >= state}
    assert found == list(reversed(range(length)))
    assert most <= most_held(length) <= 1 + 3 * len(f"{length:b}")


@once
@pytest.mark.parametrize("name", REPLAYED)
def test_a_replay_is_plain_jax(name: str) -> None:
    model = command.EXAMPLES / f"{name}.py"
    (entry,) = load_entries(str(model))
    entry.fun.__globals__["INNER_STEPS"] = 23
    args: Any = in_double_precision(entry.examples)
    run, found = replayed(str(model), entry, args)
    assert_close(run(), jax.jit(jax.value_and_grad(entry.fun))(*args))
    state = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(args[1]))
    assert state * most_held(24) < found["temp_bytes"] < state * 30


def test_a_page() -> None:
    rows = [row(), row(failed="over the budget of 3 MB: the least is 4 MB")]
    page = zoo_page({**REPORT, "rows": rows}, ["zoo_run_s.png"])
    assert "| maml | 4 | 2 | 1 | 2 | 0.8 | 4.0 | 0.50 of its memory, 0.50 of its time |" in page
    assert "| maml | 4 | 2 | 1 | 2 | refused |" in page
    assert "- at half: over the budget of 3 MB: the least is 4 MB" in page
    assert "- declined: p: why" in page


def test_what_is_no_better_says_so() -> None:
    assert verdict(row(step=0.2)).startswith("**no less memory** (1.25)")
    slow = row()
    slow["programs"]["mixflow"]["run_s"] = 1.0
    matched = "; with its memory as the budget: 1.00 of its memory, 1.00 of its time"
    assert verdict(slow) == f"0.50 of its memory, 10.00 of its time: **slower**{matched}"
    text = "2 segments are rerun from what they are given"
    slow["programs"]["mixflow"]["rewrites"] = [{"pass": "segment-loss", "at": "", "text": text}]
    assert verdict(slow).endswith(f"**slower**, as segments are rerun{matched}")
    slow["programs"][MATCHED]["failed"] = "killed"
    assert verdict(slow).endswith("**slower**, as segments are rerun")
    slow["programs"]["mixflow"]["failed"] = "killed"
    assert verdict(slow) == "not compared"


def test_the_summary_goes_between_its_marks() -> None:
    report = {**REPORT, "rows": [row()]}
    text = with_summary(f"before\n{BEGIN}\nold\n{END}\nafter\n", report)
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| [maml](examples/maml.py) | 0.25 | 0.25 | 0.50 | 0.50 |" in text
    assert "old" not in text
    assert with_summary(text, report) == text


def test_the_commands_write_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "measure", lambda *_: row()["programs"])
    result = CliRunner().invoke(main, ["zoo", "--only=maml,cavia", f"--out={tmp_path}"])
    report = json.loads(result.stdout)
    assert [one["example"] for one in report["rows"]] == ["maml", "cavia"]
    assert json.loads((tmp_path / "zoo.json").read_text()) == report
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"zoo.json", "zoo.md", "zoo_temp_bytes.png", "zoo_run_s.png"}


def test_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def stand_in(_: Path, steps: int, *__: Any) -> dict[str, Any]:
        programs = {name: figures(steps / 8) for name in PROGRAMS}
        return {"example": "metagradient", "steps": steps, "programs": programs}

    monkeypatch.setattr(command, "loop_row", stand_in)
    result = CliRunner().invoke(main, ["loops", "--steps=8,16", f"--out={tmp_path}"])
    report = json.loads(result.stdout)
    assert (tmp_path / "loops.md").read_text() == loops_page(
        report, ["loops_temp_bytes.png", "loops_run_s.png"]
    )
    assert "| 16 | 8 | 8 | 8 | 8 | 0.4 | 0.4 | 0.4 | 0.4 |" in loops_page(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["zoo", "--only=mamml"], "there is no 'mamml'"),
        (["loops", "--steps=many"], "give numbers"),
        (["loops", "--steps=1"], "two steps"),
        (["zoo", "--summary=nowhere.md"], "nowhere.md"),
        (["zoo", f"--summary={__file__}"], "to write between"),
        (["zoo", "--only=maml"], "give --out"),
    ],
)
def test_wrong_calls(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2
    assert message in result.stderr
