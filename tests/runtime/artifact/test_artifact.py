"""Artifacts: what is exported, loaded and run is the optimised program, on arrays of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixflow
from mixflow import files
from mixflow.files import replace_folder
from mixflow.report.files import write_artifact
from mixflow.runtime.artifact.export import export_program, parse_platforms
from mixflow.runtime.artifact.leaf import Leaf

F32 = jnp.float32


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., mixflow.Artifact]:
    """Export a function's optimised program for these arguments, and load it."""

    def make(function: Any, *args: Any, platforms: str | None = None) -> mixflow.Artifact:
        folder = tmp_path / "made" / function.__name__
        report = function.report(*args)
        program = export_program(
            report.programs.optimised,
            args,
            report.programs.after.lowered,
            parse_platforms(platforms),
        )
        write_artifact(report, folder, program)
        return mixflow.load(folder)

    return make


def deep_loss(theta, eta, x):
    for w in theta:
        x = jnp.tanh(x @ w) * jnp.exp(eta)
    return jnp.mean(x**2)


def meta_loss(eta, theta, x):
    for _ in range(2):  # straight-line code: what JAX 0.10 on CPU needs its options for
        theta = theta - 0.1 * jax.grad(deep_loss)(theta, eta, x)
    return deep_loss(theta, eta, x)


def test_the_loaded_program_is_the_optimised_one_in_results_and_in_memory(make: Any) -> None:
    compiled = mixflow.compile(meta_loss)
    args = jnp.asarray(0.1, F32), jnp.ones((4, 8, 8), F32) / 9, jnp.ones((512, 8), F32)
    artifact = make(compiled, *args)
    optimised = artifact.manifest.figures["temp_bytes"]
    loaded = artifact.compiled.memory_analysis().temp_size_in_bytes
    plain = jax.jit(jax.value_and_grad(meta_loss)).lower(*args).compile()
    memory: Any = plain.memory_analysis()
    assert abs(loaded - optimised) <= 0.1 * optimised
    assert loaded < 0.7 * memory.temp_size_in_bytes
    (value, (gradient,)), expected = artifact(*args), plain(*args)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4)


def test_containers_come_back_as_they_went_in(make: Any) -> None:
    @mixflow.compile
    def swapped(tree, pair):
        return {"b": [pair[0], None], "a": (tree["x"] + 1, pair)}

    args = {"x": jnp.ones(2), "none": None}, (jnp.zeros(3), jnp.arange(4))
    artifact = make(swapped, *args)
    result = artifact(*args)
    assert jax.tree.structure(result) == jax.tree.structure(swapped(*args))
    np.testing.assert_array_equal(result["a"][0], [2, 2])
    names = [leaf.name for leaf in artifact.manifest.outputs.leaves]
    assert names == ["result['a'][0]", "result['a'][1][0]", "result['a'][1][1]", "result['b'][0]"]
    with pytest.raises(mixflow.InputError, match=r"swapped takes .*'none': None"):
        artifact({"x": jnp.ones(2)}, args[1])


def test_other_containers_are_flat_arrays(make: Any) -> None:
    @mixflow.compile
    def scaled(tree):
        return OrderedDict(b=tree["b"] * 2, a=tree["a"])

    artifact = make(scaled, OrderedDict(b=jnp.ones(2), a=jnp.zeros(3)))
    assert [leaf.name for leaf in artifact.manifest.inputs.leaves] == ["tree['b']", "tree['a']"]
    result = artifact(jnp.ones(2), jnp.zeros(3))
    assert isinstance(result, list)
    np.testing.assert_array_equal(result[0], [2, 2])
    with pytest.raises(mixflow.InputError, match="1 arrays given; scaled takes"):
        artifact(jnp.ones(2))


def test_keys_and_types_that_numpy_has_not_cross_as_integers(make: Any) -> None:
    @mixflow.compile
    def draw(keys, x, eighth):
        split = jax.random.split(keys[0], 3)
        return split, x + jax.random.normal(keys[1], x.shape, x.dtype), eighth

    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    x = jnp.asarray([0.1, 2.5], jnp.bfloat16)
    eighth = jnp.asarray([0.5, -1], jnp.float8_e4m3fn)
    artifact = make(draw, keys, x, eighth)
    expected = draw(keys, x, eighth)
    given = artifact(keys, x, eighth)
    assert jax.tree.map(lambda one: one.dtype, given) == jax.tree.map(
        lambda one: one.dtype, expected
    )
    for one, other in zip(map(bits, given), map(bits, expected), strict=True):
        np.testing.assert_array_equal(one, other)

    stored = artifact.run({"keys": bits(keys), "x": bits(x), "eighth": bits(eighth)})
    assert [one.dtype.name for one in stored.values()] == ["uint32", "uint16", "uint8"]
    for one, other in zip(stored.values(), map(bits, expected), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(mixflow.InputError, match=r"x: expected uint16 \(the bits of bfloat16\)"):
        artifact.run({"keys": bits(keys), "x": np.asarray(x), "eighth": bits(eighth)})
    with pytest.raises(mixflow.InputError, match="keys: expected keys of rbg, got keys of three"):
        artifact(jax.random.split(jax.random.key(3)), x, eighth)


def bits(array: Any) -> np.ndarray:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(array))
    return np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")


def test_weak_types_and_static_arguments(make: Any) -> None:
    @mixflow.compile(static_argnames="power")
    def raised(rate, power, x, *more):
        return x * rate**power + more[0]

    x = jnp.ones(3, jnp.bfloat16)
    artifact = make(raised, 2.0, 3, x, x)
    assert [leaf.name for leaf in artifact.manifest.inputs.leaves] == ["rate", "x", "more[0]"]
    assert [leaf.weak_type for leaf in artifact.manifest.inputs.leaves] == [True, False, False]
    result = artifact(2.0, x, x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(result, F32), [9, 9, 9])
    assert np.asarray(artifact(3, x, x), F32)[0] == 28
    with pytest.raises(mixflow.InputError, match="rate: expected an array of float64, got complex"):
        artifact(1j, x, x)


def test_a_python_number_has_to_fit(make: Any) -> None:
    artifact = make(mixflow.compile(lambda x: x + 1), jnp.int8(1))
    assert artifact(100) == 101
    with pytest.raises(mixflow.InputError, match="x: 300 is no int8"):
        artifact(300)


def test_donated_arguments_are_taken_as_the_original_takes_them(make: Any) -> None:
    def shifted(theta, eta):
        return theta + eta

    artifact = make(mixflow.compile(shifted, donate_argnums=0), jnp.ones(4), jnp.ones(4))
    theta, eta = jnp.ones(4), jnp.ones(4)
    np.testing.assert_array_equal(artifact(theta, eta), 2 * np.ones(4))
    assert theta.is_deleted()
    assert not eta.is_deleted()
    assert artifact.compiled.memory_analysis().alias_size_in_bytes > 0


def test_a_program_for_other_platforms_alone_says_so(make: Any) -> None:
    artifact = make(mixflow.compile(lambda x: x + 1), jnp.ones(2), platforms="tpu,cuda")
    assert artifact.manifest.platforms == ("tpu", "cuda")
    with pytest.raises(mixflow.InputError, match="exported for tpu, cuda, and JAX runs on cpu"):
        artifact(jnp.ones(2))


def test_a_type_that_no_file_can_hold_is_refused(make: Any) -> None:
    zeros = mixflow.compile(jax.custom_derivatives.zero_from_primal)
    with pytest.raises(mixflow.InputError, match=r"result is of type .*float0"):
        make(zeros, jnp.arange(2))


def unknown_call(x):
    return jax.ffi.ffi_call("made_up", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def schur_form(x):
    return jax.lax.linalg.schur(x)[0]


@pytest.mark.parametrize(
    ("function", "platform", "words"),
    [(unknown_call, "cpu", "custom calls"), (schur_form, "tpu", "'schur' not found for platform")],
)
def test_what_jax_cannot_export_is_refused_in_its_words(
    function: Any, platform: str, words: str
) -> None:
    compiled, x = mixflow.compile(function), jnp.eye(2)
    with pytest.raises(mixflow.InputError, match=f"cannot be exported: .*{words}"):
        export_program(compiled, (x,), compiled.lower(x), (platform,))


def test_a_bug_of_ours_is_not_taken_for_a_program_that_cannot_be_exported(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(leaf: Leaf, stored: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(Leaf, "decode", broken)
    with pytest.raises(ValueError, match="a bug"):
        make(mixflow.compile(lambda x: x + 1), jnp.ones(2))


@pytest.mark.parametrize(
    ("called", "name"),
    [
        (lambda x: jax.debug.print("{}", x), "jax.debug.print"),
        (lambda x: jax.pure_callback(host_sine, x, x), "pure_callback of host_sine"),
    ],
)
def test_a_call_back_to_the_host_is_refused_by_name(
    make: Any, tmp_path: Path, called: Any, name: str
) -> None:
    @mixflow.compile
    def calling(x):
        return jax.lax.fori_loop(0, 2, lambda _, x: (called(x), x * 2)[1], x)

    with pytest.raises(mixflow.InputError, match=f"{name} at .*test_artifact.py:"):
        make(calling, jnp.ones(2))
    assert not (tmp_path / "made").exists()


def host_sine(x):
    return np.sin(x)


OLD, NEW = {"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"}


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("failing", ["fsync", "_swap"])
def test_a_failing_write_leaves_the_old_folder_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    replace_folder(tmp_path / "made", OLD)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        owner = files.os if failing == "fsync" else files
        patch.setattr(owner, failing, fail)
        with pytest.raises(OSError, match="no space"):
            replace_folder(tmp_path / "made", NEW)
    assert held(tmp_path / "made") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    replace_folder(tmp_path / "made", NEW)
    assert held(tmp_path / "made") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_with_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(mixflow.InputError, match=r"holds 'notes\.txt', which mixflow"):
        replace_folder(tmp_path, NEW)
    assert held(tmp_path) == {"notes.txt": b"mine"}


# A child is killed at its n-th system call of those that write: the folder is old, or it is new.
KILLED = """
import os, signal, sys
from pathlib import Path
from mixflow import files

folder, old, new = Path(sys.argv[1]) / "made", *({n: w for n in "ab"} for w in (b"old", b"new"))
files.replace_folder(folder, old)

def killed_at(place):
    count = 0

    def counted(function):
        def call(*args, **options):
            nonlocal count
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*args, **options)

        return call

    files.os.fsync = counted(os.fsync)
    files._exchange = counted(files._exchange)
    files.shutil.rmtree = counted(files.shutil.rmtree)
    files.replace_folder(folder, new)
    os._exit(0)

for place in range(20):
    child = os.fork() or killed_at(place)
    _, status = os.waitpid(child, 0)
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    print(("old" if held == old else "new" if held == new else "broken"), status)
    if status == 0:
        break
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
def test_a_killed_write_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    lines = printed.split("\n")[:-1]
    assert lines[0] == "old 9"
    assert lines[-1] == "new 0"
    assert {line.split()[1] for line in lines[:-1]} == {"9"}
    states = [line.split()[0] for line in lines]
    assert states == sorted(states, key=["old", "new"].index)
    assert states.count("old") >= 4  # each file, their list, the exchange itself


ELSEWHERE = """
import json, sys
import jax, numpy as np, mixflow

assert not jax.config.jax_enable_x64
artifact = mixflow.load(sys.argv[1])
result = artifact(np.array([1.0, 2.0]), 0.5)
print(json.dumps([str(result["y"].dtype), result["y"].tolist()]))
"""


def test_double_precision_runs_in_a_process_without_it(make: Any, tmp_path: Path) -> None:
    @mixflow.compile
    def scaled(x, rate):
        return {"y": x * rate + 1 / 3}

    make(scaled, jnp.ones(2), 1.0)
    script = [sys.executable, "-W", "error", "-c", ELSEWHERE, "made/scaled"]
    done = subprocess.run(script, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    dtype, values = json.loads(done.stdout)
    assert dtype == "float64"
    assert values == [0.5 + 1 / 3, 1 + 1 / 3]
