"""checkpoint-inner-loop{loops=…}: each loop its own levels, loops over loops among them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from checking import assert_idempotent, optimised, run_and_measure
from loop_programs import (
    ETA,
    batches,
    descend,
    epochs,
    parameters,
    tasks,
    trainings,
    trainings_args,
)
from support import assert_close

import mixflow
from mixflow.compiler.analysis.activity import find_activity
from mixflow.compiler.analysis.costs import program_cost
from mixflow.compiler.ir.emitter import main_function
from mixflow.passes.inner_loops.find import inner_loops
from mixflow.planner.pipeline import parse_passes

BEFORE = "canonicalize,cse,fuse-value-and-pullback,canonicalize,forward-over-reverse,"
EPOCHS = jax.value_and_grad(functools.partial(epochs, count=8))
TASKS = jax.value_and_grad(functools.partial(tasks, steps=8))
TRAININGS = jax.value_and_grad(trainings)

PROGRAMS = {
    "epochs": (EPOCHS, (ETA, parameters(64), batches(8))),
    "tasks": (TASKS, (ETA, parameters(64), batches(12))),
    "trainings": (TRAININGS, trainings_args((64, 30, 4), (16, 9, 4), (8, 4, 2))),
}


def names(f, *args):
    module = optimised(BEFORE + "dce", f, *args).module
    function = main_function(module)
    return list(inner_loops(function, find_activity(function)))


def levels(*numbers, of):
    given = ",".join(f'"{name}"' for name in of)
    return f"checkpoint-inner-loop{{levels={','.join(map(str, numbers))} loops={given}}}"


def measured(name, *passes):
    """XLA's temporaries of a program under some passes, if it is right; of plain JAX without."""
    f, args = PROGRAMS[name]
    expected, plain = run_and_measure(jax.jit(f), *args)
    if not passes:
        return plain
    text = BEFORE + ",".join(passes)
    result, memory = run_and_measure(mixflow.compile(f, passes=text), *args)
    assert_close(result, expected)
    return memory


def test_a_loop_is_called_by_its_line_and_the_second_of_a_line_by_a_number():
    def two(eta, theta, data):
        both = [functools.partial(epochs, count=count)(eta, theta, data) for count in (2, 3)]
        return sum(both)

    f, args = PROGRAMS["epochs"]
    outer, inner = names(f, *args)
    assert outer.startswith("loop_programs.py:")
    assert inner.startswith("loop_programs.py:")
    assert outer != inner
    found = names(jax.grad(two), *args)
    assert found == [outer, inner, f"{outer}#2", f"{inner}#2"]


def test_a_name_can_be_written_into_a_plan():
    source = "def run(step, theta, xs):\n    return jax.lax.scan(step, theta, xs)[0]\n"
    namespace = {"jax": jax}
    exec(compile(source, 'a"b\\c.py', "exec"), namespace)

    def meta(eta, theta, data):
        theta = namespace["run"](lambda t, batch: descend(t, eta, batch), theta, data)
        return jnp.sum(theta["in"])

    (name,) = names(jax.grad(meta), *PROGRAMS["epochs"][1])
    assert name == "a_b_c.py:2"
    parse_passes(levels(1, of=(name,)))


def test_a_loop_over_loops_saves_what_each_of_its_steps_begins_with():
    f, args = PROGRAMS["epochs"]
    inner_only = measured("epochs", "checkpoint-inner-loop{levels=1}")
    both = measured("epochs", levels(1, 1, of=names(f, *args)))
    # 8 epochs of 8 steps: 8 + 8 states in the place of 64.
    assert both < 0.4 * inner_only
    assert both < 0.15 * measured("epochs")


def test_tasks_one_by_one_save_what_each_is_given():
    f, args = PROGRAMS["tasks"]
    both = measured("tasks", levels(1, 1, of=names(f, *args)))
    assert both < 0.6 * measured("tasks", "checkpoint-inner-loop{levels=1}")


@pytest.mark.parametrize("numbers", [(3, 1, 1), (1, 2, 1), (2, 2, 2), (1, 1, 3)])
def test_every_choice_gives_the_same_numbers(numbers):
    f, args = PROGRAMS["trainings"]
    measured("trainings", levels(*numbers, of=names(f, *args)), "save-inner-gradients")


def test_levels_of_a_loop_over_loops_are_nested_too():
    f, args = PROGRAMS["epochs"]
    outer, inner = names(f, *args)
    measured("epochs", levels(2, 2, of=(outer, inner)), "save-inner-gradients")
    measured("epochs", levels(2, of=(outer,)))


def test_loops_that_are_not_named_are_left_alone():
    f, args = PROGRAMS["trainings"]
    first, *_ = names(f, *args)
    text = str(optimised(BEFORE + levels(2, of=(first,)), f, *args).module)
    assert text.count("jaxpr.checkpoint(") == 2


def test_a_name_that_is_not_there_is_said_with_those_that_are():
    f, args = PROGRAMS["epochs"]
    outer, inner = names(f, *args)
    result = optimised(BEFORE + levels(1, 2, of=("nowhere.py:3", inner)), f, *args)
    (said,) = [one.text for one in result.declines if one.by == "checkpoint-inner-loop"]
    assert said == f"there is no inner loop nowhere.py:3; there are: {outer}, {inner}"
    assert str(result.module).count("jaxpr.checkpoint(") == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ('levels=1,2 loops="a.py:1"', "2 numbers of levels for 1 named loops: give one for each"),
        ("levels=1,2", "2 numbers of levels for 0 named loops: give one for each"),
        ('levels=1,0 loops="a.py:1","b.py:2"', "levels=0: a loop has at least one level"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_line(options, why):
    with pytest.raises(mixflow.InputError, match=why):
        mixflow.compile(EPOCHS, passes=f"checkpoint-inner-loop{{{options}}}")


def test_running_it_again_changes_nothing():
    f, args = PROGRAMS["epochs"]
    assert_idempotent(BEFORE, levels(2, 1, of=names(f, *args)), f, *args)


def test_an_epoch_in_a_checkpoint_of_the_users_stays_as_it_is_until_it_is_nested():
    f = jax.value_and_grad(functools.partial(epochs, count=8, around=jax.checkpoint))
    _, args = PROGRAMS["epochs"]
    outer, inner = names(f, *args)
    theirs = "in the place of your jax.checkpoint"
    assert theirs not in str(optimised(BEFORE + levels(1, of=(inner,)), f, *args).rewrites)
    passes = BEFORE + levels(2, 1, of=(outer, inner))
    assert theirs in str(optimised(passes, f, *args).rewrites)
    assert_close(mixflow.compile(f, passes=passes)(*args), jax.jit(f)(*args))


def test_steps_alone_save_their_gradients_if_asked_to():
    f, args = PROGRAMS["tasks"]
    nest = levels(1, 1, of=names(f, *args))
    by_all, by_steps = f"{nest},save-inner-gradients", f"{nest},save-inner-gradients{{levels=1}}"
    # 12 tasks of 8 steps: the gradients of 8 steps in the place of 96.
    assert measured("tasks", by_steps) < 0.5 * measured("tasks", by_all)
    costs = [
        program_cost(optimised(BEFORE + passes, f, *args).jaxpr).flops
        for passes in (by_all, by_steps, nest)
    ]
    assert costs == sorted(set(costs))
