"""Python's garbage collector is held back while a program is planned, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mixflow
from mixflow.planner.search import Planner


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    collects = gc.isenabled()
    yield
    (gc.enable if collects else gc.disable)()


def meta(eta: Any) -> Any:
    return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(x) * eta))(eta) ** 2)


@pytest.mark.parametrize("collects", [True, False])
def test_it_collects_afterwards_as_before(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    while_planning = []
    best = Planner.best
    monkeypatch.setattr(
        Planner, "best", lambda *args: while_planning.append(gc.isenabled()) or best(*args)
    )
    (gc.enable if collects else gc.disable)()
    mixflow.compile(jax.grad(meta)).lower(jnp.ones(3))
    assert while_planning == [False]
    assert gc.isenabled() == collects


def test_it_collects_after_an_error() -> None:
    def wrong(x: Any) -> Any:
        raise ValueError("mine")

    gc.enable()
    with pytest.raises(ValueError, match="mine"):
        mixflow.compile(wrong).lower(jnp.ones(3))
    assert gc.isenabled()
