"""An artifact's manifest: what the exported program is, takes and gives, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mixflow.compiler.jaxprs.values import TreeDef
from mixflow.errors import InputError
from mixflow.runtime.artifact.leaf import Leaf
from mixflow.runtime.artifact.tree import describe_tree, restore_tree

MANIFEST, PROGRAM = "manifest.json", "program.jax_export"
"""The files that make a folder an artifact; the others are for people to read."""

_FORMAT, _VERSION = "mixflow artifact", 1


@dataclass(frozen=True)
class Signature:
    """The arrays that a program takes, or those that it gives.

    Arguments:
        leaves: in the order of the exported program.
        tree: the containers that they stand in; None where JSON cannot hold them.
    """

    leaves: tuple[Leaf, ...]
    tree: TreeDef | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        tree = None if self.tree is None else describe_tree(self.tree)
        return {"tree": tree, "leaves": [vars(leaf) for leaf in self.leaves]}


@dataclass(frozen=True)
class Manifest:
    """Arguments:
    entry: the function's name.
    target: what of it the program is, in words.
    versions: of mixflow, jax and python, where it was made.
    platforms: those that the program was exported for.
    plan: the pipeline; `fuse-value-and-pullback` or empty where the program was left as it is.
    figures: temp_bytes, total_bytes, flops and eqns, where it was made.
    sha256: the checksum of the exported program.
    inputs, outputs: its arrays.
    """

    entry: str
    target: str
    versions: dict[str, str]
    platforms: tuple[str, ...]
    plan: str
    figures: dict[str, Any]
    sha256: str
    inputs: Signature
    outputs: Signature

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        signatures = {"inputs": self.inputs.to_dict(), "outputs": self.outputs.to_dict()}
        content = {"format": _FORMAT, "version": _VERSION, **plain, **signatures}
        return json.dumps(content, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        InputError: the folder is no artifact, or a damaged or newer one.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no artifact: it has no {MANIFEST}; give a folder DIR/NAME that "
            "mixflowc optimize --out DIR wrote"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "it is no JSON") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path} is not the manifest of a mixflow artifact")
    version = content.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise InputError(
            f"{path} has format version {version}, and this mixflow reads up to {_VERSION}: "
            "update mixflow, or make the artifact again"
        )
    try:
        return _manifest(content)
    except KeyError as error:
        raise _damaged(path, f"{error} is missing") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged: {why}; make the artifact again")


def _manifest(content: dict[str, Any]) -> Manifest:
    if content["version"] != _VERSION:
        raise ValueError(f"{content['version']!r} is no version")
    return Manifest(
        entry=_a(str, content["entry"]),
        target=_a(str, content["target"]),
        versions=_a(dict, content["versions"]),
        platforms=_tuple(str, content["platforms"]),
        plan=_a(str, content["plan"]),
        figures=_a(dict, content["figures"]),
        sha256=_a(str, content["sha256"]),
        inputs=_signature(content["inputs"]),
        outputs=_signature(content["outputs"]),
    )


def _signature(content: Any) -> Signature:
    described = _a(dict, content)["tree"]
    tree = None if described is None else restore_tree(described)
    leaves = tuple(map(_leaf, _a(list, content["leaves"])))
    if tree is not None and tree.num_leaves != len(leaves):
        raise ValueError(f"{tree.num_leaves} arrays in the containers, {len(leaves)} listed")
    return Signature(leaves, tree)


def _leaf(content: Any) -> Leaf:
    read: dict[str, Callable[[Any], Any]] = {
        "name": lambda value: _a(str, value),
        "shape": lambda value: _tuple(int, value),
        "dtype": lambda value: _a(str, value),
        "stored_shape": lambda value: _tuple(int, value),
        "stored_dtype": lambda value: _a(str, value),
        "key_impl": lambda value: None if value is None else _a(str, value),
        "weak_type": lambda value: _a(bool, value),
        "donated": lambda value: _a(bool, value),
    }
    leaf = _a(dict, content)
    return Leaf(**{name: convert(leaf[name]) for name, convert in read.items()})


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value


def _tuple(kind: type, value: Any) -> tuple[Any, ...]:
    return tuple(_a(kind, one) for one in _a(list, value))
