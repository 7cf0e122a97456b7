"""A pytest plugin that lets mixflow take part in tests that know nothing of it.

`--mixflow gradients` captures every `jax.vjp` that a test calls, `--mixflow jits` puts
`mixflow.compile` in the place of `jax.jit`, and `--mixflow nothing` only writes down what happens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import pytest

import mixflow
from mixflow.compiler.recording import Recording

HOW = ("nothing", "gradients", "jits")

JIT_OF_JAX = jax.jit

_OPTIONS = {"static_argnums", "static_argnames", "donate_argnums", "donate_argnames"}
"""Those of `jax.jit` that both know; a jit with any other one stays JAX's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mixflow", choices=HOW, default=HOW[0])
    parser.addoption("--outcomes", type=Path, help="A JSON file: what became of each test.")


def pytest_configure(config: pytest.Config) -> None:
    outcomes = config.getoption("--outcomes")
    if outcomes is not None:
        config.pluginmanager.register(_Outcomes(outcomes))
    if config.getoption("--mixflow") == "jits":
        jax.jit = _compiled  # before the tests' modules are imported: they write `from jax import`


def _compiled(*fun: Callable[..., Any], **options: Any) -> Any:
    # JAX and mixflow itself find this function in jax.jit's place, too.
    is_test = sys._getframe(1).f_globals["__name__"].endswith("_test")
    jit = mixflow.compile if is_test and options.keys() <= _OPTIONS else JIT_OF_JAX
    return jit(*fun, **options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if item.config.getoption("--mixflow") != "gradients":
        return (yield)
    with Recording().active():
        return (yield)


class _Outcomes:
    """Writes a file with each test's outcome, and the last line of what it failed with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = " ".join(str(getattr(crash, "message", "")).split())
            self._found[report.nodeid] = {"outcome": report.outcome, "why": why[:300]}

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._found, indent=1))
