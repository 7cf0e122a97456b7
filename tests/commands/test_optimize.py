"""`mixflowc optimize`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from support import MODEL

from mixflow.cli import main

GRADIENT_LINE = 1 + next(i for i, line in enumerate(MODEL.splitlines()) if "jax.grad(" in line)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Write `model.py`, run the command line beside it; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str, model: str = MODEL) -> tuple[int, str, str]:
        (tmp_path / "model.py").write_text(textwrap.dedent(model))
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        captured = capsys.readouterr()
        code = stop.value.code
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return call


def test_json_has_the_figures_and_the_rewrites_with_file_and_line(run: Any) -> None:
    code, out, err = run("optimize", "model.py", "--format", "json", "--verify", "--measure")
    (entry,) = json.loads(out)
    assert (code, err) == (0, "")
    assert entry["entry"] == "meta_loss"
    assert entry["jax"] == jax.__version__
    assert entry["backend"] == "cpu"
    for side in ("before", "after"):
        figures = entry[side]
        assert {"temp_bytes", "flops", "eqns", "compile_s", "run_s"} <= figures.keys()
        assert figures["temp_bytes"] > 0
        assert figures["run_s"] > 0
    forward = [one for one in entry["rewrites"] if one["pass"] == "forward-over-reverse"]
    assert [one["at"] for one in forward] == [f"model.py:{GRADIENT_LINE}"]
    assert entry["verified"]["max_rel_error"] < 1e-3
    assert entry["verified"]["dtype"] in ("float32", "float64")


def test_text_has_a_table_with_the_checkpointed_step_and_is_quiet_beside_it(run: Any) -> None:
    code, out, err = run("optimize", "model.py:meta_loss")
    assert (code, err) == (0, "")
    for words in ("plain JAX", "checkpointed step", "mixflow", f"model.py:{GRADIENT_LINE}"):
        assert words in out


def test_out_writes_every_file_whole(run: Any, tmp_path: Path) -> None:
    code, _, _ = run("optimize", "model.py", "--out", "made")
    folder = tmp_path / "made" / "meta_loss"
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "after.ir.txt",
        "after.stablehlo.mlir",
        "before.ir.txt",
        "before.stablehlo.mlir",
        "manifest.json",
        "program.jax_export",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert json.loads((folder / "report.json").read_text())["entry"] == "meta_loss"
    assert "symmetric rule" in (folder / "after.ir.txt").read_text()
    assert "symmetric rule" not in (folder / "before.ir.txt").read_text()
    assert "stablehlo" in (folder / "after.stablehlo.mlir").read_text()


def test_the_exported_program_runs_and_gives_what_the_model_gives(run: Any, tmp_path: Path) -> None:
    run("optimize", "model.py", "--out", "made")
    blob = (tmp_path / "made" / "meta_loss" / "program.jax_export").read_bytes()
    exported = jax.export.deserialize(bytearray(blob))
    args = [jax.numpy.full(aval.shape, 0.5, aval.dtype) for aval in exported.in_avals]
    value, gradient = exported.call(*args)
    scope: dict[str, Any] = {}
    exec(compile(MODEL, "model.py", "exec"), scope)
    expected = jax.value_and_grad(scope["meta_loss"].fun)(*args)
    assert jax.numpy.allclose(value, expected[0], rtol=1e-5)
    assert jax.numpy.allclose(gradient, expected[1], rtol=1e-5)


def test_a_declined_rewrite_says_which_function_and_where(run: Any) -> None:
    rule = """
    @jax.custom_vjp
    def clipped(x): return x
    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))
    """
    model = MODEL.replace("def loss", textwrap.dedent(rule) + "\ndef loss")
    model = model.replace("x @ theta", "x @ clipped(theta)")
    code, out, _ = run("optimize", "model.py", "--format", "json", model=model)
    (entry,) = json.loads(out)
    assert code == 0
    assert not [one for one in entry["rewrites"] if one["pass"] == "forward-over-reverse"]
    (declined,) = [one for one in entry["declined"] if one["pass"] == "forward-over-reverse"]
    assert "clipped" in declined["why"]
    assert "model.py:" in declined["why"]


def test_several_entries_are_reported_in_order(run: Any) -> None:
    second = """
@mixflow.compile
def other(x):
    return x * 2

other.example_args(lambda: (1.0,))
"""
    code, out, _ = run("optimize", "model.py", "--format", "json", model=MODEL + second)
    assert code == 0
    assert [entry["entry"] for entry in json.loads(out)] == ["meta_loss", "other"]


NO_EXAMPLES = MODEL.split("@meta_loss.example_args", maxsplit=1)[0]
SYMBOLIC = """
import jax
import mixflow

@mixflow.compile
def meta_loss(x):
    return jax.grad(lambda x: (x**3).sum())(x).sum()

@meta_loss.example_args
def _():
    return (jax.ShapeDtypeStruct(jax.export.symbolic_shape("size"), "float32"),)
"""
WRONG_INPUT: dict[str, tuple[list[str], str, str]] = {
    "missing file": (["optimize", "absent.py"], MODEL, "absent.py: no such file"),
    "not Python": (["optimize", "model.txt"], MODEL, "model.txt: no such file"),
    "a folder": (["optimize", "."], MODEL, "no such file"),
    "no entry": (["optimize", "model.py"], "x = 1", "has no entry"),
    "no examples": (["optimize", "model.py"], NO_EXAMPLES, "no example arguments"),
    "syntax error": (["optimize", "model.py"], "x = (", "model.py:1: SyntaxError"),
    "import error": (
        ["optimize", "model.py"],
        "\nimport nowhere",
        "model.py:2: ModuleNotFoundError",
    ),
    "exits": (["optimize", "model.py"], "raise SystemExit(3)", "model.py:1: SystemExit"),
    "unknown entry": (["optimize", "model.py:nope"], MODEL, "no entry 'nope'"),
    "budget": (["optimize", "model.py", "--memory-budget", "8XB"], MODEL, "'8XB'"),
    "negative budget": (["optimize", "model.py", "--memory-budget=-1"], MODEL, "'-1'"),
    "unknown option": (["optimize", "model.py", "--nope"], MODEL, "--nope"),
    "unknown format": (["optimize", "model.py", "--format", "xml"], MODEL, "xml"),
    "unknown command": (["optimise", "model.py"], MODEL, "optimise"),
    "symbolic sizes": (["optimize", "model.py"], SYMBOLIC, "meta_loss have symbolic sizes"),
    "no model": (["optimize"], MODEL, "MODEL.py"),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_is_one_clear_line_and_exit_code_2(run: Any, tmp_path: Path, case: str) -> None:
    args, model, words = WRONG_INPUT[case]
    code, out, err = run(*args, "--out", "made", model=model)
    assert code == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_a_failing_model_is_one_line_with_its_own_message(run: Any) -> None:
    model = MODEL.replace("return jnp.sum(theta ** 2)", 'raise ValueError("bad shape of things")')
    code, _, err = run("optimize", "model.py", model=model)
    assert code == 2
    assert "model.py:13: ValueError: bad shape of things" in err
    assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback(run: Any) -> None:
    with pytest.raises(ValueError, match="bad"):
        run(
            "--debug",
            "optimize",
            "model.py",
            model=MODEL.replace("theta, _ =", 'raise ValueError("bad")\n    theta, _ ='),
        )


def test_out_that_cannot_be_a_folder_is_wrong_input(run: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    code, _, err = run("optimize", "model.py", "--out", "taken/below")
    assert code == 2
    assert "taken" in err
    assert (tmp_path / "taken").read_text() == "mine"


def test_over_budget_fails_with_what_is_needed(run: Any) -> None:
    code, _, err = run("optimize", "model.py", "--memory-budget", "10B")
    assert code == 1
    assert "over the budget of 10 B" in err
    assert len(err.strip().splitlines()) == 1


def test_within_budget_is_fine(run: Any) -> None:
    assert run("optimize", "model.py", "--memory-budget", "1GiB")[0] == 0


def test_passes_are_listed(run: Any) -> None:
    code, out, _ = run("passes")
    assert code == 0
    for name in (
        "forward-over-reverse",
        "checkpoint-inner-loop",
        "save-inner-gradients",
        "default:",
    ):
        assert name in out
