"""From a number to a random second-order program."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random
from textwrap import indent

from benchmarks.fuzz.losses import Loss, LossWriter
from benchmarks.fuzz.program import HEADER, Program
from benchmarks.fuzz.rules import Rule, draw_rule, helpers

UPDATES = {
    "sgd": "t = jax.tree.map(lambda t, g: t - 0.1 * g, t, g)",
    "learned rate": "t = jax.tree.map(lambda t, g: t - 0.1 * jnp.exp(e) * g, t, g)",
    "normalised": "t = jax.tree.map(lambda t, g: t - 0.1 * g / (0.1 + jnp.abs(g).max()), t, g)",
    "momentum": """\
m = jax.tree.map(lambda m, g: 0.9 * m + jnp.sin(e[0]) * g, m, g)
t = jax.tree.map(lambda t, m: t - 0.1 * m, t, m)""",
    "adam": """\
m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g * g.conj(), m, g)
t = jax.tree.map(lambda t, m, g: t - 0.1 * g / jnp.sqrt(m + 1e-2), t, m, g)""",
}
"""From the gradient `g` to the next parameters; those of two lines have a state `m`."""

GRADS = {
    "grad": "g = jax.grad(loss)({call})",
    "value_and_grad": "v, g = jax.value_and_grad(loss)({call})",
    "vjp": "v, pull = jax.vjp(lambda t: loss({call}), t)\ng = pull(v * 0.5)[0]",
    "jacrev": "g = jax.jacrev(loss)({call})",
    "jit": "g = jax.jit(jax.grad(loss))({call})",
    "checkpointed loss": "g = jax.grad(jax.checkpoint(loss))({call})",
    "batch": "g = jax.tree.map(lambda g: g.mean(0), jax.vmap(lambda r: jax.grad(loss)({row}))(x))",
}
AUX_GRADS = {
    "grad with aux": "g, a = jax.grad(loss, has_aux=True)({call})",
    "value_and_grad with aux": "(v, a), g = jax.value_and_grad(loss, has_aux=True)({call})",
    "vjp with aux": "v, pull, a = jax.vjp(lambda t: loss({call}), t, has_aux=True)\n"
    "g = pull(jnp.ones_like(v))[0]",
}

LOOPS = {
    "scan": "carry, kept = lax.scan(step, carry, {xs})",
    "checkpointed scan": "carry, kept = lax.scan(jax.checkpoint(step), carry, {xs})",
    "scan with a policy": "carry, kept = lax.scan(jax.checkpoint(step,"
    " policy=jax.checkpoint_policies.dots_saveable), carry, {xs})",
    "unrolled": "kept = []\nfor x in {xs}:\n    carry, one = step(carry, x)\n"
    "    kept.append(one)\nkept = jnp.stack(kept)",
    "jitted step, unrolled": "step, kept = jax.jit(step), 0.0\nfor x in {xs}:\n"
    "    carry, one = step(carry, x)\n    kept += one",
    "fori": "carry = lax.fori_loop(0, {steps}, lambda _, carry: step(carry, x)[0], carry)\n"
    "kept = 0.0",
    "scan in a scan": "carry, kept = lax.scan(lambda carry, _: lax.scan(step, carry, {xs}), carry,"
    " length=2)",
}

OUTERS = {
    "inside, value_and_grad": "return compile(jax.value_and_grad(meta))",
    "inside, grad of two": "return compile(jax.grad(meta, argnums=(0, 1)))",
    "inside, vjp": "return compile(lambda e, *rest: jax.vjp(lambda e: meta(e, *rest), e)[1](0.5))",
    "inside, vmap": "return compile(jax.vmap(jax.grad(meta), in_axes=(0, {nones})))",
    "outside, value_and_grad": "return jax.jit(jax.value_and_grad(compile(meta)))",
    "outside, grad of two": "return jax.jit(jax.grad(compile(meta), argnums=(0, 1)))",
    "outside, jvp": "f = compile(meta)\nreturn jax.jit(lambda e, *rest: jax.jvp(lambda e:"
    " f(e, *rest), (e,), (jnp.cos(e),)))",
    "outside, vmap": "return jax.jit(jax.vmap(jax.grad(compile(meta)), in_axes=(0, {nones})))",
    "vmap outside of a compiled gradient": "return jax.jit(jax.vmap(compile(jax.grad(meta)),"
    " in_axes=(0, {nones})))",
    "outside, hvp": "f = compile(meta)\nreturn jax.jit(lambda e, *rest: jax.jvp(jax.grad(lambda e:"
    " f(e, *rest)), (e,), (jnp.cos(e),))[1])",
    "outside, jacrev": "return jax.jit(jax.jacrev(compile(meta)))",
    "outside, called twice": "f = compile(meta)\nreturn jax.jit(jax.grad(lambda e, *rest:"
    " f(e, *rest) * f(0.5 * e, *rest)))",
}
"""How `program` differentiates; those with a vmap take several e at once."""

FORWARD = ("outside, jvp", "outside, hvp")
"""Those that take forward mode, which JAX refuses where there is a custom_vjp."""

WEIGHTS = {"inside, value_and_grad": 6, "outside, value_and_grad": 4, "inside, grad of two": 3}


def generate(seed: int) -> Program:
    """The program of a number: the same on every machine and version."""
    rng = Random(seed)
    parameters = rng.choice(("array", "array", "array", "dict", "complex"))
    arguments = ("e", "x", *(["i"] * (rng.random() < 0.25)), *(["key"] * (rng.random() < 0.2)))
    rules = _rules(rng)
    half = rng.random() < 0.08
    loss = LossWriter(rng, parameters, arguments, rules, half).write()
    meta, features = _meta(rng, loss, parameters, arguments)
    form, program = _program(rng, arguments, any(rule.reverse_only for rule in rules))
    size = rng.choice((2, 2, 3))
    parts = (_constants(rng, size, half), *helpers(rules), *(rule.source for rule in rules))
    parts = (*parts, loss.source, meta, program, _args(rng, size, parameters, arguments, form))
    return Program(
        seed=seed,
        source=HEADER + "\n\n".join(parts),
        features=(form, *features, *loss.features, *(rule.form for rule in rules)),
        linear=all(rule.linear for rule in rules),
    )


def _rules(rng: Random) -> tuple[Rule, ...]:
    wanted = rng.choice((0, 1, 1, 1, 2))
    return tuple(draw_rule(rng, f"act{k}") for k in range(wanted))


def _meta(
    rng: Random, loss: Loss, parameters: str, arguments: tuple[str, ...]
) -> tuple[str, list[str]]:
    call = ", ".join(("t", *arguments))
    grads = AUX_GRADS if loss.has_aux else GRADS
    gradient, update, loop = (_draw(rng, table) for table in (grads, UPDATES, LOOPS))
    has_state = update in ("momentum", "adam")
    carry = "(t, m)" if has_state else "t"
    takes_value = (loss.readable and "v, " in grads[gradient]) or "(v, a)" in grads[gradient]
    log = "v" if takes_value and loss.readable else "a['h'].sum()" if loss.has_aux else "0.0"
    step = [
        *(["t, m = carry"] if has_state else ["t = carry"]),
        *grads[gradient].format(call=call, row=call.replace("x", "x * r")).splitlines(),
        *UPDATES[update].splitlines(),
        f"return {carry}, {log}",
    ]
    steps = rng.choice((2, 3, 3))  # three can be rolled
    xs = f"jnp.stack([{', '.join(f'{x}' for x in ('x', 'x.T', 'x + 0.2')[:steps])}])"
    body = [
        *_start(rng, loss),
        *(["m = jax.tree.map(lambda t: 0.1 * t * t.conj(), t)"] if has_state else []),
        f"carry = {carry}",
        "",
        "def step(carry, x):",
        *_indented(step),
        "",
        *LOOPS[loop].format(xs=xs, steps=steps).splitlines(),
        f"{carry} = carry",
        f"return {_objective(rng, loss, call)} + jnp.sum(kept)",
    ]
    head = f"def meta({', '.join(('e', 't', *arguments[1:]))}):\n"
    return head + "\n".join(_indented(body)) + "\n", [gradient, update, loop]


def _draw(rng: Random, table: Iterable[str]) -> str:
    return rng.choice(list(table))


def _start(rng: Random, loss: Loss) -> list[str]:
    """MAML's form: the first parameters depend on e; so they do where the loss does not read e."""
    body = loss.source.split("\n", 1)[1].replace("lax.stop_gradient(e)", "")
    reads_e = re.search(r"\be\b(?!\[0\] <)", body)
    maml = rng.random() < 0.3 or not reads_e
    return ["t = jax.tree.map(lambda t: t + 0.5 * e, t)"] if maml else []


def _objective(rng: Random, loss: Loss, call: str) -> str:
    value = f"loss({call})" + ("[0]" if loss.has_aux else "")
    choices = ["sum(jnp.sum(jnp.sin(jnp.abs(p + 2.0))) for p in jax.tree.leaves(t))"]
    choices += [value, value] if loss.readable else []
    choices += [f"jnp.sum(loss({call})[1]['h'])"] if loss.has_aux else []
    return rng.choice(choices)


def _program(rng: Random, arguments: tuple[str, ...], reverse_only: bool) -> tuple[str, str]:
    forms = [name for name in OUTERS if not (reverse_only and name in FORWARD)]
    form = rng.choices(forms, [WEIGHTS.get(name, 1) for name in forms])[0]
    body = OUTERS[form].format(nones=", ".join(["None"] * len(arguments)))
    return form, "def program(compile):\n" + indent(body, "    ") + "\n"


def _constants(rng: Random, size: int, half: bool) -> str:
    order = list(range(size))
    rng.shuffle(order)
    lines = [f"N = {size}", f"C = np.array({_numbers(rng, size)})", f"P = np.array({order})"]
    if half:
        lines.append(f"HALF = jnp.{rng.choice(('float16', 'bfloat16', 'float32'))}")
    return "\n".join(lines) + "\n"


def _args(rng: Random, size: int, parameters: str, arguments: tuple[str, ...], form: str) -> str:
    e = f"jnp.array({_numbers(rng, size)})"
    values = {
        "e": f"jnp.stack([{e}, 0.6 * {e}])" if "vmap" in form else e,
        "t": _parameters(rng, size, parameters),
        "x": _matrix(rng, size),
        "i": f"jnp.array({rng.randrange(size)})",
        "key": f"jax.random.key({rng.randrange(100)})",
    }
    given = (values[name] for name in ("e", "t", *arguments[1:]))
    return "args = (\n" + "".join(f"    {value},\n" for value in given) + ")\n"


def _parameters(rng: Random, size: int, parameters: str) -> str:
    w = _matrix(rng, size)
    if parameters == "dict":
        return f'{{"w": {w}, "b": jnp.array({_numbers(rng, size)})}}'
    return f"{w} + 1j * {_matrix(rng, size)}" if parameters == "complex" else w


def _matrix(rng: Random, size: int) -> str:
    return f"jnp.array([{', '.join(_numbers(rng, size) for _ in range(size))}])"


def _numbers(rng: Random, size: int) -> str:
    """Numbers that are no ties and no kinks of what is done with them."""
    return (
        f"[{', '.join(f'{rng.choice((-1, 1)) * rng.uniform(0.1, 0.9):.3f}' for _ in range(size))}]"
    )


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]
