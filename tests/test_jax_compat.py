"""Each touch of JAX's private surface, checked against the installed JAX."""

from __future__ import annotations

import importlib
import inspect
import runpy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from jax.dtypes import float0
from jax.extend.core import Primitive
from jax.interpreters import batching
from support import equations

from mixflow.compiler import jax_compat

X = jnp.array([0.5, -1.0, 2.0])


def line_of(mark: str) -> int:
    lines = inspect.getsource(inspect.getmodule(line_of)).splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))


def test_the_hook_is_where_jax_looks() -> None:
    assert jax.vjp is jax_compat.vjp_hook()
    assert jax.vjp is not jax_compat.VJP_OF_JAX
    assert jax.vjp.__wrapped__ is jax_compat.VJP_OF_JAX


@pytest.mark.parametrize(
    "transform",
    [jax.grad, jax.value_and_grad, jax.jacrev, jax.hessian, lambda f: lambda x: jax.vjp(f, x)],
    ids=["grad", "value_and_grad", "jacrev", "hessian", "vjp"],
)
def test_the_hook_is_reached(transform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setattr(jax, "vjp", jax.vjp)
    monkeypatch.setattr(jax._src.api, "vjp", jax.vjp)

    def recording(fun: Any, *primals: Any, **kwargs: Any) -> Any:
        reached.append(primals)
        return jax_compat.VJP_OF_JAX(fun, *primals, **kwargs)

    jax_compat.install_vjp_hook(recording)
    transform(lambda x: jnp.sum(x**2))(X)
    assert len(reached) == 1


def test_the_hook_keeps_the_signature_and_the_documentation() -> None:
    assert inspect.signature(jax.vjp) == inspect.signature(jax_compat.VJP_OF_JAX)
    assert jax.vjp.__doc__ == jax_compat.VJP_OF_JAX.__doc__


def test_a_scan_takes_another_layout() -> None:
    closed = jax.make_jaxpr(
        lambda w, xs: jax.lax.scan(lambda c, x: (c + w, x), w, xs),
    )(1.0, jnp.ones(3))
    (equation,) = closed.jaxpr.eqns
    assert jax_compat.scan_layout(equation.params) == (1, 1)
    same = jax_compat.with_scan_layout(equation.params, 1, 1, 1)
    assert same == equation.params
    other = jax_compat.with_scan_layout(equation.params, 0, 2, 1)
    assert jax_compat.scan_layout(other) == (0, 2)


def test_a_user_context_is_part_of_the_trace_cache() -> None:
    """The public facility on which the capture's isolation rests."""
    context = jax.make_user_context(default_value=None)
    traces = []
    f = jax.jit(lambda x: traces.append(x) or x)
    jax.make_jaxpr(f)(1.0)
    with context("other"):
        jax.make_jaxpr(f)(1.0)
    jax.make_jaxpr(f)(1.0)
    assert len(traces) == 2


RELU_PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "directly": jax.nn.relu,
    "under jit": jax.jit(jax.nn.relu),
    "under vmap": jax.vmap(jax.nn.relu),
    "under two vmaps": lambda x: jax.vmap(jax.vmap(jax.nn.relu))(jnp.outer(x, x)),
    "in a scan": lambda x: jax.lax.scan(lambda h, _: (jax.nn.relu(h), None), x, None, length=2)[0],
    "in a vmapped scan": jax.vmap(
        lambda x: jax.lax.scan(lambda h, _: (jax.nn.relu(h), None), x, None, length=2)[0]
    ),
    "in a branch": lambda x: jax.lax.cond(x[0] > 0, jax.nn.relu, jnp.sin, x),
    "in a checkpoint": jax.checkpoint(lambda x: jax.nn.relu(jnp.sin(x))),
    "in a checkpointed vmap": jax.vmap(jax.checkpoint(lambda x: jax.nn.relu(jnp.sin(x)))),
}


def rules_in(f: Callable[..., Any], *args: Any, traced_again: int = 0) -> list[Any]:
    closed = jax.make_jaxpr(f)(*args)
    for _ in range(traced_again):
        closed = jax.make_jaxpr(jax.extend.core.jaxpr_as_fun(closed))(*args)
    return [
        jax_compat.custom_rule(equation.params)
        for equation in equations(closed.jaxpr)
        if equation.primitive.name == "custom_jvp_call"
    ]


def relu_rule() -> Any:
    return jax.nn.relu.__wrapped__.jvp if not hasattr(jax.nn.relu, "jvp") else jax.nn.relu.jvp


@pytest.mark.parametrize("traced_again", [0, 1, 3])
@pytest.mark.parametrize("where", RELU_PROGRAMS)
def test_the_rule_of_relu_is_found_by_identity(where: str, traced_again: int) -> None:
    rules = rules_in(RELU_PROGRAMS[where], X, traced_again=traced_again)
    assert rules
    assert all(rule is relu_rule() for rule in rules)


def test_a_users_rule_is_not_found_to_be_another() -> None:
    mine = jax.custom_jvp(lambda x: x * 2)

    def rule(primals: Any, tangents: Any) -> Any:
        return primals[0] * 2, tangents[0] * 2

    rule.__wrapped__ = relu_rule()
    mine.defjvp(rule)
    assert rules_in(mine, X) == [rule]


def test_a_rule_made_by_defjvps_is_found() -> None:
    mine = jax.custom_jvp(lambda x: x * 2)
    mine.defjvps(lambda t, _, x: 2 * t)
    assert rules_in(mine, X) == [mine.jvp]


@pytest.mark.parametrize("params", [{}, {"jvp_jaxpr_fun": None}], ids=str)
def test_an_unknown_rule_is_none(params: Any) -> None:
    assert jax_compat.custom_rule(params) is None


def test_a_callable_object_is_its_own_rule() -> None:
    class Rule:
        def __call__(self, primals: Any, tangents: Any) -> Any:
            return primals[0], tangents[0]

    mine = jax.custom_jvp(lambda x: x)
    rule = Rule()
    mine.defjvp(rule)
    assert rules_in(mine, X) == [rule]


def test_the_name_of_a_rules_function() -> None:
    mine = jax.custom_jvp(lambda x: x)

    def named(x: Any) -> Any:
        return x * 2  # named function

    mine = jax.custom_jvp(named)
    mine.defjvps(lambda t, _, x: 2 * t)
    (equation,) = jax.make_jaxpr(mine)(X).eqns
    name, place = jax_compat.rule_name(equation.params)
    assert name == "named"
    assert place == f"{__file__}:{line_of('named function') - 1}"


def test_the_source_location_of_an_equation() -> None:
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(X)  # this line
    for equation in jaxpr.eqns:
        assert jax_compat.source_location(equation.source_info) == (__file__, line_of("this line"))


def test_the_source_location_of_running_code() -> None:
    here = jax_compat.source_location(jax_compat.current_source_info())  # running here
    assert here == (__file__, line_of("running here"))


def test_the_source_location_without_a_traceback() -> None:
    assert jax_compat.source_location(SimpleNamespace(traceback=None)) is None


def test_frames_of_a_hidden_directory_are_left_out(tmp_path: Any) -> None:
    jax_compat.hide_frames_of(str(tmp_path / "hidden"))

    def location(name: str) -> Any:
        helper = tmp_path / name / "helper.py"
        helper.parent.mkdir()
        helper.write_text("def double(x):\n    return x * 2\n")
        double = runpy.run_path(str(helper))["double"]
        (equation,) = jax.make_jaxpr(lambda x: double(x))(X).eqns  # noqa: PLW0108  # calls it
        return jax_compat.source_location(equation.source_info)

    assert location("shown") == (str(tmp_path / "shown" / "helper.py"), 2)
    assert location("hidden") == (__file__, line_of("calls it"))


def axis_of(**options: Any) -> Any:
    """What a batching rule is told of the axis."""
    seen: list[Any] = []
    probe = Primitive("probe")
    probe.def_abstract_eval(lambda aval: aval)

    def rule(axis: Any, args: Any, dims: Any) -> Any:
        seen.append(axis)
        return probe.bind(args[0]), dims[0]

    batching.fancy_primitive_batchers[probe] = rule
    jax.make_jaxpr(jax.vmap(probe.bind, **options))(X)
    return seen[0]


def test_the_axis_that_a_batching_rule_is_told_of() -> None:
    axis = axis_of(axis_name="batch", spmd_axis_name="model")
    assert (jax_compat.public_axis_name(axis), axis.size, axis.spmd_name) == (
        "batch",
        3,
        ("model",),
    )


def test_the_name_of_an_unnamed_axis_is_none() -> None:
    assert jax_compat.public_axis_name(axis_of()) is None


def effects_of(f: Callable[..., Any]) -> Any:
    found: list[Any] = []

    def traced(x: Any) -> Any:
        found.extend(jax.make_jaxpr(f)(x).effects)
        return x

    jax.make_jaxpr(jax.vmap(traced, axis_name="i"))(X)
    return found


@pytest.mark.parametrize(
    "collective", [jax.lax.psum, jax.lax.pmean, jax.lax.pmax, jax.lax.all_gather],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_collective_has_an_axis_effect(collective: Any) -> None:
    effects = effects_of(lambda x: collective(x, "i"))
    assert jax_compat.axis_names(effects) == {"i"}
    assert all(map(jax_compat.is_axis_effect, effects))


def test_a_print_has_no_axis_effect() -> None:
    effects = effects_of(lambda x: jax.debug.print("{}", x) or x)
    assert effects
    assert not any(map(jax_compat.is_axis_effect, effects))
    assert jax_compat.axis_names(effects) == set()


def test_a_reference_is_told_from_an_array() -> None:
    seen = []

    def f(x: Any) -> Any:
        ref = jax.new_ref(x)
        seen.extend([jax_compat.is_ref(ref), jax_compat.is_ref(jax.typeof(ref))])
        return ref[...]

    jax.make_jaxpr(f)(X)
    assert seen == [True, True]
    assert not jax_compat.is_ref(X)
    assert not jax_compat.is_ref(jax.typeof(X))


@pytest.mark.parametrize("weak_type", [False, True])
def test_a_stacked_aval_is_what_a_scan_stacks(weak_type: bool) -> None:
    (plain,) = jax.make_jaxpr(lambda x: x)(1.0 if weak_type else jnp.float32(1.0)).out_avals
    assert plain.weak_type == weak_type
    for aval in (plain, jax.typeof(jax.random.key(0)), jax.core.ShapedArray((2,), float0)):
        stacked = jax_compat.stacked_aval(3, aval)
        assert (stacked.shape, stacked.dtype) == ((3, *aval.shape), aval.dtype)
        assert getattr(stacked, "weak_type", False) == getattr(aval, "weak_type", False)


def test_a_private_path_leads_somewhere() -> None:
    module, _, name = jax_compat.private("nn.functions._softmax").rpartition(".")
    assert hasattr(importlib.import_module(module), name)
