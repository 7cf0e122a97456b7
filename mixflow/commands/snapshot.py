"""`mixflowc snapshot`: store what is worth comparing later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mixflow.commands.output import checked_out, write_text
from mixflow.commands.progress import progress
from mixflow.errors import InputError
from mixflow.report.snapshot import Snapshot, describe_entry, to_text, with_entries
from mixflow.runtime.budget import parse_budget
from mixflow.runtime.entries import load_entries, repeated_name


@click.command()
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option(
    "-o",
    "--out",
    metavar="graph.json",
    type=click.Path(path_type=Path),
    help="Write to this file; else to standard output.",
)
@click.option("--memory-budget", metavar="SIZE", help="Plan for this much memory, e.g. 8GiB.")
@click.option("--measure", is_flag=True, help="Also time the programs; a diff ignores that.")
def snapshot(model: str, out: Path | None, memory_budget: str | None, measure: bool) -> None:
    """Store what mixflow makes of the entries of MODEL.py, for `mixflowc diff`.

    The same program gives the same bytes, so the file can be committed.
    """
    checked_out(out)
    taken = snapshot_of(model, memory_budget=memory_budget, measure=measure)
    write_text(to_text(taken), out)
    if out is not None:
        click.echo(f"{out}: {', '.join(taken['entries'])}")


def snapshot_of(model: str, *, memory_budget: str | None = None, measure: bool = False) -> Snapshot:
    """The snapshot of a model file's entries, with progress on a terminal.

    Arguments:
        model: MODEL.py or MODEL.py:NAME.
        memory_budget: in place of the entries' own.
        measure: also time the programs.

    Raises:
        InputError: no such file or entry, two of one name, or the budget is no size.
    """
    changed = {} if memory_budget is None else {"memory_budget": parse_budget(memory_budget)}
    entries = [found.with_options(**changed) for found in load_entries(model)]
    twice = repeated_name([entry.__name__ for entry in entries])
    if twice is not None:
        raise InputError(f"{model} has two entries called {twice!r}: give each a name of its own")
    described: dict[str, Any] = {}
    for entry in entries:
        with progress(f"{entry.__name__}: compiling"):
            described[entry.__name__] = describe_entry(entry, measure=measure)
    return with_entries(described)
