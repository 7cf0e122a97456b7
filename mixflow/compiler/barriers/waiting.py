"""What the second run of a checkpoint waits for.

A checkpoint in a straight line has barriers before its inputs: without any, XLA would merge its
second run with its first, and keep everything in between. JAX puts one before every tangent.
Behind a barrier, what takes communication to read, such as a tangent that is sharded as its
parameter is, is fetched for each run anew. So the tangents of inputs that do not wait do not
wait either, where that keeps the runs apart.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from jax.extend.core import Jaxpr, Literal, Var

from mixflow.compiler.jaxprs.equations import variables
from mixflow.compiler.primitives import row_of

Read = tuple[str, int, str, str]
"""A primitive, the operand's place, its dimensions' numbers, and the type that the operand has."""


def wait_for_less(eqn: Any) -> list[Any]:
    """A checkpoint with as few barriers as keep its runs apart; other equations as they are.

    Arguments:
        eqn: any equation. A checkpoint whose barriers are not told one by one keeps them.
    """
    waiting = eqn.params.get("prevent_cse") if eqn.primitive.name == "remat2" else None
    if not isinstance(waiting, tuple):
        return [eqn]
    fewer = _needed(eqn.params["jaxpr"], waiting)
    return [eqn.replace(params={**eqn.params, "prevent_cse": fewer})]


def _needed(body: Jaxpr, waiting: tuple[bool, ...]) -> tuple[bool, ...]:
    """For each input, whether it still waits. Everything that is computed waits for some input.

    A parameter w does not wait. Its tangent need not wait either, as in

        y_dot = x @ w_dot + x_dot @ w        x and x_dot wait, w does not

    where each product reads something else that waits. Which inputs are tangents is not written
    anywhere, so an input is let go if it could be one: it has the type of a w, it is read by the
    same primitives as a w is, and there is one such w for each input that is let go. More are not:
    they may be cotangents, and the second run has to wait for those. In `w_dot * v`, where v is a
    parameter too, w_dot waits: nothing else would keep the two runs of the product apart.
    """
    held = {arg for arg, waits in zip(body.invars, waiting, strict=True) if waits}
    there = Counter(str(arg.aval) for arg in body.invars if arg not in held)
    sources = _sources(body)
    first_reads, uses = _first_reads(body, sources), _uses(body, sources)
    free_uses = set[Read]().union(*(uses[arg] for arg in body.invars if arg not in held))
    for arg in body.invars:
        others = held - {arg}
        reads = [read for read in first_reads if arg in read]
        is_read_alike = bool(reads) or not uses[arg].isdisjoint(free_uses)
        may_be_tangent = arg in held and there[str(arg.aval)] > 0 and is_read_alike
        if may_be_tangent and all(read & others for read in reads):
            there[str(arg.aval)] -= 1
            held = others
    return tuple(arg in held for arg in body.invars)


def _sources(body: Jaxpr) -> dict[Var, set[Var]]:
    """The inputs behind each input, and behind what is no more than other layouts of them."""
    sources: dict[Var, set[Var]] = {arg: {arg} for arg in body.invars}
    for eqn in body.eqns:
        reads = variables(eqn.invars)
        if row_of(eqn).layout and reads and sources.keys() >= set(reads):
            behind = set[Var]().union(*(sources[atom] for atom in reads))
            sources.update(dict.fromkeys(eqn.outvars, behind))
    return sources


def _first_reads(body: Jaxpr, sources: dict[Var, set[Var]]) -> list[set[Var]]:
    """For each equation that computes from nothing but inputs, in any layout, those inputs."""
    found: list[set[Var]] = []
    for eqn in body.eqns:
        reads = variables(eqn.invars)
        is_layout = not sources.keys().isdisjoint(eqn.outvars)
        if reads and not is_layout and sources.keys() >= set(reads):
            found.append(set[Var]().union(*(sources[atom] for atom in reads)))
    return found


def _uses(body: Jaxpr, sources: dict[Var, set[Var]]) -> dict[Var, set[Read]]:
    """What each input is an operand of, in any layout."""
    uses: dict[Var, set[Read]] = {arg: set() for arg in body.invars}
    for eqn in body.eqns:
        summed = str(eqn.params.get("dimension_numbers"))
        for position, atom in enumerate(eqn.invars):
            for arg in () if isinstance(atom, Literal) else sources.get(atom, ()):
                uses[arg].add((eqn.primitive.name, position, summed, str(atom.aval)))
    return uses
