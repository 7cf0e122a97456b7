"""`mixflow.compile`: a function like `jax.jit`'s, with its derivatives optimised."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.core
from jax.tree_util import tree_flatten, tree_leaves, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.capture import Captured, capture
from mixflow.compiler.differentiand import merge, partition
from mixflow.compiler.pipeline import Optimised, import_only, optimise, parse_passes
from mixflow.compiler.recording import current_recording
from mixflow.errors import InputError
from mixflow.passes import DEFAULT_PIPELINE
from mixflow.runtime.backend import compiler_options
from mixflow.runtime.verify import nudge, verify_results

if TYPE_CHECKING:
    from mixflow.report.report import Report


@dataclass(frozen=True)
class Options:
    """How a function is compiled; `compile` documents the fields."""

    passes: str = DEFAULT_PIPELINE
    assume_symmetric: str | tuple[str, ...] = ()
    verify: bool = False
    jit: dict[str, Any] = field(default_factory=dict)
    compiler: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Staged:
    """A call taken apart: the arrays, and everything else in its place."""

    fun: Callable[..., Any]
    leaves: list[Any]
    tree: Any
    dynamic: list[bool]

    @staticmethod
    def of(fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Staged:
        leaves, tree = tree_flatten((args, kwargs))
        return _Staged(fun, leaves, tree, [isinstance(leaf, jax.core.Tracer) for leaf in leaves])

    @property
    def arrays(self) -> list[Any]:
        return partition(self.dynamic, self.leaves)[0]

    def capture(self, options: Options) -> Captured:
        """Trace the call under mixflow."""
        return capture(self.flat, self.arrays, options.assume_symmetric, self.fun)

    def flat(self, *arrays: Any) -> Any:
        """The function of the arrays alone."""
        fixed = partition(self.dynamic, self.leaves)[1]
        args, kwargs = tree_unflatten(self.tree, merge(self.dynamic, arrays, fixed))
        return self.fun(*args, **kwargs)


class CompiledFunction:
    """What `mixflow.compile` returns: call it, transform it, lower it, ask it for a report."""

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, fun, updated=())
        self.__name__: str = getattr(fun, "__name__", type(fun).__name__)
        self._fun = fun
        self._options = options
        self._pipeline = parse_passes(options.passes)
        self._example: Callable[[], Any] | None = None
        # The jit inside other traces: compiler options belong to the outermost one.
        self._nested = jax.jit(self._staged(differentiated=True), **options.jit)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_recording() is not None:
            # Part of a larger program, which is optimised as a whole.
            return jax.jit(self._fun, **self._options.jit)(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if jax_compat.is_tracing() or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._nested(*args, **kwargs)
        if self._options.verify:
            return self._verified(args, kwargs)
        return self._top(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"mixflow.compile({getattr(self._fun, '__qualname__', self._fun)})"

    @functools.cached_property
    def _top(self) -> Any:
        """The jit for calls from outside. Made late: asking for the backend starts it."""
        needed = {**compiler_options(), **(self._options.compiler or {})}
        staged = self._staged(differentiated=False)
        return jax.jit(staged, compiler_options=needed or None, **self._options.jit)

    @property
    def fun(self) -> Callable[..., Any]:
        """The function as it was written."""
        return self._fun

    @property
    def options(self) -> Options:
        """How it is compiled."""
        return self._options

    def example_args(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """Decorate a function that returns the example arguments, as a tuple.

        Arguments:
            make: takes nothing; returns a tuple of arguments, arrays or
                `jax.ShapeDtypeStruct`. It is called when a command or `report` needs them.
        """
        self._example = make
        return make

    @property
    def has_examples(self) -> bool:
        """Whether example arguments were given."""
        return self._example is not None

    @property
    def examples(self) -> tuple[Any, ...] | None:
        """The example arguments, made now; None where none were given."""
        if self._example is None:
            return None
        made = self._example()
        if not isinstance(made, tuple):
            raise InputError(
                f"example_args of {self.__name__} returned {type(made).__name__}: return a tuple"
            )
        return made

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Lower for the given arguments (shapes are enough), as `jax.jit(f).lower` does.

        Returns:
            A `jax.stages.Lowered`; its `.compile()` is callable and has `.memory_analysis()`
            and `.cost_analysis()`.
        """
        return self._top.lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Trace for the given arguments, as `jax.jit(f).trace` does."""
        return self._top.trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes and dtypes of the result, as `jax.jit(f).eval_shape` gives them."""
        return self._top.eval_shape(*args, **kwargs)

    def optimised(self, *args: Any, differentiated: bool = False, **kwargs: Any) -> Optimised:
        """The program after the passes.

        Arguments:
            args, kwargs: arrays or `jax.ShapeDtypeStruct`; the example arguments if none.
            differentiated: as it is where somebody differentiates it from outside.
        """
        captured = self._captured(args or self.examples or (), kwargs)
        return optimise(captured, self._pipeline, differentiated=differentiated)

    def ir(
        self, *args: Any, before: bool = False, differentiated: bool = False, **kwargs: Any
    ) -> str:
        """The IR as text, after the passes, or `before` them; arguments as for `optimised`."""
        if before:
            return import_only(self._captured(args or self.examples or (), kwargs))
        return self.optimised(*args, differentiated=differentiated, **kwargs).text

    def report(self, *args: Any, run: bool = False, verify: bool = False, **kwargs: Any) -> Report:
        """What mixflow did, and what it is worth: see `mixflow.report.Report`.

        Arguments:
            args, kwargs: arrays or `jax.ShapeDtypeStruct`; the example arguments if none.
            run: also time the programs.
            verify: also compare their results.
        """
        # Reports are built on compiled functions.
        from mixflow.report.report import make_report  # noqa: PLC0415

        args = args or self.examples or ()
        return make_report(self, args, kwargs, run=run, verify=verify)

    def _staged(self, *, differentiated: bool) -> Callable[..., Any]:
        @functools.wraps(self._fun, updated=())
        def staged(*args: Any, **kwargs: Any) -> Any:
            call = _Staged.of(self._fun, args, kwargs)
            captured = call.capture(self._options)
            program = optimise(captured, self._pipeline, differentiated=differentiated).jaxpr
            results = jax.core.eval_jaxpr(program.jaxpr, program.consts, *call.arrays)
            return tree_unflatten(captured.out_tree, results)

        return staged

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
        """Capture under `jax.jit`, which knows what of the arguments is static."""
        found: list[Captured] = []

        @functools.wraps(self._fun, updated=())
        def stage(*args: Any, **kwargs: Any) -> Any:
            call = _Staged.of(self._fun, args, kwargs)
            found.append(call.capture(self._options))

        jax.jit(stage, **_static_only(self._options.jit)).trace(*args, **kwargs)
        return found[-1]

    def _verified(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = jax.jit(self._fun, **_static_only(self._options.jit))
        expected = original(*args, **kwargs)
        nudged = original(*nudge(args), **nudge(kwargs))
        result = self._top(*args, **kwargs)  # last: it may take its arguments by donation
        verify_results(result, expected, nudged)
        return result


def _static_only(options: dict[str, Any]) -> dict[str, Any]:
    """The jit options that say what is static: nothing donated, no layout of the results."""
    return {name: value for name, value in options.items() if name.startswith("static_")}


@overload
def compile(fun: Callable[..., Any], **options: Any) -> CompiledFunction: ...


@overload
def compile(**options: Any) -> Callable[[Callable[..., Any]], CompiledFunction]: ...


def compile(
    fun: Callable[..., Any] | None = None,
    *,
    passes: str = DEFAULT_PIPELINE,
    assume_symmetric: str | tuple[str, ...] | list[str] = (),
    verify: bool = False,
    **jit_options: Any,
) -> Any:
    """Compile a function whose insides differentiate through gradient steps.

    Works bare or with options, on plain functions and on `jax.grad(f)`; the result behaves as
    `jax.jit(fun)` does: call it with arrays, or under `jit`, `grad`, `vmap`, `shard_map`.

    Arguments:
        fun: plain JAX. Every `jax.grad`, `jax.value_and_grad`, `jax.vjp` in it is seen.
        passes: the pipeline, in xDSL's syntax; `mixflowc passes` lists what there is.
        assume_symmetric: "all", or names of functions whose custom derivative rules you vouch
            for as true derivatives (`docs/derivative-rule.md`).
        verify: run the original as well on every call, and raise on a difference.
        jit_options: what `jax.jit` takes: `static_argnums`, `static_argnames`,
            `donate_argnums`, `in_shardings`, …

    Returns:
        A `CompiledFunction`.

    Raises:
        InputError: malformed `passes` or `assume_symmetric`, an unknown option, no function.
        VerificationError: from calls, with `verify`.

    Source: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (ICML 2025,
    arXiv 2505.00793).
    """
    unknown = jit_options.keys() - inspect.signature(jax.jit).parameters.keys()
    if unknown:
        raise InputError(f"mixflow.compile takes no option {min(unknown)!r}, nor does jax.jit")
    compiler = jit_options.pop("compiler_options", None)
    options = Options(passes, _names(assume_symmetric), verify, jit_options, compiler)
    if fun is None:
        return lambda fun: CompiledFunction(fun, options)
    if not callable(fun):
        raise InputError(f"mixflow.compile takes a function, not {type(fun).__name__}")
    return CompiledFunction(fun, options)


def _names(assume_symmetric: Any) -> str | tuple[str, ...]:
    if assume_symmetric == "all":
        return "all"
    named = [assume_symmetric] if isinstance(assume_symmetric, str) else assume_symmetric
    if not isinstance(named, (tuple, list)) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f'assume_symmetric={assume_symmetric!r}: give "all", or the functions\' names'
        )
    return tuple(named)
