"""Every way to ask JAX for a pullback gives the meta-gradient that plain JAX gives."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    assert_close,
    assert_same_meta_gradient,
    captures,
    compiled,
    primitives,
    reasons,
)

from mixflow.compiler.jax_compat import VJP_OF_JAX

ETA = jnp.array([0.3, -0.7, 1.1])
THETA = jnp.array([0.5, 1.5, -0.4])


def loss(theta: Any, eta: Any) -> Any:
    return jnp.sum(jnp.sin(theta * eta) * theta) + jnp.sum(theta**4) / 4


def outputs(theta: Any, eta: Any) -> Any:
    return {"a": jnp.tanh(theta * eta), "b": (jnp.sum(theta**3) * eta[0],)}


def with_grad(eta: Any) -> Any:
    return jnp.sum((THETA - 0.1 * jax.grad(loss)(THETA, eta)) ** 2)


def with_value_and_grad(eta: Any) -> Any:
    value, gradient = jax.value_and_grad(loss)(THETA, eta)
    return value + jnp.sum(gradient**2)


def with_value_alone(eta: Any) -> Any:
    return jax.value_and_grad(loss)(THETA, eta)[0] + with_grad(eta)


def with_pullback(eta: Any) -> Any:
    value, pullback = jax.vjp(outputs, THETA, eta)
    theta_bar, eta_bar = pullback(jax.tree.map(jnp.cos, value))
    return jnp.sum(theta_bar**2) + jnp.sum(eta_bar**3)


def with_pullback_called_twice(eta: Any) -> Any:
    value, pullback = jax.vjp(lambda theta: loss(theta, eta) * eta, THETA)
    first = pullback(eta)[0]
    return jnp.sum(pullback(value * first)[0] ** 2)


def with_jacrev(eta: Any) -> Any:
    return jnp.sum(jax.jacrev(outputs)(THETA, eta)["a"] ** 2 * eta)


def with_hessian(eta: Any) -> Any:
    return jnp.sum(jnp.sin(jax.hessian(loss)(THETA, eta)))


def with_jacfwd_of_grad(eta: Any) -> Any:
    return jnp.sum(jnp.sin(jax.jacfwd(jax.grad(loss))(THETA, eta)))


def with_jacrev_of_grad(eta: Any) -> Any:
    return jnp.sum(jnp.sin(jax.jacrev(jax.grad(loss))(THETA, eta)))


def with_hvp_by_jvp(eta: Any) -> Any:
    gradient = functools.partial(jax.grad(loss), eta=eta)
    return jnp.sum(jax.jvp(gradient, (THETA,), (jnp.cos(eta),))[1] ** 2)


def with_linearize_of_grad(eta: Any) -> Any:
    _, push = jax.linearize(lambda theta: jax.grad(loss)(theta, eta), THETA)
    return jnp.sum(push(eta) * push(THETA))


def with_pullback_in_a_deeper_scan(eta: Any) -> Any:
    _, pullback = jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)
    return jnp.sum(jax.lax.scan(lambda w, _: (pullback(w)[0], None), eta, length=3)[0] ** 2)


def with_pullback_in_an_inner_jit(eta: Any) -> Any:
    _, pullback = jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)
    return jnp.sum(jax.jit(lambda w: pullback(w)[0])(eta) ** 2)


def with_pullback_under_vmap(eta: Any) -> Any:
    _, pullback = jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)
    return jnp.sum(jax.vmap(pullback)(jnp.outer(eta, eta))[0] ** 3)


def with_pullback_through_a_jit_boundary(eta: Any) -> Any:
    @jax.jit
    def make(eta: Any) -> Any:
        return jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)

    @jax.jit
    def use(pullback: Any, w: Any) -> Any:
        return pullback(w)[0]

    value, pullback = make(eta)
    return jnp.sum(use(pullback, value) ** 2)


def with_pullbacks_out_of_a_scan(eta: Any) -> Any:
    def body(theta: Any, _: Any) -> Any:
        return jax.vjp(lambda t: jnp.sin(t * eta) * t, theta)

    _, pullbacks = jax.lax.scan(body, THETA, None, length=2)
    return jnp.sum(jax.vmap(lambda pullback: pullback(eta)[0])(pullbacks) ** 2)


def with_pullbacks_out_of_a_vmap(eta: Any) -> Any:
    def make(theta: Any) -> Any:
        return jax.vjp(lambda t: jnp.sin(t * eta) * t, theta)[1]

    pullbacks = jax.vmap(make)(jnp.stack([THETA, 2 * THETA]))
    return jnp.sum(jax.vmap(lambda pullback: pullback(eta)[0])(pullbacks) ** 2)


def with_a_pullback_as_auxiliary_data(eta: Any) -> Any:
    def squared(theta: Any) -> Any:
        value, pullback = jax.vjp(lambda t: jnp.sin(t * eta), theta)
        return jnp.sum(value**2), pullback

    gradient, pullback = jax.grad(squared, has_aux=True)(THETA)
    return jnp.sum(gradient**2) + jnp.sum(pullback(gradient)[0] ** 2)


def with_pullback_carried_by_tree_map(eta: Any) -> Any:
    value, pullback = jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, THETA)
    rebuilt = jax.tree.map(lambda leaf: leaf, pullback)
    return jnp.sum(rebuilt(value)[0] ** 2)


def with_pullback_after_checkpoint(eta: Any) -> Any:
    @jax.checkpoint
    def step(theta: Any) -> Any:
        value, pullback = jax.vjp(lambda theta: jnp.tanh(theta * eta) * theta, theta)
        return theta - 0.1 * pullback(value)[0]

    return jnp.sum(step(step(THETA)) ** 2)


def with_grad_inside_an_inner_jit(eta: Any) -> Any:
    step = jax.jit(lambda theta, eta: theta - 0.1 * jax.jit(jax.grad(loss))(theta, eta))
    return jnp.sum(step(step(THETA, eta), eta) ** 2)


def with_grad_of_an_inner_jit(eta: Any) -> Any:
    return jnp.sum(jax.grad(jax.jit(loss))(THETA, eta) ** 2)


def with_grad_of_a_donating_jit(eta: Any) -> Any:
    return jnp.sum(jax.grad(jax.jit(loss, donate_argnums=1))(THETA, eta * 2) ** 2)


def with_argnums(eta: Any) -> Any:
    theta_bar, eta_bar = jax.grad(loss, argnums=(0, 1))(THETA, eta)
    return jnp.sum(theta_bar * eta_bar)


def with_negative_argnums(eta: Any) -> Any:
    return jnp.sum(jax.grad(loss, argnums=-1)(THETA, eta) ** 2)


def with_gradients_of_each_other(eta: Any) -> Any:
    """∂/∂θ of the norm of ∂/∂η."""

    def norm(theta: Any) -> Any:
        return jnp.sum(jax.grad(loss, argnums=1)(theta, eta) ** 2)

    return jnp.sum(jax.grad(norm)(THETA) ** 2)


def with_the_same_tracer_twice(eta: Any) -> Any:
    left, right = jax.grad(loss, argnums=(0, 1))(eta, eta)
    return jnp.sum(left * right)


def with_repeated_leaves(eta: Any) -> Any:
    gradient = jax.grad(lambda trees: loss(trees[0], trees[1]) * jnp.sum(trees[2]))
    return sum(jnp.sum(leaf**2) for leaf in gradient([eta, eta, eta]))


def with_kwargs(eta: Any) -> Any:
    return jnp.sum(jax.grad(loss)(THETA, eta=eta) ** 2)


def with_a_partial(eta: Any) -> Any:
    return jnp.sum(jax.grad(functools.partial(loss, eta=eta))(THETA) ** 2)


def with_a_bound_method(eta: Any) -> Any:
    class Model:
        def loss(self, theta: Any) -> Any:
            return loss(theta, eta)

    return jnp.sum(jax.grad(Model().loss)(THETA) ** 2)


def with_a_callable_object(eta: Any) -> Any:
    class Loss:
        def __call__(self, theta: Any) -> Any:
            return loss(theta, eta)

    return jnp.sum(jax.grad(Loss())(THETA) ** 2)


def with_nested_closures(eta: Any) -> Any:
    scale = jnp.sum(eta**2)

    def outer(theta: Any) -> Any:
        shift = theta * scale

        def inner(phi: Any) -> Any:
            return loss(phi * shift, eta) * scale

        return jnp.sum(jax.grad(inner)(theta) ** 2)

    return jnp.sum(jax.grad(outer)(THETA) ** 2)


def with_the_identity(eta: Any) -> Any:
    value, pullback = jax.vjp(lambda theta, eta: (theta, eta, eta), THETA, eta)
    return sum(jnp.sum(bar**2) for bar in pullback(jax.tree.map(jnp.sin, value)))


def with_outputs_that_do_not_depend(eta: Any) -> Any:
    value, pullback = jax.vjp(lambda theta: (jnp.ones(2), eta * 2, theta * eta), THETA)
    return jnp.sum(pullback((jnp.ones(2), eta, eta**2))[0] ** 2) + jnp.sum(value[1])


def with_no_dependence_at_all(eta: Any) -> Any:
    return jnp.sum(jax.grad(lambda theta: jnp.sum(eta))(THETA)) + with_grad(eta)


def with_none_in_the_tree(eta: Any) -> Any:
    tree = {"w": THETA, "bias": None, "rest": ()}
    gradient = jax.grad(lambda tree: loss(tree["w"], eta))(tree)
    assert gradient["bias"] is None
    return jnp.sum(gradient["w"] ** 2)


def with_zero_size_arrays(eta: Any) -> Any:
    tree = {"w": THETA, "empty": jnp.zeros((0, 3))}
    gradient = jax.grad(lambda tree: loss(tree["w"], eta) + jnp.sum(tree["empty"]))(tree)
    return jnp.sum(gradient["w"] ** 2) + jnp.sum(gradient["empty"])


def with_numpy_constants(eta: Any) -> Any:
    matrix = np.arange(9.0).reshape(3, 3) / 7
    return jnp.sum(jax.grad(lambda theta: loss(matrix @ theta, eta))(np.ones(3)) ** 2)


def with_python_scalars(eta: Any) -> Any:
    return jax.grad(lambda x, y: jnp.sum(jnp.sin(x * eta)) * y)(2.0, 3) ** 2


def with_mixed_precision(eta: Any) -> Any:
    half = THETA.astype(jnp.bfloat16)
    gradient = jax.grad(lambda w, v: jnp.sum(jnp.tanh(w.astype(jnp.float32) * v) * eta), (0, 1))
    low, single = gradient(half, THETA.astype(jnp.float32))
    assert (low.dtype, single.dtype) == (jnp.bfloat16, jnp.float32)
    return jnp.sum(low.astype(jnp.float64) * single)


def with_an_integer_primal(eta: Any) -> Any:
    def indexed(theta: Any, index: Any) -> Any:
        return jnp.sin(theta * eta)[index] * theta[0]

    gradient, nothing = jax.grad(indexed, argnums=(0, 1), allow_int=True)(THETA, jnp.array(1))
    assert nothing.dtype == jax.dtypes.float0
    return jnp.sum(gradient**2)


def with_an_integer_output(eta: Any) -> Any:
    def f(theta: Any) -> Any:
        return jnp.sin(theta * eta), jnp.argmax(theta)

    (value, index), pullback = jax.vjp(f, THETA)
    bar = pullback((value, np.zeros((), jax.dtypes.float0)))[0]
    return jnp.sum(bar**2) * (index + 1)


def with_complex_numbers(eta: Any) -> Any:
    def f(z: Any) -> Any:
        return jnp.sum(z**3 * (eta + 1j))

    return jnp.sum(jnp.abs(jax.grad(f, holomorphic=True)(THETA + 1j * eta)) ** 2)


def with_a_real_loss_of_complex_numbers(eta: Any) -> Any:
    gradient = jax.grad(lambda z: jnp.sum(jnp.abs(z * eta) ** 2 * jnp.real(z)))
    return jnp.sum(jnp.abs(gradient(THETA + 2j)) ** 2)


def with_an_integer_tracer_closed_over(eta: Any) -> Any:
    def body(total: Any, index: Any) -> Any:
        return total + jax.grad(lambda theta: loss(theta, eta * index))(THETA), None

    return jnp.sum(jax.lax.scan(body, jnp.zeros(3), jnp.arange(3))[0] ** 2)


def with_a_key_tracer_closed_over(eta: Any) -> Any:
    def body(theta: Any, key: Any) -> Any:
        def noisy(theta: Any) -> Any:
            return loss(theta + jax.random.normal(key, (3,)), eta)

        return theta - 0.1 * jax.grad(noisy)(theta), None

    return jnp.sum(jax.lax.scan(body, THETA, jax.random.split(jax.random.key(0), 2))[0] ** 2)


def with_a_key_primal(eta: Any) -> Any:
    def noisy(theta: Any, key: Any) -> Any:
        return loss(theta + jax.random.normal(key, (3,)), eta)

    _, pullback = jax.vjp(noisy, THETA, jax.random.key(1))
    theta_bar, key_bar = pullback(jnp.ones(()))
    assert key_bar.dtype == jax.dtypes.float0
    return jnp.sum(theta_bar**2)


class Parameters(NamedTuple):
    """A tree of named leaves."""

    weight: Any
    rate: Any


def with_a_named_tuple(eta: Any) -> Any:
    gradient = jax.grad(lambda p: loss(p.weight, eta) * p.rate)(Parameters(THETA, eta[0]))
    assert isinstance(gradient, Parameters)
    return jnp.sum(gradient.weight**2) + gradient.rate


FORMS = [value for name, value in list(globals().items()) if name.startswith("with_")]


# Pullbacks that are called deeper than they were made share one forward pass: JAX's own.
SHARED = [
    with_jacrev,
    with_pullback_in_a_deeper_scan,
    with_pullback_in_an_inner_jit,
    with_pullback_under_vmap,
]
MAPPED_AGAIN = [with_hessian, with_jacrev_of_grad, with_jacfwd_of_grad]


@pytest.mark.parametrize("meta_loss", FORMS, ids=lambda f: f.__name__.removeprefix("with_"))
def test_meta_gradient_is_that_of_plain_jax(meta_loss: Any) -> None:
    tolerance = 1e-6 if meta_loss is with_mixed_precision else 1e-9  # it rounds to float32
    captured = meta_loss not in SHARED
    trace = assert_same_meta_gradient(meta_loss, ETA, captured=captured, tolerance=tolerance)
    assert trace.num_captured > 0


def test_a_pullback_that_is_never_called_leaves_the_value() -> None:
    def meta_loss(eta: Any) -> Any:
        return jax.vjp(loss, THETA, eta)[0]

    trace = assert_same_meta_gradient(meta_loss, ETA, captured=False)
    assert trace.num_captured == 1
    assert primitives(trace.jaxpr)["mixflow_primal"] == 1


@pytest.mark.parametrize(
    "meta_loss",
    [form for form in FORMS if form not in [*SHARED, *MAPPED_AGAIN]],
    ids=lambda f: f.__name__.removeprefix("with_"),
)
def test_nothing_is_declined(meta_loss: Any) -> None:
    assert not captures(meta_loss, ETA).declines


@pytest.mark.parametrize("meta_loss", SHARED, ids=lambda f: f.__name__.removeprefix("with_"))
def test_a_shared_forward_pass_is_reported(meta_loss: Any) -> None:
    assert "one forward pass" in reasons(captures(meta_loss, ETA))


def auxiliary(kind: str, theta: Any, eta: Any) -> Any:
    return {
        "array": jnp.ones(2),
        "tracer": theta * eta,
        "python scalar": 3.5,
        "string": {"name": "loss", "value": theta},
        "none": None,
        "integer tracer": jnp.argmax(theta * eta),
        "key": jax.random.key(3),
        "primal": theta,
        "closed over": eta,
        "function": [jnp.sin, theta],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["array", "tracer", "python scalar", "string", "none", "integer tracer", "key", "primal",
     "closed over", "function"],
)  # fmt: skip
def test_auxiliary_data_reaches_the_caller_and_the_outer_gradient(kind: str) -> None:
    def meta_loss(eta: Any) -> Any:
        def with_aux(theta: Any) -> Any:
            return loss(theta, eta), auxiliary(kind, theta, eta)

        (_, aux), gradient = jax.value_and_grad(with_aux, has_aux=True)(THETA)
        leaves = [leaf for leaf in jax.tree.leaves(aux) if isinstance(leaf, jax.Array | float)]
        numbers = [x for x in leaves if jnp.issubdtype(jnp.asarray(x).dtype, jnp.number)]
        return jnp.sum(gradient**2) + sum(jnp.sum(x * 1.5) for x in numbers)

    assert_same_meta_gradient(meta_loss, ETA)


def test_auxiliary_data_keeps_its_python_values() -> None:
    def meta_loss(eta: Any) -> Any:
        gradient, aux = jax.grad(lambda t: (loss(t, eta), (1, "two", None)), has_aux=True)(THETA)
        assert aux == (1, "two", None)
        return jnp.sum(gradient**2)

    assert_same_meta_gradient(meta_loss, ETA)


def test_auxiliary_data_of_vjp() -> None:
    def meta_loss(eta: Any) -> Any:
        value, pullback, aux = jax.vjp(lambda t: (t * eta, jnp.sum(t * eta)), THETA, has_aux=True)
        return jnp.sum(pullback(value * aux)[0] ** 2)

    assert_same_meta_gradient(meta_loss, ETA)


def test_several_arguments_of_the_outer_gradient() -> None:
    def meta_loss(eta: Any, theta: Any) -> Any:
        return jnp.sum((theta - 0.1 * jax.grad(loss)(theta, eta)) ** 2)

    assert_same_meta_gradient(meta_loss, ETA, THETA, argnums=(0, 1))


def test_compiled_outputs_may_be_any_tree() -> None:
    def step(eta: Any) -> Any:
        return {"gradient": jax.grad(loss)(THETA, eta), "none": None, "number": 2}

    assert_close(compiled(step)(ETA), jax.jit(step)(ETA))


WEAKLY: dict[str, Any] = {
    "itself": lambda x: x,
    "clip": lambda x: jnp.clip(x, 0.0, 1.0),
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "stack": lambda x: jnp.stack([x, 1.0])[0],
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "product": lambda x: x * jnp.float32(3),
}


@pytest.mark.parametrize("cotangent", [0.25, jnp.float32(0.25)], ids=["weak", "strong"])
@pytest.mark.parametrize("point", [0.5, jnp.float32(0.5)], ids=["weak", "strong"])
@pytest.mark.parametrize("f", WEAKLY.values(), ids=WEAKLY)
def test_a_gradient_is_as_weakly_typed_as_jax_s(f: Any, point: Any, cotangent: Any) -> None:
    """That depends on the point, on the cotangent and on the rules in between."""

    def step(point: Any, cotangent: Any) -> Any:
        value, pullback = jax.vjp(f, point)
        return pullback(cotangent * jnp.ones_like(value).astype(value.dtype))

    def types(step: Any) -> Any:
        args = point, cotangent
        return [(x.dtype, x.weak_type) for x in jax.tree.leaves(jax.eval_shape(step, *args))]

    with jax.enable_x64(False):
        assert types(compiled(step)) == types(step)


@pytest.mark.parametrize("scale", [2, 2.0, np.float32(2), np.float64(2)], ids=repr)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_types_are_those_of_plain_jax(dtype: Any, scale: Any) -> None:
    """A weak type that was lost would promote bfloat16 to float32 or float64."""

    def step(theta: Any) -> Any:
        value, pullback = jax.vjp(lambda t, s: (t * s, t + s * 3.0, jnp.sin(s)), theta, scale)
        bars = pullback(jax.tree.map(jnp.ones_like, value))
        gradient = jax.grad(lambda t: jnp.sum(t * 2.0) * 3)(theta)
        rate = jax.grad(lambda r: jnp.sum(theta * r))(0.5)
        return value, bars, [gradient, theta * rate, rate]

    theta = jnp.ones(2, dtype)
    expected = jax.tree.leaves(jax.eval_shape(step, theta))
    found = jax.tree.leaves(jax.eval_shape(compiled(step), theta))
    assert [(x.dtype, x.weak_type) for x in found] == [(x.dtype, x.weak_type) for x in expected]
    assert primitives(captures(step, theta).jaxpr)["mixflow_vjp"] == 3


@pytest.mark.parametrize(
    "cotangent",
    [(1.0,), jnp.ones(2), jnp.ones(3, jnp.int32), jnp.ones(3, jnp.float32), None, "w"],
    ids=repr,
)
def test_a_cotangent_that_does_not_fit_raises_what_jax_raises(cotangent: Any) -> None:
    def wrong(eta: Any) -> Any:
        return jax.vjp(lambda theta: theta * eta, THETA)[1](cotangent)

    with pytest.raises((TypeError, ValueError)) as expected:
        jax.jit(wrong)(ETA)
    with pytest.raises(expected.type) as found:
        compiled(wrong)(ETA)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda eta: jax.grad(lambda t: t * eta)(THETA), id="not a scalar"),
        pytest.param(lambda eta: jax.grad(jnp.argmax)(THETA), id="integer loss"),
        pytest.param(lambda eta: jax.grad(lambda t: eta[0])(jnp.arange(3)), id="integer point"),
        pytest.param(lambda eta: jax.grad(lambda t: "loss")(THETA), id="no array"),
        pytest.param(lambda eta: jax.grad(lambda t: None)(THETA), id="nothing"),
        pytest.param(lambda eta: jax.grad(loss, argnums=2)(THETA, eta), id="no such argument"),
        pytest.param(lambda eta: jax.grad(loss)("theta", eta), id="a string to differentiate"),
        pytest.param(lambda eta: jax.grad(loss, has_aux=True)(THETA, eta), id="no pair"),
        pytest.param(lambda eta: jax.vjp(loss, THETA), id="too few arguments"),
        pytest.param(lambda eta: jax.vjp(3, THETA), id="not callable"),
        pytest.param(lambda eta: jax.vjp(loss, THETA, eta, reduce_axes="i"), id="reduce_axes"),
        pytest.param(lambda eta: jax.vjp(loss, THETA, eta, nonsense=1), id="unknown option"),
        pytest.param(lambda eta: jax.vjp(loss, THETA, eta)[1](1.0, 2.0), id="two cotangents"),
        pytest.param(lambda eta: jax.vjp(loss, THETA, eta)[1](), id="no cotangent"),
        pytest.param(lambda eta: jax.vjp(loss, THETA, eta)[1].nonsense, id="no such attribute"),
    ],
)
def test_a_wrong_call_raises_what_jax_raises(wrong: Any) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011
        jax.jit(wrong)(ETA)
    with pytest.raises(expected.type) as found:
        compiled(wrong)(ETA)
    message = str(expected.value).splitlines()[0].removeprefix("VJP")
    assert str(found.value).splitlines()[0].removeprefix("Pullback") == message


def test_a_point_with_no_active_leaf_is_left_to_jax() -> None:
    def step(eta: Any) -> Any:
        _, pullback = jax.vjp(lambda index: eta[index], jnp.array(1))
        assert pullback(jnp.ones(()))[0].dtype == jax.dtypes.float0
        return eta

    assert "no primal has a derivative" in reasons(captures(step, ETA))


def test_no_primals_at_all() -> None:
    def step(eta: Any) -> Any:
        value, pullback = jax.vjp(lambda: eta * 2)
        assert pullback(value) == ()
        return value

    assert_close(compiled(step)(ETA), step(ETA))


def test_the_loss_is_traced_once() -> None:
    calls = []

    def meta_loss(eta: Any) -> Any:
        def counted(theta: Any) -> Any:
            calls.append(theta)
            return loss(theta, eta)

        return jnp.sum(jax.grad(counted)(THETA) ** 2)

    captures(meta_loss, ETA)
    assert len(calls) == 1


def test_a_vjp_bound_before_the_import_of_mixflow_is_not_captured() -> None:
    def meta_loss(eta: Any) -> Any:
        value, pullback = VJP_OF_JAX(loss, THETA, eta)
        return jnp.sum(pullback(value)[0] ** 2)

    assert assert_same_meta_gradient(meta_loss, ETA, captured=False).num_captured == 0


def test_a_linear_function_of_the_gradient_in_two_dtypes() -> None:
    """The outer gradient of a float32 inner loop is float32."""

    def meta_loss(eta: Any) -> Any:
        theta = jnp.ones(3, jnp.float32)
        for _ in range(2):
            theta = theta - jnp.float32(0.1) * jax.grad(loss)(theta, eta)
        return jnp.sum(theta**2)

    assert_same_meta_gradient(meta_loss, ETA.astype(jnp.float32), tolerance=1e-5)


def test_jacrev_of_a_scalar_function_is_its_gradient() -> None:
    def meta(transform: Any) -> Any:
        def of(eta: Any) -> Any:
            return jnp.sum(jnp.sin(transform(loss)(THETA, eta)))

        return of

    found = captures(meta(jax.jacrev), ETA)
    assert not found.declines
    assert primitives(found.jaxpr)["mixflow_vjp"] == 1
    for outside in (jax.value_and_grad, jax.hessian):
        f = outside(meta(jax.jacrev))
        assert_close(compiled(f)(ETA), jax.jit(outside(meta(jax.grad)))(ETA))
