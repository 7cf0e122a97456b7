"""`mixflowc snapshot`: what it stores, that it is the same in every process, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from mixflow.cli import main

MODEL = """
import jax, jax.numpy as jnp, mixflow
from mixflow.passes import DEFAULT_PIPELINE

@jax.custom_vjp
def clipped(x): return x
clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))

def loss(theta, eta, x):
    return jnp.sum(jnp.tanh(x @ theta["w"] + theta["b"]) ** 2 * jnp.exp(eta))

@mixflow.compile(passes=DEFAULT_PIPELINE)
def meta_loss(eta, theta, xs):
    def step(theta, x):
        gradient = jax.grad(loss)(theta, eta, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, gradient), None
    theta, _ = jax.lax.scan(step, theta, xs)
    return jnp.sum(theta["w"] ** 2)

@meta_loss.example_args
def _():
    shape = jax.ShapeDtypeStruct
    theta = {"w": shape((3, 2), jnp.float32), "b": shape((2,), jnp.float32)}
    return jnp.float32(0.1), theta, shape((4, 5, 3), jnp.float32)
"""
GRADIENT = next(i for i, line in enumerate(MODEL.splitlines(), 1) if "jax.grad(" in line)
CLIPPED = "# a line more\n" + MODEL.replace('x @ theta["w"]', 'clipped(x @ theta["w"])')

SMALL = """
import jax.numpy as jnp, mixflow

@mixflow.compile
def double(x):
    return x * 2

double.example_args(lambda: (jnp.ones(3),))
"""


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    captured = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 0, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the snapshots of two versions of a model."""
    folder = tmp_path_factory.mktemp("snapshots")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for text, name in ((CLIPPED, "clipped.json"), (MODEL, "graph.json")):
            Path("model.py").write_text(text)
            with pytest.raises(SystemExit) as stop:
                main(["snapshot", "model.py", "-o", name])
            assert stop.value.code == 0
    finally:
        os.chdir(before)
    return folder


def test_a_second_process_writes_the_same_bytes(folder: Path) -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from mixflow.cli import main; main()", "snapshot", "model.py"],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": "7", "JAX_ENABLE_X64": "1"},
        capture_output=True,
        check=True,
    )
    assert other.stdout == (folder / "graph.json").read_bytes()
    assert other.stderr == b""


def test_it_has_the_figures_the_rewrites_and_the_peak(folder: Path) -> None:
    found = json.loads((folder / "graph.json").read_text())
    assert (found["jax"], found["backend"], found["version"]) == (jax.__version__, "cpu", 1)
    entry = found["entries"]["meta_loss"]
    assert entry["target"] == "value_and_grad in the first argument"
    assert f"model.py:{GRADIENT}" in [one["at"] for one in entry["rewrites"]]
    for side in ("before", "after"):
        program = entry[side]
        assert program["temp_bytes"] > 0
        assert program["flops"] > 0
        assert program["bytes_moved"] > 0
        assert sum(program["operations"]["by_kind"].values()) > 20
        points = [bytes_ for _, bytes_, _ in program["timeline"]["points"]]
        assert max(points) == program["peak"]["bytes"]
        sizes = [one["bytes"] for one in program["peak"]["alive"]]
        assert sizes == sorted(sizes, reverse=True)
    assert entry["before"]["fingerprint"] != entry["after"]["fingerprint"]


def test_operations_are_counted_once_by_kind_by_region_and_by_line(folder: Path) -> None:
    entry = json.loads((folder / "graph.json").read_text())["entries"]["meta_loss"]
    for side in ("before", "after"):
        counts = [sum(one.values()) for one in entry[side]["operations"].values()]
        assert len(counts) == 3
        assert len(set(counts)) == 1
        regions = [sum(one["operations"].values()) for one in entry[side]["regions"]]
        assert sum(regions) == counts[0]


def test_there_are_no_paths_addresses_or_times_in_it(folder: Path) -> None:
    text = (folder / "graph.json").read_text()
    for bad in (str(folder), "0x", "compile_s", "run_s", "measured", sys.prefix):
        assert bad not in text


def test_a_lost_rewrite_is_found_where_it_was_though_lines_have_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    args = ("diff", "graph.json", "clipped.json", "--require", "forward-over-reverse")
    code, out, err = call(capsys, *args, "--format", "json")
    (entry,) = json.loads(out)["entries"]
    assert code == 1
    assert [
        one["at"] for one in entry["rewrites"]["lost"] if one["pass"] == "forward-over-reverse"
    ] == [f"model.py:{GRADIENT}"]
    (declined,) = [
        one for one in entry["declined"]["gained"] if one["pass"] == "forward-over-reverse"
    ]
    assert "clipped" in declined["why"]
    assert "meta_loss: no rewrite by forward-over-reverse" in err
    assert call(capsys, "diff", "clipped.json", "graph.json", *args[3:])[0] == 0


def test_without_a_file_it_is_printed_and_times_are_there_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SMALL)
    code, out, err = call(capsys, "snapshot", "small.py:double", "--measure")
    entry = json.loads(out)["entries"]["double"]
    assert (code, err) == (0, "")
    assert entry["target"] == "as written"
    assert entry["measured"]["after"]["run_s"] > 0


LOOP = """
import jax, jax.numpy as jnp, mixflow

@mixflow.compile
def looped(eta, theta):
    def step(theta, _):
        return theta - jax.grad(lambda theta: jnp.sum(jnp.sin(theta * eta)))(theta), None
    return jnp.sum(jax.lax.scan(step, theta, length=3)[0])

looped.example_args(lambda: (jnp.float32(0.1), jnp.ones(3)))
"""
NOISY = """
import jax, jax.numpy as jnp, mixflow

def loss(x):
    jax.debug.print("{}", x)
    return x ** 2

@mixflow.compile
def noisy(x):
    return jax.grad(loss)(x)

noisy.example_args(lambda: (jnp.float32(0.1),))
"""


def test_nothing_is_compiled_but_what_is_stored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.py").write_text(LOOP)
    with jax.log_compiles():
        code, _, _ = call(capsys, "snapshot", "loop.py", "-o", "graph.json")
    compiled = [one for one in caplog.messages if "XLA compilation of jit(looped)" in one]
    assert (code, len(compiled)) == (0, 2)


def test_a_report_and_a_snapshot_name_source_lines_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    Path("../noisy.py").write_text(NOISY)
    (entry,) = json.loads(call(capsys, "optimize", "../noisy.py", "--format", "json")[1])
    stored = json.loads(call(capsys, "snapshot", "../noisy.py")[1])["entries"]["noisy"]
    assert entry["declined"] == stored["declined"]
    assert "../noisy.py:10" in [one["at"] for one in stored["declined"]]
    assert "jax.debug.print at ../noisy.py:5" in stored["declined"][0]["why"]


def test_several_models_make_one_snapshot_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SMALL)
    Path("other.py").write_text(SMALL.replace("double", "twice"))
    code, out, err = call(capsys, "snapshot", "small.py", "other.py:twice")
    assert (code, err) == (0, "")
    found = json.loads(out)["entries"]
    assert list(found) == ["double", "twice"]
    assert found["twice"]["after"]["regions"][0]["at"] == "other.py:6"
    assert call(capsys, "snapshot", "other.py", "small.py")[1] == out


WRONG = {
    "no model": (["-o", "kept.json"], "MODEL.py"),
    "one name in two models": (
        ["small.py", "twin.py", "-o", "kept.json"],
        "small.py and twin.py both have entries called 'double'",
    ),
    "a second model that is missing": (["small.py", "absent.py"], "absent.py: no such file"),
    "missing model": (["absent.py"], "absent.py: no such file"),
    "no such folder": (["small.py", "-o", "nowhere/graph.json"], "no folder nowhere"),
    "a folder": (["small.py", "-o", "."], "is a folder"),
    "budget": (["small.py", "--memory-budget", "much", "-o", "kept.json"], "'much'"),
    "two of one name": (["twins.py", "-o", "kept.json"], "two entries called 'double'"),
    "failing model": (["failing.py", "-o", "kept.json"], "failing.py:1: ZeroDivisionError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SMALL)
    Path("failing.py").write_text("1 / 0")
    Path("twin.py").write_text(SMALL)
    Path("twins.py").write_text(f"{SMALL}\nfirst = double\n{SMALL}")
    Path("kept.json").write_text("mine")
    args, words = WRONG[case]
    code, out, err = call(capsys, "snapshot", *args)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert Path("kept.json").read_text() == "mine"
