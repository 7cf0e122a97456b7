"""A function like `jax.jit`'s, with its derivatives optimised."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr
from jax.tree_util import tree_leaves, tree_unflatten
from xdsl.passes import PassPipeline

from mixflow.compiler import jax_compat
from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.derivative.meshes import on_hidden_meshes
from mixflow.compiler.derivative.spelling import spell_all_out
from mixflow.compiler.recording import current_recording
from mixflow.errors import BudgetError, InputError
from mixflow.planner.front import Offer
from mixflow.planner.pipeline import Optimised, import_only, optimise, parse_passes
from mixflow.runtime.arguments import Arguments, has_open_sizes
from mixflow.runtime.backend import compiler_options
from mixflow.runtime.budget import budget_bytes
from mixflow.runtime.measure import copied, total_bytes
from mixflow.runtime.options import Options
from mixflow.runtime.planning import Chooser, Usage
from mixflow.runtime.staged import Signatures, Staged, planned
from mixflow.runtime.verification.noise import MovedRoundings
from mixflow.runtime.verification.results import verify_results
from mixflow.units import format_bytes

if TYPE_CHECKING:
    from mixflow.report.report import Report


class CompiledFunction:
    """What `mixflow.compile` returns: call it, transform it, lower it, ask it for a report."""

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, fun, updated=())
        self.__name__: str = getattr(fun, "__name__", type(fun).__name__)
        self._fun = fun
        self._options = options
        self._pipeline = None if options.passes is None else parse_passes(options.passes)
        self._budget = budget_bytes(options.memory_budget)
        self._chooser = Chooser(self.__name__, self._budget, options)
        self._signatures = Signatures(fun, options.static)
        self._arguments = Arguments(fun, options.static)
        self._tops: dict[Usage, Any] = {}
        self._fitted: dict[Any, Any] = {}
        self._example: Callable[[], Any] | None = None
        self._donates = any(name.startswith("donate") for name in options.jit)
        self._moved_roundings = MovedRoundings(fun, options.static)
        # The jit inside other traces: compiler options belong to the outermost one.
        nested = self._staged(self._pipeline, Usage(differentiated=True))
        self._nested = jax.jit(nested, **options.jit)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        config: Any = jax.config
        if config.jax_disable_jit:
            return self._fun(*args, **kwargs)
        watched = jax_compat.interpreter_around()
        if watched or current_recording() is not None:
            # Part of a larger program, which is optimised as a whole; or of one whose equations
            # are looked at one by one, those too that a pass would drop: a NaN in dead code.
            return jax.jit(self._fun, **self._options.jit)(*args, **kwargs)
        leaves = tree_leaves(self._arguments.traced(args, kwargs))
        if jax_compat.is_tracing() or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._nested(*args, **kwargs)
        if self._options.verify:
            return self._verified(args, kwargs)
        return self._jitted(args, kwargs)(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"mixflow.compile({getattr(self._fun, '__qualname__', self._fun)})"

    def _top(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The jit for calls from outside that are planned for alike.

        Made late: asking for the backend starts it.
        """
        use = self._use(args, kwargs) if self._pipeline is None else Usage()
        if use not in self._tops:
            self._tops[use] = self._jit(self._pipeline, use)
        return self._tops[use]

    def _use(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, differentiated: bool = False
    ) -> Usage:
        return Usage.of(*self._arguments.traced(args, kwargs), differentiated=differentiated)

    def _jit(self, pipeline: PassPipeline | None, use: Usage) -> Any:
        """A jit for calls from outside, by a pipeline, or by the planner's where that is None."""
        needed = {**compiler_options(), **(self._options.compiler or {})}
        staged = self._staged(pipeline, use)
        return jax.jit(staged, compiler_options=needed or None, **self._options.jit)

    def _jitted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The jit for these arguments: one for all, unless XLA is asked about each one's plan.

        XLA compiles nothing of open sizes: where there are any, estimates have the last word.
        """
        asks = self._budget is not None or self._options.autotune
        if not asks or has_open_sizes(self._arguments.traced(args, kwargs)):
            return self._top(args, kwargs)
        key = self._signatures.of(args, kwargs)
        if key not in self._fitted:
            self._fitted[key] = self._fit(args, kwargs)
        return self._fitted[key]

    def _fit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._pipeline is not None:
            return self._checked(self._top(args, kwargs), args, kwargs)
        use = self._use(args, kwargs)
        jits: dict[str, Any] = {}

        def jit(passes: str) -> Any:
            return jits.setdefault(passes, self._jit(parse_passes(passes), use))

        choose = self._chooser.autotune if self._options.autotune else self._chooser.confirm

        def plan(captured: Captured) -> Any:
            choose(captured, use, jit, args, kwargs)
            return jit(self._chooser.optimised(captured, use).passes)

        return planned(functools.partial(self._captured, args, kwargs), plan)[1]

    def _checked(self, jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The jit of the passes that were given, if it is within the budget."""
        needed = total_bytes(jitted.lower(*args, **kwargs).compile())
        if self._budget is not None and needed > self._budget:
            raise BudgetError(
                f"{self.__name__} is over the budget of {format_bytes(self._budget)}: by the "
                f"passes that it was given it needs {format_bytes(needed)}"
            )
        return jitted

    @property
    def fun(self) -> Callable[..., Any]:
        """The function as it was written."""
        return self._fun

    @property
    def options(self) -> Options:
        """How it is compiled."""
        return self._options

    def with_options(self, **changed: Any) -> CompiledFunction:
        """The same function and example arguments, other options: fields of `Options`."""
        function = CompiledFunction(self._fun, replace(self._options, **changed))
        function._example = self._example
        return function

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
        """Lower for the given arguments, as `jax.jit(f).lower` does.

        Arguments:
            args: arrays or `jax.ShapeDtypeStruct`.
            kwargs: the same, by name.

        Returns:
            A `jax.stages.Lowered`; its `.compile()` is callable and has `.memory_analysis()`
            and `.cost_analysis()`.

        Raises:
            BudgetError: no plan is within the memory budget.
        """
        return self._jitted(args, kwargs).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Trace for the given arguments, as `jax.jit(f).trace` does."""
        return self._jitted(args, kwargs).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes and dtypes of the result, as `jax.jit(f).eval_shape` gives them."""
        return self._top(args, kwargs).eval_shape(*args, **kwargs)

    def optimised(self, *args: Any, differentiated: bool = False, **kwargs: Any) -> Optimised:
        """The program after the passes. Nothing is compiled for it.

        Arguments:
            args: arrays or `jax.ShapeDtypeStruct`; the example arguments if none.
            differentiated: as it is where somebody differentiates it from outside.
            kwargs: arguments by name.

        Returns:
            An `Optimised`: the plan, what was rewritten, what was declined, and the IR.
        """
        args = args or self.examples or ()
        use = self._use(args, kwargs, differentiated=differentiated)
        traced, _ = self._arguments.traced(args, kwargs)

        def plan(captured: Captured) -> Optimised:
            return self._optimised(captured, self._pipeline, use.of_result(captured, traced))

        return planned(functools.partial(self._captured, args, kwargs), plan)[1]

    def ir(
        self, *args: Any, before: bool = False, differentiated: bool = False, **kwargs: Any
    ) -> str:
        """The IR as text.

        Arguments:
            args: as for `optimised`.
            before: the text before the passes, in place of after them.
            differentiated: as for `optimised`.
            kwargs: as for `optimised`.
        """
        if before:
            return import_only(self._captured(args or self.examples or (), kwargs))
        return self.optimised(*args, differentiated=differentiated, **kwargs).text

    def front(self, *args: Any, **kwargs: Any) -> tuple[Offer, ...]:
        """What a memory budget would buy: the plans that no other one beats, by estimate.

        Arguments:
            args: as for `optimised`.
            kwargs: as for `optimised`.

        Returns:
            Plans with their bytes and times, the most memory first; plain JAX, a checkpointed step
            and the plan that the program gets are among them, by name. None where no gradient is
            differentiated again, and none where `passes` are given.
        """
        if self._pipeline is not None:
            return ()
        args = args or self.examples or ()
        use, (traced, _) = self._use(args, kwargs), self._arguments.traced(args, kwargs)

        def plan(captured: Captured) -> tuple[Offer, ...]:
            return self._chooser.front(captured, use.of_result(captured, traced))

        return planned(functools.partial(self._captured, args, kwargs), plan)[1]

    def report(self, *args: Any, run: bool = False, verify: bool = False, **kwargs: Any) -> Report:
        """What mixflow did, and what it is worth: see `mixflow.report.report.Report`.

        Arguments:
            args: arrays or `jax.ShapeDtypeStruct`; the example arguments if none.
            run: also time the programs.
            verify: also compare their results.
            kwargs: arguments by name.

        Returns:
            A `Report`. Print it, or use its fields.

        Raises:
            BudgetError: no plan is within the memory budget.
            VerificationError: with `verify`, the results differ by more than their tolerance.
        """
        # Reports are built on compiled functions.
        from mixflow.report.report import make_report  # noqa: PLC0415
        from mixflow.runtime.sides import compile_sides  # noqa: PLC0415

        args = args or self.examples or ()
        return make_report(compile_sides(self, args, kwargs, run=run), verify=verify)

    def _optimised(
        self, captured: Captured, pipeline: PassPipeline | None, use: Usage
    ) -> Optimised:
        if pipeline is None:
            return self._chooser.optimised(captured, use)
        return optimise(captured, pipeline, differentiated=use.differentiated)

    def _staged(self, pipeline: PassPipeline | None, use: Usage) -> Callable[..., Any]:
        @functools.wraps(self._fun, updated=())
        def staged(*args: Any, **kwargs: Any) -> Any:
            if jax_compat.checks_keys():
                # A pass would drop a second use of a key that is dead or equal to the first.
                return self._fun(*args, **kwargs)
            call = Staged.of(self._fun, self._arguments, args, kwargs)
            traced, _ = self._arguments.traced(args, kwargs)

            def plan(captured: Captured) -> ClosedJaxpr:
                use_here = use.of_result(captured, traced)
                program = self._optimised(captured, pipeline, use_here).jaxpr
                spell_all_out(program.jaxpr)  # lowering does it as well, when it is too late
                return program

            captured, program = planned(functools.partial(call.capture, self._options), plan)
            results = jax.core.eval_jaxpr(program.jaxpr, program.consts, *call.arrays)
            return tree_unflatten(captured.out_tree, on_hidden_meshes(program, results))

        return staged

    def _captured(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], left_to_jax: str | None = None
    ) -> Captured:
        """Capture under `jax.jit`, which knows what of the arguments is static."""
        found: list[Captured] = []

        @functools.wraps(self._fun, updated=())
        def stage(*args: Any, **kwargs: Any) -> Any:
            call = Staged.of(self._fun, self._arguments, args, kwargs)
            found.append(call.capture(self._options, left_to_jax))

        jax.jit(stage, **self._options.static).trace(*args, **kwargs)
        return found[-1]

    def _verified(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        expected = jax.jit(self._fun, **self._options.static)(*args, **kwargs)
        mapped = self._arguments.mapped
        kept = mapped(copied, args, kwargs) if self._donates else (args, kwargs)
        result = self._jitted(args, kwargs)(*args, **kwargs)
        noise = functools.partial(self._moved_roundings, *kept)
        verify_results(result, expected, noise)
        return result
