"""The smallest set of values that others can be computed from again.

In

    a = x @ w,  y = tanh(a),  c = 1 - y * y,  d = y * c

c and d can be computed from y alone, so y is enough to save, one array for three. Such a set is a
minimum cut: it lies on each way from what the equations read to what is needed, and its bytes are
the least.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import networkx
from jax.extend.core import Var

from mixflow.compiler.jaxprs.equations import variables
from mixflow.compiler.jaxprs.sizes import array_bytes

_SOURCE, _SINK = "source", "sink"


def smallest_cut(
    equations: Iterable[Any],
    inputs: Iterable[Var],
    needed: Sequence[Var],
    preferred: Container[Var] = (),
) -> set[Var]:
    """Values to save, with the least bytes in all, so that the needed ones follow from them.

    Arguments:
        equations: of a jaxpr, in any order; each may be rerun.
        inputs: what they read, which has to be saved where it is read again.
        needed: some of the inputs and of what the equations define.
        preferred: values to take where others have as many bytes, as they are saved anyway.

    Returns:
        Inputs and results of equations.
    """
    graph = networkx.DiGraph()

    def add(var: Var) -> None:
        """A value is an edge: to cut it is to save it. Edges without a capacity can't be cut."""
        cost = max(2 * array_bytes(var.aval) - (var in preferred), 0)
        graph.add_edge((var, "read"), (var, "saved"), capacity=cost)

    for var in inputs:
        add(var)
        graph.add_edge(_SOURCE, (var, "read"))
    for equation in equations:
        for out in equation.outvars:
            add(out)
            for var in variables(equation.invars):
                graph.add_edge((var, "saved"), (out, "read"))
    for var in needed:
        graph.add_edge((var, "saved"), _SINK)
    if _SOURCE not in graph or _SINK not in graph:
        return set()
    # Of several such sets networkx takes the one nearest to what is needed.
    _, (before, after) = networkx.minimum_cut(graph, _SOURCE, _SINK)
    values = [node[0] for node in before if node != _SOURCE and node[1] == "read"]
    return {var for var in values if (var, "saved") in after}
