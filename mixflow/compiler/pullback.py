"""The pullback that a captured `jax.vjp` returns."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.extend.core import set_current_trace, take_current_trace
from jax.interpreters import ad
from jax.tree_util import register_pytree_node, tree_flatten, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.differentiand import Differentiand, TreeDef, Values, merge, partition
from mixflow.compiler.vjp_primitive import vjp_p


class Pullback:
    """The linear map w ↦ (∂f/∂x)ᵀ w, as one symbolic equation per call; a pytree, as JAX's is.

    Called where it was made, it binds `vjp[f]`. Called in a deeper trace (a loop's body, a vmap
    over cotangents alone), it becomes JAX's own pullback, whose forward pass is evaluated once
    outside: recomputing it inside would cost what plain JAX does not pay. Anything else that
    JAX's pullback offers (`with_refs`, …) is JAX's own as well.
    """

    def __init__(
        self,
        function: Differentiand,
        closure: Values,
        leaves: Values,
        active: tuple[bool, ...],
        in_tree: TreeDef,
        out_tree: TreeDef,
    ) -> None:
        self._function = function
        self._closure = closure
        self._leaves = leaves
        self._active = active
        self._in_tree = in_tree
        self._out_tree = out_tree
        self._ordinary_pullback: Any = None
        with take_current_trace() as trace:
            self._trace = trace

    def __call__(self, out_ct: Any, *extra: Any) -> Any:
        """Pull a cotangent of the value back to the primals.

        Arguments:
            out_ct: a cotangent with the value's structure, shapes and dtypes.

        Returns:
            A tuple of cotangents with the primals' structure; float0 for integer leaves.

        Raises:
            ValueError, TypeError: JAX's own, where `out_ct` does not fit the value.
        """
        cotangents = None if extra else self._flat_cotangents(out_ct)
        with take_current_trace() as trace:
            is_deeper = trace is not self._trace
        if cotangents is None or is_deeper:
            return self._ordinary(out_ct, *extra)
        point, others = partition(self._active, self._leaves)
        point_bar = vjp_p.bind(
            *self._closure, *others, *point, *cotangents, function=self._function, with_value=False
        )
        none = [np.zeros(np.shape(leaf), jax.dtypes.float0) for leaf in others]
        return tree_unflatten(self._in_tree, merge(self._active, point_bar, none))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._ordinary, name)

    def _flat_cotangents(self, out_ct: Any) -> list[Any] | None:
        """The cotangents w of the outputs that carry one, or None where something does not fit."""
        flat, tree = tree_flatten(out_ct, is_leaf=lambda leaf: isinstance(leaf, ad.Zero))
        if tree != self._out_tree:
            return None
        avals = self._function.jaxpr.out_avals[: len(flat)]
        carries = self._function.carries[: len(flat)]
        fitted = [
            _fit(ct, aval, carry) for ct, aval, carry in zip(flat, avals, carries, strict=True)
        ]
        if any(ct is None for ct in fitted):
            return None
        return partition(carries, fitted)[0]

    @property
    def _ordinary(self) -> Any:
        """JAX's own pullback of f at the same point, made in the trace of the capture."""
        if self._ordinary_pullback is None:
            with set_current_trace(self._trace):
                primals = tree_unflatten(self._in_tree, self._leaves)
                _, self._ordinary_pullback = jax_compat.VJP_OF_JAX(self._replay, *primals)
        return self._ordinary_pullback

    def _replay(self, *primals: Any) -> Any:
        point, others = partition(self._active, tree_flatten(primals)[0])
        outputs = self._function.call(*self._closure, *others, *point)
        return tree_unflatten(self._out_tree, outputs[: self._out_tree.num_leaves])


def _fit(cotangent: Any, aval: Any, carries: bool) -> Any:
    """The cotangent if it is one for a value of this type, else None."""
    expected = aval.to_ct_aval()
    if isinstance(cotangent, ad.Zero):
        return ad.instantiate_zeros(cotangent) if carries else cotangent
    try:
        given = jax.typeof(cotangent)
    except TypeError:
        return None
    return cotangent if (given.shape, given.dtype) == (expected.shape, expected.dtype) else None


def _flatten(pullback: Pullback) -> tuple[Any, Any]:
    state = pullback.__dict__
    static = ("_function", "_active", "_in_tree", "_out_tree")
    return (state["_closure"], state["_leaves"]), tuple(state[name] for name in static)


def _unflatten(static: Any, children: Any) -> Pullback:
    function, active, in_tree, out_tree = static
    closure, leaves = children
    return Pullback(function, closure, leaves, active, in_tree, out_tree)


register_pytree_node(Pullback, _flatten, _unflatten)
