"""Tests that know nothing of mixflow, run plain and under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.jax_tests import command, known

TESTS = """
import jax, jax.numpy as jnp

def f(x):
    return jnp.sum(jnp.sin(x))

def test_a_gradient():
    assert jax.grad(f)(0.0) == 1.0

def test_that_fails_anyhow():
    assert jax.grad(f)(0.0) == 2.0

def test_how_a_gradient_is_made():
    assert "mixflow" not in str(jax.make_jaxpr(jax.grad(f))(0.0))

def test_how_a_jit_is_made():
    assert "mixflow" not in repr(jax.jit(f))
"""


def run(checkout: Path, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    (checkout / "tests").mkdir()
    (checkout / "tests" / "some_test.py").write_text(TESTS)
    result = CliRunner().invoke(main, ["jax-tests", str(checkout), "some_test", *options])
    return result.exit_code, json.loads(result.stdout)["files"]["some_test"]


@pytest.mark.parametrize(
    ("how", "test"),
    [("gradients", "test_how_a_gradient_is_made"), ("jits", "test_how_a_jit_is_made")],
)
def test_what_fails_under_mixflow_alone_is_found(tmp_path: Path, how: str, test: str) -> None:
    code, row = run(tmp_path, "--by", how)
    assert code == 1
    assert [name.split("::")[-1] for name in row["new"]] == [test]
    assert "mixflow" in next(iter(row["new"].values()))
    assert (row["plain"], row["passed"], row["known"]) == (3, 2, {})


def test_only_some(tmp_path: Path) -> None:
    code, row = run(tmp_path, "--only", "a_gradient and not made")
    assert (code, row) == (0, {"plain": 1, "passed": 1, "known": {}, "new": {}})


def test_what_is_known_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "REASONS", {"looks inside": ("testInside",)})
    passed, failed = {"outcome": "passed", "why": ""}, {"outcome": "failed", "why": "no"}
    names = ["t.py::C::testInside0", "t.py::C::testOther", "t.py::C::testGone"]
    plain = dict.fromkeys(names, passed)
    row = command.compare(plain, {names[0]: failed, names[1]: failed})
    assert row["known"] == {names[0]: "looks inside"}
    assert row["new"] == {names[1]: "no", names[2]: "the run ended before it"}
    assert row["passed"] == 0


def test_the_page_has_every_reason_and_test() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "jax-tests.md").read_text()
    for reason, names in known.REASONS.items():
        assert reason in page
        assert all(f"`{name}`" in page for name in names)
