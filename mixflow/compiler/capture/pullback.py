"""The pullback that a captured `jax.vjp` returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.extend.core import set_current_trace, take_current_trace
from jax.interpreters import ad
from jax.tree_util import register_pytree_node, tree_flatten, tree_unflatten

from mixflow.compiler import jax_compat
from mixflow.compiler.capture.traced import TracedFunction
from mixflow.compiler.derivative.differentiand import Differentiand
from mixflow.compiler.derivative.vjp_primitive import vjp_p
from mixflow.compiler.jaxprs.values import Values, merge, partition
from mixflow.compiler.recording import current_recording


class Pullback:
    """The linear map w ↦ (∂f/∂x)ᵀ w, as one symbolic equation per call; a pytree, as JAX's is.

    Called where it was made, it binds `vjp[f]`. Called in a deeper trace (a loop's body, a vmap
    over cotangents alone), it becomes JAX's own pullback, whose forward pass is evaluated once
    outside: recomputing it inside would cost what plain JAX does not pay. For one cotangent, as in
    `jax.jacrev` of a scalar function, it costs nothing. Anything else that JAX's pullback offers
    (`with_refs`, …) is JAX's own as well.
    """

    def __init__(
        self, function: Differentiand, layout: TracedFunction, closure: Values, leaves: Values
    ) -> None:
        self._function = function
        self._layout = layout
        self._traced = replace(layout, closure=list(closure), leaves=list(leaves))
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
            is_deeper = trace is not self._trace and not jax_compat.maps_one(trace, self._trace)
        if cotangents is None or is_deeper:
            return self._ordinary(out_ct, *extra)
        traced = self._traced
        operands = (*traced.consts, *traced.point, *cotangents)
        point_bar = vjp_p.bind(*operands, function=self._function, with_value=False)
        inactive = partition(traced.active, traced.leaves)[1]
        none = [np.zeros(np.shape(leaf), jax.dtypes.float0) for leaf in inactive]
        return tree_unflatten(traced.in_tree, merge(traced.active, point_bar, none))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._ordinary, name)

    def _flat_cotangents(self, out_ct: Any) -> list[Any] | None:
        """The cotangents w of the outputs that carry one, or None where something does not fit."""
        flat, tree = tree_flatten(out_ct, is_leaf=lambda leaf: isinstance(leaf, ad.Zero))
        if tree != self._traced.out_tree:
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
            recording = current_recording()
            if recording is not None:
                recording.torn.append(self._function.soundness)
                recording.decline(
                    "the pullback is called in a deeper trace than it was made in (a loop, or a "
                    "vmap over cotangents alone): it stays JAX's own and shares one forward pass"
                )
            # In the trace of the capture, so that one forward pass serves all calls from inside.
            with set_current_trace(self._trace):
                self._ordinary_pullback = self._traced.differentiate()[1]
        return self._ordinary_pullback


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
    traced = state["_traced"]
    return (traced.closure, traced.leaves), (state["_function"], state["_layout"])


def _unflatten(static: Any, children: Any) -> Pullback:
    function, layout = static
    closure, leaves = children
    return Pullback(function, layout, closure, leaves)


register_pytree_node(Pullback, _flatten, _unflatten)
