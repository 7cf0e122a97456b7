"""Every touch of JAX's private surface, each with its reason.

The rest of mixflow uses `jax`, `jax.core`, `jax.extend` and `jax.interpreters` alone.
`tests/compiler/test_jax_compat.py` checks each item here against the installed JAX, so that what
changes in JAX fails there, loudly, and not somewhere in a user's program.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import jax.core
import numpy as np
from jax._src import api as _api
from jax._src import checkify as _checkify
from jax._src import config as _config
from jax._src import core as _core
from jax._src import linear_util as _linear_util
from jax._src import shard_map as _shard_map
from jax._src import source_info_util as _source_info_util
from jax._src import util as _util
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import batching as _batching
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.interpreters import remat as _remat
from jax.extend.core import DebugInfo, JaxprEqn, set_current_trace
from jax.extend.core.primitives import remat_p
from jax.tree_util import PyTreeDef, tree_unflatten

VJP_OF_JAX: Callable[..., Any] = _api.vjp
"""JAX's own `jax.vjp`, from before the hook was installed."""

ClosesOver: type[Exception] = _ad.CustomVJPException
"""What JAX raises where a `custom_vjp` is differentiated in a value that it closes over.

Why private: the exception is not exported.
"""

_JAX_SOURCES = str(Path(_api.__file__).parent)


def private(name: str) -> str:
    """The path of a function inside JAX, for the list of trusted custom rules.

    Why private: `jax.nn.softmax` and others keep their rule on a helper with no public name.
    """
    return f"jax._src.{name}"


def hide_frames_of(directory: str) -> None:
    """Leave a directory's frames out of the source lines that JAX records for equations.

    Why private: JAX excludes its own frames in the same way and offers no public way.
    """
    _source_info_util.register_exclusion(directory)


def install_vjp_hook(hook: Callable[..., Any]) -> None:
    """Let every `jax.vjp`, `jax.grad`, `jax.value_and_grad` and `jax.jacrev` call `hook`.

    Why private: these functions look up the module global `jax._src.api.vjp` when they are
    called; there is no public place to stand in for it. `hook` takes what `jax.vjp` takes
    and passes everything that it does not want to `VJP_OF_JAX`.
    """
    hook = functools.wraps(VJP_OF_JAX)(hook)
    _api.vjp = hook
    jax.vjp = hook


def vjp_hook() -> Callable[..., Any]:
    """What `jax.grad` and its relatives call at present."""
    return _api.vjp


def install_barriers_for_added_operands() -> None:
    """Let `jax.checkpoint` with barriers told one by one take operands that JAX's rules add.

    The rules for forward mode, transposition and batching put arrays that they come across, such
    as a table in a custom rule, before a checkpoint's operands; the rule for a checkpoint in a
    checkpoint so puts what the outer one's policy saves. None of them adds barriers to the tuple
    `prevent_cse`, and an assertion without a message fails: `len(prevent_cse) == len(args)`.
    Whatever passes that assertion is bound as before.

    Why private: where JAX's rules bind a checkpoint there is no public place to stand in.
    """
    bind, rules = remat_p.bind, _partial_eval.partial_eval_jaxpr_custom_rules
    split: Callable[..., Any] = rules[remat_p]

    @functools.wraps(bind)
    def bind_with_arrays(*args: Any, prevent_cse: bool | tuple[bool, ...], **params: Any) -> Any:
        # As for what a user's checkpoint closes over: arrays are there, nothing has to wait.
        barriers = barriers_of_all(prevent_cse, len(args), added=False)
        return bind(*args, prevent_cse=barriers, **params)

    @functools.wraps(split)
    def split_with_saved(*args: Any) -> tuple[JaxprEqn, JaxprEqn, *tuple[Any, ...]]:
        known, staged, *rest = split(*args)
        # What was saved was computed: JAX's rule for a checkpoint in none holds it back, too.
        barriers = barriers_of_all(staged.params["prevent_cse"], len(staged.invars), added=True)
        return known, staged.replace(params={**staged.params, "prevent_cse": barriers}), *rest

    remat_p.bind = bind_with_arrays
    rules[remat_p] = split_with_saved


def barriers_of_all(prevent_cse: Any, count: int, *, added: bool) -> Any:
    """A checkpoint's `prevent_cse` for all of its operands, those in front having been added.

    Arguments:
        prevent_cse: as the checkpoint had it; one bool for all operands stays as it is.
        count: how many operands there are now.
        added: whether those in front have to wait.
    """
    if not isinstance(prevent_cse, tuple):
        return prevent_cse
    return (added,) * (count - len(prevent_cse)) + prevent_cse


def public_axis_name(axis_data: Any) -> Any:
    """The name that `jax.vmap(axis_name=...)` takes for a batching rule's axis.

    Why private: an unnamed axis carries a private sentinel where `jax.vmap` takes None.
    """
    return None if axis_data.name is _core.no_axis_name else axis_data.name


def maps_one(trace: Any, outer: Any) -> bool:
    """Whether a trace is that of a `jax.vmap` over an axis of size one, called in another trace.

    Why private: a trace tells neither its axis nor where it was made.
    """
    is_map = isinstance(trace, _batching.BatchTrace) and trace.parent_trace is outer
    return is_map and trace.axis_data.size == 1


def is_axis_effect(effect: Any) -> bool:
    """Whether an effect only says that a named axis is used (`psum` and its relatives).

    Why private: the effect's class is not exported; every other effect bars a capture.
    """
    return isinstance(effect, _core.NamedAxisEffect)


def axis_names(effects: Any) -> set[Any]:
    """The named axes that a set of effects mentions."""
    return {effect.name for effect in effects if is_axis_effect(effect)}


@contextmanager
def inside_mesh(mesh: Any, *, checks_varying: bool) -> Generator[None]:
    """Trace as the body of a `jax.shard_map` is traced, or under an explicit mesh.

    Why private: outside of a shard_map, JAX has no public way to bind its axes and to keep account
    of the axes that a value varies over.

    Arguments:
        mesh: abstract; its manual axes are those of the shard_map.
        checks_varying: whether the shard_map has `check_vma`.
    """
    axes = [(name, mesh.shape[name]) for name in mesh.manual_axes]
    with (
        _core.extend_axis_env_nd(axes),
        jax.sharding.use_abstract_mesh(mesh),
        _config._check_vma(checks_varying),  # pyright: ignore[reportPrivateUsage]
    ):
        yield


def is_ref(value: Any) -> bool:
    """Whether a value is a mutable reference, which a capture cannot hold.

    Why private: references have no public type.
    """
    aval = value if isinstance(value, jax.core.AbstractValue) else jax.typeof(value)
    return type(aval).__name__ == "AbstractRef"


def scan_layout(params: dict[str, Any]) -> tuple[int, int]:
    """The numbers of constants and of carried values among a scan's operands.

    Why private: the parameters that say so differ between JAX 0.10 and 0.12.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def with_scan_layout(params: dict[str, Any], consts: int, carry: int, xs: int) -> dict[str, Any]:
    """A scan's parameters with other numbers of constants, carried values and slices.

    Why private: JAX 0.12 has a type of its own for them.
    """
    if "num_consts" in params:
        return {**params, "num_consts": consts, "num_carry": carry}
    flat = importlib.import_module("jax._src.flattree")
    return {**params, "ft_in": flat.pack(tuple(map(flat.nones, (consts, carry, xs))))}


def size_at(size: Any, value: int) -> int:
    """A size that `jax.export` has left open, where each symbol in it is a number.

    Why private: JAX has no public way to evaluate such an expression. One that has no value
    there, or none that a size can have, is the number itself: `24 // (b - 32)` for b = 32.

    Arguments:
        size: an expression of symbols, or anything that is an integer to Python.
        value: the number.
    """
    if not hasattr(size, "_evaluate"):
        return int(size)
    with np.errstate(divide="ignore"):
        found = int(size._evaluate(dict.fromkeys(size._get_vars(), value)))
    return found if found > 0 else value


def stacked_aval(length: int, aval: Any) -> Any:
    """The abstract value of `length` values stacked in front, as a scan's slices and results are.

    Why private: a scan's own rule for this keeps weak types, shardings and PRNG keys.
    """
    return _core.unmapped_aval(length, 0, aval)


@contextmanager
def flags_off() -> Generator[None]:
    """Make checkpoints, names and custom rules as without `jax_remat3` and `jax_custom_vjp3`.

    Why private: in public, the flags are set for good, and not for a block.
    """
    with _config.remat3(False), _config.custom_vjp3(False):
        yield


def is_high(jaxpr: Any) -> bool:
    """Whether a jaxpr holds equations that JAX makes other equations of before XLA gets them.

    Those that the two flags make are such. Why private: JAX keeps account of it for itself.
    """
    return getattr(jaxpr, "jaxpr", jaxpr).is_high


def with_equations(jaxpr: Any, eqns: list[Any]) -> Any:
    """A jaxpr with other equations, and the account of `is_high` made anew.

    Why private: whether an equation is of that kind is a method of its primitive that JAX's
    public pages do not speak of.
    """
    high = any(
        eqn.primitive.is_high(*[var.aval for var in eqn.invars], **eqn.params) for eqn in eqns
    )
    return jaxpr.replace(eqns=eqns, is_high=high)


def pulled_back(rule: Any, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    """What the backward rule of a `custom_vjp` made under `jax_custom_vjp3` returns, flat.

    Why private: the rule adds its results to accumulators that JAX hands it; the methods that
    return them differ between 0.10, 0.11 and 0.12.
    """
    accumulators = [_ad.ValAccum(aval.to_ct_aval()) for aval in rule.in_avals_flat]
    rule.vjp_bwd(
        residuals,
        tree_unflatten(rule.out_tree, list(cotangents)),
        *tree_unflatten(rule.in_tree, accumulators),
    )
    found = [accumulator.freeze() for accumulator in accumulators]
    return tuple(None if isinstance(value, _ad.Zero) else value for value in found)


def vmap_again(function: Callable[..., Any], batched: Any) -> Callable[..., Any]:
    """`jax.vmap` of a flat function, as JAX's `VmapOf` says: the form of a vmapped custom rule.

    Why private: its axis and its dimensions are known to that object alone.
    """
    axis = batched.axis_data
    vmapped = jax.vmap(
        function,
        in_axes=tuple(batched.prim.in_tree.flatten_up_to(batched.in_dims)),
        out_axes=list(batched.prim.out_tree.flatten_up_to(batched.out_dim)),
        axis_name=public_axis_name(axis),
        axis_size=axis.size,
        spmd_axis_name=axis.spmd_name,
    )
    return jax.jit(vmapped)


def is_for_one_device(ctx: Any) -> bool:
    """Whether a program that is being lowered runs on one device.

    Why private: what a lowering rule is given has no public account of its devices.
    """
    return getattr(ctx.module_context.axis_context, "num_devices", None) == 1


def trace_of(tracer: Any) -> Any:
    """The trace that a tracer belongs to.

    Why private: tracers have no public account of their trace.
    """
    return tracer._trace


def is_tracing() -> bool:
    """Whether this thread is inside a JAX trace (a jit, grad or vmap that is being traced).

    Why private: the public checks are marked as not to be used.
    """
    return not _core.trace_state_clean()


def checks_keys() -> bool:
    """Whether `jax_debug_key_reuse` is on: JAX looks for random keys that are used twice.

    Why private: JAX's public configuration has no account of the type of its flags.
    """
    return bool(_config.debug_key_reuse.value)


def source_location(source_info: Any) -> tuple[str, int] | None:
    """The user's file and line for an equation, or None where JAX kept no traceback.

    Why private: JAX reads tracebacks with private helpers, and knows which frames are its own.
    """
    frame = _source_info_util.user_frame(source_info.traceback)
    return None if frame is None else (frame.file_name, frame.start_line)


def source_line(source_info: Any) -> str:
    """The user's `file:line` for an equation, or "<unknown>" where JAX kept no traceback."""
    location = source_location(source_info)
    return "<unknown>" if location is None else f"{location[0]}:{location[1]}"


def current_source_info() -> Any:
    """The traceback and name stack of the code that is running, as equations carry them."""
    return _source_info_util.current()


def custom_rule(params: dict[str, Any]) -> Callable[..., Any] | None:
    """The Python function behind a `custom_jvp_call` equation's rule, or None if unknown.

    Why private: an equation holds its rule as a chain of JAX's own wrappers, and what it says
    of itself (names, files) follows `__wrapped__`, which `functools.wraps` can forge. So the
    chain is followed through wrappers that are recognised by their code object; the first
    function that is no such wrapper is the rule. Anything unexpected gives None.
    """
    *_, rule = _layers(params.get("jvp_jaxpr_fun"))
    return rule if callable(rule) else None


def rule_parts(rule: Any) -> tuple[Any, tuple[Any, ...]]:
    """A custom rule in an equation: its function, and how it is called.

    JAX wraps the function anew for each call. What the wrappers hold beside it is how arguments are
    flattened, the values of `nondiff_argnums`, and what they write into, which is left out.

    Why private: see `custom_rule`.
    """
    *wrappers, function = _layers(rule)
    transforms = (one for layer in wrappers for one in getattr(layer, "transforms", ()))
    return function, tuple((by, *map(_setting, values)) for by, values in transforms)


def _setting(value: Any) -> Any:
    """What a wrapper of a rule holds, as a key."""
    if isinstance(value, tuple):
        return tuple(map(_setting, value))
    if type(value) in (_util.Hashable, _util.Unhashable):  # an argument of `nondiff_argnums`
        return type(value.val), repr(value.val) if np.isscalar(value.val) else id(value.val)
    if isinstance(value, PyTreeDef):  # equal ones may hold 0.0 and -0.0
        return value, str(value)
    if isinstance(value, DebugInfo) or _is_store(value):
        return None
    return value


def _is_store(value: Any) -> bool:
    """Whether a wrapper writes there what a rule returns."""
    if not isinstance(value, FunctionType) or not value.__module__.startswith("jax."):
        return False
    return value.__qualname__ == "transformation_with_aux2.<locals>.<lambda>"


def _layers(rule: Any) -> Iterator[Any]:
    """JAX's wrappers of a rule, the outermost first, and the rule."""
    while True:
        yield rule
        if isinstance(rule, _linear_util.WrappedFun):
            rule = rule.f
            continue
        inner = _wrapped_variable(rule.__code__) if isinstance(rule, FunctionType) else None
        if inner is None:
            return
        cells = dict(zip(rule.__code__.co_freevars, rule.__closure__ or (), strict=True))
        rule = cells[inner].cell_contents


def _wrapped_variable(code: CodeType) -> str | None:
    """The closure variable in which one of JAX's wrappers of a rule holds what it wraps."""
    if not code.co_filename.startswith(_JAX_SOURCES) or code.co_filename == _checkify.__file__:
        return None  # checkify wraps rules, too, and its equations return more than the rules do
    wrappers = {
        "_memoize.<locals>.memoized": "fn",
        "DynamicJaxprTrace.process_custom_jvp_call.<locals>.jvp_jaxpr_thunk": "jvp",
        "lift_jvp.<locals>.jvp": "jvp_jaxpr_fun",
        "DynamicJaxprTrace.process_custom_vjp_call.<locals>.fwd_jaxpr_from_zeros": "fwd",
        "lift_fwd.<locals>.fwd": "fwd_jaxpr_thunk",
        "custom_gradient.<locals>.fwd": "fun",
    }
    return wrappers.get(code.co_qualname)


def primitive_name(equation: Any) -> str:
    """The name of an equation's primitive, as a printed jaxpr has it.

    From JAX 0.12 on some of JAX's primitives are classes, such as `SearchSorted` and `CustomRoot`,
    and their equations are all of `call_hi_primitive`. A class of somebody else's may be called
    alike: its equations keep that name.

    Why private: the classes are not exported.
    """
    made = type(equation.params.get("_prim"))
    return made.__name__ if made.__module__.startswith("jax._src.") else equation.primitive.name


def rule_name(params: dict[str, Any]) -> tuple[str, str]:
    """Name and `file:line` of the function that a custom rule was given for.

    They come from debug information: good for a report, no proof of anything. JAX 0.10 names
    what `custom_gradient` made after its own wrapper; the user's function is inside.
    """
    described = params["call_jaxpr"].debug_info.func_src_info or "<unknown>"
    name, _, place = described.partition(" at ")
    *_, inner = _layers(params.get("fwd_jaxpr_thunk")) if name == "wrapped_fun" else (None,)
    if not isinstance(inner, FunctionType):
        return name, place
    return inner.__name__, f"{inner.__code__.co_filename}:{inner.__code__.co_firstlineno}"


_TRACES = (
    _core.EvalTrace,
    _partial_eval.DynamicJaxprTrace,
    _partial_eval.JaxprTrace,
    _ad.JVPTrace,
    _ad.LinearizeTrace,
    _batching.BatchTrace,
    _remat.RematTrace,
    _shard_map.ShardMapTrace,
)
"""JAX's own kinds of traces, which go by the rules that a primitive has."""

_WALKERS = {
    "checkify": "checkify",
    "sparsify": "sparsify",
    "pallas_call kernel": "a Pallas kernel",
    "pallas run_scoped": "a Pallas kernel",
}
"""What JAX traces a program for, where it then goes through it by a table of rules of its own."""


def interpreter_around(outermost: Any = None) -> str | None:
    """The interpreter around the running code that knows JAX's own primitives alone, or None.

    A jit, a loop's body or the like is not looked beyond: JAX keeps what it traced for one, and
    takes it again where no interpreter is around.

    Why private: what is being traced, by which kind of trace and what for, has no public account.

    Arguments:
        outermost: a trace; jits inside of it are looked beyond.
    """
    trace, looks_beyond = _core.trace_ctx.trace, outermost is not None
    while trace is not None:
        if type(trace) not in _TRACES:
            return type(trace).__name__.removesuffix("Trace").lower()
        looks_beyond = looks_beyond and trace is not outermost
        if isinstance(trace, _partial_eval.DynamicJaxprTrace):
            purpose = getattr(trace.frame.debug_info, "traced_for", "")
            if purpose in _WALKERS or not looks_beyond:
                return _WALKERS.get(purpose)
        trace = getattr(trace, "parent_trace", None)
    return None


def bind_plainly_for_strangers(primitive: Any, plain: Callable[..., Any]) -> None:
    """Let a primitive be replaced by what it stands for where a trace is not JAX's own.

    Why private: a trace may have a table of rules or do as it likes; the one place before it is
    the primitive's own method, which JAX overrides for its primitives in the same way.

    Arguments:
        plain: takes the operands and parameters; returns the results.
    """
    by_its_rules = primitive.bind_with_trace

    def bind(trace: Any, args: Any, avals: Any, params: dict[str, Any], /) -> Any:
        if type(trace) in _TRACES:
            return by_its_rules(trace, args, avals, params)
        with set_current_trace(trace):
            return plain(*args, **params)

    primitive.bind_with_trace = bind


def register_with_checkify(primitive: Any, program: Callable[..., Any]) -> None:
    """Let `checkify` check the inside of an equation, as it does with those of a `jit`.

    Why private: the table has no public way in. JAX 0.12 hands its rules one more argument.

    Arguments:
        program: takes the operands' types and the equation's parameters; returns a closed jaxpr.
    """

    def rule(*given: Any, **params: Any) -> Any:
        place = next(n for n, one in enumerate(given) if isinstance(one, _checkify.Error))
        context, (error, enabled, *operands) = given[:place], given[place:]
        closed = program([jax.typeof(operand) for operand in operands], params)
        return _checkify.checkify_jaxpr(*context, closed, enabled, error, *operands)

    _checkify.error_checks[primitive] = rule
