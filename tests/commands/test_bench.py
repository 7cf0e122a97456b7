"""`mixflowc bench`: what it measures, what it writes, and what it does when a program dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from mixflow.cli import main
from mixflow.runtime.bench import rounds as bench
from mixflow.runtime.bench.processes import ChildDied, in_process

# Each step keeps the tanh of 64 × 8 numbers, 20 times; line 8 makes them.
MODEL = """\
import os
import jax, jax.numpy as jnp, mixflow

print("loaded")


def loss(theta, eta, x):
    hidden = jnp.tanh(x @ theta)
    return jnp.sum(hidden**2 * jnp.exp(eta))


@mixflow.compile
def meta_loss(eta, theta, x):
    def step(theta, _):
        return theta - 0.1 * jax.grad(loss)(theta, eta, x), None
    theta, _ = jax.lax.scan(step, theta, length=20)
    return jnp.sum(theta**2)


@meta_loss.example_args
def _():
    return jnp.float32(0.1), jnp.ones((8, 8)), jax.ShapeDtypeStruct((64, 8), jnp.float32)
"""
BROKEN = """

@mixflow.compile(static_argnums=1)
def other(x, times):
    return x * times

@other.example_args
def _():
    return jnp.ones(3), 2

@mixflow.compile
def dies(x):
    raise ValueError("no such thing")

dies.example_args(lambda: (1.0,))
"""
FIGURES = ("temp_bytes", "resident_bytes", "run_s", "compile_s")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Write `model.py`, run `mixflowc bench` beside it; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str, model: str = MODEL) -> tuple[int, str, str]:
        (tmp_path / "model.py").write_text(model)
        with pytest.raises(SystemExit) as stop:
            main(["bench", *args])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def stand_in(module: str, text: str) -> dict[str, Any]:
    """What processes would answer: plain JAX takes 4 s, then 8 s, mixflow half of that."""
    job = json.loads(text)
    stand_in.seen.append((job["program"], job["as_written"]))
    if job["task"] == "list":
        return {"entries": ["meta_loss"], "jax": "1", "backend": "cpu"}
    turn = len(stand_in.seen) // 4 + 1
    scale = turn * (0.5 if job["program"] == "after" else 1.0)
    return {"target": "as written", "temp_bytes": 100, "compile_s": 1.0} | {
        "run_s": 4 * scale,
        "resident_bytes": 0,
    }


def test_figures_and_the_peak_of_both_programs(run: Any, tmp_path: Path) -> None:
    code, out, err = run("model.py", "--rounds=1", "--runs=1", "--format=json", "--profile=peaks")
    (entry,) = json.loads(out)
    assert (code, err) == (0, "")
    assert entry["target"] == "value_and_grad in the first argument"
    assert (entry["jax"], entry["rounds"]) == (jax.__version__, 1)
    for side in ("before", "after"):
        assert entry[side]["failed"] is None
        assert all(entry[side][figure]["median"] >= 0 for figure in FIGURES)
        assert entry[side]["run_s"]["median"] > 0
    assert entry["ratios"]["temp_bytes"] > 2
    folder = tmp_path / "peaks"
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta_loss.peak.json",
        "meta_loss.peak.txt",
    ]
    found = json.loads((folder / "meta_loss.peak.json").read_text())
    plain = found["before"]
    assert plain["temp_bytes"] == entry["before"]["temp_bytes"]["median"]
    assert plain["listed_temp_bytes"] == pytest.approx(plain["temp_bytes"], rel=0.1)
    made = found["after"]
    assert made["listed_temp_bytes"] == pytest.approx(made["temp_bytes"], rel=0.1)
    stacked = [one for one in plain["buffers"] if one["shape"].endswith("[20,64,8]")]
    assert stacked
    assert {one["kind"] for one in stacked} == {"temporary"}
    assert "model.py:8" in {one["source"] for one in stacked}
    arguments = [one["operation"] for one in plain["buffers"] if one["kind"] == "argument"]
    assert {"theta", "x"} <= set(arguments)
    assert "mixflow (JAX" in (folder / "meta_loss.peak.txt").read_text()


def test_a_program_that_dies_has_a_row_and_the_others_stay(run: Any) -> None:
    model = "import jax.numpy as jnp, mixflow\n" + BROKEN
    code, out, err = run("model.py", "--rounds=1", "--format=json", model=model)
    other, dies = json.loads(out)
    assert (code, err) == (1, "")
    assert other["before"]["failed"] is None
    assert other["after"]["run_s"]["median"] > 0
    assert dies["before"]["failed"] == "model.py:14: ValueError: no such thing"
    assert dies["after"]["run_s"] is None


def test_programs_take_turns_and_ratios_are_the_rounds(run: Any, monkeypatch: Any) -> None:
    stand_in.seen = []
    monkeypatch.setattr(bench, "in_process", stand_in)
    code, out, _ = run("model.py", "--rounds=2", "--format=json")
    (entry,) = json.loads(out)
    assert code == 0
    turns = [("before", False), ("after", True), ("before", True), ("after", True)]
    assert stand_in.seen[1:] == turns
    assert entry["before"]["run_s"] == {"median": 6.0, "min": 4.0, "max": 8.0}
    assert entry["ratios"]["run_s"] == 2.0
    assert entry["ratios"]["resident_bytes"] is None


def test_text_says_why_a_program_has_no_figures(run: Any, monkeypatch: Any) -> None:
    def killed(module: str, text: str) -> dict[str, Any]:
        if json.loads(text)["program"] == "before" and json.loads(text)["task"] == "run":
            raise ChildDied("killed: out of memory, most likely")
        return stand_in(module, text)

    stand_in.seen = []
    monkeypatch.setattr(bench, "in_process", killed)
    code, out, _ = run("model.py", "--rounds=1")
    assert code == 1
    assert "plain JAX: killed: out of memory, most likely" in out
    assert "2e+03 ms" in out


def test_how_a_process_ended(monkeypatch: Any) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(ChildDied, match="out of memory"):
        in_process("json.tool", "")
    monkeypatch.undo()
    with pytest.raises(ChildDied, match="No module named"):
        in_process("no_such_module", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nofile.py",), "nofile.py: no such file"),
        (("model.py:foo",), "model.py has no entry 'foo'; it has meta_loss"),
        (("model.py", "--memory-budget=banana"), "'banana' is no amount of memory"),
        (("model.py", "--rounds=0"), "--rounds"),
        (("model.py", "--profile=model.py"), "--profile: cannot make the folder model.py"),
    ],
)
def test_bad_input_is_one_line(run: Any, args: tuple[str, ...], words: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_is_left_behind(tmp_path: Path, sent: int, code: int) -> None:
    model = "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    (tmp_path / "model.py").write_text(model + "time.sleep(600)\n")
    # What a shell runs in the background ignores interrupts, and so would all that it starts.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    bench = "from mixflow.cli import main; main(['bench', 'model.py'])"
    command = [sys.executable, "-c", f"{listen}; {bench}"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as parent:
        child = _wait_for(tmp_path / "pid")
        parent.send_signal(sent)
        _, err = parent.communicate(timeout=30)
    assert parent.returncode == code
    if sent == signal.SIGINT:
        assert err.splitlines()[-1] == "mixflowc: error: interrupted"
    _wait_until(lambda: not _is_running(child))


def _wait_for(file: Path) -> int:
    _wait_until(lambda: file.exists() and bool(file.read_text()))
    return int(file.read_text())


def _wait_until(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def _is_running(process: int) -> bool:
    """Whether there is such a process, other than one that has ended and nobody asked about."""
    command = ["ps", "-o", "stat=", "-p", str(process)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")
