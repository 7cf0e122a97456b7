"""Every touch of JAX's private surface, each with its reason.

The rest of mixflow uses `jax`, `jax.core`, `jax.extend` and `jax.interpreters` alone.
`tests/test_jax_compat.py` checks each item here against the installed JAX, so that a change
in JAX fails there, loudly, and not somewhere in a user's program.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import jax.core
from jax._src import api as _api
from jax._src import config as _config
from jax._src import core as _core
from jax._src import linear_util as _linear_util
from jax._src import source_info_util as _source_info_util

VJP_OF_JAX: Callable[..., Any] = _api.vjp
"""JAX's own `jax.vjp`, from before the hook was installed."""

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


def public_axis_name(axis_data: Any) -> Any:
    """The name that `jax.vmap(axis_name=...)` takes for a batching rule's axis.

    Why private: an unnamed axis carries a private sentinel where `jax.vmap` takes None.
    """
    return None if axis_data.name is _core.no_axis_name else axis_data.name


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


def stacked_aval(length: int, aval: Any) -> Any:
    """The abstract value of `length` values stacked in front, as a scan's slices and results are.

    Why private: a scan's own rule for this keeps weak types, shardings and PRNG keys.
    """
    return _core.unmapped_aval(length, 0, aval)


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
    return _unwrapped(params.get("jvp_jaxpr_fun"))


def _unwrapped(rule: Any) -> Callable[..., Any] | None:
    while True:
        if isinstance(rule, _linear_util.WrappedFun):
            rule = rule.f
            continue
        if not isinstance(rule, FunctionType):
            return rule if callable(rule) else None
        inner = _wrapped_variable(rule.__code__)
        if inner is None:
            return rule
        cells = dict(zip(rule.__code__.co_freevars, rule.__closure__ or (), strict=True))
        rule = cells[inner].cell_contents


def _wrapped_variable(code: CodeType) -> str | None:
    """The closure variable in which one of JAX's wrappers of a rule holds what it wraps."""
    if not code.co_filename.startswith(_JAX_SOURCES):
        return None
    wrappers = {
        "_memoize.<locals>.memoized": "fn",
        "DynamicJaxprTrace.process_custom_jvp_call.<locals>.jvp_jaxpr_thunk": "jvp",
        "lift_jvp.<locals>.jvp": "jvp_jaxpr_fun",
        "DynamicJaxprTrace.process_custom_vjp_call.<locals>.fwd_jaxpr_from_zeros": "fwd",
        "lift_fwd.<locals>.fwd": "fwd_jaxpr_thunk",
        "custom_gradient.<locals>.fwd": "fun",
    }
    return wrappers.get(code.co_qualname)


def rule_name(params: dict[str, Any]) -> tuple[str, str]:
    """Name and `file:line` of the function that a custom rule was given for.

    They come from debug information: good for a report, no proof of anything. JAX 0.10 names
    what `custom_gradient` made after its own wrapper; the user's function is inside.
    """
    described = params["call_jaxpr"].debug_info.func_src_info or "<unknown>"
    name, _, place = described.partition(" at ")
    inner = _unwrapped(params.get("fwd_jaxpr_thunk")) if name == "wrapped_fun" else None
    if not isinstance(inner, FunctionType):
        return name, place
    return inner.__name__, f"{inner.__code__.co_filename}:{inner.__code__.co_firstlineno}"
