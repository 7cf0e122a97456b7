"""From the IR back to a jaxpr, which JAX evaluates, differentiates and lowers as any other.

No tracing happens here: an equation is put together from what its operation carries. Only what
passes made anew (a checkpoint, a name) is asked of JAX's public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, Region, SSAValue

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Rule
from mixflow.compiler.derivative.vjp_primitive import primal_p, vjp_p
from mixflow.compiler.ir.dialects import jaxpr as jx
from mixflow.compiler.ir.dialects import mixflow as mf
from mixflow.compiler.ir.dialects.attributes import aval_of
from mixflow.compiler.ir.importer import REGIONS, region_jaxprs
from mixflow.compiler.jaxprs.flagged import checkpoint_equation
from mixflow.compiler.jaxprs.values import spec_of


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
    return _Emitter(region).closed(origin)


class _Emitter:
    """One region: its values so far, its constants and its equations."""

    def __init__(self, region: Region) -> None:
        self._block = region.block
        self._invars = [Var(aval_of(arg)) for arg in self._block.args]
        self._atoms: dict[SSAValue, Any] = dict(zip(self._block.args, self._invars, strict=True))
        self._constvars: list[Var] = []
        self._consts: list[Any] = []
        self._eqns: list[JaxprEqn] = []

    def closed(self, origin: Any) -> ClosedJaxpr:
        """The jaxpr, with its arrays."""
        outvars = self._run()
        jaxpr = self._jaxpr(self._constvars, self._invars, outvars, origin)
        return ClosedJaxpr(jaxpr, self._consts)

    def opened(self, origin: Any) -> tuple[Jaxpr, list[Any]]:
        """The jaxpr with its arrays as first inputs, and the arrays."""
        outvars = self._run()
        jaxpr = self._jaxpr([], [*self._constvars, *self._invars], outvars, origin)
        return jaxpr, self._consts

    def _run(self) -> list[Any]:
        """Emit every operation; what the region gives back."""
        for op in self._block.ops:
            self._emit(op)
        last = self._block.last_op
        assert last is not None
        return self._read(last.operands)

    def _jaxpr(self, constvars: list[Var], invars: list[Var], outvars: Any, origin: Any) -> Jaxpr:
        effects = frozenset(effect for eqn in self._eqns for effect in eqn.effects)
        debug_info = _debug_info(origin, len(invars), len(outvars))
        jaxpr = Jaxpr(constvars, invars, outvars, [], effects, debug_info=debug_info)
        return jax_compat.with_equations(jaxpr, self._eqns)

    def _emit(self, op: Operation) -> None:
        match op:
            case jx.YieldOp():
                return
            case jx.LiteralOp():
                self._atoms[op.output] = Literal(op.value.data.value, aval_of(op.output))
            case jx.ConstantOp():
                self._atoms[op.output] = self._array(aval_of(op.output), op.value.data.value)
            case mf.NameOp():
                self._name(op)
            case mf.PrimalOp() | mf.VjpOp():
                self._append(op, _derivative(op))
            case jx.CheckpointOp():
                self._checkpoint(op)
            case jx.RegionOp():
                self._append(op, _structured(op))
            case _:
                assert isinstance(op, jx.LeafOp)
                self._append(op, _template(op.eqn, op.params))

    def _name(self, op: mf.NameOp) -> None:
        spec = spec_of(aval_of(op.input))
        with jax_compat.flags_off():
            jaxpr = jax.make_jaxpr(lambda value: _named(value, op.label.data))(spec).jaxpr
        named: dict[Any, Any] = {jaxpr.invars[0]: self._atoms[op.input]}
        for eqn in jaxpr.eqns:
            self._eqns.append(eqn.replace(invars=[named.get(atom, atom) for atom in eqn.invars]))
        self._atoms[op.output] = jaxpr.outvars[0]

    def _array(self, aval: Any, value: Any) -> Var:
        self._constvars.append(Var(aval))
        self._consts.append(value)
        return self._constvars[-1]

    def _checkpoint(self, op: jx.CheckpointOp) -> None:
        """The user's checkpoint, or one that a pass has made.

        JAX's equation for one holds no arrays. Those of its body, such as a table that came out
        of the user's `jax.jvp` of a scan, are carried by what is around it, and are operands.
        """
        template = _made_checkpoint(op) if op.equation is None else _users_checkpoint(op)
        origin = None if op.equation is None else template.params["jaxpr"]
        body, consts = _Emitter(op.body).opened(origin)
        types = [var.aval for var in body.invars[: len(consts)]]
        arrays = list(map(self._array, types, consts))
        count = len(arrays) + len(op.operands)
        barriers = jax_compat.barriers_of_all(template.params["prevent_cse"], count, added=False)
        params = {**template.params, "jaxpr": body, "prevent_cse": barriers}
        self._append(op, template.replace(params=params, effects=set(body.effects)), arrays)

    def _append(self, op: Operation, template: JaxprEqn, first: Sequence[Var] = ()) -> None:
        outvars = [Var(aval_of(result)) for result in op.results]
        self._atoms.update(zip(op.results, outvars, strict=True))
        invars = [*first, *self._read(op.operands)]
        self._eqns.append(template.replace(invars=invars, outvars=outvars))

    def _read(self, values: Iterable[SSAValue]) -> list[Any]:
        return [self._atoms[value] for value in values]


def _debug_info(origin: Any, num_invars: int, num_outvars: int) -> Any:
    """The original's, for a region that has one: passes save its inputs and outputs."""
    original = getattr(origin, "jaxpr", origin)
    if original is not None and len(original.invars) == num_invars:
        return original.debug_info
    names, paths = ("",) * num_invars, ("",) * num_outvars
    return DebugInfo("mixflow", "checkpoint of a step", names, paths)


def _template(info: Any, params: dict[str, Any]) -> JaxprEqn:
    """An equation with no operands yet."""
    return JaxprEqn([], [], info.primitive, params, set(info.effects), info.source_info, info.ctx)


def _structured(op: jx.RegionOp) -> JaxprEqn:
    """scan, while, cond and jit: the same equation, other jaxprs."""
    info = op.eqn
    names = REGIONS[info.primitive][1]
    originals = region_jaxprs(info.params, names)
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
    rule = op.rule if isinstance(op, mf.VjpOp) else None  # a value has none to choose
    chosen = Rule(rule.data) if rule else Rule.PLAIN
    function = replace(function, jaxpr=emit_region(op.body, function.jaxpr), chosen=chosen)
    if isinstance(op, mf.PrimalOp):
        return _template(replace(op.eqn, primitive=primal_p), {"function": function})
    params = {"function": function, "with_value": op.with_value is not None}
    return _template(replace(op.eqn, primitive=vjp_p), params)


def _users_checkpoint(op: jx.CheckpointOp) -> JaxprEqn:
    assert op.equation is not None
    params = op.equation.data.params
    if params["policy"] is not None and _has_complex_values(op):
        params = {**params, "policy": _of_reals(params["policy"])}
    return _template(op.equation.data, params)


def _has_complex_values(op: Operation) -> bool:
    values = (result for inner in op.walk() for result in inner.results)
    dtypes = (getattr(aval_of(value), "dtype", None) for value in values)
    return any(dtype and jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)


def _of_reals(policy: Callable[..., Any]) -> Callable[..., Any]:
    """The policy, but complex values are computed again.

    JAX can save them in a loop alone, and a pass may move a checkpoint out of its loop.
    """

    @wraps(policy)
    def saves(primitive: Any, *avals: Any, **params: Any) -> Any:
        dtypes = [params.get("new_dtype"), *(getattr(aval, "dtype", None) for aval in avals)]
        is_complex = any(dtype and jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
        if is_complex or primitive.name in ("complex", "eig", "fft"):
            return False
        return policy(primitive, *avals, **params)

    return saves


@cache
def _saves_only(*names: str) -> Any:
    """JAX's policy, one object for the same names: equal checkpoints are to be seen as equal."""
    return checkpoint_policies.save_only_these_names(*names)


def _made_checkpoint(op: jx.CheckpointOp) -> JaxprEqn:
    """JAX's own equation for a checkpoint that a pass made, around another body.

    As a loop's body it needs no barriers: forward and backward pass are different loops, and
    nothing could merge the two. In a straight line XLA would.
    """
    names = op.saved.data.split(",") if op.saved else []
    policy = _saves_only(*names) if names else None
    barriers = op.inline is not None
    if op.barriers is not None:
        barriers = tuple(map(bool, op.barriers.get_values()))
    return checkpoint_equation(len(op.operands), policy, barriers)


def _named(value: Any, label: str) -> Any:
    """The value, named. JAX cannot save complex values by name: it saves their two parts."""
    if not jnp.iscomplexobj(value):
        return checkpoint_name(value, label)
    parts = (checkpoint_name(part, label) for part in (jnp.real(value), jnp.imag(value)))
    return jax.lax.complex(*parts)
