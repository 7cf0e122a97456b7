"""The expert's program: the plain program's numbers, whatever is left out of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import pytest
from support import assert_close, once

from benchmarks import expert
from benchmarks.expert import Annotations
from benchmarks.reference import TASKS, Size, arguments, meta_loss

pytestmark = once

TINY = Size(steps=2, layers=1, width=8, heads=2, tokens=8, batch=2, vocabulary=16)


def result(task: str, loss: Callable[..., Any]) -> Any:
    quick_to_compile = {"xla_backend_optimization_level": 0}
    program = jax.jit(jax.value_and_grad(loss), compiler_options=quick_to_compile)
    return program(*arguments(TINY, task))


@functools.cache
def plain_result(task: str) -> Any:
    return result(task, meta_loss(TINY, task))


def expert_result(task: str, annotations: Annotations) -> Any:
    return result(task, expert.meta_loss(TINY, task, annotations))


@pytest.mark.parametrize("task", TASKS)
def test_expert_equals_plain(task: str) -> None:
    assert_close(expert_result(task, Annotations()), plain_result(task))


@pytest.mark.parametrize("left_out", ["rule", "blocks", "steps", "save"])
def test_any_annotation_can_be_left_out(left_out: str) -> None:
    annotations = replace(Annotations(), **{left_out: False})
    assert_close(expert_result("data_weighting", annotations), plain_result("data_weighting"))
