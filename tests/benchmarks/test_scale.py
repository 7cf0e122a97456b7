"""`python -m benchmarks scale`: the transformer by three ways, and the walk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner
from support import assert_close, once

import mixflow
from benchmarks.__main__ import main
from benchmarks.scale import walk
from benchmarks.scale.child import Job, needs
from benchmarks.scale.chinchilla import EXPERT, Model, arguments, meta_loss, rotated, shapes
from benchmarks.scale.models import MODELS
from benchmarks.scale.walk import Walk, largest

TINY = Model(width=8, heads=2, layers=2, vocabulary=32)


def test_expert_and_mixflow_are_plain_jax() -> None:
    model = replace(TINY, layers=1)
    args = arguments(model, steps=2, tokens=6)
    plain = jax.value_and_grad(meta_loss(model))
    expert = jax.value_and_grad(meta_loss(model, EXPERT))
    expected = jax.jit(plain)(*args)
    assert_close(jax.jit(expert)(*args), expected)
    assert_close(mixflow.compile(plain)(*args), expected)


def test_only_distances_count_for_rotary_embeddings() -> None:
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    turned = [rotated(jax.numpy.repeat(x, 5, axis=1))[0, :, 0] for x in (query, key)]
    scores = turned[0] @ turned[1].T
    assert_close(scores[1, 0], scores[4, 3])
    assert_close(scores[0, 0], (query * key).sum())


def test_models_grow() -> None:
    for models in MODELS.values():
        sizes = [model.parameters for model in models]
        assert sizes == sorted(sizes)
    leaves = jax.tree.leaves(shapes(MODELS["gpu"][0], 2, 8)[1])
    assert sum(leaf.size for leaf in leaves) == MODELS["gpu"][0].parameters


@once
def test_what_a_size_needs() -> None:
    model = replace(TINY, layers=1)
    found = {
        name: needs(Job(name, model, 2, 64))["total_bytes"]
        for name in ("plain", "expert", "mixflow")
    }
    assert found["plain"] > 1.5 * found["expert"]
    assert found["mixflow"] < found["plain"]
    assert "there is no gpu" in needs(Job("plain", TINY, 2, 8, device="gpu"))["failed"]


@pytest.mark.parametrize(("memory", "place"), [(10, None), (64, 0), (300, 2), (10_000, 4)])
def test_the_largest_is_found(
    monkeypatch: pytest.MonkeyPatch, memory: int, place: int | None
) -> None:
    def stand_in(_: str, job: str, __: Path) -> dict[str, Any]:
        tokens = json.loads(job)["tokens"]
        if tokens == 1024:
            raise walk.ChildDied("killed: out of memory, most likely")
        return {"total_bytes": tokens, "peak_bytes": None}

    monkeypatch.setattr(walk, "in_process", stand_in)
    jobs = [Job("plain", TINY, 2, tokens) for tokens in (64, 128, 256, 512, 768, 1024)]
    found, tried = largest(jobs, Walk(memory, "cpu", (2,)), lambda _: None)
    assert found == place
    assert len(tried) <= 3


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stand_in(_: str, job: str, __: Path) -> dict[str, Any]:
        size = Job.from_json(job)
        share = {"plain": 100, "expert": 10, "mixflow": 5}[size.program]
        return {"total_bytes": share * size.model.parameters * size.tokens, "peak_bytes": None}

    monkeypatch.setattr(walk, "in_process", stand_in)
    options = ["scale", "--steps=2", "--memory=10GB", f"--out={tmp_path}"]
    report = json.loads(CliRunner().invoke(main, options).stdout)
    assert [row["largest_model"] for row in report["rows"]] == [None, 1867776, 4194304]
    assert json.loads((tmp_path / "scale.json").read_text()) == report
    assert "| 2 | plain | none | " in (tmp_path / "scale.md").read_text()


def test_a_memory_that_is_none() -> None:
    result = CliRunner().invoke(main, ["scale", "--memory=lots"])
    assert result.exit_code == 2
    assert "lots" in result.stderr
