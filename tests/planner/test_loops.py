"""Several loops, and loops in loops: what nests come to, and which ones a program gets."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import jax
import pytest
from checking import run_and_measure
from loop_programs import ETA, batches, epochs, parameters, tasks, trainings, trainings_args
from support import assert_close, captures

import mixflow
from mixflow.compiler.analysis.nesting import choose_nest
from mixflow.planner.candidates import Candidates
from mixflow.planner.device import CPU
from mixflow.planner.loops import Loop, Loops
from mixflow.planner.plan import score
from mixflow.planner.search import Planner

# --- arithmetic -----------------------------------------------------------------------------------

STEPS = Loop("steps", steps=16, state_bytes=100, work=10.0)


def around(*inside, steps=8, state_bytes=100, **options):
    return Loop("outer", steps, state_bytes, takes_steps=False, inside=inside, **options)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_loop_alone_saves_what_its_nest_says(depth):
    nest = choose_nest(16, depth)
    loops = Loops((STEPS,))
    assert loops.states(depth) == 100 * nest.states
    assert loops.work(depth) == 10.0 * nest.forwards


def test_loops_one_after_the_other_go_back_from_the_last():
    first, last = replace(STEPS, name="first"), replace(STEPS, name="last", state_bytes=10)
    # The first, 4 × 4, has 4 states of 100 bytes saved while the last has all of its 16 of 10; then
    # the first goes back alone, with 4 + 4 of its own.
    assert Loops((first, last)).states((("first", 2), ("last", 1))) == max(400 + 160, 800)
    assert Loops((last, first)).states((("last", 1), ("first", 2))) == 160 + 800


def test_a_loop_over_loops_saves_all_of_theirs_until_it_is_a_checkpoint_itself():
    loops = Loops((around(STEPS, other_bytes=7),))
    assert loops.states(1) == 8 * (16 * 100 + 7)
    assert loops.states((("outer", 1), ("steps", 1))) == (8 + 16) * 100
    assert loops.work((("outer", 1), ("steps", 1))) == 2 * loops.work(1)


def test_a_loop_that_the_user_has_checkpointed_begins_with_one_level():
    loops = Loops((around(STEPS, given=1),))
    assert loops.states(1) == (8 + 16) * 100
    # Two levels of steps save 8 of 24 states; two of the outer loop, 4 × 2, save 2 of them.
    assert loops.deeper(1, 400) == 2
    assert loops.states(2) == loops.states((("steps", 2),)) == (8 + 8) * 100


def test_a_loop_that_is_left_to_the_user_is_not_nested():
    assert Loops((replace(STEPS, state_bytes=0, left=True),)).deeper(1, 0) is None
    assert Loops((replace(STEPS, state_bytes=0, left=True),)).longest == 0


def test_each_loop_gets_a_level_where_it_saves_enough_for_what_it_reruns():
    large, small = replace(STEPS, name="large"), replace(STEPS, name="small", state_bytes=1)
    # The large one saves 800 of 1600 bytes, and reruns half of all work for it.
    assert Loops((large, small)).deeper(1, 1500) == (("large", 2), ("small", 1))
    assert Loops((large, small)).deeper(1, 1700) is None
    assert Loops((large, replace(large, name="other"))).deeper(1, 500) == 2
    heavy = replace(large, name="heavy", work=1000.0)
    assert Loops((large, heavy)).deeper(1, 1000) == (("large", 2), ("heavy", 1))


def test_of_many_loops_all_get_one_number():
    many = Loops(tuple(replace(STEPS, name=f"{n}", work=0.0) for n in range(100)))
    assert many.deeper(1, 0.0) == 2
    assert many.deeper(1, many.states(1)) is None


# --- programs -------------------------------------------------------------------------------------

EPOCHS = jax.value_and_grad(functools.partial(epochs, count=10))
TASKS = jax.value_and_grad(functools.partial(tasks, steps=8))
TRAININGS = jax.value_and_grad(trainings)


def planner_of(f, *args):
    return Planner(Candidates(captures(f, *args), differentiated=False, device=CPU))


def test_the_tree_of_loops_is_read_off_the_program():
    theta, data = parameters(64), batches(12)
    (outer,) = planner_of(TASKS, ETA, theta, data).facts.loops.outermost
    (inner,) = outer.inside
    assert (outer.steps, outer.takes_steps, outer.given, outer.state_bytes) == (12, False, 0, 0)
    assert (inner.steps, inner.takes_steps, inner.given) == (8, True, 0)
    assert inner.state_bytes == 8 * (4 * 64 + 64)
    # What a task saves beside its steps is for its last loss: 4 rows of 64, and some more.
    assert 8 * 4 * 64 <= outer.other_bytes < 8 * 4 * 64 * 8
    assert 0 < outer.work < 8 * inner.work
    two = functools.partial(epochs, count=10, around=jax.checkpoint)
    (outer,) = planner_of(jax.value_and_grad(two), ETA, theta, data).facts.loops.outermost
    assert outer.given == 1
    assert outer.state_bytes == 8 * (4 * 64 + 64)


@pytest.mark.parametrize(
    ("f", "args", "ratio"),
    [
        (EPOCHS, (ETA, parameters(256), batches(12)), 0.3),
        (TASKS, (ETA, parameters(256), batches(24)), 0.15),
    ],
    ids=["epochs", "tasks"],
)
def test_a_loop_over_loops_is_nested_where_that_saves_much(f, args, ratio):
    expected, _ = run_and_measure(jax.jit(f), *args)
    inner = "canonicalize,cse,fuse-value-and-pullback,canonicalize,checkpoint-inner-loop"
    _, step = run_and_measure(mixflow.compile(f, passes=inner), *args)
    planned = mixflow.compile(f)
    result, memory = run_and_measure(planned, *args)
    assert_close(result, expected)
    assert memory < ratio * step
    passes = planned.optimised(*args).passes
    assert 'loops="loop_programs.py:' in passes
    assert mixflow.compile(f, passes=passes).ir(*args) == planned.ir(*args)


def test_three_loops_get_their_own_levels_better_than_one_number_for_all():
    args = trainings_args((512, 36, 4), (16, 16, 64), (64, 9, 64))
    planner = planner_of(TRAININGS, *args)
    (chosen,) = planner.best()
    assert "levels=2,1,1 loops=" in chosen.plan.passes
    for levels, gradients in itertools.product((1, 2, 3), (False, True)):
        plan = replace(chosen.plan, levels=levels, gradients=gradients, gradient_levels=0)
        assert score(*chosen.figures) < score(*planner.candidate(plan).figures)
    result, memory = run_and_measure(mixflow.compile(TRAININGS), *args)
    expected, plain = run_and_measure(jax.jit(TRAININGS), *args)
    assert_close(result, expected)
    assert memory < 0.3 * plain


def test_a_step_that_no_rule_is_worth_is_nested_as_it_is():
    # Of 4 rows, a gradient costs next to nothing: the parameters are what takes memory and time.
    (chosen,) = planner_of(TASKS, ETA, parameters(256), batches(24)).best()
    assert "checkpoint-inner-loop{levels=1,1 loops=" in chosen.plan.passes
    assert not chosen.plan.rewritten


def test_gradients_are_saved_by_steps_alone_where_those_of_all_take_much():
    (chosen,) = planner_of(TASKS, ETA, parameters(256), batches(24, rows=64)).best()
    assert chosen.plan.gradient_levels == 1
    assert "save-inner-gradients{levels=1}" in chosen.plan.passes
    assert chosen.plan.repeats
