"""Symbolic derivatives spelled out: the plain programs that they lower to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax.extend.core import ClosedJaxpr

from mixflow.compiler.vjp_primitive import SYMBOLIC

_SPELLED: WeakKeyDictionary[Any, dict[Any, ClosedJaxpr]] = WeakKeyDictionary()


def spell_out(eqn: Any) -> ClosedJaxpr:
    """A symbolic derivative's equation as the plain program that it lowers to.

    Raises:
        NameError: the function uses a mesh axis, which exists only inside of its shard_map.
    """
    known = _SPELLED.setdefault(eqn.params["function"], {})
    others = {name: value for name, value in eqn.params.items() if name != "function"}
    key = eqn.primitive, tuple(sorted(others.items())), tuple(v.aval for v in eqn.invars)
    if key not in known:
        known[key] = _spelled_out(eqn)
    return known[key]


def _spelled_out(eqn: Any) -> ClosedJaxpr:
    implementation: Callable[..., Any] = SYMBOLIC[eqn.primitive]
    specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(lambda *operands: implementation(*operands, **eqn.params))(*specs)
