"""One text for each value, the same in every process: what fingerprints are hashes of."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mixflow.compiler import jax_compat
from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.derivative.spelling import spell_out
from mixflow.compiler.derivative.vjp_primitive import SYMBOLIC
from mixflow.compiler.ir.dialects.attributes import Constant, Equation

_DIGEST_BYTES = 16
_ADDRESS = re.compile(r"( at )?0x[0-9a-fA-F]+|\bid=\d+")
_RULES = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"})
"""Parameters that are Python functions behind wrappers of JAX's."""


def digest(lines: Iterable[str]) -> str:
    """A hash of some texts, in order; no text can run into the next."""
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for line in lines:
        content = line.encode()
        found.update(f"{len(content)}:".encode() + content)
    return found.hexdigest()


def canonical(value: Any) -> str:
    """A value's text: equal for equal values, without addresses and the order of sets."""
    for kinds, rule in _TEXTS:
        if isinstance(value, kinds):
            return rule(value)
    if hasattr(value, "str_short"):
        return aval_text(value)
    return without_addresses(f"{_type(value)} {value!r}")


def without_addresses(text: str) -> str:
    """A text, such as a `repr`, without what tells one process from another."""
    return _ADDRESS.sub("", text)


def aval_text(aval: Any) -> str:
    """An abstract value's text, as `f32[4,8]`, with what that leaves out."""
    weak = " weak" if getattr(aval, "weak_type", False) else ""
    return aval.str_short(short_dtypes=True) + weak


def equation_text(equation: Equation, without: Iterable[str] = ()) -> str:
    """An equation's text: primitive, parameters, effects and context.

    Arguments:
        equation: apart from its operands.
        without: parameters that are compared elsewhere.
    """
    params = {name: _parameter(equation, name) for name in equation.params.keys() - {*without}}
    # The names of nested functions compute nothing.
    if equation.primitive.name == "jit":
        params.pop("name", None)
    context = [getattr(equation.ctx, name, None) for name in ("compute_type", "xla_metadata")]
    effects = canonical(equation.effects)
    return f"{equation.primitive.name} {_mapping(params)} {effects} {canonical(context)}"


def _parameter(equation: Equation, name: str) -> Any:
    if name not in _RULES:
        return equation.params[name]
    return jax_compat.custom_rule(equation.params) if name == "jvp_jaxpr_fun" else None


def function_text(function: Differentiand, body: str = "") -> str:
    """The text of what is differentiated, its body given apart."""
    facts = (function.num_consts, function.carries, function.chosen, function.custom)
    return f"function {canonical(facts)} {body}"


def jaxpr_digest(jaxpr: Any) -> str:
    """The hash of a jaxpr, closed or open: variables are numbered, operands in order.

    Symbolic derivatives are spelled out, so custom derivative rules are part of it.
    """
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    numbers: dict[Any, int] = {}

    def born(variables: Iterable[Any]) -> str:
        for var in variables:
            numbers[var] = len(numbers)
        return canonical([var.aval for var in variables])

    def read(atoms: Iterable[Any]) -> str:
        return canonical([atom if isinstance(atom, Literal) else numbers[atom] for atom in atoms])

    lines = [born(opened.constvars), born(opened.invars)]
    lines += [canonical(const) for const in getattr(jaxpr, "consts", ())]
    for eqn in opened.eqns:
        operands = read(eqn.invars)
        lines += [_spelled(eqn), operands, born(eqn.outvars)]
    return digest([*lines, read(opened.outvars)])


def _spelled(eqn: Any) -> str:
    if eqn.primitive in SYMBOLIC:
        with contextlib.suppress(NameError):  # a mesh axis that exists only inside of its shard_map
            return f"{eqn.primitive.name} {jaxpr_digest(spell_out(eqn))}"
    return equation_text(Equation.of(eqn))


# --- the texts ----------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _enum(value: Any) -> str:
    return f"{_type(value)}.{value.name}"


def _sequence(value: Iterable[Any]) -> str:
    return f"{type(value).__name__} [{', '.join(map(canonical, value))}]"


def _set(value: Iterable[Any]) -> str:
    return f"set [{', '.join(sorted(map(canonical, value)))}]"


def _mapping(value: Mapping[Any, Any]) -> str:
    items = sorted((canonical(key), canonical(item)) for key, item in value.items())
    return f"{{{', '.join(f'{key}: {item}' for key, item in items)}}}"


def _array(value: Any) -> str:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {value.dtype} {_array(jax.random.key_data(value))}"
    content = np.ascontiguousarray(value)
    return f"array {content.dtype} {content.shape} {hashlib.sha256(content.tobytes()).hexdigest()}"


def _literal(value: Any) -> str:
    return f"literal {canonical(value.val)} {aval_text(value.aval)}"


def _function(value: Any) -> str:
    return f"function {value.__module__}.{value.__qualname__}"


def _partial(value: Any) -> str:
    return f"partial {canonical((value.func, value.args, value.keywords))}"


def _differentiand(value: Differentiand) -> str:
    return function_text(value, jaxpr_digest(value.jaxpr))


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_TEXTS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (Enum, _enum),
    ((bool, int, float, complex, str, bytes, type(None)), _plain),
    ((tuple, list), _sequence),
    (AbstractSet, _set),
    (Mapping, _mapping),
    ((np.ndarray, np.generic, jax.Array), _array),
    (np.dtype, str),
    (Literal, _literal),
    ((ClosedJaxpr, Jaxpr), jaxpr_digest),
    (Differentiand, _differentiand),
    (Constant, lambda value: canonical(value.value)),
    (type(canonical), _function),
    (functools.partial, _partial),
)
"""The first kind that fits decides: an enumeration's member may be an integer as well."""
