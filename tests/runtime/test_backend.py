"""What mixflow asks of XLA must not break programs that XLA takes without it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from support import assert_close

import mixflow

SMALL_LOOPS = {
    "a checkpoint in a loop": "looped(jax.checkpoint(jnp.sin))",
    "a checkpoint beside other things": "looped(lambda t: jax.checkpoint(jnp.sin)(t * 2) + t)",
    "a barrier in a loop": "looped(lambda t: jax.lax.optimization_barrier(jnp.sin(t) * 2) + 1)",
    "two values in a barrier": "looped(lambda t: sum(jax.lax.optimization_barrier((t, t + 1))))",
    "a checkpointed gradient step": "looped(jax.checkpoint(lambda t: t - jax.grad(loss)(t)))",
}


@pytest.mark.parametrize("name", SMALL_LOOPS)
def test_small_loops_with_barriers_compile(name):
    """In a process of its own: where XLA cannot, it aborts the process."""
    program = textwrap.dedent(
        f"""
        import jax, jax.numpy as jnp, mixflow
        def looped(body):
            step = lambda t, _: (body(t), None)
            return lambda x: jnp.sum(jax.lax.scan(step, x, None, length=3)[0])
        loss = lambda t: jnp.sum(jnp.tanh(t) ** 2)
        f = jax.grad({SMALL_LOOPS[name]})
        x = jnp.array([0.5, -1.5, 2.0])
        assert jnp.allclose(mixflow.compile(f)(x), jax.jit(f)(x))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-1500:]


def test_straight_line_checkpoints_are_worth_something():
    """On JAX 0.10 and CPU only with `compiler_options`; on 0.12 anyway."""

    def block(x, w):
        for _ in range(6):
            x = jnp.sin(x @ w)
        return x

    def blocks(block):
        def f(x, w):
            for _ in range(4):
                x = block(x, w)
            return jnp.sum(x)

        return jax.grad(f)

    def temporaries(jitted):
        return jitted.lower(x, w).compile().memory_analysis().temp_size_in_bytes

    x, w = jnp.ones((512, 8)), jnp.eye(8)
    plain, f = temporaries(jax.jit(blocks(block))), blocks(jax.checkpoint(block))
    compiled = mixflow.compile(f)
    assert temporaries(compiled) < 0.6 * plain
    own = jax.jit(f, compiler_options=mixflow.compiler_options() or None)
    assert temporaries(own) < 0.6 * plain
    assert_close(compiled(x, w), jax.jit(f)(x, w))


def test_compiler_options_are_given_for_the_backend_asked_for():
    assert isinstance(mixflow.compiler_options(), dict)
    assert mixflow.compiler_options("tpu") == {}
    assert mixflow.compiler_options("cpu") == mixflow.compiler_options()
