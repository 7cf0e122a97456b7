"""The way through: import, run the passes, emit."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

from jax.extend.core import ClosedJaxpr, jaxprs_in_params
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.passes import ModulePass, PassPipeline
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError

from mixflow.compiler.capture.capture import Captured
from mixflow.compiler.ir.dialects.jaxpr import Jaxpr, LeafOp
from mixflow.compiler.ir.dialects.mixflow import Mixflow
from mixflow.compiler.ir.dialects.remarks import (
    DECLINED,
    Remark,
    collect_remarks,
    forget_remarks,
    has_remark,
)
from mixflow.compiler.ir.emitter import emit_jaxpr
from mixflow.compiler.ir.importer import UnsupportedProgram, import_jaxpr
from mixflow.compiler.jaxprs.sharing import with_shared_code
from mixflow.compiler.jaxprs.subprograms import holds_derivative
from mixflow.errors import InputError
from mixflow.passes import PASSES
from mixflow.passes.roll_repeated_blocks import RollRepeatedBlocks

PREPARE = "canonicalize,cse,fuse-value-and-pullback,canonicalize"
"""What every plan begins with."""

ROLLED = "canonicalize,roll-repeated-blocks,cse,fuse-value-and-pullback,canonicalize"
"""And where code is repeated. It is rolled before `cse`, which would leave what all of the equal
pieces make to the first of them alone."""


@dataclass(frozen=True)
class Optimised:
    """A program after the passes.

    Arguments:
        jaxpr: what JAX is to run, differentiate and lower.
        module: its IR; None where the IR could not hold the program.
        rewrites: what the passes did.
        declines: what they, or the capture, left alone.
        passes: the pipeline's text; empty for none.
    """

    jaxpr: ClosedJaxpr
    module: ModuleOp | None
    rewrites: tuple[Remark, ...]
    declines: tuple[Remark, ...]
    passes: str = ""

    @property
    def text(self) -> str:
        """The IR as text, or the jaxpr's where the IR could not hold the program."""
        return str(self.jaxpr if self.module is None else self.module)

    def without(self, idle: AbstractSet[str]) -> Optimised:
        """The same program, without what some passes said that did nothing to it.

        Both share one module, and what they said is gone from that.
        """
        if self.module is not None:
            forget_remarks(self.module, idle)
        return replace(self, declines=tuple(one for one in self.declines if one.by not in idle))


def parse_passes(spec: str) -> PassPipeline:
    """A pipeline from its text in xDSL's syntax: `name{option=value},name`.

    Raises:
        InputError: unknown pass or option, or malformed text.
    """
    if not isinstance(spec, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"passes={spec!r}: give a pipeline as text, such as 'cse,dce'")
    try:
        specs = list(parse_pipeline(spec))
    except ArgSpecParseError as error:
        raise InputError(f"passes={spec!r} is malformed: {_last_line(error)}") from None
    unknown = [one.name for one in specs if one.name not in PASSES]
    if unknown:
        raise InputError(f"passes: there is no pass {unknown[0]!r}; there are {', '.join(PASSES)}")
    try:
        passes: list[ModulePass] = [PASSES[one.name].from_spec(one) for one in specs]
    except (ValueError, TypeError) as error:
        raise InputError(f"passes={spec!r}: {_last_line(error)}") from None
    return PassPipeline(tuple(passes))


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()


def context() -> Context:
    """An xDSL context with the dialects that mixflow's IR uses."""
    ctx = Context()
    for dialect in (Builtin, Func, Jaxpr, Mixflow):
        ctx.load_dialect(dialect)
    return ctx


class Program:
    """A captured program, over which pipelines are run.

    Those of a planner all begin with `PREPARE` or `ROLLED`: these passes are run once, and the
    others go on with a copy of what they left.

    Arguments:
        captured: the program, its derivatives symbolic.
        differentiated: whether somebody may differentiate the program from outside.
    """

    def __init__(self, captured: Captured, *, differentiated: bool) -> None:
        self._captured = captured
        self._differentiated = differentiated
        self._begun: dict[str, ModuleOp] = {}

    def optimised(self, pipeline: PassPipeline) -> Optimised:
        """The program after the passes of a pipeline, in order."""
        try:
            module = self._after(pipeline.passes)
        except UnsupportedProgram as reason:
            refusal = Remark("import", DECLINED, str(reason), "<unknown>")
            return Optimised(self._captured.jaxpr, None, (), (*_missed(self._captured), refusal))
        module.verify()
        return _emitted(self._captured, module)

    @cached_property
    def repeats(self) -> bool:
        """Whether code is repeated, and rolling it pays."""
        try:
            module = self._prepared(ROLLED)
        except UnsupportedProgram:
            return False
        if any(has_remark(op, RollRepeatedBlocks.name) for op in module.walk()):
            return True
        self._begun.setdefault(PREPARE, module)  # without a loop the two do the same
        return False

    def _after(self, passes: tuple[ModulePass, ...]) -> ModuleOp:
        for text in (PREPARE, ROLLED):
            first = parse_passes(text).passes
            if passes[: len(first)] == first:
                return _run(passes[len(first) :], self._prepared(text).clone())
        return _run(passes, self._imported())

    def _prepared(self, passes: str) -> ModuleOp:
        if passes not in self._begun:
            self._begun[passes] = _run(parse_passes(passes).passes, self._imported())
        return self._begun[passes]

    def _imported(self) -> ModuleOp:
        return import_jaxpr(
            self._captured.jaxpr,
            differentiated=self._differentiated,
            with_effects=self._captured.with_effects,
        )


def _run(passes: tuple[ModulePass, ...], module: ModuleOp) -> ModuleOp:
    PassPipeline(passes).apply(context(), module)
    return module


def optimise(captured: Captured, pipeline: PassPipeline, *, differentiated: bool) -> Optimised:
    """Run one pipeline over a captured program; for several, see `Program`.

    Arguments:
        captured, differentiated: as for `Program`.
        pipeline: the passes, in order.
    """
    return Program(captured, differentiated=differentiated).optimised(pipeline)


def _missed(captured: Captured) -> tuple[Remark, ...]:
    return tuple(Remark(one.stage, DECLINED, one.why, one.at) for one in captured.declines)


def _emitted(captured: Captured, module: ModuleOp) -> Optimised:
    remarks = list(collect_remarks(module))
    missed = (*_missed(captured), *_unseen_derivatives(module))
    rewrites = tuple(remark for remark in remarks if remark.kind != DECLINED)
    declines = tuple(remark for remark in remarks if remark.kind == DECLINED)
    jaxpr = with_shared_code(emit_jaxpr(module, captured.jaxpr))
    return Optimised(jaxpr, module, rewrites, (*missed, *declines))


def _unseen_derivatives(module: ModuleOp) -> Iterator[Remark]:
    """Derivatives inside an equation that the IR does not open, such as a shard_map's."""
    for op in module.walk():
        if isinstance(op, LeafOp) and any(map(holds_derivative, jaxprs_in_params(op.params))):
            why = f"{op.eqn.primitive.name} is not looked into: no pass rewrites what is in it"
            yield Remark("import", DECLINED, why, op.source)


def import_only(captured: Captured) -> str:
    """The IR's text before any pass, or the jaxpr's where the IR cannot hold the program."""
    try:
        return str(import_jaxpr(captured.jaxpr, differentiated=False))
    except UnsupportedProgram:
        return str(captured.jaxpr)
