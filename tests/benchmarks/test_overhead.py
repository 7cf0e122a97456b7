"""`python -m benchmarks overhead`: what is prepared, and its page; no test looks at the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner
from support import assert_close, once

import mixflow
from benchmarks import overhead
from benchmarks.__main__ import main
from benchmarks.unrolled import Program, adam_steps, nested_jits, unrolled_steps, unrolled_tasks
from mixflow.compiler.jaxprs.values import is_inexact


@pytest.mark.parametrize(
    "program",
    [unrolled_steps(6), nested_jits(6), adam_steps(4), unrolled_tasks(3)],
    ids=["steps", "jits", "Adam", "tasks"],
)
def test_programs_that_grow_are_those_of_plain_jax(program: Program) -> None:
    gradient, args = program
    args = jax.tree.map(lambda x: x.astype(float) / 3 if is_inexact(x) else x, args)
    assert_close(mixflow.compile(gradient)(*args), jax.jit(gradient)(*args))


def test_every_example_is_prepared() -> None:
    found = {path.stem for path in overhead.EXAMPLES.glob("*.py")}
    assert found < set(overhead.names())


def test_the_page_has_both_and_their_ratios(monkeypatch: Any, tmp_path: Path) -> None:
    def stand_in(name: str, how: str) -> dict[str, float]:
        scale = {"plain": 1.0, "mixflow": 2.5}[how]
        seconds = {"before_xla_s": 4 * scale, "whole_s": 8 * scale}
        return seconds | {"resident_bytes": 3e6 * scale, "temp_bytes": 2e6 * scale}

    monkeypatch.setattr(overhead, "_alone", stand_in)
    page = tmp_path / "overhead.md"
    result = CliRunner().invoke(main, ["overhead", "maml", "reference", "--out", str(page)])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [row["program"] for row in rows] == ["maml", "reference"]
    assert all(row["ratios"]["before_xla_s"] == 2.5 for row in rows)
    text = page.read_text()
    assert "| maml | 4.0 | 10.0 | 2.50 | 8.0 | 20.0 | 2.50 | 3 | 8 | 2.50 |" in text
    assert "before XLA: at most 2.50" in text


def test_compile_times_have_a_page_and_a_picture(monkeypatch: Any, tmp_path: Path) -> None:
    def stand_in(name: str, how: str) -> dict[str, float]:
        size = int(name.split(maxsplit=1)[0])
        return {"whole_s": 4.0 if how == "mixflow" else 1.0 * size, "temp_bytes": 1e6 * size}

    monkeypatch.setattr(overhead, "_alone", stand_in)
    result = CliRunner().invoke(main, ["compile", "--largest", "8", "--out", str(tmp_path)])
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "compile.json").read_text())["rows"]
    programs = ["6 layers", "2 tasks", "4 tasks", "8 tasks"]
    assert [row["program"] for row in rows] == programs
    page = (tmp_path / "compile.md").read_text()
    assert "| 8 tasks | 8.0 | 4.0 | 0.50 | 8.00 | 8.00 | 1.00 |" in page
    assert "(compile.png)" in page
    assert (tmp_path / "compile.png").read_bytes().startswith(b"\x89PNG")


def test_a_program_that_is_not_there_is_wrong_input() -> None:
    result = CliRunner().invoke(main, ["overhead", "nothing"])
    assert result.exit_code == 2
    assert "nothing" in result.output


@once
def test_a_program_is_prepared_in_a_process_of_its_own() -> None:
    figures = overhead._alone("3 unrolled steps", "plain")
    assert 0 < figures["before_xla_s"] < figures["whole_s"]
    assert figures["resident_bytes"] > 50e6
    assert figures["temp_bytes"] > 0
