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
    "test_forward_mode_is_that_of_plain_jax[around_a_checkpoint_that_saves_names]": "no names",
    "test_forward_mode[in_a_checkpoint_that_saves_the_gradient]": "no names",
    "test_a_custom_rule_that_closes_over_a_tracer_of_the_caller": "a custom_vjp closes over none",
    "test_a_custom_vjp_that_is_differentiated_in_what_it_closes_over": "it has no tracer there",
    "test_rules_closed_over_arrays_are_linear": "such a rule has no plain form",
    "test_a_rule_whose_value_alone_is_mapped[vmap inside-constant]": "it has to be mapped",
    "test_a_segment_in_a_users_checkpoint_that_saves_what_is_in_it": "a rule closes over no array",
    "test_a_policy_that_saves_complex_values": "no checkpoint saves complex values",
    "test_terms_of_the_outer_variable_alone[until it settles-in a checkpoint]": "no while in one",
    # With `jax_remat3`, JAX contradicts itself of an untrue rule in a user's checkpoint.
    "test_meta_gradient_is_that_of_plain_jax[in_a_checkpoint-value_and_grad]": "no reference",
    # JAX 0.10 has another name for what custom_gradient made.
    "test_the_suspect_has_the_name_and_the_source_line[by_custom_gradient]": "no name",
    "test_the_suspect_has_the_name_and_the_source_line[wrong_pushforward1]": "no name",
}
"""Tests, by what their names begin with, of what plain JAX with `jax_remat3` and `jax_custom_vjp3`
cannot run, or runs wrongly; and why."""


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every", type=int, default=1, help="run every so many-th test, where time is short"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = items[:: config.getoption("--every")]
    if not jax.config.jax_remat3:
        return
    for item in items:
        for name, why in FLAGGED.items():
            if item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=f"plain JAX with its flags: {why}"))
