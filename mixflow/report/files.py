"""Write a report's files and the artifact: a folder, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import jax

from mixflow.files import replace_folder
from mixflow.report.report import Report
from mixflow.runtime.artifact.export import ExportedProgram
from mixflow.runtime.artifact.manifest import MANIFEST, PROGRAM, Manifest


def write_artifact(report: Report, folder: Path, program: ExportedProgram) -> list[Path]:
    """Write an entry's files to `folder`, in place of what mixflow wrote there before.

    Arguments:
        report: the entry's report.
        folder: DIR/NAME; it is made if need be.
        program: the entry's optimised program.

    Returns:
        The files' paths.

    Raises:
        InputError: the folder holds a file that mixflow did not write.
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
        "report.html": report.to_html(),
        MANIFEST: _manifest(report, program).to_json(),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents[PROGRAM] = program.content
    replace_folder(folder, contents)
    return [folder / name for name in contents]


def _manifest(report: Report, program: ExportedProgram) -> Manifest:
    figures = report.after.to_dict()
    return Manifest(
        entry=report.entry,
        target=report.target,
        versions={
            "mixflow": version("mixflow"),
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        platforms=program.platforms,
        plan=report.plan,
        figures={name: figures[name] for name in ("temp_bytes", "total_bytes", "flops", "eqns")},
        sha256=hashlib.sha256(program.content).hexdigest(),
        inputs=program.inputs,
        outputs=program.outputs,
    )
