"""Operations that a pass writes as a small JAX function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxpr_as_fun
from support import assert_close

from mixflow.compiler.ir.building import build_before
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.ir.emitter import emit_jaxpr, main_function
from mixflow.compiler.ir.importer import import_jaxpr

X = jnp.array([0.5, -1.5, 2.0])


def module_of(f, *args):
    """A program, its IR, and its one `sin`."""
    closed = jax.make_jaxpr(f)(*args)
    module = import_jaxpr(closed, differentiated=False)
    (sin,) = (op for op in main_function(module).body.block.ops if "eqn sin" in str(op))
    return closed, module, sin


def replaced(f, build, *args):
    """The program in which what `build` gives for the operand of `sin` stands in for it."""
    closed, module, sin = module_of(f, *args)
    values = build_before(sin, build, sin.operands)
    sin.results[0].replace_all_uses_with(values[0])
    module.verify()
    return sin, values, emit_jaxpr(module, closed)


def test_a_function_stands_in_for_an_operation():
    _, _, after = replaced(lambda x: 2 * jnp.sin(x), lambda x: jnp.cos(x) + x, X)
    assert_close(jaxpr_as_fun(after)(X), [2 * (jnp.cos(X) + X)])


def test_an_operand_can_be_a_result():
    sin, values, after = replaced(lambda x: 2 * jnp.sin(x), lambda x: (x, [x]), X)
    assert values == [sin.operands[0]] * 2
    assert_close(jaxpr_as_fun(after)(X), [2 * X])


def test_new_operations_have_the_place_and_the_context_of_the_old_one():
    sin, values, _ = replaced(lambda x: 2 * jnp.sin(x), lambda x: jnp.cos(x) + x, X)
    assert values[0].owner.source == sin.source != "<unknown>"
    assert values[0].owner.eqn.ctx is sin.eqn.ctx


@pytest.mark.parametrize("value", [jax.random.split(jax.random.key(0), 3), jnp.arange(3), X])
def test_types_are_kept(value):
    def f(x, value):
        return jnp.sin(x), value[0]

    closed, module, sin = module_of(f, X, value)
    operand = main_function(module).body.block.args[1]
    (new,) = build_before(sin, lambda v: jax.lax.reshape(v, (3, 1)), [operand])
    assert (aval_of(new).dtype, aval_of(new).shape) == (value.dtype, (3, 1))
    assert len(emit_jaxpr(module, closed).eqns) == len(closed.eqns) + 1


def test_weak_types_are_kept():
    _, values, _ = replaced(jnp.sin, lambda x: jax.lax.reshape(x, (1,)), 1.0)
    assert aval_of(values[0]).weak_type


def test_arrays_of_its_own_are_refused():
    with pytest.raises(AssertionError, match="constants"):
        replaced(lambda x: 2 * jnp.sin(x), lambda x: x + X, X)
