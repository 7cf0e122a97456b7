"""Plans on disk, beside what JAX has compiled: a second process plans nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow
from mixflow.planner.search import Planner
from mixflow.runtime.known_plans import FOLDER

THETA, ETA = jnp.linspace(0.1, 0.9, 8), jnp.linspace(0.5, 1.5, 8)


def meta(eta: Any, theta: Any, steps: int = 6) -> Any:
    def step(theta: Any, _: None) -> Any:
        return theta - 0.1 * jax.grad(lambda t: jnp.sum(jnp.tanh(t * eta) ** 2))(theta), None

    return jnp.sum(jax.lax.scan(step, theta, length=steps)[0] ** 2)


GRADIENT = jax.value_and_grad(meta)


@pytest.fixture
def cache(tmp_path: Path) -> Generator[Path]:
    """JAX's compilation cache, in a folder of its own."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / FOLDER
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list with an entry for each program that is planned."""
    found: list[Any] = []
    best = Planner.best

    def counted(self: Planner, budget: int | None = None) -> Any:
        found.append(self)
        return best(self, budget)

    monkeypatch.setattr(Planner, "best", counted)
    return found


def test_a_second_function_plans_nothing(cache: Path, planned: list[Any]):
    first = mixflow.compile(GRADIENT).optimised(ETA, THETA)
    assert len(planned) == 1
    second = mixflow.compile(GRADIENT).optimised(ETA, THETA)
    assert len(planned) == 1
    assert second.passes == first.passes != ""
    assert second.declines == first.declines
    assert_close(mixflow.compile(GRADIENT)(ETA, THETA), jax.jit(GRADIENT)(ETA, THETA))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({"memory_budget": "1GiB"}, (ETA, THETA)),
        ({"assume_symmetric": ("relu",)}, (ETA, THETA)),
        ({"respect_checkpoints": True}, (ETA, THETA)),
        ({}, (ETA[:4], THETA[:4])),
    ],
    ids=["a budget", "what is vouched for", "what is respected", "other sizes"],
)
def test_what_is_planned_anew(cache: Path, planned: list[Any], options: Any, args: Any):
    mixflow.compile(GRADIENT).optimised(ETA, THETA)
    mixflow.compile(GRADIENT, **options).optimised(*args)
    assert len(planned) == 2
    assert len(list(cache.iterdir())) == 2


def test_a_changed_program_is_planned_anew(cache: Path, planned: list[Any]):
    mixflow.compile(GRADIENT).optimised(ETA, THETA)
    mixflow.compile(jax.value_and_grad(lambda *args: meta(*args, steps=7))).optimised(ETA, THETA)
    assert len(planned) == 2


def test_a_budget_is_confirmed_and_not_planned_again(cache: Path, planned: list[Any]):
    for _ in range(2):
        f = mixflow.compile(GRADIENT, memory_budget="1GiB")
        assert_close(f(ETA, THETA), jax.jit(GRADIENT)(ETA, THETA))
    assert len(planned) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passes": "no-such-pass", "declines": []}'])
def test_a_damaged_file_is_ignored_and_replaced(cache: Path, planned: list[Any], text: str):
    first = mixflow.compile(GRADIENT).optimised(ETA, THETA)
    (file,) = cache.iterdir()
    file.write_text(text)
    assert mixflow.compile(GRADIENT).optimised(ETA, THETA).passes == first.passes
    assert len(planned) == 2
    assert json.loads(file.read_text())["passes"] == first.passes


@pytest.mark.usefixtures("planned")
def test_nothing_is_written_without_a_cache_or_into_one_that_cannot_be(tmp_path: Path):
    mixflow.compile(GRADIENT).optimised(ETA, THETA)
    blocked = tmp_path / "file"
    blocked.write_text("")
    jax.config.update("jax_compilation_cache_dir", str(blocked))
    try:
        assert mixflow.compile(GRADIENT).optimised(ETA, THETA).passes
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert list(tmp_path.iterdir()) == [blocked]


def test_another_process_plans_nothing(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import jax, mixflow\n"
        "import jax.numpy as jnp\n"
        "from mixflow.planner.search import Planner\n"
        "best, count = Planner.best, []\n"
        "Planner.best = lambda *args: (count.append(1), best(*args))[1]\n"
        "def meta(eta, theta):\n"
        "    step = lambda t, _: (t - jax.grad(lambda t: jnp.sum(jnp.sin(t * eta)))(t), None)\n"
        "    return jnp.sum(jax.lax.scan(step, theta, length=3)[0] ** 2)\n"
        "mixflow.compile(jax.grad(meta)).lower(jnp.ones(3), jnp.ones(3))\n"
        "print(len(count))\n"
    )
    counts = [
        subprocess.run(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONHASHSEED": seed, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert counts == ["1\n", "0\n"]
