"""Tests of JAX that look at how a derivative is made, and see that mixflow makes it otherwise.

`docs/jax-tests.md` lists the same reasons for readers.
"""

from __future__ import annotations

import re

REASONS: dict[str, tuple[str, ...]] = {
    "with `jax_enable_checks`, JAX refuses a checkified custom_jvp in any trace, as in `jax.jit`": (
        "test_goodfellow_custom_jvp",
    ),
    "`platform_dependent` differentiates all branches in any trace, as in `jax.jit`": (
        "test_platform_dependent_with_non_existent_custom_call",
    ),
    "attention in float16 tries a precision that a CPU does not have, as it fails in `jax.jit`": (
        *(f"testDotProductAttention{number}" for number in range(13, 24, 2)),
    ),
    "`saved_residuals` lists what JAX saves for a derivative: a captured one saves its point": (
        "testSoftmaxGradFlag",
        "test_constants_not_hoisted",
        "test_name_",
        "test_saved_residuals_utility",
    ),
    "it looks for JAX's own equations in a jaxpr: a captured derivative is one equation there": (
        "testSwitchResidualsMerge",
    ),
    "it counts what JAX traces or compiles: a captured derivative is traced once more": (
        "test_fwd_caching",
        "test_grad_of_jit_compilation_caching2",
        "test_pmap_global_cache",
        "test_remat_eval_counter",
        "test_vjp_caching",
        "test_vmap_caching",
    ),
    "a primitive without any rule is missed when its function is traced, not differentiated": (
        "test_unimplemented_interpreter_rules",
    ),
}
"""For each reason, the tests that it goes for: their names' beginnings."""


def reason_for(test: str) -> str | None:
    """Why a test fails under capture, if that is as it should be.

    Arguments:
        test: as pytest names it, `tests/FILE.py::CLASS::NAME`.
    """
    name = re.split("::", test)[-1]
    return next((why for why, names in REASONS.items() if name.startswith(names)), None)
