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
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.dtypes import float0
from jax.experimental import checkify, sparse
from jax.experimental.jet import jet
from jax.extend.core import Primitive, primitives, take_current_trace
from jax.interpreters import batching
from support import equations, unflagged

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


def with_table(w: Any, x: Any) -> Any:
    f = jax.custom_jvp(jnp.sin)
    f.defjvps(lambda tangent, _, x: tangent * np.arange(3.0))
    return f(x @ w)


def checkpoints_in(f: Callable[..., Any]) -> list[Any]:
    closed = jax.make_jaxpr(f)(jnp.ones((3, 3)), jnp.ones((2, 3)))
    found = [eqn for eqn in equations(closed.jaxpr) if "prevent_cse" in eqn.params]
    return [eqn for eqn in found if isinstance(eqn.params["prevent_cse"], tuple)]


@unflagged
def test_an_array_that_a_rule_brings_along_does_not_wait() -> None:
    f = jax.checkpoint(with_table, prevent_cse=(False, True))
    (eqn,) = checkpoints_in(lambda w, x: jax.jvp(f, (w, x), (w, x)))
    # The array, w and x, and the two tangents, which JAX lets wait.
    assert eqn.params["prevent_cse"] == (False, False, True, True, True)


@unflagged
def test_what_an_outer_checkpoint_saves_waits() -> None:
    inner = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w)), prevent_cse=(False, True))
    f = jax.checkpoint(inner, policy=jax.checkpoint_policies.everything_saveable)
    *_, eqn = checkpoints_in(jax.grad(lambda w, x: jnp.sum(f(w, x)), (0, 1)))
    waits = zip(eqn.invars, eqn.params["prevent_cse"], strict=True)
    free = [atom.aval.shape for atom, waiting in waits if not waiting]
    assert free == [(3, 3)]
    assert len(eqn.invars) > 3


def test_one_barrier_for_all_stays() -> None:
    assert jax_compat.barriers_of_all(True, 3, added=False) is True
    assert jax_compat.barriers_of_all((True,), 3, added=False) == (False, False, True)


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


@unflagged
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


def by_jvp(x: Any, power: Any) -> Any:
    return x**power


def by_vjp(x: Any, power: Any) -> Any:
    return x**power


by_jvp = jax.custom_jvp(by_jvp, nondiff_argnums=(1,))
by_jvp.defjvp(lambda power, p, t: (p[0] ** power, power * t[0]))
by_vjp = jax.custom_vjp(by_vjp, nondiff_argnums=(1,))
by_vjp.defvjp(lambda x, power: (x**power, x), lambda power, x, g: (power * g,))


@unflagged
@pytest.mark.parametrize(
    ("function", "names"),
    [(by_jvp, ["jvp_jaxpr_fun"]), (by_vjp, ["fwd_jaxpr_thunk", "bwd"])],
    ids=["jvp", "vjp"],
)
def test_a_rule_that_is_called_alike_has_the_same_parts(function: Any, names: list[str]) -> None:
    def program(x: Any) -> Any:
        return (
            function(x, 2),
            function(x, 2),
            function(x, 3),
            function(x, True),
            function((x,)[0], 2),
        )

    for name in names:
        first, *others = (
            jax_compat.rule_parts(eqn.params[name])
            for eqn in jax.make_jaxpr(program)(X).eqns
            if name in eqn.params
        )
        assert [first == other for other in others] == [True, False, False, True]


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


@pytest.mark.parametrize(("rows", "deep", "is_one"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_a_map_over_one_row_is_told(rows: int, deep: int, is_one: bool) -> None:
    with take_current_trace() as outer:
        pass
    found = []

    def seen(row: Any) -> Any:
        with take_current_trace() as trace:
            found.append(jax_compat.maps_one(trace, outer))
        return row

    for _ in range(deep):
        seen = jax.vmap(seen)
    seen(jnp.ones((rows,) * deep))
    assert found == [is_one]


def test_a_custom_vjp_that_is_differentiated_in_what_it_closes_over() -> None:
    def of(y: Any) -> Any:
        f = jax.custom_vjp(lambda x: x * y)
        f.defvjp(lambda x: (x * y, None), lambda _, g: (g,))
        return jax.jit(f)(2.0)

    with pytest.raises(jax_compat.ClosesOver):
        jax.grad(of)(3.0)


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


def interpreters_seen(interpret: Callable[[Any], Any]) -> list[Any]:
    """What is found around a function, and around a jit in it."""
    seen: list[Any] = []

    def look(x: Any) -> Any:
        seen.append(jax_compat.interpreter_around())
        return 2 * x

    interpret(lambda x: look(x) + jax.jit(look)(x))
    return seen


@pytest.mark.parametrize(
    ("interpret", "name"),
    [
        (lambda f: checkify.checkify(f)(X), "checkify"),
        (lambda f: checkify.checkify(jax.vmap(jax.grad(f)))(X), "checkify"),
        (lambda f: sparse.sparsify(f)(X), "sparsify"),
        (lambda f: sparse.sparsify(f, use_tracer=True)(X), "sparse"),
        (lambda f: jet(f, (X,), ((X,),)), "jet"),
    ],
    ids=["checkify", "transformed", "sparsify", "sparsify by tracers", "jet"],
)
def test_an_interpreter_is_seen_but_not_through_a_jit(interpret: Any, name: str) -> None:
    assert interpreters_seen(interpret) == [name, None]


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.vmap, jax.checkpoint, lambda f: jax.grad(lambda x: jnp.sum(f(x)))],
    ids=["jit", "vmap", "checkpoint", "grad"],
)
def test_jaxs_own_transformations_are_no_interpreters(transform: Any) -> None:
    assert interpreters_seen(lambda f: transform(f)(X)) == [None, None]


def test_a_primitive_is_bound_plainly_where_a_trace_is_not_jaxs_own() -> None:
    tripled = Primitive("tripled")
    tripled.def_impl(lambda x, *, by: 3 * x)
    tripled.def_abstract_eval(lambda x, *, by: x)
    jax_compat.bind_plainly_for_strangers(tripled, lambda x, *, by: by * jnp.sin(x))
    value, (rate,) = jet(lambda x: tripled.bind(x, by=2.0), (X,), ((jnp.ones(3),),))
    assert value == pytest.approx(2 * jnp.sin(X))
    assert rate == pytest.approx(2 * jnp.cos(X))
    assert tripled.bind(X, by=2.0) == pytest.approx(3 * X)


def test_checkify_looks_into_an_equation() -> None:
    hidden = Primitive("hidden")
    hidden.multiple_results = True
    hidden.def_abstract_eval(lambda x: [x])
    program = lambda avals, _: jax.make_jaxpr(lambda x: [jnp.log(x)])(*avals)  # noqa: E731
    jax_compat.register_with_checkify(hidden, program)
    error, _ = checkify.checkify(lambda x: hidden.bind(x)[0], errors=checkify.nan_checks)(X)
    assert error.get() == "nan generated by primitive: log."


def test_the_search_for_keys_that_are_used_twice_is_seen() -> None:
    assert not jax_compat.checks_keys()
    with jax.debug_key_reuse(True):
        assert jax_compat.checks_keys()


def test_a_size_that_is_left_open_has_a_value_where_its_symbols_have_one() -> None:
    b, n = jax.export.symbolic_shape("b, n")
    assert jax_compat.size_at(2 * b + n * n, 3) == 15
    assert jax_compat.size_at(7, 3) == 7
    assert jax_compat.size_at(b - 3, 3) == jax_compat.size_at(n // (b - 3), 3) == 3


def rule_of(f: Callable[..., Any], *args: Any) -> Any:
    """The object in the one equation that a function makes under the flags."""
    (equation,) = jax.make_jaxpr(f)(*args).jaxpr.eqns
    assert equation.primitive.name == "call_hi_primitive"
    return equation.params["_prim"]


def scaled() -> Any:
    function = jax.custom_vjp(lambda x, i: x * i)
    function.defvjp(lambda x, i: (x * i, i), lambda i, bar: (bar * i, None))
    return function


def test_the_flags_make_objects_of_these_classes(flags: None) -> None:
    made = {
        "RematTraced": rule_of(jax.checkpoint(jnp.sin), X),
        "CheckpointName": rule_of(lambda x: checkpoint_name(x, "x"), X),
        "CustomVJPTraced": rule_of(scaled(), X, 2),
    }
    assert {name: type(rule).__name__ for name, rule in made.items()} == {n: n for n in made}
    assert len(made["RematTraced"].jaxpr.in_avals) == 1
    assert made["RematTraced"].policy is None
    assert made["CheckpointName"].name == "x"


def test_flags_off_makes_the_earlier_equations(flags: None) -> None:
    with jax_compat.flags_off():
        named = jax.make_jaxpr(lambda x: checkpoint_name(x, "x"))(X)
        checkpoint = jax.make_jaxpr(jax.checkpoint(jnp.sin))(X)
        rule = jax.make_jaxpr(scaled())(X, 2)
    made = [closed.jaxpr.eqns[0].primitive for closed in (checkpoint, rule, named)]
    assert made[:2] == [primitives.remat_p, primitives.custom_vjp_call_p]
    assert made[2].name == "name"
    assert jax.config.jax_remat3
    assert jax.config.jax_custom_vjp3


def test_high_jaxprs_are_told_and_the_account_is_made_anew(flags: None) -> None:
    high = jax.make_jaxpr(jax.checkpoint(jnp.sin))(X)
    low = jax.make_jaxpr(jnp.sin)(X)
    assert jax_compat.is_high(high)
    assert not jax_compat.is_high(low)
    assert not jax_compat.is_high(jax_compat.with_equations(high.jaxpr, low.jaxpr.eqns))
    assert jax_compat.is_high(jax_compat.with_equations(low.jaxpr, high.jaxpr.eqns))


def test_a_flagged_rule_is_pulled_back(flags: None) -> None:
    rule = rule_of(scaled(), X, 2)
    args = jax.tree.unflatten(rule.in_tree, [X, 2])
    _, residuals, *_ = rule.vjp_fwd(jax.tree.map(lambda _: True, args), *args)
    x_bar, none = jax_compat.pulled_back(rule, residuals, [X])
    assert none is None
    assert jnp.array_equal(x_bar, 2 * X)


def test_a_vmapped_rule_says_how(flags: None) -> None:
    f = jax.vmap(scaled(), in_axes=(1, None), out_axes=0)
    for equation in jax.make_jaxpr(f)(jnp.ones((2, 3)), 2).jaxpr.eqns:
        rule = equation.params.get("_prim")
        if type(rule).__name__ == "VmapOf":
            again = jax_compat.vmap_again(lambda x, i: [x * i], rule)
            assert again(jnp.ones((2, 3)), 2)[0].shape == (2, 3)
            return
    assert not jax.__version__.startswith(("0.10", "0.11"))  # later versions batch the rule itself
