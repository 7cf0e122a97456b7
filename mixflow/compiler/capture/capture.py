"""Capture: trace a function so that every `jax.vjp` in it stays one symbolic equation.

`jax.grad`, `value_and_grad`, `jacrev` and the wrappers of flax, equinox and haiku all go through
`jax.vjp`. While a thread traces under mixflow, a call of it is not run: its function is traced
once to a closed jaxpr f, its value is bound as `primal[f]` and each call of the pullback as
`vjp[f]` at the same point. Recovering gradients from an already differentiated jaxpr would not
work: partial evaluation has dropped the loss by then.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jax.tree_util import tree_flatten, tree_structure

from mixflow.compiler import jax_compat
from mixflow.compiler.barriers import barrier, lowering
from mixflow.compiler.capture import linear_use
from mixflow.compiler.capture.custom_rules import equations_with_effects
from mixflow.compiler.capture.joining import join_where_not_linear, torn_functions
from mixflow.compiler.capture.pullback import Pullback
from mixflow.compiler.capture.soundness import FunctionSoundness
from mixflow.compiler.capture.traced import TracedFunction, WrongResult, trace_function
from mixflow.compiler.capture.tried_rules import try_rules
from mixflow.compiler.derivative import batching, interpreters
from mixflow.compiler.derivative.vjp_primitive import primal_p
from mixflow.compiler.jaxprs.effects import effects_in
from mixflow.compiler.jaxprs.flagged import has_forward_mode, without_flags
from mixflow.compiler.jaxprs.subprograms import equations_in
from mixflow.compiler.jaxprs.values import TreeDef, is_inexact, named_after
from mixflow.compiler.recording import Decline, Recording, current_recording, paused
from mixflow.compiler.rules.replay import NEEDS_VALUES, Replay, closed_over, where_rules_run


def captured_vjp(
    recording: Recording,
    fun: Callable[..., Any],
    *primals: Any,
    has_aux: bool = False,
    **other: Any,
) -> Any:
    """`jax.vjp`, symbolic where it can be and JAX's own where it cannot."""
    recording.calls += 1
    number = recording.calls
    call = functools.partial(jax_compat.VJP_OF_JAX, fun, *primals, has_aux=has_aux, **other)
    leaves, in_tree = tree_flatten(primals)
    reason = _looked_through(recording) or _unsuitable(fun, leaves, other)
    if reason:
        recording.decline(reason)
        return call()
    try:
        traced = trace_function(fun, leaves, in_tree, has_aux)
    except WrongResult:
        return call()  # JAX says what is wrong
    except NEEDS_VALUES:
        # Under plain JAX a concrete point may steer Python; if it cannot, JAX says so.
        recording.decline("the function uses the value of its argument in Python")
        return call()
    recording.finished.append(traced.trace)
    return _bind(recording, number, traced, call)


def _bind(
    recording: Recording, number: int, traced: TracedFunction, call: Callable[[], Any]
) -> Any:
    soundness = FunctionSoundness(
        traced.jaxpr, len(traced.consts), traced.carries, recording.trusts
    )
    function = soundness.function
    reason = _unfit(traced)
    if reason:
        recording.decline(reason)
        return traced.differentiate()
    replay = where_rules_run(traced.jaxpr, traced.trace)
    if replay is not Replay.ANYWHERE:
        recording.decline(replay.value)
        return traced.differentiate() if replay is Replay.HERE else call()
    tried = try_rules(traced, function)
    if tried.why:
        recording.decline(tried.why)
        return traced.differentiate() if tried.runs_here else call()
    if number in recording.left or not (recording.is_whole or soundness.is_linear):
        recording.decline(
            "a rule in it is not linear, and its value and pullback cannot be one equation: the "
            "cotangent depends on the value, or the pullback is called more than once"
        )
        return traced.differentiate()
    recording.captured[number] = soundness
    function = replace(function, retyped=tried.retyped)
    recording.num_captured += 1
    outputs = primal_p.bind(*traced.consts, *traced.point, function=function)
    pullback = Pullback(function, traced.layout, traced.closure, traced.leaves)
    value, aux = traced.unflatten(outputs)
    return value, pullback, *aux


def _looked_through(recording: Recording) -> str | None:
    """Why every equation of what is being traced has to be JAX's own, or None."""
    stranger = jax_compat.interpreter_around(recording.outermost)
    if stranger:
        return f"{stranger} goes through the program, and knows JAX's own equations alone"
    if jax_compat.checks_keys():
        return "jax_debug_key_reuse is on: value and pullback would each count as a use of a key"
    return None


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


def _unfit(traced: TracedFunction) -> str | None:
    """Why a traced function cannot stand in an equation, or None."""
    if any(jax_compat.is_ref(value) for value in traced.closure):
        return "the function closes over a mutable reference"
    if not has_forward_mode(traced.jaxpr):
        return "a custom_vjp made under jax_custom_vjp3 has no forward mode before JAX 0.12"
    if all(map(jax_compat.is_axis_effect, traced.jaxpr.effects)):
        return None
    return f"the function has effects: {', '.join(dict.fromkeys(effects_in(traced.jaxpr)))}"


def _unseen_derivatives(jaxpr: Any) -> Iterator[Decline]:
    """A warning for each equation of a derivative that no `jax.vjp` was seen to make."""
    for eqn in equations_in(jaxpr):
        if "transpose(" in str(eqn.source_info.name_stack):
            why = (
                "the program differentiates, but not through a jax.vjp that mixflow saw: one "
                "bound before mixflow was imported, as by `from jax import vjp`, is not seen"
            )
            yield Decline("capture", jax_compat.source_line(eqn.source_info), why)


@dataclass(frozen=True)
class Captured:
    """A whole function, traced: every `jax.vjp` in it is symbolic.

    Arguments:
        jaxpr: closed; its inputs are the function's array leaves.
        out_tree: the structure of its result.
        declines: what was not captured, and why.
        num_captured: the number of `jax.vjp` calls that were.
        with_effects: the parameters of equations whose derivatives have effects by custom rules.
    """

    jaxpr: ClosedJaxpr
    out_tree: TreeDef
    declines: tuple[Decline, ...]
    num_captured: int
    with_effects: tuple[dict[str, Any], ...] = ()


def _why_not_at_all(jaxpr: ClosedJaxpr, recording: Recording) -> str | None:
    """Why nothing in a program can be captured, or None."""
    if _outlived(jaxpr, recording):
        return (
            "a loss leaves values behind that are used after it, such as a random key that it "
            "splits or a list that it appends to: return them from it, as has_aux does"
        )
    if any(one.optimizes_remat for one in recording.captured.values()):
        # JAX raises where such a rule, in a jit or a loop, is differentiated once and traced: it
        # takes that the user differentiates it twice, from outside, as the program does.
        return "a rule given with optimize_remat stands inside a jit, a loop or the like"
    return None


def _outlived(jaxpr: ClosedJaxpr, recording: Recording) -> bool:
    """Whether values of a captured loss are used outside of it.

    Those that do not depend on its point belong to the enclosing trace in JAX, and may be.
    """
    return any(trace in recording.finished for trace in closed_over(jaxpr))


def capture(
    fun: Callable[..., Any],
    leaves: list[Any],
    assume_symmetric: str | tuple[str, ...] = (),
    source: Callable[..., Any] | None = None,
    left_to_jax: str | None = None,
) -> Captured:
    """Trace a function of flat arrays under mixflow.

    Arguments:
        fun: takes the leaves, returns a pytree of arrays.
        leaves: arrays, tracers, or `jax.ShapeDtypeStruct`.
        assume_symmetric: as for `mixflow.compile`.
        source: the user's function, for JAX's messages to name; by default `fun`.
        left_to_jax: why none of its derivatives is to be captured; None to capture them.

    Raises:
        Whatever `fun` raises.
    """
    interpreters.register_with_sparsify()
    out_tree: list[TreeDef] = []

    @named_after(source or fun)
    def flat(*leaves: Any) -> Any:
        result = fun(*leaves)
        out_tree.append(tree_structure(result))
        return result

    recording, jaxpr = _traced(flat, leaves, assume_symmetric, left_to_jax)
    if not recording.declines:
        recording.declines.extend(itertools.islice(_unseen_derivatives(jaxpr), 1))
    jaxpr = without_flags(jaxpr)
    declines, num_captured = tuple(recording.declines), recording.num_captured
    with paused():
        with_effects = tuple(equations_with_effects(jaxpr.jaxpr))
    return Captured(jaxpr, out_tree[-1], declines, num_captured, with_effects)


def _traced(
    flat: Callable[..., Any],
    leaves: list[Any],
    assume_symmetric: str | tuple[str, ...],
    left_to_jax: str | None,
) -> tuple[Recording, ClosedJaxpr]:
    """The trace with derivatives captured, or JAX's own and the reason."""
    if left_to_jax is None:
        recording, jaxpr = _traced_whole(flat, leaves, assume_symmetric)
        left_to_jax = _why_not_at_all(jaxpr, recording)
        if left_to_jax is None:
            return recording, jaxpr
    recording = Recording()
    recording.decline(left_to_jax)
    return recording, jax.make_jaxpr(flat)(*leaves)


def _traced_whole(
    flat: Callable[..., Any], leaves: list[Any], assume_symmetric: str | tuple[str, ...]
) -> tuple[Recording, ClosedJaxpr]:
    """The trace, again where functions turn out to be torn: those are left to JAX then."""
    left = frozenset[int]()
    while True:
        recording = Recording(assume_symmetric, left=left, is_whole=True)
        with recording.active():
            jaxpr = join_where_not_linear(jax.make_jaxpr(flat)(*leaves))
        torn = [one for one in recording.torn if not one.is_linear] + torn_functions(jaxpr)
        numbers = {number for number, one in recording.captured.items() if one in torn}
        # Those of a compiled function that is called here are joined by its own capture.
        if not numbers:
            return recording, jaxpr
        left |= numbers


def _vjp_hook(fun: Callable[..., Any], *primals: Any, **kwargs: Any) -> Any:
    recording = current_recording()
    if recording is None:
        return jax_compat.VJP_OF_JAX(fun, *primals, **kwargs)
    return captured_vjp(recording, fun, *primals, **kwargs)


barrier.register()
batching.register()
linear_use.register()
interpreters.register()
jax_compat.install_vjp_hook(_vjp_hook)
jax_compat.install_barriers_for_added_operands()
if lowering.MERGES_RUNS:
    lowering.install()
jax_compat.hide_frames_of(f"{Path(__file__).parents[2]}{os.sep}")
