"""The way through: import, run the passes, emit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
from mixflow.compiler.ir.dialects.remarks import DECLINED, Remark, collect_remarks
from mixflow.compiler.ir.emitter import emit_jaxpr
from mixflow.compiler.ir.importer import UnsupportedProgram, import_jaxpr
from mixflow.compiler.jaxprs.subprograms import holds_derivative
from mixflow.errors import InputError
from mixflow.passes import PASSES


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


def optimise(captured: Captured, pipeline: PassPipeline, *, differentiated: bool) -> Optimised:
    """Run a pipeline over a captured program.

    Arguments:
        captured: the program, its derivatives symbolic.
        pipeline: the passes, in order.
        differentiated: whether somebody may differentiate the program from outside.
    """
    missed = tuple(Remark(one.stage, DECLINED, one.why, one.at) for one in captured.declines)
    try:
        module = import_jaxpr(
            captured.jaxpr, differentiated=differentiated, with_effects=captured.with_effects
        )
    except UnsupportedProgram as reason:
        refusal = Remark("import", DECLINED, str(reason), "<unknown>")
        return Optimised(captured.jaxpr, None, (), (*missed, refusal))
    pipeline.apply(context(), module)
    module.verify()
    remarks = list(collect_remarks(module))
    missed += tuple(_unseen_derivatives(module))
    rewrites = tuple(remark for remark in remarks if remark.kind != DECLINED)
    declines = tuple(remark for remark in remarks if remark.kind == DECLINED)
    return Optimised(emit_jaxpr(module, captured.jaxpr), module, rewrites, (*missed, *declines))


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
