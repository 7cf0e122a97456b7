"""Products in spelled-out derivatives: the narrower operand first, where both read columns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import check_jaxpr
from support import assert_close, compiled, equations, unflagged

from mixflow.compiler.derivative.orientation import orient_product
from mixflow.compiler.jaxprs.equations import rewrite_equations

WIDE, NARROW = jnp.ones((6, 7)), jnp.ones((6, 3))


def products(closed):
    return [eqn for eqn in equations(closed.jaxpr) if eqn.primitive.name == "dot_general"]


def oriented(f, *args):
    closed = rewrite_equations(jax.make_jaxpr(f)(*args), orient_product)
    check_jaxpr(closed.jaxpr)
    return closed


def test_the_narrower_operand_comes_first_and_the_result_is_transposed():
    left = jax.random.normal(jax.random.key(0), WIDE.shape)
    right = jax.random.normal(jax.random.key(1), NARROW.shape)
    closed = oriented(lambda x, y: x.T @ y, left, right)
    (kept,) = products(closed)  # jnp transposes x itself: it is summed over its last dimension
    assert kept.invars[1].aval.shape == NARROW.shape
    f = lambda x, y: jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))  # noqa: E731
    closed = oriented(f, left, right)
    (product,) = products(closed)
    assert [atom.aval.shape for atom in product.invars] == [NARROW.shape, WIDE.shape]
    (result,) = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, left, right)
    assert_close(result, f(left, right))


def test_over_several_leading_dimensions_and_with_several_kept():
    x, y = jnp.arange(120.0).reshape(2, 3, 4, 5), jnp.arange(6.0).reshape(2, 3)[..., None] * 2
    y = jnp.concatenate([y, y + 1.0], -1)
    f = lambda x, y: jax.lax.dot_general(  # noqa: E731
        x, y, (((0, 1), (0, 1)), ((), ())), precision=("highest", "default")
    )
    closed = oriented(f, x, y)
    (product,) = products(closed)
    assert product.invars[0].aval.shape == y.shape
    assert str(product.params["precision"][0]) == "DEFAULT"
    assert_close(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x, y)[0], f(x, y))


@pytest.mark.parametrize(
    ("left", "right", "dims"),
    [
        (NARROW, WIDE, (((0,), (0,)), ((), ()))),  # narrow already
        (WIDE.T, NARROW, (((1,), (0,)), ((), ()))),  # by rows
        (WIDE, NARROW.T, (((0,), (1,)), ((), ()))),
        (jnp.ones((2, 6, 7)), jnp.ones((2, 6, 3)), (((1,), (1,)), ((0,), (0,)))),  # a batch
        (WIDE, jnp.ones(6), (((0,), (0,)), ((), ()))),  # a vector
    ],
)
def test_not(left, right, dims):
    f = lambda x, y: jax.lax.dot_general(x, y, dims)  # noqa: E731
    before = jax.make_jaxpr(f)(left, right)
    assert str(rewrite_equations(before, orient_product)) == str(before)


@unflagged
def test_in_loops_branches_and_checkpoints():
    def f(x, y):
        @jax.checkpoint
        def inner(x, y):
            return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))

        def body(c, _):
            return c + jax.lax.cond(c[0, 0] > 0, inner, lambda x, y: 0 * inner(x, y), x, y), None

        return jax.lax.scan(body, jnp.ones((7, 3)), None, length=2)[0]

    closed = oriented(f, WIDE, NARROW)
    assert {eqn.invars[0].aval.shape for eqn in products(closed)} == {NARROW.shape}
    assert_close(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, WIDE, NARROW)[0], f(WIDE, NARROW))


def test_a_meta_gradient_is_lowered_so():
    """w: 3 × 7, so x is the narrower operand of its gradient, and of that one's derivative."""

    def loss(w, eta, x):
        return jnp.mean(jax.nn.sigmoid(eta) * jnp.sum(jnp.tanh(x @ w) ** 2, 1))

    def meta(eta, w, x):
        step = lambda w, _: (w - 0.1 * jax.grad(loss)(w, eta, x), None)  # noqa: E731
        return loss(jax.lax.scan(step, w, None, length=3)[0], eta, x)

    args = jnp.ones(6), jax.random.normal(jax.random.key(0), (3, 7)), NARROW
    text = compiled(jax.grad(meta)).lower(*args).as_text()
    assert "tensor<7x6xf64>" not in text
    assert "contracting_dims = [0] x [0] : (tensor<6x7xf64>" not in text
    plain = jax.jit(jax.grad(meta)).lower(*args).as_text()
    assert "contracting_dims = [0] x [0]" in plain
    assert "(tensor<6x7xf64>, tensor<6x3xf64>)" in plain
