"""`python -m benchmarks rules`: both rules are measured, and the page has their ratios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner
from support import assert_close, once

import mixflow
from benchmarks import both_rules
from benchmarks.__main__ import main
from benchmarks.estimates import Subject
from benchmarks.reference import Size, arguments, meta_loss

SMALL = Size(steps=1, layers=1, width=8, heads=2, tokens=4, batch=2, vocabulary=8)


def meta(eta: Any) -> Any:
    return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(x @ x) * eta))(eta) ** 2)


def one_example(folder: Path) -> list[Subject]:
    return [Subject("small.meta", jax.grad(meta), (jnp.linspace(0.1, 1.0, 64).reshape(8, 8),))]


@once
def test_each_program_has_both_rules(monkeypatch: Any) -> None:
    monkeypatch.setattr(both_rules, "examples", one_example)
    rows = list(both_rules.both_rules(Path(), SMALL))
    expected = ["small", *(f"reference, {words}" for words in both_rules.REPLACED)]
    assert [row["program"] for row in rows] == expected
    for row in rows:
        assert row["bytes_ratio"] == row["transposed_bytes"] / row["symmetric_bytes"]
        assert row["cpu_ratio"] > 0.0


@pytest.mark.parametrize("words", both_rules.REPLACED)
def test_what_stands_in_a_layer_gets_the_transposed_rule(words: str) -> None:
    loss = jax.value_and_grad(meta_loss(SMALL, activation=both_rules.REPLACED[words]))
    args = arguments(SMALL)
    compiled = mixflow.compile(loss)
    assert "reverse-over-forward" in compiled.optimised(*args).passes
    assert_close(compiled(*args), jax.jit(loss)(*args))


def test_the_page_has_bytes_and_ratios(monkeypatch: Any, tmp_path: Path) -> None:
    row = {
        "program": "small",
        "symmetric_bytes": 400,
        "transposed_bytes": 440,
        "bytes_ratio": 1.1,
        "cpu_ratio": 0.96,
    }
    monkeypatch.setattr("benchmarks.__main__.both_rules", lambda folder, size: [row])
    page = tmp_path / "rules.md"
    result = CliRunner().invoke(main, ["rules", "--out", str(page)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == [row]
    text = page.read_text()
    assert "| small | 400 | 440 | 1.10 | 0.96 |" in text
    assert "at most 1.10, median 1.10" in text
