"""checkpoint-inner-loop{levels=K}: the steps of an inner loop in K nested loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import (
    THETA,
    adaptive_meta_loss,
    assert_idempotent,
    assert_right,
    check,
    executed,
    ir,
    looped,
    loss,
    meta_args,
    meta_loss,
    optimised,
    run_and_measure,
    step,
)
from support import assert_close

import mixflow
from mixflow.compiler.analysis.nesting import choose_nest

BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse"
SAVE = "save-inner-gradients"


def levels(count, *, saved=False, before=BEFORE):
    return f"{before},checkpoint-inner-loop{{levels={count}}}" + (f",{SAVE}" if saved else "")


STEPS = (1, 2, 3, 7, 12, 13, 64)
NESTED = [
    (steps, depth)
    for steps in STEPS
    for depth in (1, 2, 3)
    if depth == 1 or choose_nest(steps, depth) != choose_nest(steps, depth - 1)
]
"""Numbers of steps and levels that are nested in as many different ways."""


# --- the IR ---------------------------------------------------------------------------------


def test_a_loop_becomes_loops_in_checkpoints():
    check(
        ir(levels(2), jax.grad(looped(step, 12)), THETA),
        """
        CHECK: jaxpr.scan 4 steps{{.*}}<checkpoint-inner-loop rewrote: 12 steps as 4 x 3: each
        CHECK-NEXT: ^bb0(%[[A:[0-9]*]]: {{.*}}, %[[B:[0-9]*]]: {{.*}}):
        CHECK-NEXT: %[[CHUNK:[0-9]*]] = jaxpr.checkpoint(%[[A]], %[[B]]) {
        CHECK-NEXT: ^bb0(%[[C:[0-9]*]]: {{.*}}, %[[D:[0-9]*]]: {{.*}}):
        CHECK-NEXT: %[[LOOP:[0-9]*]] = jaxpr.scan 3 steps, 1 consts, 1 carried(%[[C]], %[[D]]) {
        CHECK-NEXT: ^bb0(%[[E:[0-9]*]]: {{.*}}, %[[F:[0-9]*]]: {{.*}}):
        CHECK-NEXT: %[[STEP:[0-9]*]] = jaxpr.checkpoint(%[[E]], %[[F]]) {
        CHECK: mixflow.vjp
        CHECK: jaxpr.yield(%[[STEP]])
        CHECK: jaxpr.yield(%[[LOOP]])
        CHECK: jaxpr.yield(%[[CHUNK]])
        CHECK-NOT: jaxpr.scan
        """,
    )


def test_what_remains_runs_after_with_fewer_levels():
    check(
        ir(levels(2), jax.grad(looped(step, 14)), THETA),
        """
        CHECK: %[[ALMOST:[0-9]*]] = jaxpr.scan 4 steps{{.*}}14 steps as 4 x 3 + 2: each
        CHECK: jaxpr.scan 3 steps
        CHECK: mixflow.vjp
        CHECK: jaxpr.scan 2 steps, 1 consts, 1 carried(%{{[0-9]*}}, %[[ALMOST]]) {
        CHECK-NEXT: ^bb0
        CHECK-NEXT: jaxpr.checkpoint
        CHECK: mixflow.vjp
        CHECK-NOT: jaxpr.scan
        """,
    )


def over(xs, *, reverse=False):
    def f(eta):
        def body(theta, x):
            return step(theta, x * eta), jnp.sum(theta)

        theta, sums = jax.lax.scan(body, THETA, xs, reverse=reverse)
        return jnp.sum(theta) + jnp.sum(sums)

    return f


XS = jnp.linspace(0.5, 1.0, 13)


CUT_AND_JOINED = """
    CHECK: %[[CUT:[0-9]*]] = jaxpr.eqn slice {start_indices=(FIRST,), {{.*}} : f64[12]
    CHECK-NEXT: jaxpr.eqn reshape {new_sizes=(4, 3)}(%[[CUT]]) : f64[4,3]
    CHECK-NEXT: jaxpr.eqn slice {start_indices=(REST,), {{.*}} : f64[1]
    CHECK: %[[STACK:[0-9]*]] = jaxpr.scan 4 steps{{.*}}13 steps as 4 x 3 + 1
    CHECK: %[[LAST:[0-9]*]] = jaxpr.scan 1 steps
    CHECK: %[[MANY:[0-9]*]] = jaxpr.eqn reshape {{.*}}(%[[STACK]]) : f64[12]
    CHECK-NEXT: jaxpr.eqn concatenate {dimension=0}(ORDER) : f64[13]
    """


@pytest.mark.parametrize("reverse", [False, True])
def test_what_the_loop_runs_over_is_cut_and_its_results_are_joined(reverse):
    first, rest = ("1", "0") if reverse else ("0", "12")
    order = "%[[LAST]], %[[MANY]]" if reverse else "%[[MANY]], %[[LAST]]"
    lines = CUT_AND_JOINED.replace("FIRST", first).replace("REST", rest).replace("ORDER", order)
    check(ir(levels(2), jax.grad(over(XS, reverse=reverse)), THETA), lines)


def test_every_level_saves_the_gradients_of_its_steps():
    text = ir(levels(3, saved=True), jax.grad(looped(step, 64)), THETA)
    assert text.count("jaxpr.checkpoint saving mixflow.inner_gradient(") == 3
    assert text.count("jaxpr.checkpoint") == 3
    assert text.count("mixflow.name ") == 1


def test_what_remains_saves_its_gradients_where_the_backward_pass_reads_them():
    def learned(theta, eta):
        return theta - eta * jax.grad(loss)(theta, eta)

    text = ir(levels(2, saved=True), jax.grad(looped(learned, 13)), THETA)
    assert text.count("mixflow.name ") == 2
    # One level of plain descent reads no gradient; the chunks need them to run again.
    result = optimised(levels(2, saved=True), jax.grad(looped(step, 13)), THETA)
    assert str(result.module).count("mixflow.name ") == 1
    assert ["(length 1) does not read" in decline.text for decline in result.declines] == [True]


def test_the_loops_of_nested_loops_are_nested_each():
    def outer(theta, eta):
        inner = jax.lax.scan(lambda t, _: (step(t, eta), None), theta, None, length=7)[0]
        return step(inner, eta)

    result = optimised(levels(2), jax.grad(looped(outer, 7)), THETA)
    texts = [one.text for one in result.rewrites if one.by == "checkpoint-inner-loop"]
    assert [text.split(":")[0] for text in texts] == 2 * ["7 steps as 3 x 2 + 1"]
    assert str(result.module).count("7 steps as") == 3  # the inner loop, and its remark, twice
    assert str(result.module).count("jaxpr.checkpoint") == 3 + 2 * 3
    assert_right(looped(outer, 7), THETA, passes=levels(2, saved=True))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_short_loop_stays_one(steps):
    text = ir(levels(3), jax.grad(looped(step, steps)), THETA)
    assert text.count("jaxpr.scan") == 1
    assert f"each of the {steps} steps" in text


def test_not_where_the_user_has_done_it_with_a_policy():
    by_hand = jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable)
    result = optimised(levels(2), jax.grad(looped(by_hand, 12)), THETA)
    assert str(result.module).count("jaxpr.scan") == 1
    assert "jax.checkpoint of yours" in result.declines[0].text


def test_not_where_the_step_has_effects():
    def body(theta, eta):
        jax.debug.print("{}", theta[0])
        return step(theta, eta)

    result = optimised(levels(2), looped(body, 12), THETA, differentiated=True)
    assert str(result.module).count("jaxpr.scan") == 1
    assert "effects" in result.declines[0].text


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_level_is_refused(count):
    with pytest.raises(mixflow.InputError, match=f"levels={count}: a loop has at least one level"):
        mixflow.compile(looped(step), passes=levels(count))


def test_it_is_idempotent():
    name = "checkpoint-inner-loop{levels=2}"
    assert_idempotent(f"{BEFORE},", name, jax.grad(looped(step, 13)), THETA)
    assert_idempotent(f"{levels(2)},", SAVE, jax.grad(looped(step, 13)), THETA)


# --- the numbers ----------------------------------------------------------------------------


def number_of(key):
    """Something that tells one key from another; drawing numbers takes seconds to compile."""
    return (jax.random.key_data(key)[..., -1] % 97) / 97


def rich(steps, **order):
    """A loop over floats, keys and integers that stacks up as much, with moments and a counter."""
    rates = jnp.linspace(0.5, 1.0, steps)
    xs = rates, jax.random.split(jax.random.key(1), steps), jnp.arange(steps)

    def f(eta):
        def body(carry, x):
            (theta, moments, count), (rate, key, place) = carry, x
            g = jax.grad(loss)(theta + number_of(key), eta)
            moments = 0.9 * moments + g * g
            theta = theta - 0.1 * rate * g / (1.0 + moments)
            return (theta, moments, 3 * count % 7 + place), (theta, place * count, key)

        start = THETA, jnp.zeros(3), jnp.array(1)
        (theta, _, count), (thetas, counts, keys) = jax.lax.scan(body, start, xs, **order)
        stacked = jnp.sum(thetas, 1) * number_of(keys) + counts
        return jnp.sum(jnp.sin(theta)) + jnp.sum(jnp.cos(rates) * stacked) + count

    return f


@pytest.mark.parametrize(("steps", "depth"), NESTED)
def test_the_numbers_stay(steps, depth):
    assert_right(rich(steps), THETA, passes=levels(depth, saved=True))


@pytest.mark.parametrize(("steps", "depth"), [(12, 2), (13, 2), (64, 3)])
def test_the_numbers_stay_in_reverse(steps, depth):
    f = rich(steps, reverse=True, unroll=2)
    assert_right(f, THETA, passes=levels(depth, saved=True))


@pytest.mark.parametrize(("steps", "depth"), [(7, 2), (64, 3)])
def test_the_numbers_stay_with_nothing_to_run_over(steps, depth):
    assert_right(looped(step, steps), THETA, passes=levels(depth, saved=True))


@pytest.mark.parametrize("before", ["canonicalize", BEFORE])
def test_the_numbers_stay_where_nothing_is_saved(before):
    assert_right(rich(13), THETA, passes=levels(2, before=before))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_numbers_stay_under_vmap_and_jit(reverse):
    f = over(XS, reverse=reverse)
    etas = jnp.stack([THETA, -THETA, 0.5 * THETA])
    expected = jax.jit(jax.vmap(jax.value_and_grad(f)))(etas)
    passes = levels(2, saved=True)
    inside = mixflow.compile(jax.vmap(jax.jit(jax.value_and_grad(f))), passes=passes)
    assert_close(inside(etas), expected)
    outside = jax.jit(jax.vmap(jax.value_and_grad(mixflow.compile(f, passes=passes))))
    assert_close(outside(etas), expected)


def test_the_numbers_stay_in_forward_mode_and_third_order():
    f, passes = over(XS), levels(2, saved=True)
    compiled = mixflow.compile(f, passes=passes)
    assert_close(jax.jacfwd(compiled)(THETA), jax.jacfwd(f)(THETA))
    assert_close(jax.hessian(compiled)(THETA), jax.hessian(f)(THETA))


def test_the_numbers_stay_with_values_that_have_no_tangents():
    nothing = np.zeros((13, 2), jax.dtypes.float0)

    def f(eta):
        def body(theta, _):
            by_integer = jax.grad(lambda n: jnp.sum(n * theta), allow_int=True)(3)
            return theta - eta * jax.grad(loss)(theta, eta), by_integer

        theta, stacked = jax.lax.scan(body, THETA, nothing)
        assert (stacked.dtype, stacked.shape) == (jax.dtypes.float0, (13,))
        return jnp.sum(theta)

    assert_right(f, THETA, passes=levels(2, saved=True))


def test_weak_types_stay():
    def f(eta):
        def body(theta, x):
            return theta - 0.1 * x * jax.grad(lambda t: jnp.tanh(t * eta) ** 2)(theta), 2.0

        return jax.lax.scan(body, 0.5, XS)

    plain, nested = (
        optimised(passes, f, 0.3, differentiated=True) for passes in ("canonicalize", levels(2))
    )
    assert "4 x 3 + 1" in str(nested.module)
    assert list(map(str, nested.jaxpr.out_avals)) == list(map(str, plain.jaxpr.out_avals))


def test_a_symbolic_length_is_not_nested():
    def f(eta, xs):
        return jnp.sum(jax.lax.scan(lambda t, x: (step(t, x * eta), None), THETA, xs)[0])

    gradient = jax.grad(f)
    (steps,) = jax.export.symbolic_shape("t")
    specs = [jax.ShapeDtypeStruct(shape, float) for shape in ((3,), (steps,))]
    compiled = mixflow.compile(gradient, passes=levels(2, saved=True))
    exported = jax.export.export(jax.jit(compiled))(*specs)
    assert_close(exported.call(THETA, XS), jax.jit(gradient)(THETA, XS))


# --- what it costs --------------------------------------------------------------------------


def runs(passes, f):
    """How often the inner gradient is computed before the backward passes and in them."""
    closed = jax.make_jaxpr(jax.grad(mixflow.compile(f, passes=passes)))(THETA)
    return executed(closed, "mixflow_vjp")


@pytest.mark.parametrize(("steps", "depth"), NESTED)
def test_steps_run_as_often_as_the_nest_says(steps, depth):
    """Plain descent: what a step's own backward pass recomputes does not hold the gradient."""
    nest = choose_nest(steps, depth)
    assert runs(levels(depth), looped(step, steps)) == nest.forwards
    assert runs(levels(depth, saved=True), looped(step, steps)) == steps


def test_a_step_that_reads_its_gradient_runs_once_more_unless_it_is_saved():
    def learned(theta, eta):
        return theta - eta * jax.grad(loss)(theta, eta)

    nest = choose_nest(13, 2)
    assert runs(levels(2), looped(learned, 13)) == nest.forwards + 13
    assert runs(levels(2, saved=True), looped(learned, 13)) == 13


def temp_bytes(passes, f, args):
    result, size = run_and_measure(mixflow.compile(jax.grad(f), passes=passes), *args)
    return result, size


def test_two_levels_of_a_long_loop_take_a_tenth_of_the_memory_of_one():
    args = meta_args(steps=1024, batch=4, width=16, layers=2)
    expected, one = temp_bytes(levels(1), meta_loss, args)
    result, two = temp_bytes(levels(2), meta_loss, args)
    assert_close(result, expected)
    assert two < 0.1 * one, f"{two} is {two / one:.3f} of {one}"


MILD = {"steps": 64, "batch": 8, "width": 48, "layers": 2}


def mild(eta, theta, xs):
    """`adaptive_meta_loss` at a rate at which 64 steps do not blow roundings up."""
    return adaptive_meta_loss({**eta, "rate": 0.01 * eta["rate"]}, theta, xs)


def test_memory_is_a_state_for_each_step_of_each_level():
    args = meta_args(**MILD)
    state = 2 * sum(layer.nbytes for layer in args[1])
    sizes = {depth: temp_bytes(levels(depth), mild, args)[1] for depth in (1, 2, 3)}
    states = {depth: choose_nest(64, depth).states for depth in sizes}
    for depth in (2, 3):
        fewer = state * (states[1] - states[depth])
        assert 0.95 * fewer < sizes[1] - sizes[depth] < 1.05 * fewer


def test_two_levels_with_saved_gradients_take_half_the_memory_of_one():
    """Parameters, moments and gradients of 64 steps; or 64 gradients and twice 8 states."""
    args = meta_args(**MILD)
    expected, one = temp_bytes(levels(1, saved=True), mild, args)
    result, two = temp_bytes(levels(2, saved=True), mild, args)
    assert_close(result, expected)
    assert 0.4 * one < two < 0.6 * one, f"{two} is {two / one:.2f} of {one}"
