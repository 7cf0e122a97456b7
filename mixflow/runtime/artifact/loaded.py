"""Artifacts: exported programs, loaded and run without the Python source that they came from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import tree_leaves, tree_structure, tree_unflatten

from mixflow.errors import InputError
from mixflow.runtime.artifact.manifest import PROGRAM, Manifest, Signature, read_manifest
from mixflow.runtime.backend import compiler_options


class Artifact:
    """An exported program: call it with arrays, or `run` it with arrays by name.

    It takes and gives the containers of the original program where they are dicts with text keys,
    lists, tuples and None. With others (named tuples, modules) in its arguments it takes their
    arrays one by one; with others in its results it gives a list of arrays. It is compiled when
    it is first needed, for the present platform. It cannot be traced: call it with arrays, not
    under `jax.jit` or `jax.grad`.
    """

    def __init__(
        self, manifest: Manifest, exported: jax.export.Exported, options: Mapping[str, Any]
    ) -> None:
        self.manifest = manifest
        self._exported = exported
        self._options = options

    def __call__(self, *args: Any) -> Any:
        """Run the program.

        Arguments:
            args: as of the original function, without its static ones; arrays of exactly the
                program's shapes and dtypes.

        Returns:
            The program's results, in the original's containers.

        Raises:
            InputError: other containers, shapes or types than the program's, or another platform.
        """
        inputs, outputs = self.manifest.inputs, self.manifest.outputs
        leaves = self._flat(args)
        with _own_types():
            taken = [leaf.take(value) for leaf, value in zip(inputs.leaves, leaves, strict=True)]
            results = self.compiled(*taken)
        given = [leaf.decode(one) for leaf, one in zip(outputs.leaves, results, strict=True)]
        return given if outputs.tree is None else tree_unflatten(outputs.tree, given)

    def __repr__(self) -> str:
        names = ", ".join(leaf.name for leaf in self.manifest.inputs.leaves)
        return f"mixflow.Artifact({self.manifest.entry}: {names})"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the program with arrays as an npz file holds them.

        Arguments:
            inputs: an array for each of the program's inputs, by name; PRNG keys as key data,
                types that numpy has not as unsigned integers of the same bits.

        Returns:
            The results by name, in the same form.

        Raises:
            InputError: other names, shapes or types than the program's, or another platform.
        """
        stored = self.check(inputs)
        with _own_types():
            results = self.compiled(*stored)
        outputs = self.manifest.outputs.leaves
        return {leaf.name: leaf.store(one) for leaf, one in zip(outputs, results, strict=True)}

    def check(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        """What the exported program takes for these arrays, in its order; see `run`."""
        leaves = self.manifest.inputs.leaves
        expected = [leaf.name for leaf in leaves]
        missing = [name for name in expected if name not in inputs]
        if missing:
            raise InputError(f"{_listed(missing)} missing; {self._takes()}")
        extra = [name for name in inputs if name not in expected]
        if extra:
            raise InputError(f"{_listed(extra)} not taken; {self._takes()}")
        return [leaf.restore(inputs[leaf.name]) for leaf in leaves]

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The executable, over the flat arrays; it has `.memory_analysis()`.

        Raises:
            InputError: it was not exported for the present platform, or XLA cannot compile it.
        """
        platform, platforms = jax.export.default_export_platform(), self.manifest.platforms
        if platform not in platforms:
            raise InputError(
                f"{self.manifest.entry} was exported for {', '.join(platforms)}, and JAX runs on "
                f"{platform} here: export it with --platforms {','.join((*platforms, platform))}"
            )
        leaves = self.manifest.inputs.leaves
        jitted: Any = jax.jit(
            self._exported.call,
            donate_argnums=[place for place, leaf in enumerate(leaves) if leaf.donated],
            compiler_options={**compiler_options(platform), **self._options} or None,
        )
        try:
            with _own_types():
                return jitted.lower(*(leaf.spec for leaf in leaves)).compile()
        except Exception as error:  # foreign bytes, or of another JAX: anything can be wrong
            versions = self.manifest.versions
            raise InputError(
                f"{self.manifest.entry} was exported by JAX {versions.get('jax')}, and JAX "
                f"{jax.__version__} cannot compile it: {_first_line(error)}"
            ) from error

    def _flat(self, args: tuple[Any, ...]) -> list[Any]:
        tree, leaves = self.manifest.inputs.tree, self.manifest.inputs.leaves
        if tree is not None and tree_structure(args) != tree:
            raise InputError(f"{self.manifest.entry} takes {tree}, and not {tree_structure(args)}")
        if tree is None and len(args) != len(leaves):
            raise InputError(f"{len(args)} arrays given; {self._takes()}")
        return list(args) if tree is None else tree_leaves(args)

    def _takes(self) -> str:
        names = [leaf.name for leaf in self.manifest.inputs.leaves]
        return f"{self.manifest.entry} takes {_listed(names) if names else 'nothing'}"


def _own_types() -> AbstractContextManager[Any]:
    """Arrays keep the types that the program was exported with, 64 bits included."""
    return jax.enable_x64(True)


def load(
    folder: str | Path, *, compiler_options: Mapping[str, str | bool | int] | None = None
) -> Artifact:
    """Load what `mixflowc optimize --out` wrote; the Python source is not needed.

    Nothing in it is unpickled or run as Python.

    Arguments:
        folder: DIR/NAME.
        compiler_options: XLA options, besides those that mixflow's programs need.

    Returns:
        An `Artifact`, to be called with arrays.

    Raises:
        InputError: the folder is no artifact, a damaged one, or one of a newer mixflow or JAX.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    content = _read_program(folder / PROGRAM)
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise InputError(
            f"{folder / PROGRAM} is damaged: its checksum is not the manifest's; make it again"
        )
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:  # foreign bytes, or of another JAX: anything can be wrong
        raise InputError(
            f"{folder / PROGRAM} was exported by JAX {manifest.versions.get('jax')}, and JAX "
            f"{jax.__version__} cannot read it: {_first_line(error)}"
        ) from error
    _check_agreement(folder, manifest, exported)
    return Artifact(manifest, exported, compiler_options or {})


def _read_program(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the artifact is not whole; make it again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _check_agreement(folder: Path, manifest: Manifest, exported: jax.export.Exported) -> None:
    """The manifest is checked against the program, which has a checksum."""
    same = (
        _describe(manifest.inputs, exported.in_avals)
        and _describe(manifest.outputs, exported.out_avals)
        and set(manifest.platforms) == set(exported.platforms)
    )
    if not same:
        raise InputError(f"{folder}: the manifest is not that of the program; make it again")


def _describe(signature: Signature, avals: Sequence[Any]) -> bool:
    leaves = signature.leaves
    return len(leaves) == len(avals) and all(
        leaf.describes(aval) for leaf, aval in zip(leaves, avals, strict=True)
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_MOST_NAMES = 8


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    left = len(names) - _MOST_NAMES
    return f"{shown} and {left} more" if left > 0 else shown
