"""Capture: trace a function so that every `jax.vjp` in it stays one symbolic equation.

`jax.grad`, `value_and_grad`, `jacrev` and the wrappers of flax, equinox and haiku all go through
`jax.vjp`. While a thread traces under mixflow, a call of it is not run: its function is traced
once to a closed jaxpr f, its value is bound as `primal[f]` and each call of the pullback as
`vjp[f]` at the same point. Recovering gradients from an already differentiated jaxpr would not
work: partial evaluation has dropped the loss by then.
"""

from __future__ import annotations

import enum
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, jaxprs_in_params, primitives
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import tree_flatten, tree_structure

from mixflow.compiler import jax_compat, vjp_batching
from mixflow.compiler.analysis.effects import effects_in
from mixflow.compiler.analysis.soundness import custom_rules, find_suspects, nested_jaxprs
from mixflow.compiler.differentiand import Differentiand, TreeDef, is_inexact, named_after
from mixflow.compiler.pullback import Pullback
from mixflow.compiler.recording import Decline, Recording, current_recording
from mixflow.compiler.traced import TracedFunction, WrongResult, trace_function
from mixflow.compiler.vjp_primitive import primal_p


def captured_vjp(
    recording: Recording,
    fun: Callable[..., Any],
    *primals: Any,
    has_aux: bool = False,
    **other: Any,
) -> Any:
    """`jax.vjp`, symbolic where it can be and JAX's own where it cannot."""
    call = functools.partial(jax_compat.VJP_OF_JAX, fun, *primals, has_aux=has_aux, **other)
    leaves, in_tree = tree_flatten(primals)
    reason = _unsuitable(fun, leaves, other)
    if reason:
        recording.decline(reason)
        return call()
    try:
        traced = trace_function(fun, leaves, in_tree, has_aux)
    except WrongResult:
        return call()  # JAX says what is wrong
    except _NEEDS_VALUES:
        # Under plain JAX a concrete point may steer Python; if it cannot, JAX says so.
        recording.decline("the function uses the value of its argument in Python")
        return call()
    recording.finished.append(traced.trace)
    return _bind(recording, traced, call)


def _bind(recording: Recording, traced: TracedFunction, call: Callable[[], Any]) -> Any:
    suspects = tuple(s for s in find_suspects(traced.jaxpr) if not recording.trusts(s))
    function = Differentiand(
        traced.jaxpr,
        len(traced.consts),
        traced.carries,
        symmetric=not suspects,
        custom=any(custom_rules(traced.jaxpr)),
        suspects=suspects,
    )
    reason = _impure(traced)
    if reason:
        recording.decline(reason)
        return traced.differentiate()
    replay = _replay(traced, function)
    if replay is not Replay.ANYWHERE:
        recording.decline("a custom rule closes over values of the enclosing trace")
        return traced.differentiate() if replay is Replay.HERE else call()
    if function.custom and function.symmetric and not _has_forward_mode(traced, function):
        why = "you vouch for it, but it has no forward mode: its rule calls a custom_vjp"
        stuck = tuple(replace(suspect, why=why) for suspect in find_suspects(traced.jaxpr))
        function = replace(function, symmetric=False, suspects=stuck)
    recording.num_captured += 1
    outputs = primal_p.bind(*traced.consts, *traced.point, function=function)
    pullback = Pullback(function, traced.layout, traced.closure, traced.leaves)
    value, aux = traced.unflatten(outputs)
    return value, pullback, *aux


# What JAX raises when traced code asks for a concrete value.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _unsuitable(fun: Any, leaves: list[Any], other: dict[str, Any]) -> str | None:
    """Why a call of `jax.vjp` is left to JAX before anything is traced, or None."""
    if not callable(fun):
        return "what is to be differentiated is not callable"
    if other:
        return f"jax.vjp was given {', '.join(other)}"
    try:
        avals = [jax.typeof(leaf) for leaf in leaves]
    except TypeError:
        return "a primal is no array"
    if any(jax_compat.is_ref(aval) for aval in avals):
        return "a primal is a mutable reference"
    if not any(is_inexact(aval) for aval in avals):
        return "no primal has a derivative"
    return None


def _impure(traced: TracedFunction) -> str | None:
    """Why a traced function cannot stand in an equation, or None."""
    if any(jax_compat.is_ref(value) for value in traced.closure):
        return "the function closes over a mutable reference"
    if all(map(jax_compat.is_axis_effect, traced.jaxpr.effects)):
        return None
    return f"the function has effects: {', '.join(dict.fromkeys(effects_in(traced.jaxpr)))}"


class Replay(enum.Enum):
    """Where a traced function's custom rules, which JAX traces only when it needs them, can run."""

    ANYWHERE = enum.auto()
    HERE = enum.auto()
    NOWHERE = enum.auto()


def _replay(traced: TracedFunction, function: Differentiand) -> Replay:
    """Try the custom rules of a traced function, if it has any of unknown make.

    A rule may close over tracers: of the enclosing traces, which live as long as the user's code
    runs, or of the function's own trace, which is over.
    """
    if not function.custom:
        return Replay.ANYWHERE

    try:
        jaxpr = jax.make_jaxpr(function.gradient)(traced.consts, traced.point)
    except jax.errors.UnexpectedTracerError:
        return Replay.NOWHERE
    traces = _closed_over(jaxpr)
    if traced.trace in traces:
        return Replay.NOWHERE
    return Replay.HERE if traces else Replay.ANYWHERE


def _closed_over(jaxpr: ClosedJaxpr) -> list[Any]:
    """The traces that a program's constants belong to, where those are tracers."""
    tracers = [const for const in jaxpr.consts if isinstance(const, jax.core.Tracer)]
    return list(map(jax_compat.trace_of, tracers))


def _unseen_derivatives(jaxpr: Any) -> Iterator[Decline]:
    """A warning for each equation of a derivative that no `jax.vjp` was seen to make."""
    for eqn in jaxpr.eqns:
        if "transpose(" in str(eqn.source_info.name_stack):
            why = (
                "the program differentiates, but not through a jax.vjp that mixflow saw: one "
                "bound before mixflow was imported, as by `from jax import vjp`, is not seen"
            )
            yield Decline("capture", jax_compat.source_line(eqn.source_info), why)
        for inner in nested_jaxprs(eqn):
            yield from _unseen_derivatives(inner)


def _has_forward_mode(traced: TracedFunction, function: Differentiand) -> bool:
    """Try the pushforward of the pullback, which the symmetric rule will ask for."""

    def push(point: list[Any]) -> Any:
        return jax.jvp(lambda point: function.gradient(traced.consts, point), (point,), (point,))

    try:
        jaxpr = jax.make_jaxpr(push)(traced.point)
    except TypeError:
        return False
    live, _ = dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return not _holds_one_way_rule(live)


def _holds_one_way_rule(jaxpr: Any) -> bool:
    """Whether a custom_vjp was pushed forward; JAX only says so when it lowers the program."""
    return any(
        eqn.primitive is primitives.custom_lin_p
        or any(map(_holds_one_way_rule, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


@dataclass(frozen=True)
class Captured:
    """A whole function, traced: every `jax.vjp` in it is symbolic.

    Arguments:
        jaxpr: closed; its inputs are the function's array leaves.
        out_tree: the structure of its result.
        declines: what was not captured, and why.
        num_captured: the number of `jax.vjp` calls that were.
    """

    jaxpr: ClosedJaxpr
    out_tree: TreeDef
    declines: tuple[Decline, ...]
    num_captured: int


def _outlived(jaxpr: ClosedJaxpr, recording: Recording) -> bool:
    """Whether values of a captured loss are used outside of it.

    Those that do not depend on its point belong to the enclosing trace in JAX, and may be.
    """
    return any(trace in recording.finished for trace in _closed_over(jaxpr))


def capture(
    fun: Callable[..., Any],
    leaves: list[Any],
    assume_symmetric: str | tuple[str, ...] = (),
    source: Callable[..., Any] | None = None,
) -> Captured:
    """Trace a function of flat arrays under mixflow.

    Arguments:
        fun: takes the leaves, returns a pytree of arrays.
        leaves: arrays, tracers, or `jax.ShapeDtypeStruct`.
        assume_symmetric: as for `mixflow.compile`.
        source: the user's function, for JAX's messages to name; by default `fun`.

    Raises:
        Whatever `fun` raises.
    """
    recording = Recording(assume_symmetric)
    out_tree: list[TreeDef] = []

    @named_after(source or fun)
    def flat(*leaves: Any) -> Any:
        result = fun(*leaves)
        out_tree.append(tree_structure(result))
        return result

    with recording.active():
        jaxpr = jax.make_jaxpr(flat)(*leaves)
    if _outlived(jaxpr, recording):
        recording = Recording()
        recording.decline(
            "a loss leaves values behind that are used after it, such as a random key that it "
            "splits or a list that it appends to: return them from it, as has_aux does"
        )
        jaxpr = jax.make_jaxpr(flat)(*leaves)
    if not recording.declines:
        recording.declines.extend(itertools.islice(_unseen_derivatives(jaxpr), 1))
    return Captured(jaxpr, out_tree[-1], tuple(recording.declines), recording.num_captured)


def _vjp_hook(fun: Callable[..., Any], *primals: Any, **kwargs: Any) -> Any:
    recording = current_recording()
    if recording is None:
        return jax_compat.VJP_OF_JAX(fun, *primals, **kwargs)
    return captured_vjp(recording, fun, *primals, **kwargs)


vjp_batching.register()
jax_compat.install_vjp_hook(_vjp_hook)
jax_compat.hide_frames_of(f"{Path(__file__).parent.parent}{os.sep}")
