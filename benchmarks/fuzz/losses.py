"""The inner loss: a head, lines and blocks that take `h` to `h`, and a tail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from string import Template
from textwrap import indent

from benchmarks.fuzz.operations import (
    COEFFICIENTS,
    GROUPS,
    IN_HALF,
    WITH_INTEGERS,
    WITH_KEYS,
)
from benchmarks.fuzz.rules import Rule

PREDICATES = ("x[0, 0] < 0.5", "e[0] < 0.4", "w[0, 0] < 9.0", "h[0, 0] > 0.0", "N > 1")

POLICIES = (
    "dots_saveable",
    "nothing_saveable",
    "everything_saveable",
    "dots_with_no_batch_dims_saveable",
)

BLOCKS = {
    "jit": "jax.jit($f)(h)",
    "cond": "lax.cond($predicate, $f, lambda h: 0.5 * h, h)",
    "cond, both": "lax.cond($predicate, $f, lambda h: jnp.sin(h) * $c, h)",
    "switch": "lax.switch(jnp.argmax(x[0]), [$f] * N, h)",
    "fori": "lax.fori_loop(0, 2, lambda _, h: jnp.tanh($f(h)), h)",
    "scan over layers": "lax.scan(lambda h, w: ($f(jnp.tanh(h @ w)), None), h,"
    " jnp.stack([w, w.T]))[0]",
    "scan, stacked": "lax.scan(lambda h, c: ($f(h) * c, jnp.sin(h)), h, $layers)[1].sum(0)",
    "scan, reversed": "lax.scan(lambda h, _: ($f(h), None), h, length=2, reverse=True)[0]",
    "scan, unroll": "lax.scan(lambda h, c: ($f(h + c), None), h, $layers, unroll=2)[0]",
    "checkpointed layers": "lax.scan(jax.checkpoint(lambda h, w: ($f(h @ w), None)), h,"
    " jnp.stack([w, w.T]))[0]",
    "unrolled": "functools.reduce(lambda h, c: jnp.tanh($f(h) @ w) * c + 0.1 * jnp.sin(h * c),"
    " list($layers) * 2, h)",
    "map": "lax.map($f, jnp.stack([h, h * $c])).sum(0)",
    "vmap": "jax.vmap($f)(jnp.stack([h, h.T])).mean(0)",
    "vmap of columns": "jax.vmap(lambda r: $f(h * r).sum(0), in_axes=1, out_axes=1)(h)",
    "pmean": "jax.vmap(lambda h: $f(h - lax.pmean(h, 'b')), axis_name='b')(jnp.stack([h, w]))[0]",
    "checkpoint": "jax.checkpoint($f)(h)",
    "checkpoint twice": "jax.checkpoint(lambda h: jnp.sin(jax.checkpoint($f)(h)))(h)",
    "checkpoint, no cse": "jax.checkpoint($f, prevent_cse=False)(h)",
    "policy": "jax.checkpoint($f, policy=jax.checkpoint_policies.$policy)(h)",
    "jit, twice": "(lambda f: f(h) * 0.5 + jnp.sin(f(h) * $c))(jax.jit($f))",
    "checkpoint, two calls": "(lambda f: jnp.tanh(f(h)) + f(h) * $c)(jax.checkpoint($f))",
    "platforms": "lax.platform_dependent(h, default=$f)",
}
"""Ways to call a function of `h`."""

DERIVATIVES = {
    "grad": "h + 0.3 * jax.grad(lambda h: jnp.sum(jnp.sin($f(h))))(h)",
    "grad of e": "h + jax.grad(lambda e: jnp.sum($f(h * e) ** 2))(e)",
    "value and grad": "(lambda found: found[0] + found[1])(jax.value_and_grad(lambda h:"
    " jnp.sum($f(h) * $c))(h))",
    "aux": "sum(jax.grad(lambda h: (jnp.sum($f(h)), h * jnp.cos(h)), has_aux=True)(h))",
    "vjp": "jax.vjp($f, h)[1](jnp.cos(h))[0]",
    "jvp": "jax.jvp($f, (h,), (jnp.cos(h),))[1]",
    "linearize": "jax.linearize($f, h)[1](w)",
    "jacrev": "jax.jacrev(lambda r: $f(h * r).sum(0))(e)",
    "jacfwd": "jax.jacfwd(lambda r: $f(h * r).sum(0))($row)",
    "hessian": "jax.hessian(lambda r: jnp.sum($f(h * r)))($row)",
    "hvp": "jax.jvp(jax.grad(lambda h: jnp.sum(jnp.sin($f(h)))), (h,), (w,))[1]",
    "hvp, reverse": "jax.grad(lambda h: jnp.vdot(jax.grad(lambda h: jnp.sum($f(h) ** 2))(h), w))"
    "(h)",
    "per example": "jax.vmap(jax.grad(lambda r: jnp.sum($f(h * r))))(h)",
}
"""Derivatives inside the loss: with the step's and the user's they are of third order."""

FORWARD = ("jvp", "linearize", "jacfwd", "hessian", "hvp")
"""Those that take forward mode."""

HEADS = {
    "array": ("jnp.tanh(x @ w)", "x @ w * e", "w * e + x", "jnp.sin(w) * e"),
    "dict": ("jnp.tanh(x @ w + b)", "(x @ w + b) * e", "x @ w * jnp.cos(b)"),
    "complex": ("jnp.abs(x @ t + 2.0) * e", "(x @ t * t).real * e", "w * e + (t * t).imag"),
}
"""How `h` begins, by the kind of the parameters."""

UNPACK = {
    "array": ["w = t"],
    "dict": ['w, b = t["w"], t["b"]'],
    "complex": ["w = t.real + 0.5 * t.imag"],
}

TAILS = (
    "jnp.mean((h - 0.3) ** 2)",
    "jnp.mean((h - 0.3) ** 2 * jnp.exp(e))",
    "jnp.sum(jax.nn.softmax(h) * x) + 0.1 * jnp.sum(e * w**2)",
    "jnp.mean(jnp.sin(h) * e)",
    "jnp.sum(h**2) * 0.2 + 0.1 * jnp.sum(jnp.cos(e))",
)

EXTRAS = {
    "gradient penalty": "0.1 * jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(x @ w) ** 2))(x) ** 2)",
    "infinite derivative": "jnp.sum(jnp.sqrt(0.0 * e))",
    "while on e": "lax.while_loop(lambda s: s < 4.0, lambda s: 2.0 * s, 1.0 + e[0] ** 2)",
    "regulariser": "0.05 * jnp.sum(jnp.abs(w - 0.111) * jnp.exp(e))",
}
"""Terms that may be added. The two in the middle break outer derivatives of the loss's value."""

UNREAD = ("infinite derivative", "while on e")
"""The terms because of which nobody may read the loss's value."""


@dataclass
class Loss:
    """Arguments:
    source: its definition.
    features: what is in it, in words.
    readable: whether its value can be differentiated in e.
    has_aux: whether it returns a pair.
    """

    source: str
    features: list[str]
    readable: bool
    has_aux: bool


@dataclass
class LossWriter:
    """Writes one loss.

    Arguments:
        rng: where chance comes from.
        parameters: "array", "dict" or "complex".
        arguments: the loss's, by name.
        rules: functions with rules of their own that it may call.
        half: whether some of it is in half precision.
    """

    rng: Random
    parameters: str
    arguments: tuple[str, ...]
    rules: tuple[Rule, ...]
    half: bool
    features: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _derivatives: int = 0

    def write(self) -> Loss:
        """The whole function."""
        rng = self.rng
        lines = [*UNPACK[self.parameters], f"h = {rng.choice(HEADS[self.parameters])}"]
        for _ in range(rng.choice((1, 2, 2, 3))):
            lines += self._statement(depth=0)
        lines += [f"h = {self._call(rule)}" for rule in self.rules if not self._calls(lines, rule)]
        extra = rng.choice(list(EXTRAS)) if rng.random() < 0.25 else None
        tail = rng.choice(TAILS) + (f" + {EXTRAS[extra]}" if extra else "")
        if extra:
            self.features.append(extra)
        has_aux = rng.random() < 0.25
        lines.append(f"return {tail}" + (', {"h": h, "n": jnp.argmax(h)}' if has_aux else ""))
        head = f"def loss({', '.join(('t', *self.arguments))}):\n"
        return Loss(_body(head, lines), self.features, extra not in UNREAD, has_aux)

    def _statement(self, depth: int) -> list[str]:
        rng = self.rng
        chance = rng.random()
        if depth < 2 and chance < 0.35:
            return self._block(BLOCKS, depth)
        if self._derivatives == 0 and chance < 0.5:
            self._derivatives += 1
            return self._block(self._possible_derivatives(), depth)
        if self.rules and chance < 0.65:
            return [f"h = {self._call(rng.choice(self.rules))}"]
        return [f"h = {self._operation()}"]

    def _block(self, templates: dict[str, str], depth: int) -> list[str]:
        rng, name = self.rng, f"f{next(self._numbers)}"
        kind = rng.choice(list(templates))
        self.features.append(kind)
        body = [line for _ in range(rng.choice((1, 1, 2))) for line in self._statement(depth + 1)]
        call = Template(templates[kind]).substitute(
            f=name,
            c=self._coefficient(),
            predicate=rng.choice(PREDICATES),
            policy=rng.choice(POLICIES),
            layers=rng.choice(("jnp.stack([e, e * 0.5])", "x", "w", "np.ones((2, N))")),
            row=rng.choice(("e", "w[0]", "x[0]")),
        )
        return [*_body(f"def {name}(h):\n", [*body, "return h"]).splitlines(), f"h = {call}"]

    def _possible_derivatives(self) -> dict[str, str]:
        if not any(rule.reverse_only for rule in self.rules):
            return DERIVATIVES
        return {name: text for name, text in DERIVATIVES.items() if name not in FORWARD}

    def _operation(self) -> str:
        groups = dict(GROUPS)
        if "i" in self.arguments:
            groups["integers"] = WITH_INTEGERS
        if "key" in self.arguments:
            groups["keys"] = WITH_KEYS
        if self.half:
            groups["half"] = IN_HALF
        group = self.rng.choice(list(groups))
        self.features.append(group)
        return Template(self.rng.choice(groups[group])).substitute(c=self._coefficient())

    def _call(self, rule: Rule) -> str:
        if self.rng.random() < 0.15:  # the point does not reach it
            self.features.append("rule at rest")
            return (
                f"h * jnp.tanh({rule.name}({self.rng.choice(('jnp.outer(e, e)', 'x', 'x * e'))}))"
            )
        if rule.takes_c and self.rng.random() < 0.7:
            return f"{rule.name}(h, {self.rng.choice(('e', 'w[0]', 'x[0]', 'jnp.cos(e)'))})"
        return f"{rule.name}(h)"

    @staticmethod
    def _calls(lines: list[str], rule: Rule) -> bool:
        return any(f"{rule.name}(" in line for line in lines)

    def _coefficient(self) -> str:
        return self.rng.choice(COEFFICIENTS)


def _body(head: str, lines: list[str]) -> str:
    return head + indent("\n".join(lines), "    ") + "\n"
