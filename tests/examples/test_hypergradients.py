"""The two ways to a hypergradient in `examples/hyperparameters.py` give the same numbers."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import pytest
from support import assert_close

FOLDER = Path(__file__).parents[2] / "examples"


def test_forward_and_reverse_hypergradients_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    example = importlib.import_module("hyperparameters")
    args = example.meta_loss.examples
    expected = jax.jit(jax.value_and_grad(example.meta_loss.fun))(*args)
    assert_close(jax.jit(example.forward_hypergradient)(*args), expected)
    assert_close(jax.jit(example.reverse_hypergradient)(*args), expected)
