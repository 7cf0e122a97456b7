"""Pipelines as text: what is refused, how, and that `mixflow.compile` runs what it is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from support import assert_close, captures

import mixflow
from mixflow.passes import DEFAULT_PIPELINE, PASSES
from mixflow.passes.canonicalize import Canonicalize
from mixflow.planner.pipeline import PREPARE, Program, optimise, parse_passes

X = jnp.array([0.5, -1.5, 2.0])


def meta(eta):
    def inner(theta):
        return jnp.sum(jnp.tanh(theta * eta) ** 2)

    def step(theta, _):
        return (theta - 0.1 * eta * jax.grad(inner)(theta), None)

    return jnp.sum(jax.lax.scan(step, X, None, length=3)[0])


MALFORMED = [
    ",cse",
    "cse,,dce",
    "cse{",
    "cse}",
    "cse{a=1",
    "cse{a=}",
    "{}",
    "cse dce",
    "-",
    "cse;dce",
]


@pytest.mark.parametrize("passes", MALFORMED)
def test_a_malformed_pipeline_is_refused_in_one_line(passes):
    with pytest.raises(mixflow.InputError) as caught:
        mixflow.compile(meta, passes=passes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("passes")


def test_an_unknown_pass_is_refused_and_the_known_ones_named():
    with pytest.raises(mixflow.InputError, match="'no-such-pass'") as caught:
        mixflow.compile(meta, passes="cse,no-such-pass,dce")
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in PASSES)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("option", ["no-such-option=1", "no-such-option", 'no-such-option="a"'])
def test_an_unknown_option_is_refused_in_one_line(name, option):
    with pytest.raises(mixflow.InputError) as caught:
        mixflow.compile(meta, passes=f"{name}{{{option}}}")
    message = str(caught.value)
    assert "\n" not in message
    assert "no_such_option" in message or "no-such-option" in message
    assert name in message


@pytest.mark.parametrize("passes", [3, ["cse", "dce"]])
def test_a_pipeline_that_is_no_text_is_refused(passes):
    with pytest.raises(mixflow.InputError, match="passes"):
        mixflow.compile(meta, passes=passes)


def test_it_is_refused_before_the_function_is_called():
    def f(_):
        pytest.fail("called")

    with pytest.raises(mixflow.InputError):
        mixflow.compile(passes="no-such-pass")(f)


def test_the_known_passes_parse_and_keep_their_order():
    spec = ",".join(PASSES)
    assert [one.name for one in parse_passes(spec).passes] == list(PASSES)
    assert all(cls.name == name for name, cls in PASSES.items())


def test_the_default_pipeline_parses():
    assert len(parse_passes(DEFAULT_PIPELINE).passes) == len(DEFAULT_PIPELINE.split(","))


def test_an_empty_pipeline_changes_nothing():
    compiled = mixflow.compile(jax.grad(meta), passes="")
    assert compiled.ir(X) == compiled.ir(X, before=True)
    assert_close(compiled(X), jax.jit(jax.grad(meta))(X))


def test_compile_runs_the_passes_that_it_is_given():
    g = jax.grad(meta)
    assert "symmetric rule" not in mixflow.compile(g, passes="canonicalize").ir(X)
    text = mixflow.compile(g, passes="canonicalize,forward-over-reverse").ir(X)
    assert "symmetric rule" in text
    assert "checkpoint" not in text
    text = mixflow.compile(g, passes=DEFAULT_PIPELINE).ir(X)
    assert "symmetric rule" in text
    assert "saving mixflow.inner_gradient" in text


def test_passes_in_any_order_give_the_same_numbers():
    expected = jax.jit(jax.value_and_grad(meta))(X)
    for names in (list(PASSES), list(PASSES)[::-1], 2 * list(PASSES)):
        compiled = mixflow.compile(jax.value_and_grad(meta), passes=",".join(names))
        assert_close(compiled(X), expected)


def test_pipelines_over_one_program_do_not_see_each_other():
    captured = captures(jax.grad(meta), X)
    program = Program(captured, differentiated=False)
    for names in ("", ",forward-over-reverse,checkpoint-inner-loop,segment-loss", ",dce", ""):
        passes = parse_passes(PREPARE + names)
        several, alone = program.optimised(passes), optimise(captured, passes, differentiated=False)
        assert several.text == alone.text
        assert several.rewrites == alone.rewrites
        assert str(several.jaxpr) == str(alone.jaxpr)


def test_what_plans_begin_with_is_run_once(monkeypatch):
    runs = []
    monkeypatch.setattr(Canonicalize, "apply", lambda self, ctx, op: runs.append(op))
    program = Program(captures(jax.grad(meta), X), differentiated=False)
    for names in ("", ",dce", ",cse"):
        program.optimised(parse_passes(PREPARE + names))
    assert len(runs) == PREPARE.split(",").count("canonicalize")
    program.optimised(parse_passes("canonicalize"))
    assert len(runs) == PREPARE.split(",").count("canonicalize") + 1
