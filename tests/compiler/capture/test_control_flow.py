"""Gradient steps inside loops, branches, maps and JAX's own caches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from support import (
    assert_close,
    assert_same_meta_gradient,
    captures,
    compiled,
    equations,
    primitives,
)

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.5, -0.4])


def loss(theta: Any, eta: Any) -> Any:
    return jnp.sum(jnp.tanh(theta * eta) ** 2) + jnp.sum(theta**2 * jnp.cos(eta))


def step(theta: Any, eta: Any) -> Any:
    return theta - 0.1 * jax.grad(loss)(theta, eta)


def score(theta: Any) -> Any:
    return jnp.sum(jnp.sin(theta) * theta)


def with_newton_steps(eta: Any) -> Any:
    def body(theta: Any, _: Any) -> Any:
        hessian = jax.hessian(loss)(theta, eta) + 4 * jnp.eye(3)
        return theta - jnp.linalg.solve(hessian, jax.grad(loss)(theta, eta)), None

    return score(jax.lax.scan(body, THETA, None, length=2)[0])


def in_a_python_loop(eta: Any) -> Any:
    theta = THETA
    for _ in range(3):
        theta = step(theta, eta)
    return score(theta)


def in_a_scan(eta: Any) -> Any:
    theta, values = jax.lax.scan(lambda t, x: (step(t, eta * x), score(t)), THETA, jnp.ones(3))
    return score(theta) + jnp.sum(values)


def in_a_reversed_unrolled_scan(eta: Any) -> Any:
    def body(theta: Any, x: Any) -> Any:
        return step(theta, eta * x), None

    return score(jax.lax.scan(body, THETA, jnp.arange(4.0), reverse=True, unroll=2)[0])


def in_a_fori_loop(eta: Any) -> Any:
    return score(jax.lax.fori_loop(0, 3, lambda i, t: step(t, eta * i), THETA))


def in_a_nested_scan(eta: Any) -> Any:
    def inner(theta: Any, _: Any) -> Any:
        return step(theta, eta), None

    def outer(theta: Any, _: Any) -> Any:
        return jax.lax.scan(inner, theta, None, length=2)[0], None

    return score(jax.lax.scan(outer, THETA, None, length=2)[0])


def in_a_branch(eta: Any) -> Any:
    def body(theta: Any, index: Any) -> Any:
        return jax.lax.cond(index % 2 == 0, step, lambda t, e: t * e, theta, eta), None

    return score(jax.lax.scan(body, THETA, jnp.arange(3))[0])


def in_a_switch(eta: Any) -> Any:
    def body(theta: Any, index: Any) -> Any:
        branches = [step, lambda t, e: step(step(t, e), e), lambda t, e: t]
        return jax.lax.switch(index, branches, theta, eta), None

    return score(jax.lax.scan(body, THETA, jnp.arange(3))[0])


def in_a_select(eta: Any) -> Any:
    return score(jnp.where(eta > 0, step(THETA, eta), THETA))


def around_a_branch(eta: Any) -> Any:
    def branching(theta: Any) -> Any:
        return jax.lax.cond(theta[0] > 0, loss, lambda t, e: jnp.sum(t * e) ** 3, theta, eta)

    return score(THETA - 0.1 * jax.grad(branching)(THETA))


def around_a_scan_over_layers(eta: Any) -> Any:
    weights = jnp.stack([jnp.eye(3), jnp.ones((3, 3)) / 3])

    def deep(weights: Any) -> Any:
        return loss(jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), None), eta, weights)[0], eta)

    return jnp.sum((weights - 0.1 * jax.grad(deep)(weights)) ** 3)


def around_a_checkpointed_scan_over_layers(eta: Any) -> Any:
    weights = jnp.stack([jnp.eye(3), jnp.ones((3, 3)) / 3])

    @jax.checkpoint
    def layer(hidden: Any, weight: Any) -> Any:
        return jnp.tanh(weight @ hidden), jnp.sum(hidden)

    def deep(weights: Any) -> Any:
        hidden, sums = jax.lax.scan(layer, eta, weights)
        return loss(hidden, eta) + jnp.sum(sums**2)

    return jnp.sum((weights - 0.1 * jax.grad(deep)(weights)) ** 3)


def around_a_checkpoint(eta: Any) -> Any:
    return score(THETA - 0.1 * jax.grad(jax.checkpoint(loss))(THETA, eta))


def around_a_checkpoint_with_a_policy(eta: Any) -> Any:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @functools.partial(jax.checkpoint, policy=policy)
    def matrix_loss(theta: Any) -> Any:
        return loss(jnp.outer(theta, eta) @ jnp.sin(theta), eta)

    return score(THETA - 0.1 * jax.grad(matrix_loss)(THETA))


def around_a_checkpoint_that_saves_names(eta: Any) -> Any:
    policy = jax.checkpoint_policies.save_only_these_names("hidden")

    @functools.partial(jax.checkpoint, policy=policy)
    def named_loss(theta: Any) -> Any:
        return loss(checkpoint_name(jnp.sin(theta * eta), "hidden"), eta)

    return score(THETA - 0.1 * jax.grad(named_loss)(THETA))


def in_a_checkpoint(eta: Any) -> Any:
    return score(jax.checkpoint(step)(jax.checkpoint(step)(THETA, eta), eta))


def in_a_checkpointed_scan(eta: Any) -> Any:
    body = jax.checkpoint(lambda t, x: (step(t, eta * x), None))
    return score(jax.lax.scan(body, THETA, jnp.ones(3))[0])


def under_vmap(eta: Any) -> Any:
    tasks = jnp.stack([THETA, 2 * THETA])
    return jnp.sum(jax.vmap(lambda t: score(step(step(t, eta), eta)))(tasks))


def under_vmap_over_constants(eta: Any) -> Any:
    return jnp.sum(jax.vmap(lambda e: score(step(THETA, e)))(jnp.outer(eta, eta)))


def under_nested_vmaps(eta: Any) -> Any:
    tasks = jnp.outer(eta, THETA)
    pairs = jax.vmap(jax.vmap(lambda t, e: score(step(t, e)), (0, None)), (None, 0), 1)
    return jnp.sum(pairs(tasks, jnp.outer(THETA, eta)) ** 2)


def under_vmap_with_other_axes(eta: Any) -> Any:
    mapped = jax.vmap(step, in_axes=(1, None), out_axes=-1)
    return jnp.sum(mapped(jnp.outer(eta, jnp.arange(1.0, 3.0)), eta) ** 3)


def around_vmap(eta: Any) -> Any:
    rows = jnp.outer(jnp.arange(1.0, 3.0), eta)

    def batched(theta: Any) -> Any:
        return jnp.mean(jax.vmap(loss, (None, 0))(theta, rows))

    return score(THETA - 0.1 * jax.grad(batched)(THETA))


def per_example(eta: Any) -> Any:
    rows = jnp.outer(jnp.arange(1.0, 3.0), eta)
    gradients = jax.vmap(jax.grad(loss), (None, 0))(THETA, rows)
    return score(THETA - 0.1 * jnp.mean(gradients**2, 0))


def in_a_scan_under_vmap(eta: Any) -> Any:
    def task(theta: Any) -> Any:
        return score(jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=2)[0])

    return jnp.sum(jax.vmap(task)(jnp.stack([THETA, 2 * THETA])))


def vmapped_scanned_and_checkpointed_pullbacks(eta: Any) -> Any:
    def task(theta: Any, w: Any) -> Any:
        @jax.checkpoint
        def body(w: Any, _: Any) -> Any:
            value, pullback = jax.vjp(lambda t: jnp.tanh(t * eta) * t, theta)
            return pullback(w * value)[0], None

        return jax.lax.scan(body, w, None, length=2)[0]

    tasks = jnp.stack([THETA, 2 * THETA])
    return jnp.sum(jax.vmap(task)(tasks, tasks + eta) ** 2)


def three_deep(eta: Any) -> Any:
    def first(theta: Any, phi: Any) -> Any:
        return jnp.sum(theta - 0.1 * jax.grad(loss)(theta, phi * eta)) ** 2

    def second(theta: Any, phi: Any) -> Any:
        return score(phi - 0.1 * jax.grad(first, argnums=1)(theta, phi))

    return score(THETA - 0.1 * jax.grad(second)(THETA, eta))


def three_deep_in_scans(eta: Any) -> Any:
    def inner(phi: Any) -> Any:
        return score(jax.lax.scan(lambda t, _: (step(t, phi), None), THETA, None, length=2)[0])

    def body(phi: Any, _: Any) -> Any:
        return phi - 0.1 * jax.grad(inner)(phi * eta), None

    return score(jax.lax.scan(body, eta, None, length=2)[0])


def with_a_while_loop_in_aux(eta: Any) -> Any:
    """JAX cannot differentiate a while loop in reverse: it must be left alone."""

    def counted(theta: Any) -> Any:
        count = jax.lax.while_loop(lambda c: c < jnp.sum(theta**2), lambda c: c + 0.5, 0.0)
        return loss(theta, eta), jax.lax.stop_gradient(count)

    gradient, count = jax.grad(counted, has_aux=True)(THETA)
    return score(THETA - 0.1 * gradient) + jax.lax.stop_gradient(count)


def with_an_argument_that_steers_shapes(eta: Any) -> Any:
    @functools.partial(jax.jit, static_argnums=(0,), static_argnames=("power",))
    def sized(size: int, theta: Any, *, power: int) -> Any:
        return loss(jnp.tile(theta, size)[:5], jnp.tile(eta, size)[:5] ** power)

    return score(THETA - 0.1 * jax.grad(sized, argnums=1)(2, THETA, power=3))


def with_sorting_and_gathers(eta: Any) -> Any:
    def ranked(theta: Any) -> Any:
        order = jnp.argsort(theta * eta)
        return jnp.sum(theta[order] * jnp.arange(3.0) * eta) + loss(theta.at[order[0]].mul(2), eta)

    return score(THETA - 0.1 * jax.grad(ranked)(THETA))


def with_stop_gradient(eta: Any) -> Any:
    def half_blocked(theta: Any) -> Any:
        return loss(jax.lax.stop_gradient(theta) * theta, eta * jax.lax.stop_gradient(eta))

    return score(THETA - 0.1 * jax.grad(half_blocked)(THETA))


def with_a_blocked_inner_gradient(eta: Any) -> Any:
    """First-order MAML: nothing flows through the inner gradient."""
    return score(THETA * eta - 0.1 * jax.lax.stop_gradient(jax.grad(loss)(THETA, eta)))


def with_linear_algebra(eta: Any) -> Any:
    def solved(theta: Any) -> Any:
        matrix = jnp.outer(theta, theta) + jnp.eye(3) * (2 + jnp.sum(eta**2))
        return jnp.sum(jnp.linalg.cholesky(matrix)) + jnp.linalg.slogdet(matrix)[1]

    return score(THETA - 0.1 * jax.grad(solved)(THETA))


PROGRAMS = [
    value
    for name, value in list(globals().items())
    if name.startswith(("in_", "around_", "under_", "with_", "three_", "per_", "vmapped_"))
]


@pytest.mark.parametrize("meta_loss", PROGRAMS, ids=lambda f: f.__name__)
def test_meta_gradient_is_that_of_plain_jax(meta_loss: Any) -> None:
    declines = assert_same_meta_gradient(meta_loss, ETA).declines
    assert bool(declines) == (meta_loss is with_newton_steps)


@pytest.mark.parametrize("meta_loss", PROGRAMS, ids=lambda f: f.__name__)
def test_forward_mode_is_that_of_plain_jax(meta_loss: Any) -> None:
    expected = jax.jit(jax.jacfwd(meta_loss))(ETA)
    assert_close(jax.jit(jax.jacfwd(compiled(meta_loss)))(ETA), expected)


@pytest.mark.parametrize("jitted", [False, True])
def test_gradients_in_a_while_loop(jitted: bool) -> None:
    """Reverse mode does not exist here; the values have to be right."""

    def descend(eta: Any) -> Any:
        gradient = jax.jit(jax.grad(loss)) if jitted else jax.grad(loss)

        def body(state: Any) -> Any:
            count, theta = state
            return count + 1, theta - 0.1 * gradient(theta, eta)

        return jax.lax.while_loop(lambda s: jnp.sum(s[1] ** 2) > 1.5, body, (0, THETA))

    assert_close(compiled(descend)(ETA), jax.jit(descend)(ETA))
    assert primitives(captures(descend, ETA).jaxpr)["mixflow_vjp"] == 1


def test_a_while_loop_whose_body_differentiates_is_left_alone_in_aux() -> None:
    def meta_loss(eta: Any) -> Any:
        def searched(theta: Any) -> Any:
            gradient = jax.grad(loss)
            body = lambda t: t - 0.1 * gradient(t, eta)  # noqa: E731
            found = jax.lax.while_loop(lambda t: jnp.sum(t**2) > 1.5, body, theta)
            return loss(theta, eta), jax.lax.stop_gradient(found)

        gradient, found = jax.grad(searched, has_aux=True)(THETA)
        return score(gradient) + jax.lax.stop_gradient(jnp.sum(found))

    assert_same_meta_gradient(meta_loss, ETA)


@pytest.mark.parametrize("collective", [jax.lax.pmean, jax.lax.psum])
@pytest.mark.parametrize("params", ["mapped", "unmapped"])
@pytest.mark.parametrize("where", ["loss", "output", "gradient"])
def test_collectives_over_a_mapped_axis(where: str, params: str, collective: Any) -> None:
    rows = jnp.outer(jnp.array([1.0, -0.5]), jnp.array([0.4, 1.0, 0.7]))

    def meta_loss(eta: Any) -> Any:
        def member(theta: Any, row: Any) -> Any:
            def local(theta: Any) -> Any:
                if where == "loss":
                    return loss(collective(theta * row, "batch"), eta)
                value = loss(theta * row, eta)
                return collective(value, "batch") * value if where == "output" else value

            value, gradient = jax.value_and_grad(local)(theta)
            if where == "gradient":
                gradient = collective(gradient, "batch") * gradient
            return score(theta - 0.1 * gradient) + value

        mapped = params == "mapped"
        theta = jnp.stack([THETA, 2 * THETA]) if mapped else THETA * jnp.sum(eta)
        axes = (0, 0) if mapped else (None, 0)
        return jnp.sum(jax.vmap(member, axes, axis_name="batch")(theta, rows))

    assert_same_meta_gradient(meta_loss, ETA)


def test_axis_index_and_gathers_over_a_mapped_axis() -> None:
    def meta_loss(eta: Any) -> Any:
        def member(theta: Any) -> Any:
            def local(theta: Any) -> Any:
                everyone = jax.lax.all_gather(theta * (1.0 + jax.lax.axis_index("i")), "i")
                return loss(jnp.sum(everyone, 0), eta)

            return score(theta - 0.1 * jax.grad(local)(theta))

        return jnp.sum(jax.vmap(member, axis_name="i")(jnp.stack([THETA, 2 * THETA])))

    assert_same_meta_gradient(meta_loss, ETA)


def test_a_collective_over_the_outer_of_two_axes() -> None:
    def meta_loss(eta: Any) -> Any:
        def member(theta: Any, row: Any) -> Any:
            def local(theta: Any) -> Any:
                return loss(jax.lax.pmean(theta * row, "outer"), eta) * jnp.sum(theta)

            return score(theta - 0.1 * jax.grad(local)(theta))

        inner = jax.vmap(member, (None, 0), axis_name="inner")
        outer = jax.vmap(inner, (0, None), axis_name="outer")
        rows = jnp.outer(jnp.array([1.0, -0.5]), eta)
        return jnp.sum(outer(jnp.stack([THETA, 2 * THETA]), rows))

    assert_same_meta_gradient(meta_loss, ETA)


def test_a_collective_that_only_sees_unmapped_values() -> None:
    """psum of a constant is a multiplication by the axis size."""

    def meta_loss(eta: Any) -> Any:
        def member(row: Any) -> Any:
            gradient = jax.grad(lambda theta: loss(jax.lax.psum(theta, "i"), eta))(THETA)
            return jnp.sum(gradient * row)

        return jnp.sum(jax.vmap(member, axis_name="i")(jnp.outer(jnp.arange(1.0, 3.0), eta)))

    assert_same_meta_gradient(meta_loss, ETA)


def test_functions_that_jax_traced_before_are_traced_again() -> None:
    gradient = jax.jit(jax.grad(loss))
    body = lambda t, x: (t - 0.1 * gradient(t, x), None)  # noqa: E731

    def meta_loss(eta: Any) -> Any:
        return score(jax.lax.scan(body, THETA, jnp.stack([eta, eta]))[0])

    gradient(THETA, ETA)
    jax.jit(jax.grad(meta_loss))(ETA)
    jax.make_jaxpr(meta_loss)(ETA)
    assert primitives(captures(meta_loss, ETA).jaxpr)["mixflow_vjp"] == 1
    assert_same_meta_gradient(meta_loss, ETA)


@pytest.mark.parametrize("transform", [jax.make_jaxpr, lambda f: jax.make_jaxpr(jax.grad(f))])
def test_plain_jax_holds_no_symbolic_equations_afterwards(transform: Any) -> None:
    gradient = jax.jit(jax.grad(loss))
    saved = jax.checkpoint(lambda t, e: t - 0.1 * gradient(t, e))
    body = lambda t, x: (saved(t, x), None)  # noqa: E731

    def meta_loss(eta: Any) -> Any:
        return score(jax.lax.scan(body, THETA, jnp.stack([eta, eta]))[0])

    assert_same_meta_gradient(meta_loss, ETA)
    names = primitives(transform(meta_loss)(ETA).jaxpr)
    assert not [name for name in names if name.startswith("mixflow")]


def test_each_capture_sees_its_own_reasons() -> None:
    @jax.jit
    def noisy(theta: Any, eta: Any) -> Any:
        def printing(theta: Any) -> Any:
            jax.debug.callback(lambda: None)
            return loss(theta, eta)

        return jax.grad(printing)(theta)

    reports = [captures(lambda eta: noisy(THETA, eta), ETA).declines for _ in range(2)]
    assert reports[0] == reports[1] != ()


def test_each_capture_has_its_own_trust() -> None:
    @jax.custom_jvp
    def mine(x: Any) -> Any:
        return x * 2

    mine.defjvps(lambda t, _, x: 2 * t)
    gradient = jax.jit(jax.grad(lambda theta, eta: loss(mine(theta), eta)))

    def meta_loss(eta: Any) -> Any:
        return score(gradient(THETA, eta))

    def symmetric(*names: str) -> bool:
        jaxpr = captures(meta_loss, ETA, assume_symmetric=names).jaxpr
        functions = [e.params["function"] for e in equations(jaxpr) if "function" in e.params]
        return not functions[0].suspects

    assert not symmetric()
    assert symmetric("mine")
    assert not symmetric()


def test_a_function_is_traced_anew_for_another_structure() -> None:
    @jax.jit
    def gradient(tree: Any, eta: Any) -> Any:
        return jax.grad(lambda tree: sum(loss(leaf, eta) for leaf in tree))(tree)

    def meta_loss(eta: Any) -> Any:
        one, two = gradient([THETA], eta), gradient((THETA, eta), eta)
        return score(one[0] + two[0] + two[1])

    assert_same_meta_gradient(meta_loss, ETA)


def test_the_compiled_function_may_be_traced_under_jit_vmap_and_scan() -> None:
    def meta_loss(eta: Any) -> Any:
        return in_a_python_loop(eta)

    run, etas = compiled(meta_loss), jnp.stack([ETA, 2 * ETA])
    expected = jax.jit(jax.vmap(jax.grad(meta_loss)))(etas)
    assert_close(jax.jit(jax.vmap(jax.grad(run)))(etas), expected)
    assert_close(jax.jit(jax.grad(lambda e: jnp.sum(jax.vmap(run)(e))))(etas), expected)
    assert_close(jax.lax.map(jax.grad(run), etas), expected)
