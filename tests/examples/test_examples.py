"""The examples: they learn, their meta-gradients are plain JAX's, and memory falls."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest
from cases import CASES
from support import assert_close, in_double_precision

import mixflow
from mixflow.planner.plan import Plan

FOLDER = Path(__file__).parents[2] / "examples"

REWRITTEN = Plan(symmetric=True, levels=1, gradients=True, slack=0).passes
"""What a program gets that is small enough for a checkpointed step to be the better bargain."""


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a fresh module, made small."""
    name = request.param
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    for constant, value in CASES[name].small.items():
        assert hasattr(module, constant)
        setattr(module, constant, value)
    return module


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(CASES)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="learning is tested once: it takes long")
@pytest.mark.parametrize("example", CASES, indirect=True)
def test_meta_training_lowers_the_meta_loss(example: ModuleType) -> None:
    case = CASES[example.__name__]
    losses = example.train(steps=case.steps)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < first - case.fall


@pytest.mark.parametrize("example", CASES, indirect=True)
def test_the_meta_gradient_is_that_of_plain_jax(example: ModuleType) -> None:
    case = CASES[example.__name__]
    entry = getattr(example, case.entry)
    args = in_double_precision(entry.examples)
    plain = jax.value_and_grad(entry.fun, has_aux=case.has_aux)
    expected = jax.jit(plain)(*args)
    chosen = mixflow.compile(plain)
    assert_close(chosen(*args), expected)
    if case.rewritten and "forward-over-reverse" not in chosen.optimised(*args).passes:
        rewritten = mixflow.compile(plain, passes=REWRITTEN)
        assert_close(rewritten(*args), expected)
        assert "forward-over-reverse" in {one.by for one in rewritten.optimised(*args).rewrites}


@pytest.mark.parametrize("example", ["maml", "per_parameter_lr"], indirect=True)
def test_it_is_when_differentiated_outside_too(example: ModuleType) -> None:
    args = in_double_precision(example.meta_loss.examples)
    expected = jax.jit(jax.value_and_grad(example.meta_loss.fun))(*args)
    assert_close(jax.jit(jax.value_and_grad(example.meta_loss))(*args), expected)


@pytest.mark.parametrize("example", ["data_weighting"], indirect=True)
def test_data_weighting_needs_several_times_less_memory(example: ModuleType) -> None:
    example.LENGTH = 96
    report = example.meta_loss.report()
    rewrites = {rewrite.by: rewrite.at for rewrite in report.rewrites}
    assert rewrites["forward-over-reverse"].startswith("examples/data_weighting.py:")
    assert report.before.temp_bytes >= 4 * report.after.temp_bytes
    assert report.checkpointed is not None
    assert report.checkpointed.temp_bytes > report.after.temp_bytes
