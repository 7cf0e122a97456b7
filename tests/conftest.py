"""Double precision for every test: equality of gradients is judged in float64.

And machine code as it is made the fastest, in the processes that tests start as well. LLVM does not
optimise, which took half of the tests' time, and XLA of JAX 0.10 makes its kernels without MLIR,
which took a third of the rest. XLA's fusions and buffers are the same.
"""

import os
from collections.abc import Iterator

import jax
import pytest

FAST = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # later versions have no such flag
    FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST])
jax.config.update("jax_enable_x64", True)

FLAGGED = {
    "around_a_checkpoint_that_saves_names": "JAX 0.10 has no vmap of a checkpoint's names",
    "in_a_checkpoint_that_saves_the_gradient": "JAX 0.10 has no vmap of a checkpoint's names",
    "test_a_custom_rule_that_closes_over_a_tracer_of_the_caller": "a custom_vjp closes over none",
}
"""What plain JAX itself cannot run with its flags `jax_remat3` and `jax_custom_vjp3`, and why."""


@pytest.fixture
def flags() -> Iterator[tuple[str, ...]]:
    """JAX as it will be, with checkpoints and custom rules of a new kind; the flags' names."""
    names = ("jax_remat3", "jax_custom_vjp3")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        jax.config.update(name, True)
    yield names
    for name, value in before.items():
        jax.config.update(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not jax.config.jax_remat3:
        return
    raises = (NotImplementedError, jax.errors.UnexpectedTracerError)
    for item in items:
        for name, why in FLAGGED.items():
            if name in item.name:
                item.add_marker(pytest.mark.xfail(reason=why, raises=raises, strict=False))
