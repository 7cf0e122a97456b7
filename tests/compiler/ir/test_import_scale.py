"""Programs of ten thousand equations, and deeply nested ones, go through the IR whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.core import check_jaxpr
from same import assert_same_program
from support import assert_close, captures

import mixflow
from mixflow.compiler.ir.dialects.jaxpr import JitOp, LeafOp, LiteralOp, YieldOp
from mixflow.compiler.ir.dialects.mixflow import VjpOp
from mixflow.compiler.ir.emitter import emit_jaxpr
from mixflow.compiler.ir.importer import import_jaxpr
from mixflow.passes import DEFAULT_PIPELINE
from mixflow.planner.pipeline import optimise, parse_passes

EQUATIONS = 10_000


def long_chain(x, equations=EQUATIONS):
    for _ in range(equations // 2):
        x = jax.lax.sin(x) * 0.5
    return x


def test_ten_thousand_equations_import_and_verify():
    closed = captures(long_chain, jnp.ones(3)).jaxpr
    module = import_jaxpr(closed, differentiated=True)
    module.verify()
    ops = list(module.walk())
    assert sum(isinstance(op, LeafOp) for op in ops) == EQUATIONS
    assert sum(isinstance(op, LiteralOp) for op in ops) == EQUATIONS // 2
    assert sum(isinstance(op, YieldOp) for op in ops) == 1
    assert len(ops) == EQUATIONS + EQUATIONS // 2 + 3  # and the module and the function
    emitted = emit_jaxpr(module, closed)
    check_jaxpr(emitted.jaxpr)
    assert_same_program(closed, emitted)


def test_two_thousand_equations_go_through_the_passes():
    captured = captures(jax.grad(lambda x: jnp.sum(long_chain(x, 2_000))), jnp.ones(3))
    passes = DEFAULT_PIPELINE.replace("roll-repeated-blocks,", "")
    optimised = optimise(captured, parse_passes(passes), differentiated=True)
    assert optimised.module is not None
    ops = list(optimised.module.walk())
    assert sum(isinstance(op, LeafOp) for op in ops) == 2_001  # and the sum
    assert [op.rule is not None for op in ops if isinstance(op, VjpOp)] == [True]
    check_jaxpr(optimised.jaxpr.jaxpr)


def test_a_hundred_thousand_equations_are_rolled():
    """The time that it takes is that of going through them once: no test depends on it."""
    captured = captures(lambda x: jnp.sum(long_chain(x, 100_000)), jnp.ones(3))
    optimised = optimise(captured, parse_passes("roll-repeated-blocks"), differentiated=False)
    assert optimised.module is not None
    assert sum(isinstance(op, LeafOp) for op in optimised.module.walk()) == 3


def test_forty_levels_of_nesting_go_through():
    def nest(f):
        return jax.jit(lambda x: f(x) + 1.0)

    f = jnp.sin
    for _ in range(40):
        f = nest(f)
    x = jnp.arange(3.0)
    module = import_jaxpr(captures(f, x).jaxpr, differentiated=False)
    module.verify()
    assert sum(isinstance(op, JitOp) for op in module.walk()) == 40
    assert_close(mixflow.compile(f)(x), jnp.sin(x) + 40)
