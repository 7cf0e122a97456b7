"""`mixflow.compile` behaves as `jax.jit` does, whatever way it is used."""

from __future__ import annotations

import functools
import inspect
import re
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import assert_close, primitives
from support import compiled as rewritten

import mixflow

X = jnp.array([0.5, -1.5, 2.0])
THETA = jnp.array([0.3, 0.2, -0.4])


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def meta(eta, theta=THETA, *, rate=0.1, steps=2):
    """A meta-loss: two gradient steps in a loop."""

    def step(theta, _):
        return theta - rate * jax.grad(loss)(theta, eta), None

    return jnp.sum(jax.lax.scan(step, theta, None, length=steps)[0] ** 2)


@functools.cache
def plain():
    return jax.jit(jax.value_and_grad(meta))(X)


# --- ways to write it -----------------------------------------------------------------------


def test_bare():
    @mixflow.compile
    def f(eta):
        """What it does."""
        return meta(eta)

    assert isinstance(f, mixflow.CompiledFunction)
    assert (f.__name__, f.__doc__) == ("f", "What it does.")
    assert list(inspect.signature(f).parameters) == ["eta"]
    assert "f" in repr(f)
    assert_close(f(X), plain()[0])


def test_with_options():
    @mixflow.compile(passes="canonicalize", static_argnames="steps")
    def f(eta, steps):
        return meta(eta, steps=steps)

    assert f.options.passes == "canonicalize"
    assert_close(f(X, steps=2), plain()[0])
    assert_close(f(X, 2), plain()[0])


def test_on_a_gradient():
    assert_close(mixflow.compile(jax.grad(meta))(X), plain()[1])
    assert "symmetric rule" in rewritten(jax.grad(meta)).ir(X)


@pytest.mark.parametrize(
    "f",
    [functools.partial(meta, rate=0.2), jax.jit(meta), mixflow.compile(meta), jax.vmap(meta)],
    ids=["partial", "jit", "compile", "vmap"],
)
def test_on_any_callable(f):
    x = X[None] if f.__class__.__name__ == "function" and f is not meta else X
    assert_close(mixflow.compile(f)(x), jax.jit(f)(x))
    assert_close(mixflow.compile(f).lower(x).compile()(x), jax.jit(f)(x))
    assert "jaxpr.scan" in mixflow.compile(f).ir(x)


def test_on_a_callable_object():
    class Model:
        lower = 3  # a name that CompiledFunction has as well

        def __init__(self):
            self.trace = 4

        def __call__(self, eta):
            return meta(eta)

    f = mixflow.compile(Model())
    assert_close(f(X), plain()[0])
    assert_close(f.lower(X).compile()(X), plain()[0])
    assert f.trace(X).jaxpr.in_avals == [jax.typeof(X)]


def test_as_a_method_decorator():
    class Trainer:
        def __init__(self, rate):
            self.rate = rate

        @mixflow.compile(static_argnums=0)
        def evaluate(self, eta):
            """The meta-loss at my rate."""
            return meta(eta, rate=self.rate)

        @staticmethod
        @mixflow.compile
        def static(eta):
            return meta(eta)

        @classmethod
        @mixflow.compile(static_argnums=0)
        def of_the_class(cls, eta):
            return meta(eta)

    one, two = Trainer(0.1), Trainer(0.2)
    assert_close(one.evaluate(X), plain()[0])
    assert_close(two.evaluate(X), meta(X, rate=0.2))
    assert_close(Trainer.evaluate(two, X), meta(X, rate=0.2))
    assert_close(jax.grad(one.evaluate)(X), plain()[1])
    assert_close(Trainer.static(X), plain()[0])
    assert_close(Trainer.of_the_class(X), plain()[0])
    assert one.evaluate.__doc__ == "The meta-loss at my rate."


def test_as_a_method_of_a_pytree():
    @jax.tree_util.register_dataclass
    @__import__("dataclasses").dataclass
    class Model:
        eta: Any

        @mixflow.compile
        def evaluate(self, theta):
            return meta(self.eta, theta)

    assert_close(Model(X).evaluate(THETA), plain()[0])
    gradient = jax.grad(lambda model: model.evaluate(THETA))(Model(X))
    assert_close(gradient.eta, plain()[1])


# --- jit's options --------------------------------------------------------------------------


def test_static_argnums_and_argnames():
    def f(eta, steps, name):
        return meta(eta, steps=steps) * {"a": 1, "b": 2}[name]

    by_number = mixflow.compile(f, static_argnums=(1, 2))
    by_name = mixflow.compile(f, static_argnames=("steps", "name"))
    for compiled in (by_number, by_name):
        assert_close(compiled(X, 2, "b"), 2 * plain()[0])
        assert_close(compiled(X, 2, name="a"), plain()[0])
        assert_close(jax.grad(compiled)(X, 2, "a"), plain()[1])
        assert_close(compiled.lower(X, 2, "a").compile()(X), plain()[0])
        assert "2 steps" in compiled.ir(X, 2, "a")
        assert "5 steps" in compiled.ir(X, 5, "a")


def test_a_static_argument_that_is_a_container_or_none():
    f = mixflow.compile(lambda eta, option: meta(eta) * (option or (3,))[0], static_argnums=1)
    assert_close(f(X, None), 3 * plain()[0])
    assert_close(f(X, (2,)), 2 * plain()[0])
    with pytest.raises(ValueError, match=r"[Hh]ash"):
        f(X, [2])


def test_donated_buffers_are_given_up():
    @mixflow.compile(donate_argnums=1)
    def step(eta, theta):
        return theta - 0.1 * jax.grad(loss)(theta, eta)

    theta = jnp.array(THETA)
    expected = THETA - 0.1 * jax.grad(loss)(THETA, X)
    assert_close(step(X, theta), expected)
    assert theta.is_deleted()
    assert not X.is_deleted()
    memory: Any = step.lower(X, THETA).compile().memory_analysis()
    assert memory.alias_size_in_bytes == THETA.nbytes


def test_donate_argnames():
    step = mixflow.compile(lambda eta, theta: theta + eta, donate_argnames="theta")
    theta = jnp.array(THETA)
    step(X, theta=theta)
    assert theta.is_deleted()


def test_keyword_arguments():
    f = mixflow.compile(meta)
    assert_close(f(X, rate=0.2), meta(X, rate=0.2))
    assert_close(f(eta=X, theta=2 * THETA), meta(X, 2 * THETA))
    assert_close(f(X, rate=jnp.array(0.2)), f(X, rate=0.2))
    assert_close(jax.grad(f)(X, rate=0.2), jax.grad(meta)(X, rate=0.2))


def test_shardings():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    f = mixflow.compile(jax.grad(meta), in_shardings=sharding, out_shardings=sharding)
    assert_close(f(X), plain()[1])
    assert f(X).sharding == sharding
    assert f(jax.device_put(X, sharding)).sharding == sharding


def test_compiler_options_of_the_user_s_own():
    options = {"xla_embed_ir_in_executable": False}
    assert_close(jax.jit(meta, compiler_options=options)(X), plain()[0])
    f = mixflow.compile(meta, compiler_options=options)
    assert_close(f(X), plain()[0])
    assert_close(jax.grad(f)(X), plain()[1])


def test_an_unknown_option_is_an_error():
    with pytest.raises((TypeError, mixflow.InputError), match="no_such_option"):
        mixflow.compile(meta, no_such_option=1)


# --- under transformations ------------------------------------------------------------------


def test_under_jit_grad_vmap_and_their_compositions():
    f = mixflow.compile(meta)
    xs = jnp.stack([X, -X])
    assert_close(jax.jit(jax.value_and_grad(f))(X), plain())
    assert_close(jax.grad(f)(X), plain()[1])
    assert_close(jax.jit(jax.vmap(jax.grad(f)))(xs), jax.jit(jax.vmap(jax.grad(meta)))(xs))
    assert_close(jax.jit(jax.grad(lambda xs: jax.vmap(f)(xs).sum()))(xs)[0], plain()[1])
    assert_close(jax.jvp(f, (X,), (X,))[1], plain()[1] @ X)
    assert_close(jax.checkpoint(f)(X), plain()[0])
    assert_close(jax.lax.map(f, xs)[0], plain()[0])


def test_under_shard_map():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    f = mixflow.compile(lambda eta, theta: jax.lax.pmean(meta(eta, theta), "d"))
    spec = PartitionSpec("d")
    sharded = jax.shard_map(f, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec())
    assert_close(jax.jit(sharded)(X, THETA), plain()[0])
    assert_close(jax.jit(jax.grad(sharded))(X, THETA), plain()[1])


def test_around_shard_map():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = PartitionSpec("d")

    def f(eta, theta):
        def local(eta, theta):
            return jax.lax.pmean(meta(eta, theta), "d")

        return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec())(
            eta, theta
        )

    compiled = mixflow.compile(jax.value_and_grad(f))
    assert_close(compiled(X, THETA), plain())
    outcome = compiled.optimised(X, THETA)
    assert outcome.rewrites or outcome.declines, "nothing was done, and nobody is told"


def test_inside_another_compiled_function_the_whole_is_optimised():
    inner = mixflow.compile(meta)
    text = rewritten(jax.grad(inner)).ir(X)
    assert "symmetric rule" in text
    assert "jaxpr.checkpoint" in text
    assert_close(mixflow.compile(jax.grad(inner))(X), plain()[1])
    assert_close(mixflow.compile(lambda x: jax.jit(inner)(x) * 2)(X), 2 * plain()[0])


def test_inside_another_compiled_function_python_scalars_are_traced():
    inner = mixflow.compile(lambda x, n: meta(x) * n.astype(float))
    assert_close(mixflow.compile(lambda x: inner(x, 2))(X), 2 * plain()[0])


def test_inside_a_gradient_a_function_is_optimised_for_being_differentiated():
    f = rewritten(meta)
    pushed = jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,)))(X)
    assert primitives(pushed)["mixflow_pushforward"] >= 1
    pulled = primitives(jax.make_jaxpr(jax.grad(f))(X))
    assert pulled["checkpoint"] + pulled["remat2"] >= 1


def test_without_jit():
    f = mixflow.compile(jax.value_and_grad(meta))
    with jax.disable_jit():
        assert_close(f(X), plain())


def test_without_jit_values_may_steer_python():
    @mixflow.compile
    def either(x):
        value, gradient = jax.value_and_grad(meta)(x)
        return gradient if value > 0 else x

    with jax.disable_jit():
        assert_close(either(X), plain()[1] if plain()[0] > 0 else X)


def test_with_jax_s_own_checks():
    with jax.enable_checks(True):
        assert_close(mixflow.compile(jax.value_and_grad(meta))(X), plain())
        assert_close(jax.value_and_grad(mixflow.compile(meta))(X), plain())


def test_with_leak_checks():
    with jax.checking_leaks():
        assert_close(mixflow.compile(jax.value_and_grad(lambda x: meta(x, rate=0.1)))(X), plain())


def test_threads_do_not_disturb_one_another():
    results: dict[int, Any] = {}

    def work(place):
        f = mixflow.compile if place % 2 else jax.jit
        results[place] = f(jax.value_and_grad(lambda x: meta(x) * 1.0))(X)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(4):
        assert_close(results[place], plain())


def test_jax_s_gradients_are_plain_outside():
    mixflow.compile(meta)(X)
    assert "mixflow" not in str(jax.make_jaxpr(jax.grad(meta))(X))


# --- lower, ir, eval_shape -------------------------------------------------------------------


def test_lower_and_compile():
    compiled: Any = mixflow.compile(jax.value_and_grad(meta)).lower(X).compile()
    assert_close(compiled(X), plain())
    assert compiled.memory_analysis().temp_size_in_bytes >= 0
    assert compiled.cost_analysis()["flops"] > 0


def test_lower_for_shapes():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    f = mixflow.compile(jax.value_and_grad(meta))
    assert_close(f.lower(shape).compile()(X), plain())
    assert f.ir(shape) == f.ir(X)
    assert "mixflow.vjp" in f.ir(shape, before=True)
    value, gradient = f.eval_shape(shape)
    assert (value.shape, gradient.shape, gradient.dtype) == ((), (3,), X.dtype)


def test_ir_does_not_run_or_disturb_the_function():
    calls = []

    def f(eta):
        calls.append(0)
        return meta(eta)

    compiled = mixflow.compile(f)
    first = compiled.ir(X)
    assert first == compiled.ir(X)
    assert "func.func @main" in first
    compiled(X)
    assert first == compiled.ir(X)


def test_example_args():
    @mixflow.compile
    def f(eta):
        return meta(eta)

    @f.example_args
    def _():
        return (X,)

    assert f.examples is not None
    assert f.examples[0] is X
    assert mixflow.compile(meta).examples is None
    f.example_args(lambda: X)
    with pytest.raises(mixflow.InputError, match="tuple"):
        assert f.examples


# --- caching ---------------------------------------------------------------------------------


@pytest.fixture
def counted():
    calls: list[Any] = []

    def f(eta, theta=THETA):
        calls.append(jax.typeof(eta))
        return meta(eta, theta)

    return f, calls


def test_one_trace_for_each_signature(counted):
    f, calls = counted
    compiled = mixflow.compile(f)
    for scale in range(3):
        compiled(scale * X)
    assert len(calls) == 1
    compiled(X.astype(jnp.float32))
    compiled(X.astype(jnp.float32) * 2)
    assert len(calls) == 2
    compiled(X[:1], THETA[:1])
    assert len(calls) == 3
    compiled(X)
    assert len(calls) == 3


def test_one_trace_for_all_calls_under_one_transformation(counted):
    f, calls = counted
    gradient = jax.jit(jax.grad(mixflow.compile(f)))
    for scale in range(3):
        gradient(scale * X)
    assert len(calls) == 1


def test_eager_gradients_trace_once(counted):
    f, calls = counted
    compiled = mixflow.compile(f)
    for scale in range(3):
        jax.grad(compiled)(scale * X)
    assert len(calls) == 1


def test_a_loss_is_traced_once(counted):
    f, calls = counted
    mixflow.compile(jax.value_and_grad(f))(X)
    assert len(calls) == 1


def test_static_values_are_part_of_the_signature(counted):
    f, calls = counted
    compiled = mixflow.compile(lambda x, n: f(x) * n, static_argnums=1)
    for n in (1, 2, 1):
        compiled(X, n)
    assert len(calls) == 2


def test_lowering_and_calling_share_a_trace(counted):
    f, calls = counted
    compiled = mixflow.compile(f)
    compiled.lower(X)
    compiled(X)
    assert len(calls) == 1


# --- errors ----------------------------------------------------------------------------------


class OwnError(Exception):
    pass


@pytest.mark.parametrize("where", ["function", "loss", "loop"])
def test_the_user_s_exceptions_surface(where):
    def bad_loss(theta):
        if where == "loss":
            raise OwnError("here")
        return jnp.sum(theta)

    def f(x):
        if where == "function":
            raise OwnError("here")

        def body(c, _):
            if where == "loop":
                raise OwnError("here")
            return c, None

        return jax.lax.scan(body, jax.grad(bad_loss)(x), None, length=2)[0]

    compiled = mixflow.compile(f)
    for call in (compiled, jax.jit(compiled), compiled.lower, compiled.ir, compiled.eval_shape):
        with pytest.raises(OwnError, match="here"):
            call(X)
    with pytest.raises(OwnError, match="here"):
        compiled(X)  # and a second time


def test_after_an_exception_everything_works():
    def bad(_):
        raise OwnError

    with pytest.raises(OwnError):
        mixflow.compile(jax.grad(bad))(X)
    assert_close(mixflow.compile(meta)(X), plain()[0])
    assert "mixflow" not in str(jax.make_jaxpr(jax.grad(meta))(X))


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (jax.grad(lambda y: y), (X,)),  # not a scalar
        (jax.grad(lambda y: y), (1,)),  # an integer
        (lambda x: jax.vjp(jnp.sin, x)[1](jnp.ones(2)), (X,)),  # a cotangent of another shape
        (lambda x: x if x[0] > 0 else -x, (X,)),
        (lambda x: "text", (X,)),
        (lambda x: x, ("text",)),
        (lambda x, y: x, (X,)),
    ],
)
def test_errors_are_those_of_jit(f, args):
    with pytest.raises(Exception) as expected:  # noqa: PT011
        jax.jit(f)(*args)
    with pytest.raises(expected.type) as caught:
        mixflow.compile(f)(*args)
    assert first_line(caught.value) == first_line(expected.value)


def first_line(error: BaseException) -> str:
    return re.sub("0x[0-9a-f]+", "", str(error).splitlines()[0])


# --- pytrees and types -----------------------------------------------------------------------


class Pair(NamedTuple):
    a: Any
    b: Any


def test_pytrees_with_none_and_named_tuples():
    def f(pair, extra):
        assert extra["none"] is None
        gradient = jax.grad(lambda p: loss(p.a, p.b["x"]))(pair)
        return Pair(gradient, None), [{}, (), None, gradient.b], {"none": None, "a": pair.a}

    args = (Pair(THETA, {"x": X, "nothing": None}), {"none": None, "k": (X, [])})
    expected, result = jax.jit(f)(*args), mixflow.compile(f)(*args)
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    assert isinstance(result[0], Pair)
    assert_close(result, expected)


def types(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype, jax.typeof(x).weak_type) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (1, 2.0, True, 1j),
        lambda x: (np.float32(1), np.int8(2), np.ones(2, np.float16), jnp.ones(2)),
        lambda x: (x, x + 1, x.astype(int), x > 0, x.shape[0]),
        lambda x: (x[0] * 2, jnp.asarray(3), jnp.asarray(3.0), 2.0 * 1),
        lambda x: jax.grad(lambda y, k: y * k)(1.0, x[0]),
        lambda x: jax.grad(lambda y, k: y * k)(2.0, 3.0),
        lambda x: jax.value_and_grad(lambda y: jnp.sin(y * 2.0))(0.5),
        lambda x: jax.value_and_grad(lambda y: jnp.sum(y * 2.0))(x.astype(jnp.bfloat16)),
    ],
)
def test_results_have_the_types_that_jit_gives(f):
    assert types(mixflow.compile(f)(X)) == types(jax.jit(f)(X))
    assert types(jax.jit(mixflow.compile(f))(X)) == types(jax.jit(f)(X))
    assert_close(mixflow.compile(f)(X), jax.jit(f)(X))


@pytest.mark.parametrize("x", [1, 2.0, True, 1j, np.float32(3), np.arange(3.0)], ids=repr)
def test_arguments_of_every_kind(x):
    def f(x):
        return (x * 2, x)

    assert types(mixflow.compile(f)(x)) == types(jax.jit(f)(x))


def test_keys_as_arguments_and_results():
    def f(key):
        return (jax.random.split(key), jax.grad(lambda x: x * jax.random.normal(key))(2.0))

    key = jax.random.key(0)
    assert_close(mixflow.compile(f)(key), jax.jit(f)(key))


def test_no_arguments_and_no_results():
    assert mixflow.compile(lambda: None)() is None
    assert_close(mixflow.compile(lambda: jax.grad(jnp.sin)(2.0))(), jnp.cos(2.0))


def test_closed_over_arrays_are_not_frozen_into_another_function():
    functions = [mixflow.compile(lambda x, k=k: meta(x) + k * X) for k in range(2)]
    assert_close(functions[1](X) - functions[0](X), X)
