"""The examples, and what the tests have to know of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One example.

    Arguments:
        steps: the meta steps in which its meta-loss is seen to fall.
        fall: by how much it falls at least, from the first few steps to the last few.
        small: constants of the module that make it small enough for tests, by name.
        rewritten: whether its gradient is reverse over reverse, and may be forward over reverse.
        entry: the name of the function that is compiled.
        has_aux: whether it returns auxiliary data beside the meta-loss.
    """

    steps: int
    fall: float
    small: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rewritten: bool = True
    entry: str = "meta_loss"
    has_aux: bool = False


CASES = {
    "architecture": Case(50, 0.2, {"NODES": 2, "CHANNELS": 8}),
    "augmentation": Case(40, 0.1, {"INNER_STEPS": 16, "BATCH": 32}),
    "cavia": Case(60, 0.1, {"TASKS": 16, "HIDDEN": 32, "HIDDEN_LAYERS": 2}),
    "curvature": Case(40, 0.3, {"WIDTHS": (64, 32, 32, 10)}, entry="slope"),
    "data_weighting": Case(20, 0.3, {"LAYERS": 1, "LENGTH": 24, "WIDTH": 16}),
    "hyperparameters": Case(20, 0.3, {"INNER_STEPS": 100}),
    "learned_init": Case(20, 0.1, {"SIDE": 12, "HIDDEN": 32, "HELD_OUT": 2}),
    "learned_optimizer": Case(
        30, 0.3, {"HIDDEN": 16, "RUNS": 2, "TRUNCATION": 10}, rewritten=False, has_aux=True
    ),
    "maml": Case(30, 0.3),
    "meta_rl": Case(30, 0.02, {"AGENTS": 2}),
    "metagradient": Case(10, 0.2, {"INNER_STEPS": 200, "HIDDEN": 32}),
    "per_parameter_lr": Case(30, 0.3),
    "pretrain_finetune": Case(30, 0.1, {"PRETRAINING_STEPS": 20}),
    "prospect_pruning": Case(60, 0.3, {"WIDTHS": (64, 128, 128, 10), "KEPT": 0.1}),
    "truncated": Case(20, 0.05, {"HIDDEN": 32, "INNER_STEPS": 100, "STEPS_KEPT": 20}),
}
