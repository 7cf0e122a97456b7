"""From the IR back to a jaxpr, which JAX evaluates, differentiates and lowers as any other.

No tracing happens here: an equation is put together from what its operation carries. Only what
passes made anew (a checkpoint, a name) is asked of JAX's public functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, Region, SSAValue

from mixflow.compiler.dialects import jaxpr as jx
from mixflow.compiler.dialects import mixflow as mf
from mixflow.compiler.dialects.attributes import aval_of
from mixflow.compiler.importer import REGIONS, nested_jaxprs
from mixflow.compiler.vjp_primitive import primal_p, vjp_p


def emit_jaxpr(module: ModuleOp, origin: ClosedJaxpr) -> ClosedJaxpr:
    """The closed jaxpr of a module's function, as the passes left it.

    Arguments:
        module: the IR.
        origin: what it was imported from; lends its debug information.
    """
    return emit_region(main_function(module).body, origin)


def main_function(module: ModuleOp) -> FuncOp:
    """The module's one function."""
    (function,) = module.ops
    assert isinstance(function, FuncOp)
    return function


def emit_region(region: Region, origin: Any) -> ClosedJaxpr:
    """The closed jaxpr of a region, as the passes left it.

    Arguments:
        region: of any operation.
        origin: what it was imported from; lends its debug information where that fits. Or None.
    """
    return _Emitter(region).finish(origin)


class _Emitter:
    """One region: its values so far, its constants and its equations."""

    def __init__(self, region: Region) -> None:
        self._block = region.block
        self._invars = [Var(aval_of(arg)) for arg in self._block.args]
        self._atoms: dict[SSAValue, Any] = dict(zip(self._block.args, self._invars, strict=True))
        self._constvars: list[Var] = []
        self._consts: list[Any] = []
        self._eqns: list[JaxprEqn] = []

    def finish(self, origin: Any) -> ClosedJaxpr:
        """Emit every operation, then the jaxpr."""
        for op in self._block.ops:
            self._emit(op)
        last = self._block.last_op
        assert last is not None
        outvars = self._read(last.operands)
        effects = frozenset(effect for eqn in self._eqns for effect in eqn.effects)
        debug_info = _debug_info(origin, len(self._invars), len(outvars))
        jaxpr = Jaxpr(
            self._constvars, self._invars, outvars, self._eqns, effects, debug_info=debug_info
        )
        return ClosedJaxpr(jaxpr, self._consts)

    def _emit(self, op: Operation) -> None:
        match op:
            case jx.YieldOp():
                return
            case jx.LiteralOp():
                self._atoms[op.output] = Literal(op.value.data.value, aval_of(op.output))
            case jx.ConstantOp():
                self._constant(op)
            case mf.NameOp():
                self._append(op, _named(op))
            case mf.PrimalOp() | mf.VjpOp():
                self._append(op, _derivative(op))
            case jx.CheckpointOp() if op.equation is None:
                self._append(op, _checkpoint(op))
            case jx.RegionOp() | jx.CheckpointOp():
                self._append(op, _structured(op))
            case _:
                assert isinstance(op, jx.LeafOp)
                self._append(op, _template(op.info, op.params))

    def _constant(self, op: jx.ConstantOp) -> None:
        var = Var(aval_of(op.output))
        self._constvars.append(var)
        self._consts.append(op.value.data.value)
        self._atoms[op.output] = var

    def _append(self, op: Operation, template: JaxprEqn) -> None:
        outvars = [Var(aval_of(result)) for result in op.results]
        self._atoms.update(zip(op.results, outvars, strict=True))
        self._eqns.append(template.replace(invars=self._read(op.operands), outvars=outvars))

    def _read(self, values: Iterable[SSAValue]) -> list[Any]:
        return [self._atoms[value] for value in values]


def _debug_info(origin: Any, num_invars: int, num_outvars: int) -> Any:
    """The original's, for a region that has one: passes keep its inputs and outputs."""
    original = getattr(origin, "jaxpr", origin)
    if original is not None and len(original.invars) == num_invars:
        return original.debug_info
    names, paths = ("",) * num_invars, ("",) * num_outvars
    return DebugInfo("mixflow", "checkpoint of a step", names, paths)


def _template(info: Any, params: dict[str, Any]) -> JaxprEqn:
    """An equation with no operands yet."""
    return JaxprEqn([], [], info.primitive, params, set(info.effects), info.source_info, info.ctx)


def _structured(op: jx.RegionOp | jx.CheckpointOp) -> JaxprEqn:
    """scan, while, cond, jit and the user's checkpoint: the same equation, other jaxprs."""
    equation = op.equation
    assert equation is not None
    info = equation.data
    names = REGIONS[info.primitive][1]
    originals = nested_jaxprs(info.params, names)
    emitted = iter(
        _like(emit_region(region, original), original)
        for region, original in zip(op.regions, originals, strict=True)
    )
    params = dict(info.params)
    for name in names:
        value = params[name]
        params[name] = (
            tuple(next(emitted) for _ in value) if isinstance(value, tuple) else next(emitted)
        )
    return _template(info, params)


def _like(emitted: ClosedJaxpr, original: Any) -> Any:
    """Closed or open, as the parameter was."""
    return emitted if isinstance(original, ClosedJaxpr) else emitted.jaxpr


def _derivative(op: mf.PrimalOp | mf.VjpOp) -> JaxprEqn:
    """`primal[f]` or `vjp[f]`, on f as the passes left it."""
    function = op.differentiand
    symmetric = function.symmetric if isinstance(op, mf.PrimalOp) else op.self_adjoint is not None
    jaxpr = emit_region(op.body, function.jaxpr)
    function = replace(function, jaxpr=jaxpr, symmetric=symmetric)
    if isinstance(op, mf.PrimalOp):
        return _template(replace(op.info, primitive=primal_p), {"function": function})
    params = {"function": function, "with_value": op.with_value is not None}
    return _template(replace(op.info, primitive=vjp_p), params)


def _checkpoint(op: jx.CheckpointOp) -> JaxprEqn:
    """A checkpoint that a pass made: JAX's own equation for one, around this body.

    As a loop's body it needs no barriers: forward and backward pass are different loops, and
    nothing could merge the two. In a straight line XLA would.
    """
    names = op.saved.data.split(",") if op.saved else []
    policy = checkpoint_policies.save_only_these_names(*names) if names else None
    barriers = op.inline is not None
    if op.barriers is not None:
        barriers = tuple(map(bool, op.barriers.get_values()))
    wrapped = jax.checkpoint(lambda *xs: xs, policy=policy, prevent_cse=barriers)
    (eqn,) = jax.make_jaxpr(wrapped)(*[0.0] * len(op.operands)).jaxpr.eqns
    closed = emit_region(op.body, None)
    effects = set(closed.effects)
    return eqn.replace(params={**eqn.params, "jaxpr": closed.jaxpr}, effects=effects)


def _named(op: mf.NameOp) -> JaxprEqn:
    label = op.label.data
    (eqn,) = jax.make_jaxpr(lambda x: checkpoint_name(x, label))(0.0).jaxpr.eqns
    return eqn
