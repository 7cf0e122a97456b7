"""Functions with derivative rules of their own, true and untrue, in every form that JAX takes.

A rule is composed of a value and a slope, in `x`; a map of the cotangent (or tangent) `g`; and a
form, which says how all three are written down. The rule is provably linear where its map is.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from string import Template

VALUES = (
    ("jnp.sin(x)", "jnp.cos(x)"),
    ("jnp.tanh(x)", "(1.0 - jnp.tanh(x) ** 2)"),
    ("x * jnp.abs(x)", "(2.0 * jnp.abs(x))"),
    ("jnp.log1p(x**2)", "(2.0 * x / (1.0 + x**2))"),
)
"""Functions with their derivatives."""

STEPS = ("jnp.round(4.0 * x) / 4.0", "jnp.sign(x)", "jnp.clip(x, -0.5, 0.5)", "x")
SLOPES = ("1.0", "-0.5", "jnp.exp(-x * x)", "x", "C")
"""Functions and slopes that have nothing to do with each other."""

LINEAR = (
    "g",
    "g",
    "g",
    "-g",
    "0.5 * g",
    "g[::-1]",
    "g.T",
    "(g - g.mean())",
    "(g @ w0)",
    "jnp.cumsum(g, 0)",
    "jnp.where(x > 0.0, g, 0.3 * g)",
    "jnp.take(g, P, axis=0)",
    "lax.cond(x[0, 0] > 0.0, lambda g: g, lambda g: 2.0 * g, g)",
)

NONLINEAR = (
    "jnp.clip(g, -0.01, 0.01)",
    "(g + 0.1 * x)",
    "(g + 0.01)",
    "(jnp.sign(g) * 0.01)",
    "(g / (1e-3 + jnp.linalg.norm(g)))",
    "((g * 1024.0).astype(int).astype(g.dtype) / 1024.0)",
    "jnp.where(jnp.abs(g) < 1e-2, g, 0.5 * g)",
    "jnp.nan_to_num(g)",
    "lax.cond(jnp.isfinite(g).all(), lambda g: g, lambda g: 0.0 * g, g)",
    "(g * jnp.abs(g))",
    "jnp.maximum(g, -0.01)",
    "(jnp.round(g * 1e3) / 1e3)",
    "lax.stop_gradient(g)",
    "(g + lax.stop_gradient(g))",
    "flipped(g)",
    "straight(g)",
    "jnp.linalg.solve(w0 + x * x.T + 3.0 * jnp.eye(N), g)",
)
"""Maps that are not linear, or that hold another custom function, or that hide `g`."""

AFFINE = ("(g + 0.1 * x)", "(g + 0.01)", "flipped(g)", "lax.stop_gradient(g)")
"""Of those, the ones that JAX can transpose in a `custom_jvp`."""

HELPERS = {
    "flipped": """\
@jax.custom_jvp
def flipped(x):
    return x


flipped.defjvp(lambda p, t: (flipped(*p), -t[0]))
""",
    "straight": """\
@jax.custom_vjp
def straight(x):
    return x


straight.defvjp(lambda x: (x, None), lambda _, g: (0.7 * g,))
""",
    "w0": "w0 = np.eye(N) + 0.3\n",
}
"""What a map may call."""

_VJP = """\
@jax.custom_vjp
def $name(x):
    return $value


"""
_JVP = _VJP.replace("vjp", "jvp")

VJP_FORMS = {
    "plain": _VJP + "$name.defvjp(lambda x: ($value, x), lambda x, g: ($map * $slope,))\n",
    "idiom": _VJP + "$name.defvjp(lambda x: ($name(x), x), lambda x, g: ($map * $slope,))\n",
    "closure": _VJP
    + """\
def ${name}_bwd(kept, g):
    x, pull = kept
    return pull($map)


$name.defvjp(lambda x: ($value, (x, jax.vjp(lambda x: $value, x)[1])), ${name}_bwd)
""",
    "jit": _VJP
    + """\
$name.defvjp(lambda x: ($value, x), lambda x, g: (jax.jit(lambda x, g: $map * $slope)(x, g),))
""",
    "scan": _VJP
    + """\
def ${name}_bwd(x, g):
    return (lax.scan(lambda g, _: ($map * $slope, None), g, length=2)[0],)


$name.defvjp(lambda x: ($value, x), ${name}_bwd)
""",
    "scanned forward": _VJP
    + """\
def ${name}_fwd(x):
    return $value, lax.scan(lambda x, _: (jnp.sin(x), x), x, length=2)[1][0]


$name.defvjp(${name}_fwd, lambda x, g: ($map * $slope,))
""",
    "two arguments": """\
@jax.custom_vjp
def $name(x, c=C):
    return ($value) * c


$name.defvjp(
    lambda x, c: (($value) * c, (x, c)),
    lambda kept, g: (lambda x, c: ($map * $slope * c, (g * ($value)).sum(0)))(*kept),
)
""",
    "two arguments, one None": """\
@jax.custom_vjp
def $name(x, c=C):
    return ($value) * c


$name.defvjp(
    lambda x, c: (($value) * c, (x, c)),
    lambda kept, g: (lambda x, c: ($map * $slope * c, None))(*kept),
)
""",
    "integer argument": """\
@jax.custom_vjp
def ${name}_(x, i):
    return ($value) * i


${name}_.defvjp(lambda x, i: (($value) * i, (x, i)), lambda kept, g: (
    (lambda x, i: ($map * $slope * i, None))(*kept)))


def $name(x):
    return ${name}_(x, jnp.arange(N))
""",
    "nondiff_argnums": """\
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ${name}_(f, x):
    return f($value)


def ${name}_bwd(f, x, g):
    return ($map * $slope * f(x),)


${name}_.defvjp(lambda f, x: (f($value), x), ${name}_bwd)


def $name(x):
    return ${name}_(jnp.cos, x)
""",
    "symbolic zeros": _VJP
    + """\
def ${name}_fwd(x):
    x = x.value
    return $value, x


def ${name}_bwd(x, g):
    if type(g) is jax.custom_derivatives.SymbolicZero:
        return (jnp.zeros_like(x),)
    return ($map * $slope,)


$name.defvjp(${name}_fwd, ${name}_bwd, symbolic_zeros=True)
""",
    "two results": """\
@jax.custom_vjp
def ${name}_(x):
    return {"y": $value, "z": x.sum()}


def ${name}_bwd(x, gs):
    g = gs["y"]
    return ($map * $slope + gs["z"],)


${name}_.defvjp(lambda x: (${name}_(x), x), ${name}_bwd)


def $name(x):
    found = ${name}_(x)
    return found["y"] + 0.1 * found["z"]
""",
    "two results, one of c alone": """\
@jax.custom_vjp
def ${name}_(x, c):
    return $value, jnp.sin(c).sum()


def ${name}_bwd(kept, gs):
    x, c = kept
    to_c = (lambda g: $map)(jnp.full_like(x, gs[1])).mean(0)
    return (lambda g: $map * $slope)(gs[0]), to_c * jnp.cos(c)


${name}_.defvjp(lambda x, c: (${name}_(x, c), (x, c)), ${name}_bwd)


def $name(x, c=C):
    y, z = ${name}_(x, c)
    return y + 0.1 * z * y.mean()
""",
    "checkpoint": _VJP
    + """\
$name.defvjp(
    lambda x: ($value, x), jax.checkpoint(lambda x, g: ($map * $slope,))
)
""",
    "optimize_remat": _VJP
    + """\
$name.defvjp(
    lambda x: ($value, x), lambda x, g: ($map * $slope,), optimize_remat=True
)
""",
}

JVP_FORMS = {
    "plain": _JVP
    + """\
@$name.defjvp
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    return $name(x), $map * $slope
""",
    "unlike the value": _JVP
    + """\
@$name.defjvp
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    return $value, $map * $slope
""",
    "defjvps": _JVP + "$name.defjvps(lambda g, y, x: $map * $slope)\n",
    "jit": _JVP
    + """\
@$name.defjvp
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    return $name(x), jax.jit(lambda x, g: $map * $slope)(x, g)
""",
    "scan": _JVP
    + """\
@$name.defjvp
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    return $name(x), lax.scan(lambda g, _: ($map * $slope, None), g, length=2)[0]
""",
    "jvp": _JVP
    + """\
@$name.defjvp
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    return jax.jvp(lambda x: $value, (x,), ($map,))
""",
    "two arguments": """\
@jax.custom_jvp
def $name(x, c=C):
    return ($value) * c


$name.defjvps(lambda g, y, x, c: $map * $slope * c, lambda b, y, x, c: b * ($value))
""",
    "two arguments, one None": """\
@jax.custom_jvp
def $name(x, c=C):
    return ($value) * c


$name.defjvps(lambda g, y, x, c: $map * $slope * c, None)
""",
    "nondiff_argnums": """\
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def ${name}_(f, x):
    return f($value)


@${name}_.defjvp
def ${name}_jvp(f, p, t):
    (x,), (g,) = p, t
    return ${name}_(f, x), $map * $slope * f(x)


def $name(x):
    return ${name}_(jnp.cos, x)
""",
    "symbolic zeros": _JVP
    + """\
def ${name}_jvp(p, t):
    (x,), (g,) = p, t
    if type(g) is jax.custom_derivatives.SymbolicZero:
        return $name(x), g
    return $name(x), $map * $slope


$name.defjvp(${name}_jvp, symbolic_zeros=True)
""",
}

_NOT_LINEAR_FORMS = ("symbolic zeros", "optimize_remat")
"""Forms that nobody can prove linear: what the first does depends on which cotangents are known
zeros; the second hides its rule in a primitive of JAX's own."""


@dataclass(frozen=True)
class Rule:
    """Arguments:
    name: the function's.
    source: its definition.
    form: how it is written, in words.
    linear: whether its rule is provably linear.
    reverse_only: whether it is a custom_vjp, which JAX's forward mode refuses.
    takes_c: whether it takes a coefficient as second argument.
    """

    name: str
    source: str
    form: str
    linear: bool
    reverse_only: bool
    takes_c: bool


def draw_rule(rng: Random, name: str) -> Rule:
    """A function with a rule of its own."""
    kind = rng.choice(("vjp", "vjp", "jvp"))
    form = rng.choice(list(VJP_FORMS if kind == "vjp" else JVP_FORMS))
    value, slope = rng.choice(VALUES)
    if rng.random() < 0.5:  # untrue
        value, slope = rng.choice((*STEPS, value)), rng.choice(SLOPES)
    linear = rng.random() < 0.7
    map_ = rng.choice(LINEAR if linear else NONLINEAR if kind == "vjp" else AFFINE)
    template = (VJP_FORMS if kind == "vjp" else JVP_FORMS)[form]
    source = Template(template).substitute(name=name, value=value, slope=slope, map=map_)
    return Rule(
        name=name,
        source=source,
        form=f"custom_{kind}, {form}, {map_}",
        linear=linear and form not in _NOT_LINEAR_FORMS,
        reverse_only=kind == "vjp",
        takes_c="two arguments" in form or "of c" in form,
    )


def helpers(rules: tuple[Rule, ...]) -> list[str]:
    """Definitions of what the rules call, each once."""
    return [
        source for name, source in HELPERS.items() if any(name in rule.source for rule in rules)
    ]
