"""Import followed by emission is the identity: the same equations, the same bits."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.experimental import io_callback
from jax.experimental.compute_on import compute_on
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import check_jaxpr
from jax.sharding import Mesh, PartitionSpec
from same import assert_same_program, roundtrip, run
from support import assert_close, captures, equations, primitives

import mixflow
from mixflow.compiler.ir.importer import UnsupportedProgram, import_jaxpr

X = jnp.array([0.5, -1.5, 2.0])
A = jnp.arange(6.0).reshape(2, 3) / 7
TABLE = np.linspace(-1.0, 1.0, 12).reshape(3, 4)


# --- programs ------------------------------------------------------------------------------


def scan(x):
    return jax.lax.scan(lambda c, a: (c * a + 1.0, (c, a.sum())), x, A)


def scan_reversed_and_unrolled(x):
    return jax.lax.scan(lambda c, a: (c - a, c), x, A, reverse=True, unroll=2)


def scan_with_neither_carry_nor_inputs(x):
    return jax.lax.scan(lambda c, _: (c, x + 1.0), (), None, length=3)


def while_loop(x):
    scale = x[0]
    return jax.lax.while_loop(lambda c: c[1] < scale + 3, lambda c: (c[0] * 2, c[1] + 1), (x, 0.0))


def fori_loop(x):
    return jax.lax.fori_loop(0, 3, lambda i, c: c + i * x, x)


def fori_loop_of_unknown_length(x):
    return jax.lax.fori_loop(0, x.astype(int)[2], lambda i, c: c + i * x, x)


def cond(x):
    return jax.lax.cond(x[0] > 0, lambda y: jnp.sin(y) * X, lambda y: y + 1.0, x)


def switch(x):
    branches = [jnp.sin, lambda y: -y, lambda y: jnp.full_like(y, 2.0)]
    return jax.lax.switch(x.astype(int)[2], branches, x)


@jax.jit
def inner_jit(x, y):
    return {"sum": x + y, "unused": y}


def nested_jit(x):
    return jax.jit(lambda y: inner_jit(y, X)["sum"] * inner_jit(x, y)["sum"])(x)


def checkpoint(x):
    return jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)) * A)(x)


def checkpoint_with_policy(x):
    policy = checkpoint_policies.save_only_these_names("kept")
    f = jax.checkpoint(lambda y: checkpoint_name(jnp.sin(y), "kept") ** 2, policy=policy)
    return jax.jit(f)(x)


@jax.custom_jvp
def with_own_jvp(x):
    return jnp.sin(x) * X


@with_own_jvp.defjvp
def _own_jvp(primals, tangents):
    return with_own_jvp(*primals), jnp.cos(primals[0]) * X * tangents[0]


@jax.custom_vjp
def with_own_vjp(x):
    return jnp.sin(x) * X


with_own_vjp.defvjp(lambda x: (with_own_vjp(x), x), lambda x, bar: (jnp.cos(x) * X * bar,))


def custom_jvp_and_derivative(x):
    return with_own_jvp(x), jax.jvp(with_own_jvp, (x,), (x,))


def custom_vjp(x):
    return with_own_vjp(x) + 1.0


def custom_vjp_and_derivative(x):
    return custom_vjp(x), jax.grad(lambda y: custom_vjp(y).sum())(x)


def new_style_keys(x):
    key = jax.random.key(0)
    keys = jax.random.split(jax.random.fold_in(key, 3), (2, 2))
    return keys, jax.random.normal(keys[1, 0], x.shape) + x


def old_style_keys(x):
    return jax.random.uniform(jax.random.PRNGKey(3), x.shape) * x


def closure_over_arrays(x):
    return jax.lax.map(lambda a: a @ jnp.asarray(TABLE)[:, 0] + x, A), x @ TABLE


def vmapped_psum(x):
    total = jax.vmap(lambda a: a / jax.lax.psum(a, "i") + jax.lax.axis_index("i"), axis_name="i")
    return total(x), jax.vmap(jax.vmap(jnp.dot, (None, 0)), (0, None))(A, A)


def collectives(x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))

    def body(y):
        return jax.lax.ppermute(jax.lax.pmean(jnp.sin(y), "d") * y, "d", [(0, 0)])

    spec = PartitionSpec("d")
    return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def complex_numbers(x):
    z = x + 1j * jnp.cos(x)
    return jnp.fft.fft(z), z.conj().real, (z * (2.0 - 0.5j)).imag


def bfloat16(x):
    y = x.astype(jnp.bfloat16) * 1.5
    return y @ y, jnp.dot(y, y, preferred_element_type=jnp.float32)


def zero_size(x):
    nothing = jnp.zeros((0, 3)) * x
    return nothing, nothing.sum(0), jnp.concatenate([nothing, A])


def outputs_that_are_inputs(x):
    return x, {"again": x}, x + 1.0


def duplicated_outputs(x):
    y = jnp.sin(x)
    return y, y, (y, x)


def constant_outputs(x):
    del x
    return 1, 2.5, True, jnp.asarray(TABLE), np.float32(3), 1j


def signed_zeros(x):
    return x * 0.0, x * -0.0, 1 / (x * 0.0), 1 / (x * -0.0), 0.0, -0.0


def infinities_and_nans(x):
    return jnp.where(x > 0, jnp.inf, x), jnp.where(x > 0, -jnp.inf, x), x * jnp.nan


def unused_results(x):
    jnp.sin(x)
    values, _ = jax.lax.top_k(x, 2)
    return values


def gather_and_scatter(x):
    place = jnp.array([2, 0])
    return x[place], x.at[place].add(1.0), x.at[place].max(A[0, :2], mode="drop"), x[::-1][1:]


def dynamic_slices(x):
    return jax.lax.dynamic_update_slice(A, x[None], (x.astype(int)[2] - 2, 0))


def sorting(x):
    return jnp.sort(x), jnp.argsort(x), jax.lax.sort((x, X, -x), num_keys=2), jnp.median(x)


def associative_scan(x):
    return jax.lax.associative_scan(jnp.multiply, A * x, axis=1), jnp.cumsum(x)


def linear_algebra(x):
    m = A.T @ A + jnp.eye(3)
    return jnp.linalg.solve(m, x), jnp.linalg.cholesky(m), jnp.linalg.eigh(m)[0]


def convolution(x):
    return jnp.convolve(x, TABLE[0]), jax.lax.conv(
        A[None, None], A[None, None, :1, :2], (1, 1), "SAME"
    )


def callbacks(x):
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    y = jax.pure_callback(np.sin, spec, x, vmap_method="sequential")
    return io_callback(lambda v: np.asarray(v) + 1.0, spec, y, ordered=True)


def barrier(x):
    return jax.lax.optimization_barrier((x, x + 1.0))


def sharding_constraint(x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("d"))
    return jax.lax.with_sharding_constraint(x * 2, sharding)


def loss(theta, eta):
    return jnp.sum(jnp.tanh(theta * eta) ** 2)


def gradient(x):
    return jax.grad(loss)(X, x)


def value_and_pullback(x):
    value, pullback, aux = jax.vjp(lambda t, s: (jnp.sin(t * s), t > 0), X, x, has_aux=True)
    return value, pullback(value), pullback(X), aux


def gradient_in_gradient(x):
    return jax.value_and_grad(lambda e: loss(gradient(e), e))(x)


def gradient_in_everything(x):
    step = jax.checkpoint(lambda t, a: t - 0.1 * jax.grad(loss)(t, a))
    looped = jax.lax.scan(lambda t, a: (jax.jit(step)(t, a), loss(t, a)), x, A)
    chosen = jax.lax.cond(x[0] > 0, jax.grad(loss), lambda t, s: t * s, x, X)
    return looped, chosen, jax.hessian(loss)(x, X), jax.vmap(jax.grad(loss), (0, None))(A, x)


def cosine_on_host(y):
    """Computed on the host: a context of equations on JAX 0.10, an equation on 0.12."""
    if "out_memory_spaces" in inspect.signature(compute_on).parameters:
        space = jax.memory.Space.Device
        as_equation: Any = compute_on
        return as_equation(jnp.cos, compute_type="device_host", out_memory_spaces=space)(y)
    with compute_on("device_host"):
        return jnp.cos(y)


PLAIN = [
    scan, scan_reversed_and_unrolled, scan_with_neither_carry_nor_inputs, while_loop, fori_loop,
    fori_loop_of_unknown_length, cond, switch, nested_jit, checkpoint, checkpoint_with_policy,
    custom_jvp_and_derivative, custom_vjp, custom_vjp_and_derivative, new_style_keys,
    old_style_keys, closure_over_arrays, vmapped_psum, collectives, complex_numbers, bfloat16,
    zero_size, outputs_that_are_inputs, duplicated_outputs, constant_outputs, signed_zeros,
    infinities_and_nans, unused_results, gather_and_scatter, dynamic_slices, sorting,
    associative_scan, linear_algebra, convolution, callbacks, barrier, sharding_constraint,
]  # fmt: skip
SYMBOLIC = [gradient, value_and_pullback, gradient_in_gradient, gradient_in_everything]


# --- tests ---------------------------------------------------------------------------------


def assert_equal_bits(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert jax.typeof(left) == jax.typeof(right)
        assert bits(left) == bits(right)


def bits(value: Any) -> bytes:
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value).tobytes()


@pytest.mark.parametrize("f", PLAIN + SYMBOLIC, ids=lambda f: f.__name__)
def test_import_and_emission_are_the_identity(f):
    before = captures(f, X).jaxpr
    after = roundtrip(before)
    check_jaxpr(after.jaxpr)
    assert_same_program(before, after)
    assert primitives(before) == primitives(after)
    if f in PLAIN:
        assert_equal_bits(run(after, X), run(before, X))
    else:  # which rule differentiates a derivative is the passes' choice
        assert_close(run(after, X), jax.tree.leaves(jax.jit(f)(X)))


@pytest.mark.parametrize("f", PLAIN, ids=lambda f: f.__name__)
def test_a_program_with_no_derivative_compiles_to_the_same_result(f):
    expected, result = jax.jit(f)(X), mixflow.compile(f)(X)
    assert jax.tree.structure(expected) == jax.tree.structure(result)
    assert_equal_bits(jax.tree.leaves(result), jax.tree.leaves(expected))


def test_a_closed_jaxpr_with_constants_keeps_them():
    closed = jax.make_jaxpr(lambda x: x @ TABLE)(X)
    after = roundtrip(closed)
    assert len(after.consts) == len(closed.consts)
    assert_equal_bits(run(after, X), run(closed, X))


def test_two_roundtrips_are_one():
    once = roundtrip(captures(gradient_in_everything, X).jaxpr)
    assert_same_program(once, roundtrip(once))


def test_a_debug_print_prints_once_and_first_things_first(capfd):
    def f(x):
        jax.debug.print("first {}", x.sum(), ordered=True)
        y = jax.lax.scan(lambda c, a: (jax.debug.print("a {}", a[0]), (c, None))[1], x, A)[0]
        jax.debug.print("last {}", y.sum(), ordered=True)
        return y

    before = captures(f, X).jaxpr
    after = roundtrip(before)
    assert before.effects == after.effects
    assert len(after.effects) == 2  # ordered and unordered
    run(after, X)
    jax.effects_barrier()
    lines = capfd.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["a", "a", "first", "last"]
    assert [line.split()[0] for line in lines if line[0] != "a"] == ["first", "last"]


def test_ordered_callbacks_keep_their_order():
    seen: list[int] = []

    def note(i):
        seen.append(int(i))
        return np.int32(i)

    def f(x):
        for i in range(4):
            x = x + io_callback(note, jax.ShapeDtypeStruct((), np.int32), i, ordered=True)
        return x

    closed = roundtrip(captures(f, X).jaxpr)
    run(closed, X)
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3]


def test_contexts_survive():
    def f(x):
        with set_xla_metadata(tag="here"):
            return cosine_on_host(jnp.sin(x))

    before = captures(f, X).jaxpr
    after = roundtrip(before)
    contexts = [(e.ctx.xla_metadata, e.ctx.compute_type) for e in equations(after)]
    assert contexts == [(e.ctx.xla_metadata, e.ctx.compute_type) for e in equations(before)]
    assert {"tag": "here"} in [metadata for metadata, _ in contexts]
    assert "device_host" in str(after.eqns[-1].params) + str([kind for _, kind in contexts])


def test_a_context_reaches_stablehlo_through_compile():
    def f(x):
        with set_xla_metadata(tag="mixflow_was_here"):
            return jnp.sin(x)

    assert "mixflow_was_here" in jax.jit(f).lower(X).as_text()
    assert "mixflow_was_here" in mixflow.compile(f).lower(X).as_text()


def test_the_mesh_of_a_context_survives():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(4.0), PartitionSpec("d"))

        def f(x):
            return jnp.sin(x) * 2

        before = captures(f, x).jaxpr
        after = roundtrip(before)
        assert_same_program(before, after)
        assert before.eqns[0].ctx.cur_abstract_mesh.axis_names == ("d",)
        assert jax.typeof(run(after, x)[0]).sharding == jax.typeof(f(x)).sharding


def test_name_stacks_and_source_lines_survive():
    def f(x):
        with jax.named_scope("somewhere"):
            return jnp.sin(x) * 2

    before = captures(f, X).jaxpr
    after = roundtrip(before)
    for one, other in zip(equations(before), equations(after), strict=True):
        assert one.source_info is other.source_info
    assert "somewhere" in str(after.eqns[0].source_info.name_stack)


def test_mutable_references_are_refused_and_compiled_all_the_same():
    def f(x):
        ref = jax.new_ref(jnp.zeros(()))

        def body(i, c):
            ref[...] += c[i]
            return c * 2

        x = jax.lax.fori_loop(0, 3, body, x)
        return x, ref[...], jax.grad(loss)(x, X)

    with pytest.raises(UnsupportedProgram, match="mutable references"):
        import_jaxpr(captures(f, X).jaxpr, differentiated=False)
    compiled = mixflow.compile(f)
    assert_close(compiled(X), jax.jit(f)(X))
    assert any("mutable" in one.text for one in compiled.optimised(X).declines)


def test_a_mutable_reference_as_an_argument_is_written_to():
    def f(ref, x):
        ref[...] += x
        return ref[...] * 2

    expected, given = jax.new_ref(jnp.zeros(3)), jax.new_ref(jnp.zeros(3))
    assert_close(mixflow.compile(f)(given, X), jax.jit(f)(expected, X))
    assert_close(given[...], expected[...])


def test_a_program_with_mutable_references_has_printable_ir():
    def f(x):
        ref = jax.new_ref(x)
        ref[...] *= 2
        return ref[...]

    compiled = mixflow.compile(f)
    assert "mul" in compiled.ir(X, before=True)
    assert "mul" in compiled.ir(X)


# --- the printed form ----------------------------------------------------------------------


def printed(f: Any, *args: Any) -> str:
    return str(import_jaxpr(captures(f, *args).jaxpr, differentiated=False))


def test_the_text_says_where_each_equation_comes_from():
    def f(x):
        y = jnp.sin(x)
        return jax.grad(lambda t: jnp.sum(t * y))(x)

    first = inspect.getsourcelines(f)[1] + 1
    text = printed(f, X)
    (sine,) = [line for line in text.splitlines() if " sin(" in line]
    assert sine.endswith(f"loc({__file__}:{first})")
    assert text.count(f"loc({__file__}:{first + 1})") >= 2  # the derivative and its body


def test_the_text_has_short_types():
    f = functools.partial(jnp.einsum, "ij,jk->ik")
    text = printed(f, jnp.ones((4, 8), jnp.float32), jnp.ones((8, 2), jnp.float32))
    assert "f32[4,8]" in text
    (product,) = [line for line in text.splitlines() if "dot_general" in line]
    assert ": f32[4,2]" in product
    assert "ShapedArray" not in text
    assert "0x" not in text


def test_the_text_names_types_that_have_no_bits():
    text = printed(new_style_keys, X)
    assert "key<fry>[2,2]" in text
    assert "c128[3]" in printed(complex_numbers, X)
    assert "bf16[3]" in printed(bfloat16, X)


def test_the_text_shows_loops_branches_and_checkpoints():
    text = printed(gradient_in_everything, X)
    for word in ("jaxpr.scan 2 steps", "jaxpr.checkpoint", "jaxpr.cond", "mixflow.vjp"):
        assert word in text
    assert "jaxpr.while" in printed(while_loop, X)


@pytest.mark.parametrize("f", PLAIN + SYMBOLIC, ids=lambda f: f.__name__)
def test_every_line_of_the_text_is_of_readable_length(f):
    longest = max(printed(f, X).splitlines(), key=len)
    assert len(longest.replace(__file__, "")) < 400, longest
