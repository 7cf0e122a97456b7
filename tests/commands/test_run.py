"""`mixflowc optimize --out` and `mixflowc run`: artifacts on the command line, good and bad."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixflow.cli import main

MODEL = """
import jax, jax.numpy as jnp, mixflow

@mixflow.compile
def step(eta, theta):
    return {"theta": theta - eta["rate"] * jnp.tanh(theta), "file": jax.random.key_data(eta["key"])}

@step.example_args
def _():
    return {"rate": 0.5, "key": jax.random.key(1)}, jax.ShapeDtypeStruct((3,), jnp.bfloat16)
"""
INPUTS = {
    "eta['key']": np.array([0, 7], np.uint32),
    "eta['rate']": np.array(0.25),
    "theta": np.array([1.0, -2.0, 0.0], np.float32).view(np.uint32).__rshift__(16).astype("uint16"),
}


def call(capsys: Any, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact `step`, and no model."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "model.py").write_text(MODEL)
    with pytest.raises(SystemExit):
        main(["optimize", str(folder / "model.py"), "--out", str(folder), "--platforms", "cpu,tpu"])
    (folder / "model.py").unlink()
    return folder / "step"


@pytest.fixture
def run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line beside `step`, an artifact, and `x.npz`, its inputs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "step")
    np.savez("x.npz", **INPUTS)
    return lambda *args: call(capsys, *args)


def test_an_artifact_runs_without_its_source(run: Any) -> None:
    code, out, err = run("run", "step", "--inputs", "x.npz", "--out", "y.npz", "--format", "json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["entry"] == "step"
    assert summary["run_s"] > 0
    assert summary["outputs"] == [
        {"name": "result['file']", "shape": [2], "dtype": "uint32"},
        {"name": "result['theta']", "shape": [3], "dtype": "bfloat16"},
    ]
    with np.load("y.npz", allow_pickle=False) as results:
        theta = (results["result['theta']"].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(results["result['file']"], [0, 7])
    x = np.array([1.0, -2.0, 0.0])
    np.testing.assert_allclose(theta, x - 0.25 * np.tanh(x), rtol=1e-2)
    assert sorted(path.name for path in Path().iterdir()) == ["step", "x.npz", "y.npz"]


def test_text_names_the_results(run: Any) -> None:
    code, out, err = run("run", "step", "--inputs", "x.npz")
    assert (code, err) == (0, "")
    assert "result['theta']  bfloat16[3]" in out
    assert "of temporaries" in out


def test_the_manifest_says_what_the_program_is(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "tpu"]
    assert {"mixflow", "jax", "python"} == manifest["versions"].keys()
    assert {"temp_bytes", "flops"} <= manifest["figures"].keys()
    key, rate, theta = manifest["inputs"]["leaves"]
    assert (key["name"], key["key_impl"]) == ("eta['key']", "threefry2x32")
    assert (key["stored_dtype"], key["stored_shape"]) == ("uint32", [2])
    assert rate["weak_type"]
    assert (theta["dtype"], theta["stored_dtype"], theta["shape"]) == ("bfloat16", "uint16", [3])


def save(**changed: Any) -> None:
    arrays = {**INPUTS, **changed}
    np.savez("x.npz", **{name: array for name, array in arrays.items() if array is not None})


def edit_manifest(**changed: Any) -> None:
    path = Path("step/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def edit_leaf(**changed: Any) -> None:
    inputs = json.loads(Path("step/manifest.json").read_text())["inputs"]
    inputs["leaves"][0].update(changed)
    edit_manifest(inputs=inputs)


def flip_a_byte(path: str, place: int) -> None:
    content = bytearray(Path(path).read_bytes())
    content[place] ^= 0xFF
    Path(path).write_bytes(content)


def truncate(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def absurd_size() -> None:
    """An array whose header claims more elements than there is memory for."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(117)
    with zipfile.ZipFile("x.npz", "w") as file:
        file.writestr("theta.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + b"\n")


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no folder": (lambda: shutil.rmtree("step"), "step is no artifact: it has no manifest.json"),
    "no manifest": (lambda: Path("step/manifest.json").unlink(), "it has no manifest.json"),
    "truncated manifest": (lambda: truncate("step/manifest.json"), "is damaged: it is no JSON"),
    "foreign manifest": (lambda: edit_manifest(format="other"), "not the manifest of a mixflow"),
    "newer": (lambda: edit_manifest(version=2), "has format version 2, and this mixflow reads"),
    "no version": (lambda: edit_manifest(version=None), "is damaged: None is no version"),
    "no plan": (lambda: edit_manifest(plan=3), "is damaged: '3' is no str"),
    "no leaves": (lambda: edit_manifest(inputs={"tree": "*"}), "is damaged: 'leaves' is missing"),
    "no such container": (
        lambda: edit_manifest(inputs={"tree": {"set": []}, "leaves": []}),
        "is no container",
    ),
    "another shape": (lambda: edit_leaf(stored_shape=[5]), "manifest is not that of the program"),
    "no such type": (lambda: edit_leaf(stored_dtype="banana"), "not that of the program"),
    "no such PRNG": (lambda: edit_leaf(key_impl="dice"), "not that of the program"),
    "no program": (lambda: Path("step/program.jax_export").unlink(), "program.jax_export is miss"),
    "damaged program": (lambda: flip_a_byte("step/program.jax_export", 99), "checksum"),
    "truncated program": (lambda: truncate("step/program.jax_export"), "checksum"),
    "no inputs": (lambda: Path("x.npz").unlink(), "x.npz: No such file"),
    "one array": (lambda: Path("x.npz").write_bytes(npy(np.ones(3))), "x.npz is a single array"),
    "text as inputs": (lambda: Path("x.npz").write_text("hello"), "x.npz is no npz file"),
    "truncated inputs": (lambda: truncate("x.npz"), "x.npz is no npz file"),
    "damaged inputs": (lambda: flip_a_byte("x.npz", 180), "is damaged"),
    "absurd inputs": (absurd_size, "x.npz: 'theta' is damaged"),
    "pickles": (lambda: save(theta=np.array([{}])), "'theta' holds pickled objects"),
    "missing name": (lambda: save(theta=None), "x.npz: theta missing; step takes eta['key'], "),
    "extra name": (lambda: save(phi=np.ones(2)), "x.npz: phi not taken; step takes"),
    "shape": (
        lambda: save(theta=np.zeros(4, np.uint16)),
        "x.npz: theta: expected shape [3], got [4]",
    ),
    "type": (lambda: save(theta=np.zeros(3)), "theta: expected uint16 (the bits of bfloat16), got"),
    "byte order": (lambda: save(**{"eta['rate']": np.array(1, ">f8")}), "float64, got >f8"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_one_clear_line_and_exit_code_2(run: Any, case: str) -> None:
    spoil, words = BAD[case]
    Path("y.npz").write_text("mine")
    spoil()
    code, out, err = run("run", "step", "--inputs", "x.npz", "--out", "y.npz")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert "--debug" not in err
    assert Path("y.npz").read_text() == "mine"


@pytest.mark.parametrize("out", ["absent/y.npz", "step"])
def test_results_that_cannot_be_written_are_one_line(run: Any, out: str) -> None:
    code, _, err = run("run", "step", "--inputs", "x.npz", "--out", out)
    assert code == 2
    assert "--out" in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["step", "x.npz"]


OPTIMIZE: dict[str, tuple[list[str], str, str]] = {
    "unknown platform": (["--out", ".", "--platforms", "cpu,abacus"], MODEL, "'abacus'"),
    "platforms of nothing": (["--platforms", "cpu"], MODEL, "needs --out"),
    "two of a name": (
        ["--out", "."],
        MODEL + "\nother = mixflow.compile(step.fun)\nother.example_args(lambda: ())\n",
        "two entries' functions are named 'step'",
    ),
    "callback": (
        ["--out", "."],
        MODEL.replace("return {", 'jax.debug.print("{}", theta); return {', 1),
        "step cannot be exported: jax.debug.print at model.py:6 calls back to the host",
    ),
}


@pytest.mark.parametrize("case", OPTIMIZE)
def test_a_refused_export_leaves_the_old_artifact(run: Any, case: str) -> None:
    args, model, words = OPTIMIZE[case]
    Path("model.py").write_text(model)
    before = {path.name: path.read_bytes() for path in Path("step").iterdir()}
    code, _, err = run("optimize", "model.py", *args)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in Path("step").iterdir()} == before
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == [
        "model.py",
        "step",
        "x.npz",
    ]
