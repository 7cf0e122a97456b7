"""roll-repeated-blocks: code that was unrolled in Python becomes a loop, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checking import assert_idempotent, assert_right, check, ir, optimised, run_and_measure
from jax.experimental import io_callback
from support import assert_close

import mixflow
from mixflow.planner.pipeline import PREPARE, ROLLED

NAME = "roll-repeated-blocks"
BEHIND = "forward-over-reverse,reverse-over-forward,checkpoint-inner-loop,save-inner-gradients"
PASSES = f"{ROLLED},{BEHIND}"
WIDTH = 4
THETA = {"a": jnp.eye(WIDTH) * 0.9 + 0.1, "b": jnp.eye(WIDTH) - 0.2}
ETA = jnp.linspace(-0.5, 0.5, 6)
XS = jnp.sin(jnp.arange(8.0 * 5 * WIDTH)).reshape(8, 5, WIDTH)

Step = Callable[[int, Any, Any], Any]


def loss(theta: Any, rate: Any, x: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ theta["a"]) @ theta["b"] * jnp.exp(rate) - x) ** 2)


def descended(theta: Any, rate: Any, x: Any) -> Any:
    gradient = jax.grad(loss)(theta, rate, x)
    return jax.tree.map(lambda t, g: t - 0.3 * g, theta, gradient)


def unrolled(step: Step, steps: int = 5) -> Any:
    """A meta-loss over gradient steps that are written out."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        for i in range(steps):
            theta = step(i, theta, eta)
        return loss(theta, 0.0, XS[-1])

    return meta_loss


def own_rate(i: int, theta: Any, eta: Any) -> Any:
    return descended(theta, eta[i], XS[i])


def own_number(i: int, theta: Any, eta: Any) -> Any:
    return descended(theta, eta[0] * (1 - 0.5 ** (i + 1)), XS[0])


def other_way_round(i: int, theta: Any, eta: Any) -> Any:
    return descended(theta, eta[-1 - i], XS[2 * i % 7])


def own_key(i: int, theta: Any, eta: Any) -> Any:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), XS[0].shape)
    return descended(theta, eta[0], XS[0] + 0.1 * noise)


def with_rule(i: int, theta: Any, eta: Any) -> Any:
    """`relu` has a rule of its own, which JAX wraps anew at each call."""
    return jax.tree.map(jax.nn.relu, descended(theta, eta[i], XS[i]))


def in_a_jit(i: int, theta: Any, eta: Any) -> Any:
    return jax.jit(descended)(theta, eta[i], XS[i])


def checkpointed(i: int, theta: Any, eta: Any) -> Any:
    return jax.checkpoint(descended)(theta, eta[i], XS[i])


def weak_rate(i: int, theta: Any, eta: Any) -> Any:
    return descended(theta, (0.1, 0.2, 0.3, 0.4, 0.5)[i] * eta[0], XS[i])


STEPS: list[Step] = [
    *(own_rate, own_number, other_way_round, own_key),
    *(with_rule, in_a_jit, checkpointed, weak_rate),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_gradient_steps_are_an_inner_loop(step: Step) -> None:
    f = unrolled(step)
    assert lengths(f, ETA, THETA) == [5]
    assert_right(f, ETA, THETA, passes=PASSES)


def lengths(f: Any, *args: Any, passes: str = ROLLED) -> list[int]:
    """Of the loops that repeated code has become, the outer ones first."""
    text = ir(passes, jax.value_and_grad(f), *args)
    rolled = (line for line in text.splitlines() if NAME in line)
    return [int(line.split("jaxpr.scan ")[1].split()[0]) for line in rolled]


def test_what_it_looks_like() -> None:
    text = ir(f"{ROLLED},dce", unrolled(own_rate), ETA, THETA)
    check(
        text,
        """
        CHECK: func.func @main
        CHECK: jaxpr.eqn slice {start_indices=(0,), limit_indices=(5,)
        CHECK: jaxpr.scan 5 steps
        CHECK-SAME: this and 4 more that do the same are one loop
        CHECK: mixflow.vjp
        CHECK-NOT: mixflow.vjp
        """,
    )


def test_what_all_steps_compute_alike_is_computed_once() -> None:
    text = ir(
        f"{ROLLED},dce",
        unrolled(lambda i, theta, eta: descended(theta, jnp.cosh(eta[0]), XS[0])),
        ETA,
        THETA,
    )
    assert "eqn stack" not in text
    assert text.index("cosh") < text.index("jaxpr.scan")


def test_a_second_time_it_does_nothing() -> None:
    assert_idempotent("canonicalize,", NAME, unrolled(own_rate), ETA, THETA)


def test_tasks_of_steps_are_loops_in_a_loop() -> None:
    def meta_loss(eta: Any, theta: Any) -> Any:
        total = 0.0
        for task in range(4):
            adapted = theta
            for i in range(5):
                adapted = descended(adapted, eta[i], XS[task])
            total += loss(adapted, 0.0, XS[task + 4])
        return total / 4

    assert sorted(lengths(meta_loss, ETA, THETA)) == [4, 5]
    # After `cse`, the first task alone cuts the rates out, and all read them.
    assert set(lengths(meta_loss, ETA, THETA, passes=f"canonicalize,cse,{NAME}")) == {4, 5}
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


def layered(theta: Any, x: Any, activation: Any = jnp.tanh) -> Any:
    mask = None
    for layer in theta:
        scores = activation(x @ layer) @ x.T
        if mask is None:  # the first layer makes it in its midst, and all read it
            mask = jnp.arange(WIDTH)[:, None] >= jnp.arange(WIDTH)
        shares = jax.nn.softmax(scores, axis=-1)
        x = x + activation(shares @ x @ jnp.where(mask, layer, 0.0))
    return x


def meta_loss_of_layers(eta: Any, theta: Any) -> Any:
    def fit(theta: Any, x: Any, rate: Any) -> Any:
        return jnp.mean((layered(theta, x) * jnp.exp(rate) - 1) ** 2)

    def step(theta: Any, x: Any) -> Any:
        gradient = jax.grad(fit)(theta, x, eta[0])
        return jax.tree.map(lambda t, g: t - jnp.exp(eta[1]) * g, theta, gradient), None

    return fit(jax.lax.scan(step, theta, XS[:3])[0], XS[4], 0.0)


def test_layers_are_a_loop_in_each_loss() -> None:
    theta = [jnp.eye(WIDTH) * (1 + 0.1 * i) for i in range(6)]
    rolled = ROLLED.replace(NAME, f"{NAME}{{layers=6}}")
    assert lengths(meta_loss_of_layers, ETA, theta, passes=rolled) == [6, 6]
    assert_right(meta_loss_of_layers, ETA, theta, passes=f"{rolled},{BEHIND},segment-loss")
    assert lengths(meta_loss_of_layers, ETA, theta, passes=rolled.replace("6", "7")) == []


def test_many_layers_are_a_loop_unasked() -> None:
    theta = [jnp.eye(WIDTH) * (0.5 + 0.01 * i) for i in range(32)]
    assert lengths(meta_loss_of_layers, ETA, theta) == [32, 32]
    assert lengths(meta_loss_of_layers, ETA, theta[1:]) == []


@pytest.mark.parametrize("other", [0, 2, 6])
def test_one_that_differs_stays_outside(other: int) -> None:
    def step(i: int, theta: Any, eta: Any) -> Any:
        theta = descended(theta, eta[0], XS[i])
        return jax.tree.map(jnp.sin, theta) if i == other else theta

    f = unrolled(step, steps=7)
    assert sum(lengths(f, ETA, THETA)) >= {0: 6, 2: 4, 6: 6}[other]
    assert_right(f, ETA, THETA, passes=PASSES)


@pytest.mark.parametrize("which", [slice(None), slice(-1, None), slice(0, 1), slice(0, 5, 2)])
def test_what_is_read_behind_the_loop(which: slice) -> None:
    """All results, the last, the first, and every second one."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        norms = []
        for i in range(5):
            theta = descended(theta, eta[i], XS[i])
            norms.append(jnp.sum(jnp.sin(theta["a"])))
            theta["a"] += 0.1 * norms[-1]
        return loss(theta, 0.0, XS[6]) + sum(norms[which])

    assert lengths(meta_loss, ETA, THETA) == [5]
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


def test_the_last_key_is_read_behind_the_loop() -> None:
    """Of which there are no zeros that a loop could begin with."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        key = used = jax.random.key(1)
        for i in range(5):
            key, used = jax.random.split(key)
            theta = descended(theta, eta[i], jax.random.normal(used, XS[0].shape))
        return loss(theta, 0.0, jax.random.normal(used, (3, WIDTH)))

    (steps,) = lengths(meta_loss, ETA, THETA)
    assert steps >= 4  # JAX 0.10 cuts the first key out in another way
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


def test_two_values_are_carried() -> None:
    """Also one of them unchanged, and one that the first step reads from elsewhere."""

    def meta_loss(eta: Any, theta: Any) -> Any:
        def near(theta: Any, start: Any, rate: Any, x: Any) -> Any:
            return loss(theta, rate, x) + 0.1 * jnp.sum((theta["a"] - start["a"]) ** 2)

        start, momentum = theta, jax.tree.map(jnp.zeros_like, theta)
        for i in range(4):
            gradient = jax.grad(near)(theta, start, eta[i], XS[i])
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
            theta = jax.tree.map(lambda t, m: t - 0.1 * m, theta, momentum)
        return loss(theta, 0.0, XS[5]) + jnp.sum(momentum["b"])

    assert lengths(meta_loss, ETA, THETA) == [4]
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


def test_parts_of_arrays_are_read_where_they_lie() -> None:
    def meta_loss(eta: Any, theta: Any, xs: Any, rows: Any) -> Any:
        for x, part in zip(xs, jnp.split(rows, 4), strict=True):
            theta = descended(theta, eta[0], x * part.sum())
        return loss(theta, 0.0, XS[5])

    args = ETA, THETA, XS[:4], jnp.arange(8.0).reshape(8, 1) / 8
    text = ir(f"{ROLLED},dce", meta_loss, *args)
    assert "eqn stack" not in text
    assert "concatenate" not in text
    assert_right(meta_loss, *args, passes=PASSES)


def called_back(i: int, theta: Any, eta: Any) -> Any:
    rate = io_callback(np.asarray, eta[0], eta[i])
    return descended(theta, rate, XS[i])


def test_every_second_row_is_no_part_that_lies_in_one_piece() -> None:
    def meta_loss(eta: Any, theta: Any) -> Any:
        for i in range(5):
            theta = descended(theta, jnp.sum(eta[4 * i : 4 * i + 4 : 2]), XS[i])
        return loss(theta, 0.0, XS[6])

    args = jnp.linspace(-0.5, 0.5, 20), THETA
    assert lengths(meta_loss, *args) == [5]
    assert_right(meta_loss, *args, passes=PASSES)


def test_not_what_reads_the_step_before_the_last() -> None:
    def meta_loss(eta: Any, theta: Any) -> Any:
        before = theta
        for i in range(6):
            moved = descended(theta, eta[i], XS[i])
            before, theta = theta, jax.tree.map(lambda t, b: t + 0.1 * (t - b), moved, before)
        return loss(theta, 0.0, XS[6])

    assert lengths(meta_loss, ETA, THETA) == []
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


def begins_again(i: int, theta: Any, eta: Any, start: Any, past: Any) -> Any:
    """The fifth step of nine starts where the first one did."""
    begun = start if i == 4 else theta
    return descended(begun, eta[0], XS[i % 8]), theta if i == 4 else past


def begins_again_soon(i: int, theta: Any, eta: Any, start: Any, past: Any) -> Any:
    """The second step starts where the first one did, and is the loop's first."""
    begun = start if i == 1 else theta
    return descended(begun, eta[0], XS[i % 8]), theta if i == 1 else past


def reads_another_row(i: int, theta: Any, eta: Any, start: Any, past: Any) -> Any:
    moved = descended(theta, eta[0], XS[0])
    return {"a": moved["a"] + moved["a"][i % WIDTH], "b": moved["b"]}, past


def is_late(i: int, theta: Any, eta: Any, start: Any, past: Any) -> Any:
    """From the second step on, the gradient is that of the step before."""
    gradient = jax.grad(loss)(theta, eta[0], XS[0])
    used = gradient if i == 0 else past
    return jax.tree.map(lambda t, g: t - 0.3 * g, theta, used), gradient


@pytest.mark.parametrize(
    ("step", "loops"),
    [(begins_again, [4, 5]), (begins_again_soon, [8]), (reads_another_row, []), (is_late, [8])],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_equal_operations_that_read_something_else(step: Any, loops: list[int]) -> None:
    def meta_loss(eta: Any, theta: Any) -> Any:
        start = jax.tree.map(lambda t: 0.5 * t, theta)
        past = None
        for i in range(9):
            theta, past = step(i, theta, eta, start, past)
        return loss(theta, 0.0, XS[7]) + sum(map(jnp.sum, jax.tree.leaves(past)))

    assert sorted(lengths(meta_loss, ETA, THETA)) == loops
    assert_right(meta_loss, ETA, THETA, passes=PASSES)


@jax.custom_jvp
def quantised(x: Any) -> Any:
    return jnp.round(8 * x) / 8


quantised.defjvp(lambda p, t: (quantised(p[0]), t[0] * jnp.cos(p[0])))


@pytest.mark.parametrize("behind", ["", ",checkpoint-inner-loop", f",{BEHIND}"])
def test_untrue_rules_in_layers_are_those_of_plain_jax(behind: str) -> None:
    """JAX before 0.12 differentiates such a rule in a loop otherwise than written out."""

    def fit(theta: Any, rate: Any, x: Any) -> Any:
        for layer in theta:
            x = x + 0.3 * quantised(jnp.tanh(x @ layer) @ jnp.sin(layer)) * jnp.cos(x)
            x = x + 0.1 * jnp.sin(x) * jnp.tanh(2 * x) / (1 + x**2)
        return jnp.mean(x**2 * jnp.exp(rate))

    def meta_loss(eta: Any, theta: Any) -> Any:
        for i in range(2):
            gradient = jax.grad(fit)(theta, eta[i], jnp.tile(XS[i], (20, 1)))
            theta = jax.tree.map(lambda t, g: t - 0.3 * g, theta, gradient)
        return fit(theta, 0.0, XS[4])

    theta = [jnp.eye(WIDTH) * (0.7 + 0.02 * i) + 0.1 for i in range(5)]
    rolled = ROLLED.replace(NAME, f"{NAME}{{layers=3}}")
    loops = lengths(meta_loss, ETA, theta, passes=rolled)
    assert bool(loops) == (jax.__version_info__ >= (0, 12))
    assert_right(meta_loss, ETA, theta, passes=rolled + behind)


class Scaled:
    """A backward rule that says of itself that it is like any other of its kind."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaled)

    def __hash__(self) -> int:
        return 0

    def __call__(self, residual: Any, cotangent: Any) -> Any:
        return (cotangent * self.factor,)


def forward(x: Any) -> Any:
    return jnp.sin(x), None


def scaled(i: int, x: Any) -> Any:
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(forward, Scaled(i + 1.0))
    return function(x)


@jax.tree_util.register_pytree_node_class
class Signed:
    """An array with a sign that JAX takes for static: 0.0 and -0.0 are equal to Python."""

    def __init__(self, array: Any, sign: float) -> None:
        self.array, self.sign = array, sign

    def tree_flatten(self) -> Any:
        return (self.array,), self.sign

    @classmethod
    def tree_unflatten(cls, sign: float, children: Any) -> Signed:
        return cls(children[0], sign)


@jax.custom_vjp
def signed_sine(x: Any) -> Any:
    return jnp.sin(x.array)


signed_sine.defvjp(
    lambda x: (jnp.sin(x.array), x),
    lambda x, g: (Signed(g * (1 + jnp.copysign(0.5, x.sign)), x.sign),),
)


def signed(i: int, x: Any) -> Any:
    return signed_sine(Signed(x, -0.0 if i % 2 else 0.0))


@pytest.mark.parametrize("rule", [scaled, signed], ids=lambda one: one.__name__)
def test_not_rules_that_are_equal_and_do_something_else(rule: Any) -> None:
    def step(i: int, theta: Any, eta: Any) -> Any:
        theta = descended(theta, eta[0], XS[0])
        return jax.tree.map(lambda t: t + 0.01 * rule(i, t), theta)

    assert_right(unrolled(step), ETA, THETA, passes=PASSES)


def test_not_two_steps() -> None:
    assert lengths(unrolled(own_rate, steps=2), ETA, THETA) == []


def test_not_what_has_effects() -> None:
    assert NAME in ir(ROLLED, unrolled(own_rate), ETA, THETA)
    assert NAME not in ir(ROLLED, unrolled(called_back), ETA, THETA)


def test_not_where_stacking_takes_more_than_it_saves() -> None:
    """Each step has an array of its own that is far larger than what the step computes."""
    large = [jnp.full((400, WIDTH), 0.1 * i) for i in range(5)]

    def meta_loss(eta: Any, theta: Any, large: Any) -> Any:
        for one in large:
            theta = descended(theta, eta[0], one[:2])
        return loss(theta, 0.0, XS[6])

    assert lengths(meta_loss, ETA, THETA, large) == [5]  # their first rows are little

    def of_all(eta: Any, theta: Any, large: Any) -> Any:
        for one in large:
            theta = jax.tree.map(lambda t, one=one: t * jnp.sum(one), theta)
            theta = descended(theta, eta[0], XS[0])
        return loss(theta, 0.0, XS[6])

    assert lengths(of_all, ETA, THETA, [jnp.tile(one, (20, 1)) for one in large]) == []


def test_it_takes_less_memory_and_far_fewer_equations() -> None:
    xs = jnp.tile(XS, (1, 40, 1))

    def meta_loss(eta: Any, theta: Any) -> Any:
        for i in range(8):
            theta = descended(theta, eta[i % 6], xs[i])
        return loss(theta, 0.0, xs[0])

    f = jax.value_and_grad(meta_loss)
    expected, plain = run_and_measure(jax.jit(f), ETA, THETA)
    result, memory = run_and_measure(mixflow.compile(f), ETA, THETA)
    assert_close(result, expected)
    assert memory <= 0.35 * plain
    assert instructions(mixflow.compile(f)) <= 0.4 * instructions(jax.jit(f))


def instructions(f: Any) -> int:
    """How many XLA has of a program in the end."""
    return f.lower(ETA, THETA).compile().as_text().count(" = ")


def test_it_can_be_turned_off() -> None:
    f = jax.value_and_grad(unrolled(own_rate))
    assert NAME in mixflow.compile(f).optimised(ETA, THETA).passes
    assert NAME not in mixflow.compile(f, roll=False).optimised(ETA, THETA).passes
    with pytest.raises(mixflow.InputError, match="leave roll-repeated-blocks out"):
        mixflow.compile(f, passes="cse", roll=False)


def test_a_program_without_repeats_has_no_such_pass() -> None:
    f = jax.value_and_grad(unrolled(own_rate, steps=2))
    assert mixflow.compile(f).optimised(ETA, THETA).passes.startswith(f"{PREPARE},")


def test_third_order_and_forward_mode() -> None:
    f = unrolled(own_rate, steps=3)
    compiled = mixflow.compile(f, passes=PASSES)

    def third(f: Any) -> Any:
        return jax.jit(jax.hessian(lambda eta: jnp.sum(jax.grad(f)(eta, THETA))))(ETA)

    assert_close(third(compiled), third(f))
    assert_close(
        *(
            jax.jit(partial(jax.jvp, partial(one, theta=THETA)))((ETA,), (ETA,))
            for one in (compiled, f)
        )
    )


def test_under_vmap() -> None:
    f = jax.value_and_grad(unrolled(own_rate))
    etas = jnp.stack([ETA, 2 * ETA])
    mapped = [jax.vmap(one, (0, None))(etas, THETA) for one in (mixflow.compile(f), f)]
    assert_close(*mapped)


def test_source_and_remark() -> None:
    (rolled,) = [
        one for one in optimised(ROLLED, unrolled(own_rate), ETA, THETA).rewrites if one.by == NAME
    ]
    assert rolled.at.startswith(__file__)
    assert rolled.text == "this and 4 more that do the same are one loop"
