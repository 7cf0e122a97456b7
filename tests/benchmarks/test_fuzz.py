"""`python -m benchmarks fuzz`: the generator, the judge, the shrinker and the command.

What stands here has to be found by them; the programs themselves are in test_fuzz_programs.py.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner, Result

from benchmarks.__main__ import main
from benchmarks.fuzz import command, run
from benchmarks.fuzz.generate import GRADS, LOOPS, OUTERS, UPDATES, generate
from benchmarks.fuzz.judge import (
    CRASH,
    NAN,
    RIGHT,
    UNSURE,
    WRONG,
    PlainFails,
    Reference,
    judge,
    run_compiled,
)
from benchmarks.fuzz.losses import BLOCKS, DERIVATIVES, EXTRAS
from benchmarks.fuzz.operations import GROUPS
from benchmarks.fuzz.plans import OPTIONS, RULES, draw_plan
from benchmarks.fuzz.program import HEADER, X64, Program, load, standalone
from benchmarks.fuzz.run import Judged, Tally, kind_of, shrunk
from benchmarks.fuzz.shrink import shrink
from benchmarks.fuzz.stepped import run_stepped
from mixflow.passes import PASSES
from mixflow.planner.pipeline import parse_passes
from mixflow.runtime.function import CompiledFunction

SOURCE = f"""{HEADER}
def loss(t, e):
    h = jnp.sin(t * e)
    h = jnp.cumsum(h)
    h = jnp.sort(h)
    return jnp.sum(h**2)


def meta(e, t):
    def step(t, _):
        return t - 0.1 * jax.grad(loss)(t, e), None

    t, _ = lax.scan(step, t, length=3)
    return jnp.sum(t * e)


def program(compile):
    return compile(jax.value_and_grad(meta))


args = (jnp.array([0.3, -0.4]), jnp.array([0.5, 0.2]))
"""


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], *, only: str = "") -> None:
    """Make mixflow change the results of the programs that hold a primitive."""
    original = CompiledFunction._optimised

    def faulty(self: CompiledFunction, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        if only not in str(found.jaxpr):
            return found

        def changed(*operands: Any) -> list[Any]:
            results = jax.core.eval_jaxpr(found.jaxpr.jaxpr, found.jaxpr.consts, *operands)
            return [change(result) for result in results]

        return replace(found, jaxpr=jax.make_jaxpr(changed)(*found.jaxpr.in_avals))

    monkeypatch.setattr(CompiledFunction, "_optimised", faulty)


def refuse(_: Any) -> Any:
    raise ValueError("planted 17")


# --- the generator -----------------------------------------------------------------------------


def test_a_number_is_always_the_same_program() -> None:
    assert generate(5) == generate(5)
    assert generate(5).source != generate(6).source


def test_everything_that_the_tables_hold_is_drawn() -> None:
    drawn: set[str] = set()
    for seed in range(700):
        program = generate(seed)
        ast.parse(program.source)
        drawn.update(program.features)
    tables = (GRADS, UPDATES, LOOPS, OUTERS, BLOCKS, DERIVATIVES, EXTRAS, GROUPS)
    assert drawn >= {name for table in tables for name in table}


def test_linear_programs_have_linear_rules_alone() -> None:
    for seed in range(200):
        program = generate(seed)
        hides = any(
            text in program.source for text in ("clip(g", "sign(g)", "astype(int)", "+ 0.1 * x)")
        )
        assert not (hides and program.linear)


def test_plans_are_pipelines_and_take_every_option() -> None:
    plans = [draw_plan(seed) for seed in range(100)]
    for plan in plans:
        parse_passes(plan)
        assert any(rule in plan for rule in RULES)
    for name, texts in OPTIONS.items():
        assert all(any(name + text in plan for plan in plans) for text in texts)
    assert set(PASSES) - {"dce"} == {
        one.name for plan in plans for one in parse_passes(plan).passes
    }


def test_a_program_runs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    exec(standalone(SOURCE, "forward-over-reverse"), {"__name__": "__main__"})
    assert capsys.readouterr().out.count("plain JAX") == 2


# --- the judge ---------------------------------------------------------------------------------


def test_what_is_right_is_right() -> None:
    verdict = judge(Reference(SOURCE, run_stepped), draw_plan(0))
    assert (verdict.kind, verdict.rewritten) == (RIGHT, True)


@pytest.mark.parametrize("how", [run_stepped, run_compiled])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (WRONG, lambda result: result * (1 + 1e-7)),
        (WRONG, lambda result: result.astype("float32")),
        (NAN, lambda result: result * jnp.nan),
        (CRASH, refuse),
    ],
)
def test_a_planted_fault_is_found(
    kind: str, change: Any, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, change)
    verdict = judge(Reference(SOURCE, how), "")
    assert verdict.kind == kind
    assert verdict.is_fault


def test_noise_hides_no_more_than_ten_times_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = SOURCE.replace("jnp.sum(t * e)", "jnp.sum(jnp.sin(1e8 * t * e))")
    reference = Reference(noisy, run_stepped)
    assert 1e-9 < reference.noise < 1e-5
    for times, kind in ((3, RIGHT), (100, WRONG)):
        with monkeypatch.context() as patch:
            plant(patch, lambda result, times=times: result * (1 + times * reference.noise))
            assert judge(reference, "").kind == kind


def test_chaos_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    chaotic = SOURCE.replace("jnp.sum(t * e)", "jnp.sum(jnp.sin(1e15 * t * e))")
    plant(monkeypatch, lambda result: result * 1.1)
    assert judge(Reference(chaotic, run_stepped), "").kind == UNSURE


def test_half_precision_is_allowed_its_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    half = SOURCE.replace("jnp.sin(t * e)", "jnp.sin((t * e).astype(HALF)).astype(float)")
    reference = Reference(
        half.replace("def loss", "HALF = jnp.bfloat16\n\n\ndef loss"), run_stepped
    )
    plant(monkeypatch, lambda result: result * (1 + 1e-3))
    assert judge(reference, "").kind == RIGHT


def test_what_plain_jax_cannot_run_is_no_reference() -> None:
    for broken in ("jnp.nonzero(t)", "jnp.sum(t) * jnp.inf", "unheard_of"):
        with pytest.raises(PlainFails):
            Reference(SOURCE.replace("jnp.sum(t * e)", broken), run_stepped)


def test_infinities_of_plain_jax_say_nothing() -> None:
    source = SOURCE.replace("jnp.sum(t * e)", "jnp.sum(jnp.sqrt(e - e[1]) * t)")
    assert judge(Reference(source, run_stepped), "").kind == RIGHT


def test_where_jax_contradicts_itself_the_unrolled_program_counts() -> None:
    reference = Reference(SOURCE, run_stepped)
    assert judge(reference, "").kind == RIGHT
    reference.noise = 0.0
    reference.result = jax.tree.map(lambda leaf: leaf * 1.5, reference.result)
    verdict = judge(reference, "")
    assert verdict.kind == RIGHT
    assert "unrolled" in verdict.why


# --- running one operation at a time -----------------------------------------------------------


def test_stepped_is_compiled() -> None:
    def function(x: Any, i: Any) -> Any:
        x = jax.lax.while_loop(lambda c: c[0] < i, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]
        x = jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)
        carry, rows = jax.lax.scan(
            lambda c, r: (c * r, (c, jax.random.key(3))),
            x,
            jnp.arange(6.0).reshape(3, 2),
            reverse=True,
        )
        kept = jax.checkpoint(lambda x: jnp.linalg.solve(jnp.eye(2) + x, x))(carry)
        return {"kept": kept, "rows": rows[0], "sorted": jax.nn.relu(jnp.sort(rows[0], 0)), "i": i}

    args = jnp.array([0.3, -0.2]), jnp.array(2)
    want, got = jax.jit(function)(*args), run_stepped(jax.jit(function), args)
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.allclose(a, b, rtol=1e-14)
        assert a.dtype == b.dtype


# --- the shrinker ------------------------------------------------------------------------------


def test_a_short_text_is_found() -> None:
    def fails(source: str) -> bool:
        try:
            return load(source)["f"](3) > 10
        except Exception:
            return False

    source = """
def g(x):
    y = x + 1
    return y

def unused(x):
    return x

def f(x):
    z = g(x)
    if x:
        z = z + 5 * x + 0 * x
    return z
"""
    assert shrink(source, fails) == "def f(x):\n    z = 4 * x\n    return z\n"


def test_a_planted_fault_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda result: result * (1 + 1e-6), only=" sort[")
    one = _judged(SOURCE)
    short = shrunk(one, seconds=math.inf, run=run_stepped)
    assert "sort" in short
    assert X64 in short
    assert not any(text in short for text in ("cumsum", "sin", "grad", "sum(t * e)"))
    assert one.fault is not None
    assert one.fault.is_like(judge(Reference(short, run_stepped), ""))


def _judged(source: str) -> Judged:
    program = Program(seed=0, source=source, features=(), linear=True)
    return Judged(program, (judge(Reference(source, run_stepped), ""),))


# --- the command -------------------------------------------------------------------------------


def fuzz(*options: str) -> Result:
    return CliRunner().invoke(main, ["fuzz", *options])


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is the same small program, and nothing waits for the planner."""
    program = Program(seed=0, source=SOURCE, features=(), linear=True)
    monkeypatch.setattr(run, "generate", lambda seed: replace(program, seed=seed))
    monkeypatch.setattr(
        run, "draw_plan", lambda seed: "fuse-value-and-pullback,forward-over-reverse"
    )
    monkeypatch.setattr(command, "run_of", lambda seed: run_stepped)
    monkeypatch.setattr(run, "run_of", lambda seed: run_stepped)


@pytest.mark.usefixtures("one_program")
def test_one_program_is_printed_and_counted() -> None:
    result = fuzz("--program=8")
    assert result.exit_code == 0
    assert "def meta(e, t):" in result.stderr
    assert "program 8: forced right, planned right" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["programs"] == 1
    assert summary["verdicts"] == {"right": 2}
    assert summary["of those rewritten"] == 1


@pytest.mark.usefixtures("one_program")
def test_a_run_begins_at_its_number() -> None:
    result = fuzz("--seed=40", "--seconds=0.01")
    assert "program 40:" in result.stderr
    assert "program 39:" not in result.stderr


@pytest.mark.usefixtures("one_program")
def test_a_fault_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, refuse)
    result = fuzz("--program=7", "--shrink-seconds=0")
    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert (fault["program"], fault["kind"]) == (7, "crash")
    assert "planted" in fault["why"]


def test_declines_are_counted_by_kind() -> None:
    reasons = [
        f"forward-over-reverse: act{k} (<random program>:{k}): a custom_vjp whose rule mixflow"
        f" does not know; assume_symmetric=('act{k}',) vouches for it"
        for k in (1, 22)
    ]
    kinds = {kind_of(reason) for reason in reasons}
    assert kinds == {"forward-over-reverse: a custom_vjp whose rule mixflow does not know"}


def test_what_is_skipped_is_counted_apart() -> None:
    tally = Tally()
    tally.add(Judged(generate(0), (), "nothing is finite"))
    assert tally.summary()["skipped"] == {"nothing is finite": 1}
    assert tally.summary()["verdicts"] == {}


def test_a_batch_of_loops_runs_stepped() -> None:
    def doubled(x: jax.Array) -> Any:
        return jax.lax.while_loop(lambda c: c[0] < 4, lambda c: (2 * c[0], c[1] + x), (1 + x[0], x))

    program, x = jax.jit(jax.vmap(doubled)), jnp.array([[0.3, 0.2], [3.5, 1.0], [1.0, 0.0]])
    for got, want in zip(run_stepped(program, (x,)), program(x), strict=True):
        assert jnp.array_equal(got, want)


@pytest.mark.parametrize("dimensions", [None, (0, 1), (1, 0)])
def test_an_array_is_reshaped_in_the_order_that_is_asked_for(
    dimensions: tuple[int, int] | None,
) -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    program = jax.jit(lambda x: jax.lax.reshape(x, (3, 2), dimensions=dimensions))
    assert jnp.array_equal(run_stepped(program, (x,)), program(x))
