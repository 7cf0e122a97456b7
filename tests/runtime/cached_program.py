"""A meta-gradient, inside and outside of mixflow; prints what JAX's compilation cache did."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import jax
from planner.meta_losses import momentum_args, momentum_meta_loss

import mixflow

EVENTS: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: EVENTS.update([event.split("/")[-1]]))


def fingerprint(jitted: Any, args: Any) -> str:
    """Of the program as XLA gets it, source lines included."""
    text = jitted.lower(*args).as_text(debug_info=True)
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    args = momentum_args(layers=1, steps=2)
    jax.block_until_ready(args)
    EVENTS.clear()
    inside = mixflow.compile(jax.value_and_grad(momentum_meta_loss))
    outside = jax.jit(jax.grad(mixflow.compile(momentum_meta_loss)))
    value, _ = inside(*args)
    outside(*args)
    counts = {
        "requested": EVENTS["compile_requests_use_cache"],
        "compiled": EVENTS["cache_misses"],
        "found": EVENTS["cache_hits"],
    }
    programs = [fingerprint(jitted, args) for jitted in (inside, outside)]
    print(json.dumps({**counts, "value": float(value), "programs": programs}))


if __name__ == "__main__":
    main()
