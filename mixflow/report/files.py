"""Write a report's files, each whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import jax

from mixflow.report.report import Report


def write_report(report: Report, folder: Path, artifact: bytes | None) -> list[Path]:
    """Write an entry's files to `folder`, replacing what was there of the same names.

    Arguments:
        report: the entry's report.
        folder: DIR/NAME; it is made if need be.
        artifact: the exported program, if there is one.

    Returns:
        The files' paths.

    Raises:
        OSError: the folder cannot be written.
    """
    before, after = report.programs.before.lowered, report.programs.after.lowered
    texts = {
        "before.ir.txt": report.programs.ir_before,
        "after.ir.txt": report.programs.ir_after,
        "before.stablehlo.mlir": before.as_text(),
        "after.stablehlo.mlir": after.as_text(),
        "report.json": json.dumps(report.to_dict(), indent=2) + "\n",
        "report.md": report.to_markdown(),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    if artifact is not None:
        contents["program.jax_export"] = artifact
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _replace(folder / name, content)
    return [folder / name for name in contents]


def _replace(path: Path, content: bytes) -> None:
    """Write beside the file, then rename: a reader sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def export_program(function: object, args: tuple[object, ...]) -> tuple[bytes | None, str]:
    """The program serialised by `jax.export`, over the flat arrays of its arguments.

    Arguments:
        function: a `mixflow.compile`d function.
        args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The bytes and an empty string, or None and why there are none (host callbacks, say).
    """
    leaves, tree = jax.tree.flatten(args)

    def flat(*leaves: object) -> list[object]:
        return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))  # type: ignore[operator]

    try:
        exported = jax.export.export(jax.jit(flat))(*leaves)
        return bytes(exported.serialize()), ""
    except (ValueError, NotImplementedError) as error:
        return None, str(error).strip().splitlines()[0]
