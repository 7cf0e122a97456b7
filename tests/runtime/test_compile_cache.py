"""What is compiled and traced once stays so: over processes, and within one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow

PROGRAM = Path(__file__).with_name("cached_program.py")


def run(folder: Path, seed: int) -> dict[str, Any]:
    """Run the program in a process of its own, with JAX's cache in a folder."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": str(PROGRAM.parents[1]),
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_second_process_compiles_nothing(tmp_path):
    first, second = (run(tmp_path, seed) for seed in (1, 2))
    assert first["compiled"] == first["requested"] >= 2
    assert first["found"] == 0
    assert second["requested"] == first["requested"]
    assert (second["found"], second["compiled"]) == (second["requested"], 0)
    assert second["programs"] == first["programs"], "the lowered text differs between processes"
    assert second["value"] == first["value"]


# --- traces within a process ------------------------------------------------------------------


class Counted:
    """A meta-loss that counts how often it is traced; its rate can be changed from outside."""

    def __init__(self) -> None:
        self.traces = 0
        self.rate = 0.1

    def __call__(self, eta: Any) -> Any:
        self.traces += 1

        def step(theta: Any, _: Any) -> Any:
            gradient = jax.grad(lambda theta: jnp.sum(jnp.tanh(theta * eta) ** 2))(theta)
            return theta - self.rate * gradient, None

        return jnp.sum(jax.lax.scan(step, jnp.ones_like(eta), length=2)[0])


X = jnp.array([0.5, -1.5, 2.0])
JITS = {"jit": jax.jit, "compile": mixflow.compile}


def traces(make: Any, use: Any) -> list[int]:
    """How often the function was traced after each of some uses."""
    function = Counted()
    jitted, counts = make(partial(function)), []
    for act in use:
        act(function, jitted)
        counts.append(function.traces)
    return counts


def call(x: Any) -> Any:
    return lambda function, jitted: jitted(x)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ([call(X), call(2 * X), call(X)], [1, 1, 1]),
        ([call(X), call(X[:2]), call(X), call(X[:2])], [1, 2, 2, 2]),
        ([call(X), call(X.astype(jnp.float32)), call(X)], [1, 2, 2]),
        ([lambda _, f: f.lower(X).compile(), call(X)], [1, 1]),
    ],
    ids=["values", "shapes", "dtypes", "lowering"],
)
def test_traces_are_those_of_jit(use, expected):
    assert traces(mixflow.compile, use) == traces(jax.jit, use) == expected


def test_gradients_trace_as_often_as_those_of_jit():
    def differentiate(_: Any, jitted: Any) -> Any:
        return jax.grad(jitted)(X)

    use = [differentiate, differentiate]
    assert traces(mixflow.compile, use) == traces(jax.jit, use) == [1, 1]


def test_a_jit_around_retraces_only_for_new_types():
    function = Counted()
    gradient = jax.jit(jax.grad(mixflow.compile(partial(function))))
    for x in (X, 2 * X, X[:2], X):
        gradient(x)
    assert function.traces == 2


@pytest.mark.parametrize("name", JITS)
def test_a_new_closure_is_traced_anew(name):
    def at(rate: float) -> Any:
        function = Counted()
        function.rate = rate
        return JITS[name](partial(function))(X)

    plain = Counted()
    plain.rate = 0.3
    assert_close(at(0.3), plain(X))
    assert float(at(0.1)) != float(at(0.3))


@pytest.mark.parametrize("name", JITS)
def test_a_changed_value_is_seen_by_a_new_wrapper_or_shape_only(name):
    """As for any function under jit: what was read while tracing is part of the program."""
    function = Counted()
    jitted = JITS[name](partial(function))
    before = jitted(X)
    function.rate = 0.5
    assert float(jitted(X)) == float(before)
    assert_close(jitted(X[:2]), function(X[:2]))
    assert_close(JITS[name](partial(function))(X), function(X))


def test_a_captured_trace_is_not_taken_for_a_plain_one():
    """The same function under both: neither gets the other's program."""
    function = Counted()
    plain, optimised = jax.jit(jax.value_and_grad(function)), mixflow.compile(function)
    expected = plain(X)
    assert_close(jax.value_and_grad(optimised)(X), expected)
    assert "mixflow" not in str(jax.make_jaxpr(jax.value_and_grad(function))(X))
    assert_close(plain(X), expected)


@pytest.mark.parametrize("option", [{"memory_budget": "1GiB"}, {"passes": "cse"}])
def test_options_keep_traces(option):
    """A budget asks XLA before the first call, which takes more traces then, and none later."""
    function = Counted()
    jitted = mixflow.compile(partial(function), **option)
    jitted(X)
    first = function.traces
    jitted(2 * X)
    assert function.traces == first
