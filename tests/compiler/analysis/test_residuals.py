"""What the derivative of an operation reads, and so what is saved for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mixflow.compiler.analysis.residuals import residuals_of
from mixflow.compiler.ir.emitter import main_function
from mixflow.compiler.ir.importer import import_jaxpr

X = jnp.ones((3, 3))
INDICES = jnp.array([0, 2])

READ: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "add": (lambda x, y, i: x + y, set()),
    "transpose": (lambda x, y, i: x.T, set()),
    "sign": (lambda x, y, i: jnp.sign(x), set()),
    "floor": (lambda x, y, i: jnp.floor(x), set()),
    "scatter": (lambda x, y, i: x.at[i].set(0.0, mode="promise_in_bounds"), {"other"}),
    "exp": (lambda x, y, i: jnp.exp(x), {"result"}),
    "tanh": (lambda x, y, i: jnp.tanh(x), {"result"}),
    "sqrt": (lambda x, y, i: jnp.sqrt(x), {"result"}),
    "sin": (lambda x, y, i: jnp.sin(x), {"x"}),
    "mul": (lambda x, y, i: x * y, {"x", "y"}),
    "dot_general": (lambda x, y, i: x @ y, {"x", "y"}),
    "div": (lambda x, y, i: x / y, {"x", "y"}),
    "triangular_solve": (
        lambda x, y, i: jax.lax.linalg.triangular_solve(x, y, left_side=True),
        {"x", "result"},
    ),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("inactive", [None, "y"])
def test_what_is_read(name: str, inactive: str | None) -> None:
    f, read = READ[name]
    module = import_jaxpr(jax.make_jaxpr(f)(X, X, INDICES), differentiated=True)
    block = main_function(module).body.block
    names = dict(zip(block.args, ("x", "y", "i"), strict=True))
    (op,) = (one for one in block.ops if name in str(one))
    active = {value for value, one in names.items() if one != inactive}
    found = residuals_of(op, active | set(op.results)).values
    words = {"result" if v in op.results else names.get(v, "other") for v in found}
    # A bilinear operation reads an operand for the derivative in the other one, if that is active.
    dropped = {"mul": "x", "dot_general": "x", "div": "x"}.get(name) if inactive else None
    assert words == read - {dropped}
