"""What JAX's flags `jax_remat3` and `jax_custom_vjp3` make, in the form that it has without them.

With these flags, `jax.checkpoint`, `checkpoint_name` and `jax.custom_vjp` all make equations of
one primitive, `call_hi_primitive`: what they mean is in an object with methods, which no analysis
or pass can look into. A traced program gets them replaced here, once, so that nothing after knows
of the flags:

    call_hi_primitive[RematTraced(jaxpr, policy)]  →  checkpoint[jaxpr, policy]
    call_hi_primitive[CheckpointName(name)]        →  name[name]
    call_hi_primitive[CustomVJPTraced(fwd, bwd)]   →  custom_vjp_call[call_jaxpr, fwd, bwd]

What has no such form stays what it is, an equation whose rule is unknown: a `custom_vjp` that
closes over values, whose rules look at symbolic zeros, that returns logs or brings its own rule for
checkpoints. Before JAX 0.12 such an equation has no forward mode, and a function that holds one is
left to JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr
from jax.tree_util import tree_leaves, tree_map, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.jaxprs.equations import rewrite_equations, run_rewritten
from mixflow.compiler.jaxprs.subprograms import equations_in
from mixflow.compiler.jaxprs.values import spec_of
from mixflow.compiler.primitives import CUSTOM_RULES


def without_flags(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, as it would be traced if neither flag were set.

    Arguments:
        closed: any program, its custom rules not yet traced.
    """
    if not jax_compat.is_high(closed):
        return closed
    with jax_compat.flags_off():
        return rewrite_equations(closed, _without_flags, also=CUSTOM_RULES)


def has_forward_mode(jaxpr: Any) -> bool:
    """Whether JAX can push each equation forward that kept the flags' form, at any depth."""
    if jax.__version_info__ >= (0, 12):
        return True
    names = map(jax_compat.primitive_name, equations_in(jaxpr))
    return not any(name in ("CustomVJPTraced", "VmapOf") for name in names)


def _without_flags(eqn: Any) -> list[Any]:
    rule = eqn.params.get("_prim")
    match jax_compat.primitive_name(eqn):
        case "RematTraced":
            return [_checkpoint(eqn, rule)]
        case "CheckpointName" | "CheckpointNameFwd":
            named = name_equation(rule.name)
            return [eqn.replace(primitive=named.primitive, params=named.params)]
        case "CustomVJPTraced" | "VmapOf":
            return [_custom_vjp(eqn, rule)]
        case _:
            return [eqn]


def checkpoint_equation(operands: int, policy: Any, prevent_cse: bool | tuple[bool, ...]) -> Any:
    """A `jax.checkpoint` of scalars, whose operands and program are to be replaced.

    Arguments:
        operands: how many it takes.
        policy, prevent_cse: as for `jax.checkpoint`.
    """
    with jax_compat.flags_off():
        wrapped = jax.checkpoint(lambda *xs: xs, policy=policy, prevent_cse=prevent_cse)
        (eqn,) = jax.make_jaxpr(wrapped)(*[0.0] * operands).jaxpr.eqns
    return eqn


def name_equation(name: str) -> Any:
    """A `checkpoint_name` of a scalar, whose operand is to be replaced."""
    with jax_compat.flags_off():
        (eqn,) = jax.make_jaxpr(lambda x: checkpoint_name(x, name))(0.0).jaxpr.eqns
    return eqn


def _checkpoint(eqn: Any, rule: Any) -> Any:
    if rule.jaxpr.consts:
        return eqn
    barriers = getattr(rule, "prevent_cse", True)  # JAX 0.10 has it only without the flag
    made = checkpoint_equation(len(eqn.invars), rule.policy, barriers)
    params = {**made.params, "jaxpr": without_flags(rule.jaxpr).jaxpr}
    return eqn.replace(primitive=made.primitive, params=params)


def _custom_vjp(eqn: Any, rule: Any) -> Any:
    function = _plain_function(rule)
    if function is None:
        return eqn
    closed = jax.make_jaxpr(function)(*[spec_of(var.aval) for var in eqn.invars])
    (made,) = closed.jaxpr.eqns
    params = dict(made.params)
    if type(rule).__name__ == "CustomVJPTraced":
        # That of the function itself, not of a call of it: it knows its name and its place.
        params["call_jaxpr"] = without_flags(rule.traced.jaxpr)
    return eqn.replace(primitive=made.primitive, params=params)


def _plain_function(rule: Any) -> Callable[..., Any] | None:
    """A `jax.custom_vjp` of flat arguments by the same rules; None where there is none."""
    if type(rule).__name__ == "VmapOf":
        inner = _plain_function(rule.prim)
        return None if inner is None else jax_compat.vmap_again(inner, rule)
    if type(rule).__name__ != "CustomVJPTraced" or not _has_plain_form(rule):
        return None

    @jax.custom_vjp
    def function(*leaves: Any) -> Any:
        return tree_leaves(rule.expand(*tree_unflatten(rule.in_tree, leaves)))

    def forward(*leaves: Any) -> Any:
        args = tree_unflatten(rule.in_tree, leaves)
        result, residuals, *_ = rule.vjp_fwd(tree_map(lambda _: True, args), *args)
        return tree_leaves(result), residuals

    def backward(residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        return jax_compat.pulled_back(rule, residuals, cotangents)

    # A rule may call the function itself, as many do: that is to lose the flags' form as well.
    function.defvjp(
        partial(run_rewritten, forward, without_flags),
        partial(run_rewritten, backward, without_flags),
    )
    return function


def _closes_over(rule: Any) -> bool:
    """Whether a custom_vjp closes over values, arrays included.

    JAX raises where such a value has a tangent. In the plain form it would have none, and the
    gradient would be wrong. JAX hands the values over as the first argument; before 0.11 they are
    constants of the jaxpr.
    """
    if jax.__version_info__ < (0, 11):
        return bool(rule.traced.jaxpr.consts)
    return bool(tree_leaves(rule.in_avals[0]))


def _has_plain_form(rule: Any) -> bool:
    """Whether a custom_vjp needs nothing but its function, its two rules and its arguments."""
    special = ("symbolic_zeros", "opt_remat", "with_logs", "remat_rules", "bwd_accums")
    if any(getattr(rule, name, None) for name in special) or _closes_over(rule):
        return False
    return len(rule.traced.jaxpr.in_avals) == len(rule.in_avals_flat)
