"""Fingerprints: what they tell apart, and what they do not."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import captures

from mixflow.compiler.ir.importer import import_jaxpr
from mixflow.report.snapshot.canonical import canonical, jaxpr_digest
from mixflow.report.snapshot.fingerprint import Fingerprints

X = jnp.ones(3)


def module_of(f, *args):
    return import_jaxpr(jax.make_jaxpr(f)(*args), differentiated=False)


def fingerprint(f, *args):
    """Of the program's IR; that of its jaxpr must tell the same programs apart."""
    args = args or (X, X)
    return Fingerprints().whole(module_of(f, *args).body), jaxpr_digest(jax.make_jaxpr(f)(*args))


def double(x):
    return x + x


DIFFERENT = {
    "operand order": (lambda x, y: x - y, lambda x, y: y - x),
    "multi-edge": (lambda x, y: x * x, lambda x, y: x * y),
    "shared or computed twice": (
        lambda x, y: double(jnp.sin(x)),
        lambda x, y: jnp.sin(x) + jnp.sin(x),
    ),
    "operation": (lambda x, y: jnp.sin(x), lambda x, y: jnp.cos(x)),
    "parameter": (lambda x, y: jnp.cumsum(x), lambda x, y: jax.lax.cumsum(x, reverse=True)),
    "literal": (lambda x, y: x * 2.0, lambda x, y: x * 3.0),
    "sign of zero": (lambda x, y: x + 0.0, lambda x, y: x + -0.0),
    "constant array": (lambda x, y: x + np.arange(3.0), lambda x, y: x + np.ones(3)),
    "result": (lambda x, y: (x, y), lambda x, y: (y, x)),
    "nested": (
        lambda x, y: jax.lax.scan(lambda c, v: (c * v, c), x, jnp.stack([x, y])),
        lambda x, y: jax.lax.scan(lambda c, v: (c + v, c), x, jnp.stack([x, y])),
    ),
    "trip count": (
        lambda x, y: jax.lax.scan(lambda c, _: (c * y, None), x, length=3),
        lambda x, y: jax.lax.scan(lambda c, _: (c * y, None), x, length=4),
    ),
    "branch": (
        lambda x, y: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, y),
        lambda x, y: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, y),
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_programs_have_different_fingerprints(case):
    one, other = (fingerprint(f) for f in DIFFERENT[case])
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_types_are_told_apart():
    assert fingerprint(jnp.sin, X) != fingerprint(jnp.sin, jnp.ones(4))
    assert fingerprint(jnp.sin, X) != fingerprint(jnp.sin, X.astype(jnp.bfloat16))


def test_names_and_source_lines_make_no_difference():
    def one(x, y):
        return jax.jit(lambda v: jnp.sin(v) * 2)(x) * y

    def other(a, b):
        def sine(value):
            return jnp.sin(value) * 2

        return jax.jit(sine)(a) * b

    assert fingerprint(one) == fingerprint(other)


def test_a_region_is_the_same_whatever_stands_around_it():
    def looped(before):
        def f(x, y):
            return jax.lax.scan(lambda c, _: (c * 2.0, None), before(x), length=3)[0] + y

        (function,) = module_of(f, X, X).ops
        (scan,) = (op for op in function.body.block.ops if op.regions)
        return function.body, scan.bodies[0]

    (around, inside), (other_around, other_inside) = looped(jnp.sin), looped(jnp.cos)
    prints = Fingerprints()
    assert prints.whole(inside) == prints.whole(other_inside)
    assert prints.own(around) != prints.own(other_around)


def test_a_change_inside_leaves_the_own_fingerprint_of_what_is_around_alone():
    def around(step):
        def f(x):
            return jax.lax.scan(lambda c, _: (step(c), None), x, length=3)[0]

        (function,) = module_of(f, X).ops
        return function.body

    one, other = around(jnp.sin), around(jnp.cos)
    prints = Fingerprints()
    assert prints.own(one) == prints.own(other)
    assert prints.whole(one) != prints.whole(other)


def test_sets_and_addresses_do_not_depend_on_the_process():
    program = (
        "from mixflow.report.snapshot.canonical import canonical\n"
        "class Thing: pass\n"
        "names = {f'name {n}' for n in range(20)}\n"
        "things = [names, frozenset(names), Thing(), len, Thing]\n"
        "print(canonical(things))\n"
        "import jax\n"
        "from mixflow.report.snapshot.canonical import jaxpr_digest\n"
        "def f(x):\n"
        "    ref = jax.new_ref(x)\n"
        "    ref[...] = 2 * ref[...]\n"
        "    return ref[...]\n"
        "print(jaxpr_digest(jax.make_jaxpr(f)(1.0)))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert "0x" not in texts.pop()


def test_a_value_s_type_is_part_of_its_text():
    values = [1, 1.0, True, "1", (1,), [1], {1}, np.float32(1), None, {"1": 1}, jnp.float32]
    assert len({canonical(value) for value in values}) == len(values)


def test_the_rule_of_a_symbolic_derivative_is_part_of_the_program():
    def with_rule(limit):
        @jax.custom_vjp
        def clipped(x):
            return x

        clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -limit, limit),))
        program = captures(jax.grad(lambda x: jnp.sum(clipped(x) ** 2)), X).jaxpr
        assert "mixflow_vjp" in str(program)
        return jaxpr_digest(program)

    assert with_rule(1.0) == with_rule(1.0)
    assert with_rule(1.0) != with_rule(2.0)
