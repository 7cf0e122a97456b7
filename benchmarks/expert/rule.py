"""The derivative rule by hand: reverse mode over a gradient as forward mode over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Tree = Any


def mixed_mode_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    """∇_θ of loss(θ, η, batch), with a derivative rule of its own.

    For a cotangent v of the gradient, reverse mode asks for ∇²_θθ L · v and ∇²_ηθ L · v. Second
    derivatives being symmetric, both are the derivative of (∇_θ L, ∇_η L) in θ along v: one
    forward-mode pass, which keeps nothing of what the gradient computed.

    Arguments:
        loss: a scalar; θ and η are pytrees of floats, η without leaves where there is none, and
            batch holds integers.

    References:
        Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation", ICML 2025,
        arXiv 2505.00793.
    """

    def gradient(theta: Tree, eta: Tree, batch: Tree) -> Tree:
        return jax.grad(loss)(theta, eta, batch)

    def forward(theta: Tree, eta: Tree, batch: Tree) -> tuple[Tree, Tree]:
        # The rule itself, not `gradient`: of a step that is recomputed, XLA then keeps less.
        return ruled(theta, eta, batch), (theta, eta, batch)

    def backward(point: Tree, cotangent: Tree) -> tuple[Tree, Tree, None]:
        theta, eta, batch = point

        def both(theta: Tree) -> Tree:
            return jax.grad(loss, (0, 1))(theta, eta, batch)

        _, (theta_bar, eta_bar) = jax.jvp(both, (theta,), (cotangent,))
        return theta_bar, eta_bar, None

    ruled = jax.custom_vjp(gradient)
    ruled.defvjp(forward, backward)
    return ruled
