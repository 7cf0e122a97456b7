"""`mixflowc diff`: what changed between two snapshots, and whether that is too much."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from mixflow.commands.output import checked_out, write_text
from mixflow.commands.snapshot import snapshot_of
from mixflow.errors import InputError
from mixflow.report.diff.checks import OPTIONS, failures
from mixflow.report.diff.compare import compare
from mixflow.report.diff.differences import SnapshotDiff
from mixflow.report.diff.html import render_html
from mixflow.report.diff.markdown import render_markdown
from mixflow.report.diff.revisions import load_snapshot
from mixflow.report.diff.text import render, render_text
from mixflow.report.diff.thresholds import Threshold, parse_requirement, parse_threshold
from mixflow.report.snapshot.describe import Snapshot, before_and_after

_FAILED = 1
_MEMORY = "temp_bytes"
_RENDERERS: dict[str, Callable[[SnapshotDiff], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "json": lambda diff: json.dumps(diff.to_dict(), indent=2) + "\n",
    "html": render_html,
}


@click.command()
@click.argument("snapshots", nargs=-1, metavar="OLD NEW")
@click.option("--before-after", metavar="MODEL.py[:NAME]", help="Compare plain with optimised.")
@click.option("--format", "style", type=click.Choice(list(_RENDERERS)), default="text")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write to this file; else to standard output.",
)
@click.option("--max-memory", metavar="+5%", help="Fail if temporaries grow by more.")
@click.option("--max-flops", metavar="+5%", help="Fail if FLOPs grow by more.")
@click.option("--max-eqns", metavar="+5%", help="Fail if equations grow by more.")
@click.option(
    "--require",
    multiple=True,
    metavar="[ENTRY:]PASS",
    help="Fail if an entry of NEW has no rewrite by this pass.",
)
@click.option("--exit-code", "strict", is_flag=True, help="Exit with 1 if anything differs.")
def diff(
    snapshots: tuple[str, ...],
    before_after: str | None,
    style: str,
    out: Path | None,
    require: tuple[str, ...],
    strict: bool,
    **most: str | None,
) -> int:
    """Say what changed from the snapshot OLD to NEW: where in the source, and what it costs.

    OLD and NEW are files, or git revisions of a file, such as main:graph.json, or :graph.json for
    what git's index has. The exit code is 1 if a check fails.
    """
    checked_out(out)
    thresholds, requirements = _thresholds(most), [parse_requirement(one) for one in require]
    old, new, names = _sides(snapshots, before_after)
    found = compare(old, new, names)
    found = replace(found, failures=tuple(failures(found, new, thresholds, requirements)))
    _show(found, style, out)
    for one in found.failures:
        click.echo(f"mixflowc: failed: {one.option}: {one.entry}: {one.text}", err=True)
    return _FAILED if found.failures or (strict and found.differs) else 0


def _thresholds(most: dict[str, str | None]) -> dict[str, Threshold]:
    found: dict[str, Threshold] = {}
    for figure, option in OPTIONS.items():
        text = most[option.removeprefix("--").replace("-", "_")]
        if text is not None:
            found[figure] = parse_threshold(text, option, is_memory=figure == _MEMORY)
    return found


def _sides(
    snapshots: tuple[str, ...], model: str | None
) -> tuple[Snapshot, Snapshot, tuple[str, str]]:
    """What to compare, and what to call it."""
    match snapshots, model:
        case (), str():
            return *before_and_after(snapshot_of(model)), ("plain JAX", "mixflow")
        case (old, new), None:
            return load_snapshot(old), load_snapshot(new), (old, new)
        case _:
            raise InputError("give two snapshots, OLD and NEW, or --before-after and a model file")


def _show(found: SnapshotDiff, style: str, out: Path | None) -> None:
    if style == "text" and out is None and sys.stdout.isatty():
        Console().print(render(found), soft_wrap=True)
        return
    write_text(_RENDERERS[style](found), out)
