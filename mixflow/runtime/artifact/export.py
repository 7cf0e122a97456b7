"""An optimised program serialised by `jax.export`, over the flat list of its arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr
from jax.tree_util import keystr, tree_flatten_with_path

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.effects import callback_name
from mixflow.compiler.jaxprs.subprograms import equations_in
from mixflow.errors import InputError
from mixflow.runtime.arguments import Arguments
from mixflow.runtime.artifact.leaf import Leaf
from mixflow.runtime.artifact.manifest import Signature
from mixflow.runtime.entries import repeated_name
from mixflow.runtime.function import CompiledFunction

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class ExportedProgram:
    """Arguments:
    content: what `jax.export` serialised.
    platforms: those that it is for.
    inputs, outputs: its arrays.
    """

    content: bytes
    platforms: tuple[str, ...]
    inputs: Signature
    outputs: Signature


def parse_platforms(text: str | None) -> tuple[str, ...]:
    """Platforms from "cpu,cuda"; None is the present one.

    Raises:
        InputError: none, or one that JAX does not export for.
    """
    if text is None:
        return (jax.export.default_export_platform(),)
    platforms = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in platforms if name not in _PLATFORMS]
    if unknown:
        raise InputError(f"platform {unknown[0]!r}: choose from {', '.join(_PLATFORMS)}")
    return platforms


def export_program(
    function: CompiledFunction,
    args: tuple[Any, ...],
    lowered: jax.stages.Lowered,
    platforms: tuple[str, ...],
) -> ExportedProgram:
    """Export a function's optimised program.

    The program is exported as it was planned. Traced into the `jax.jit` that `jax.export` takes,
    the compiled function itself would be planned for somebody else's options.

    Arguments:
        function: what `mixflow.compile` returned.
        args: arrays or `jax.ShapeDtypeStruct`.
        lowered: the function, lowered for them; it knows the containers of arguments and results.
        platforms: as `parse_platforms` returns them.

    Raises:
        InputError: the program calls back to the host, or JAX cannot export it.
    """
    program = function.optimised(*args).jaxpr
    callback = next(_callbacks(program.jaxpr), None)
    if callback is not None:
        raise InputError(f"{function.__name__} cannot be exported: {callback}")
    inputs = _inputs(function, args, lowered, program)
    outputs = _outputs(lowered, program)
    jitted = jax.jit(_over_stored(function.__name__, program, inputs, outputs))
    specs = [leaf.spec for leaf in inputs.leaves]
    jitted.trace(*specs)  # here, where an error is a bug and no limit of what can be exported
    try:
        exported = jax.export.export(jitted, platforms=platforms)(*specs)
        content = bytes(exported.serialize())
    except (ValueError, NotImplementedError) as error:
        # A custom call that no later XLA is sure to know; an operation that a platform has not got,
        # or an effect that has no serial form.
        why = str(error).strip().splitlines()[0]
        raise InputError(f"{function.__name__} cannot be exported: {why}") from error
    if exported.nr_devices > 1:
        raise InputError(
            f"{function.__name__} cannot be exported: it runs on {exported.nr_devices} devices, "
            "and an artifact on one"
        )
    return ExportedProgram(content, platforms, inputs, outputs)


def _over_stored(
    name: str, program: ClosedJaxpr, inputs: Signature, outputs: Signature
) -> Callable[..., list[Any]]:
    """The program over flat arrays, with key data in place of PRNG keys."""

    def flat(*arrays: Any) -> list[Any]:
        values = [leaf.decode(one) for leaf, one in zip(inputs.leaves, arrays, strict=True)]
        results = jax.core.eval_jaxpr(program.jaxpr, program.consts, *values)
        return [leaf.encode(one) for leaf, one in zip(outputs.leaves, results, strict=True)]

    flat.__name__ = name
    return flat


def _inputs(
    function: CompiledFunction,
    args: tuple[Any, ...],
    lowered: jax.stages.Lowered,
    program: ClosedJaxpr,
) -> Signature:
    given: tuple[Any, ...] = lowered.args_info[0]
    names: list[str] = []
    donated: list[bool] = []
    for name, info in zip(_parameters(function, args), given, strict=True):
        for path, leaf in tree_flatten_with_path(info)[0]:
            names.append(name + keystr(path))
            donated.append(leaf.donated)
    leaves = [
        Leaf.of(name, aval, donated=taken)
        for name, aval, taken in zip(names, program.in_avals, donated, strict=True)
    ]
    return Signature(_with_unique_names(leaves), jax.tree.structure(given))


def _outputs(lowered: jax.stages.Lowered, program: ClosedJaxpr) -> Signature:
    paths = [path for path, _ in tree_flatten_with_path(lowered.out_info)[0]]
    leaves = [
        Leaf.of(f"result{keystr(path)}", aval)
        for path, aval in zip(paths, program.out_avals, strict=True)
    ]
    return Signature(_with_unique_names(leaves), lowered.out_tree)


def _with_unique_names(leaves: list[Leaf]) -> tuple[Leaf, ...]:
    twice = repeated_name([leaf.name for leaf in leaves])
    if twice is not None:
        raise InputError(f"two arrays have the path {twice!r}: an artifact needs one for each")
    return tuple(leaves)


def _parameters(function: CompiledFunction, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the parameters that are not static, as JAX names them."""
    names = tuple(_names(function.fun, len(args)))
    return Arguments(function.fun, function.options.static).traced(names, {})[0]


def _names(fun: Callable[..., Any], count: int) -> Iterator[str]:
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # not a Python function
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    yield from named[:count]
    yield from (f"{rest}[{place}]" for place in range(count - len(named)))


def _callbacks(jaxpr: Any) -> Iterator[str]:
    """Every call back to the host, in words."""
    for equation in equations_in(jaxpr):
        name = equation.primitive.name
        if name == "debug_print" or "callback" in name:
            yield f"{callback_name(equation)} at {_place(equation)} calls back to the host"


def _place(equation: Any) -> str:
    place = jax_compat.source_line(equation.source_info)
    return place.removeprefix(f"{Path.cwd()}/")
