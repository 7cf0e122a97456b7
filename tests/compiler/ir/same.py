"""Are two jaxprs one program, equation by equation? And: through the IR and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun, jaxprs_in_params
from jax.tree_util import tree_leaves

from mixflow.compiler.ir.emitter import emit_jaxpr
from mixflow.compiler.ir.importer import import_jaxpr


def roundtrip(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Import, verify, emit."""
    module = import_jaxpr(closed, differentiated=False)
    module.verify()
    return emit_jaxpr(module, closed)


def run(closed: ClosedJaxpr, *args: Any) -> list[Any]:
    """The results of a closed jaxpr under `jax.jit`."""
    return jax.jit(jaxpr_as_fun(closed))(*tree_leaves(args))


def assert_same_program(a: Any, b: Any) -> None:
    """Fail at the first equation that is not the same: operands, parameters, effects, source."""
    consts_a, consts_b = getattr(a, "consts", ()), getattr(b, "consts", ())
    assert len(consts_a) == len(consts_b)
    assert all(x is y for x, y in zip(consts_a, consts_b, strict=True))
    a, b = getattr(a, "jaxpr", a), getattr(b, "jaxpr", b)
    same = dict(zip([*b.constvars, *b.invars], [*a.constvars, *a.invars], strict=True))
    assert [v.aval for v in a.invars] == [v.aval for v in b.invars]
    assert len(a.eqns) == len(b.eqns)
    assert frozenset(a.effects) == frozenset(b.effects)
    for one, other in zip(a.eqns, b.eqns, strict=True):
        _assert_same_equation(one, other, same)
        same.update(zip(other.outvars, one.outvars, strict=True))
    _assert_same_atoms(a.outvars, b.outvars, same)


def _assert_same_equation(one: Any, other: Any, same: dict[Any, Any]) -> None:
    assert one.primitive is other.primitive
    assert frozenset(one.effects) == frozenset(other.effects)
    assert one.source_info is other.source_info
    assert one.ctx is other.ctx
    assert [v.aval for v in one.outvars] == [v.aval for v in other.outvars]
    _assert_same_atoms(one.invars, other.invars, same)
    assert one.params.keys() == other.params.keys()
    plain = [name for name in one.params if not _holds_jaxpr(one.params[name])]
    changed = [name for name in plain if one.params[name] is not other.params[name]]
    assert not changed, one.primitive
    for inner, back in zip(_nested(one), _nested(other), strict=True):
        assert_same_program(inner, back)


def _assert_same_atoms(ones: Any, others: Any, same: dict[Any, Any]) -> None:
    for one, other in zip(ones, others, strict=True):
        if isinstance(one, Literal):
            assert isinstance(other, Literal)
            assert (one.aval, type(one.val)) == (other.aval, type(other.val))
            assert np.asarray(one.val).tobytes() == np.asarray(other.val).tobytes()
        else:
            assert same[other] is one


def _holds_jaxpr(param: Any) -> bool:
    return hasattr(param, "num_points") or any(jaxprs_in_params({"param": param}))


def _nested(equation: Any) -> list[Any]:
    function = equation.params.get("function")
    inner = [param for param in equation.params.values() if isinstance(param, ClosedJaxpr)]
    inner += [*jaxprs_in_params(equation.params)]
    return [*inner, function.jaxpr] if hasattr(function, "num_points") else inner
