"""`mixflowc run`: run an artifact without the Python source that it came from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from mixflow.commands.progress import progress
from mixflow.errors import InputError
from mixflow.runtime.artifact.loaded import Artifact, load
from mixflow.runtime.artifact.npz import read_npz, write_npz
from mixflow.units import format_bytes


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    required=True,
    metavar="X.npz",
    type=click.Path(path_type=Path),
    help="The program's inputs: one array for each, by name.",
)
@click.option(
    "--out", metavar="Y.npz", type=click.Path(path_type=Path), help="Write the results here."
)
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text")
def run(folder: Path, inputs: Path, out: Path | None, style: str) -> None:
    """Run the artifact DIR, which `mixflowc optimize --out` wrote.

    Its manifest.json lists the names of its inputs and results, with their shapes and types.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent} to write {out.name} to")
    artifact = load(folder)
    arrays = read_npz(inputs)
    try:
        artifact.check(arrays)
    except InputError as error:
        raise InputError(f"{inputs}: {error}") from None
    results, summary = _timed(artifact, arrays)
    if out is not None:
        _write(out, results)
    click.echo(json.dumps(summary, indent=2) if style == "json" else _text(summary, out))


def _timed(
    artifact: Artifact, arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with progress(f"{artifact.manifest.entry}: compiling"):
        start = time.perf_counter()
        memory: Any = artifact.compiled.memory_analysis()
        compiled = time.perf_counter()
    with progress(f"{artifact.manifest.entry}: running"):
        results = artifact.run(arrays)
        done = time.perf_counter()
    return results, {
        "entry": artifact.manifest.entry,
        "temp_bytes": memory.temp_size_in_bytes,
        "compile_s": compiled - start,
        "run_s": done - compiled,
        "outputs": [
            {"name": leaf.name, "shape": leaf.shape, "dtype": leaf.dtype}
            for leaf in artifact.manifest.outputs.leaves
        ],
    }


def _write(out: Path, results: dict[str, np.ndarray]) -> None:
    try:
        write_npz(out, results)
    except OSError as error:
        raise InputError(f"--out: cannot write {out}: {error.strerror}") from None


def _text(summary: dict[str, Any], out: Path | None) -> str:
    lines = [f"{one['name']}  {one['dtype']}{list(one['shape'])}" for one in summary["outputs"]]
    times = f"compiled in {summary['compile_s']:.1f} s, ran in {summary['run_s']:.3g} s"
    lines += [f"{times}, {format_bytes(summary['temp_bytes'])} of temporaries"]
    lines += [] if out is None else [f"results written to {out}"]
    return "\n".join(lines)
