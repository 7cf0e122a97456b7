"""The examples: they learn, their meta-gradients are plain JAX's, and memory falls."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow

FOLDER = Path(__file__).parents[2] / "examples"
STEPS_THAT_LEARN = {"data_weighting": 10, "maml": 30, "per_parameter_lr": 30}
SMALL = {
    "data_weighting": {"LAYERS": 1, "LENGTH": 24, "WIDTH": 16},
    "maml": {},
    "per_parameter_lr": {},
}


@pytest.fixture
def example(request: pytest.FixtureRequest) -> ModuleType:
    """The example as a fresh module."""
    name = request.param
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def in_double_precision(args: Any) -> Any:
    """The same arguments, every float in float64."""

    def cast(leaf: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if is_float else leaf

    return jax.tree.map(cast, args)


@pytest.mark.parametrize("example", STEPS_THAT_LEARN, indirect=True)
def test_meta_training_lowers_the_meta_loss(example: ModuleType) -> None:
    losses = example.train(steps=STEPS_THAT_LEARN[example.__name__])
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < first - 0.3


@pytest.mark.parametrize("example", SMALL, indirect=True)
def test_the_meta_gradient_is_that_of_plain_jax(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL[example.__name__].items():
        monkeypatch.setattr(example, name, value)
    args = in_double_precision(example.meta_loss.examples)
    expected = jax.jit(jax.value_and_grad(example.meta_loss.fun))(*args)
    assert_close(jax.value_and_grad(example.meta_loss)(*args), expected)
    assert_close(mixflow.compile(jax.value_and_grad(example.meta_loss.fun))(*args), expected)


@pytest.mark.parametrize("example", ["data_weighting"], indirect=True)
def test_data_weighting_needs_two_and_a_half_times_less_memory(example: ModuleType) -> None:
    report = example.meta_loss.report()
    rewrites = {rewrite.by: rewrite.at for rewrite in report.rewrites}
    assert rewrites["forward-over-reverse"].startswith("examples/data_weighting.py:")
    assert report.before.temp_bytes >= 2.5 * report.after.temp_bytes
    assert report.checkpointed is not None
    assert report.checkpointed.temp_bytes > report.after.temp_bytes
