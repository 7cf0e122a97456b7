"""`mixflowc bench`: plain JAX and mixflow side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mixflow.commands.output import console
from mixflow.commands.progress import progress
from mixflow.errors import InputError
from mixflow.files import replacing
from mixflow.runtime.bench.rounds import Bench, Entry, How, bench_entry, find_entries, profile_entry
from mixflow.runtime.bench.text import render, render_peaks
from mixflow.runtime.entries import require_distinct
from mixflow.units import parse_budget

_FAILED = 1


@click.command()
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Processes per program.")
@click.option("--runs", type=click.IntRange(min=1), default=3, help="Timed runs in each process.")
@click.option("--memory-budget", metavar="SIZE", help="Plan for this much memory, e.g. 8GiB.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text")
@click.option(
    "--profile",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write what is alive at the peak to DIR/NAME.peak.txt and .json.",
)
def bench(
    model: str,
    rounds: int,
    runs: int,
    memory_budget: str | None,
    style: str,
    profile: Path | None,
) -> int:
    """Run the entries of MODEL.py by plain JAX and by mixflow, in turn, and compare.

    Each program runs in a process of its own. The exit code is 1 if one could not be measured.
    """
    budget = None if memory_budget is None else parse_budget(memory_budget)
    how = How(rounds, runs, budget)
    with progress(f"{model}: loading"):
        entries = find_entries(model)
    if profile is not None:
        _check(profile, entries)
    done: list[Bench] = []
    for entry in entries:
        done.append(bench_entry(entry, how, progress))
        if style == "text":
            console().print(render(done[-1]), soft_wrap=True)
        if profile is not None:
            _write_profile(profile_entry(done[-1], progress), profile)
    if style == "json":
        click.echo(json.dumps([one.to_dict() for one in done], indent=2))
    return _FAILED if any(row.failed for one in done for row in one.rows.values()) else 0


def _check(folder: Path, entries: list[Entry]) -> None:
    """Find out before the work whether the profiles have a place to go."""
    require_distinct([entry.name for entry in entries], "--profile", "file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--profile: cannot make the folder {folder}: {error.strerror}") from error


def _write_profile(found: dict[str, Any], folder: Path) -> None:
    texts = {".txt": render_peaks(found), ".json": json.dumps(found, indent=2) + "\n"}
    for suffix, text in texts.items():
        path = folder / f"{found['entry']}.peak{suffix}"
        try:
            with replacing(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise InputError(f"--profile: cannot write {path}: {error.strerror}") from error
