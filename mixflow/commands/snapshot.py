"""`mixflowc snapshot`: store what is worth comparing later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mixflow.commands.output import checked_out, write_text
from mixflow.commands.progress import progress
from mixflow.errors import InputError
from mixflow.report.snapshot.describe import Snapshot, describe_entry, to_text, with_entries
from mixflow.runtime.entries import load_entries
from mixflow.runtime.function import CompiledFunction
from mixflow.runtime.sides import compile_sides
from mixflow.units import parse_budget


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL.py[:NAME]...")
@click.option(
    "-o",
    "--out",
    metavar="graph.json",
    type=click.Path(path_type=Path),
    help="Write to this file; else to standard output.",
)
@click.option("--memory-budget", metavar="SIZE", help="Plan for this much memory, e.g. 8GiB.")
@click.option("--measure", is_flag=True, help="Also time the programs; a diff ignores that.")
def snapshot(
    models: tuple[str, ...], out: Path | None, memory_budget: str | None, measure: bool
) -> None:
    """Store what mixflow makes of the entries of some model files, for `mixflowc diff`.

    The same programs give the same bytes, so the file can be committed.
    """
    checked_out(out)
    taken = snapshot_of(*models, memory_budget=memory_budget, measure=measure)
    write_text(to_text(taken), out)
    if out is not None:
        click.echo(f"{out}: {', '.join(taken['entries'])}")


def snapshot_of(*models: str, memory_budget: str | None = None, measure: bool = False) -> Snapshot:
    """The snapshot of model files' entries, with progress on a terminal.

    Arguments:
        models: each MODEL.py or MODEL.py:NAME.
        memory_budget: in place of the entries' own.
        measure: also time the programs.

    Raises:
        InputError: no such file or entry, two of one name, or the budget is no size.
    """
    changed = {} if memory_budget is None else {"memory_budget": parse_budget(memory_budget)}
    described: dict[str, Any] = {}
    for name, entry in _by_name(models).items():
        with progress(f"{name}: compiling"):
            described[name] = describe_entry(
                compile_sides(entry.with_options(**changed), entry.examples or (), {}, run=measure)
            )
    return with_entries(described)


def _by_name(models: tuple[str, ...]) -> dict[str, CompiledFunction]:
    """The entries of all files, before the first is compiled."""
    found: dict[str, CompiledFunction] = {}
    files: dict[str, str] = {}
    for model in models:
        for entry in load_entries(model):
            name = entry.__name__
            if name in found:
                raise InputError(
                    f"{_both(files[name], model)} entries called {name!r}: give each a name of its "
                    "own"
                )
            found[name], files[name] = entry, model
    return found


def _both(one: str, other: str) -> str:
    return f"{one} has two" if one == other else f"{one} and {other} both have"
