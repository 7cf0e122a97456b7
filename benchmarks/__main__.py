"""The benchmarks' command line; every command prints JSON."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.both_rules import both_rules
from benchmarks.budget_sweep import budget_sweep, is_within
from benchmarks.budgets import budgets
from benchmarks.compare import Comparison
from benchmarks.compiling import compiling_page, compiling_plot, sized
from benchmarks.estimates import complaints, estimates, examples, reference_programs
from benchmarks.files import require_plots, say
from benchmarks.fuzz.command import fuzz_command
from benchmarks.jax_tests.command import jax_tests_command
from benchmarks.machine import machine, versions
from benchmarks.overhead import EXAMPLES, names, overhead
from benchmarks.programs import COMPARED, NAMES, is_program
from benchmarks.reference import TASKS, Size
from benchmarks.report import reports, write
from benchmarks.scale.command import scale_command
from benchmarks.sizes import sizes
from benchmarks.tables import (
    both_rules_page,
    budget_sweep_page,
    budgets_page,
    estimates_page,
    overhead_page,
)
from benchmarks.zoo.command import loops_command, zoo_command
from mixflow.files import replacing


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Measure mixflow."""


def _programs(_: Any, option: Any, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if not is_program(name)]
    if unknown:
        raise click.BadParameter(f"there is no {unknown[0]!r}; there are {', '.join(NAMES)}")
    return names


_COUNT = click.IntRange(min=1)


def _at_a_size(command: Callable[..., None]) -> Callable[..., None]:
    """Options for the reference program's size."""
    for name in ("--tokens", "--layers", "--steps"):
        command = click.option(name, type=_COUNT)(command)
    return command


def _over_sizes(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which programs, at which sizes."""
    command = _at_a_size(command)
    command = click.option("--sweep", is_flag=True, help="Over steps, layers and tokens.")(command)
    return click.option("--task", type=click.Choice(TASKS), default=TASKS[0])(command)


@main.command("reference")
@click.option("--task", type=click.Choice(TASKS), default=TASKS[0])
@click.option("--programs", callback=_programs, help=f"By commas; by default {','.join(COMPARED)}.")
@click.option("--steps", type=_COUNT, help="Inner steps.")
@click.option("--layers", type=_COUNT)
@click.option("--tokens", type=_COUNT)
@click.option("--sweep", is_flag=True, help="Over steps, layers and tokens; expert and mixflow.")
@click.option("--long-loop", is_flag=True, help="64 steps, 2 layers; expert and mixflow.")
@click.option("--rounds", type=_COUNT, default=3, help="Fresh processes for each program.")
@click.option("--runs", type=_COUNT, default=2, help="Timed runs in each process.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@click.option("--memory-only", is_flag=True, help="Compile once, run nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    callback=require_plots,
    help="Also write reference.json, a table and pictures to this folder, after each size.",
)
def reference_command(**options: Any) -> None:
    """Memory and time of the reference program's meta-gradient: JAX, an expert, mixflow.

    Each program runs in a process of its own, in turn with the others, round after round. One that
    dies has a row that says so.
    """
    if options["sweep"] and options["long_loop"]:
        raise click.UsageError("--sweep and --long-loop cannot both be asked for")
    points = sizes(_given(options), sweep=options["sweep"], long_loop=options["long_loop"])
    report: dict[str, Any] = {}
    for report in reports(points, _comparison(options), say):
        if options["out"]:
            write(report, options["out"])
    click.echo(json.dumps(report, indent=2))


_page_option = click.option(
    "--out",
    "page",
    metavar="PAGE.md",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the figures as a table to this file, after each.",
)


_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)

_examples_option = click.option(
    "--examples",
    "folder",
    type=_FOLDER,
    help="The models in this folder, in place of the reference program.",
)


@main.command("budgets")
@_over_sizes
@_examples_option
@click.option("--match", default="*", help="Of the examples, those with such names.")
@_page_option
def budgets_command(
    task: str, sweep: bool, folder: Path | None, match: str, page: Path | None, **given: int | None
) -> None:
    """Budgets between the extremes and below the least; exit code 1 if one is not honoured.

    With --examples, ten budgets for each, from the least to what plain JAX needs, with the CPU time
    of a run against the fastest of over a hundred plans that are forced on it.
    """
    if folder is not None:
        sys.exit(not _sweep_budgets(folder, match, page))
    rows: list[dict[str, Any]] = []
    report = {"versions": versions(), "task": task, "rows": rows}
    for row in budgets(sizes(_given(given), sweep=sweep), task):
        say(f"{row['size']}: within" if row["within"] else f"{row['size']}: over")
        rows.append(row)
        _write(page, budgets_page(report))
    click.echo(json.dumps(report, indent=2))
    sys.exit(not all(row["within"] and row["refused"] for row in rows))


def _sweep_budgets(folder: Path, match: str, page: Path | None) -> bool:
    """Ten budgets for each example; whether all of them were kept."""
    rows: list[dict[str, Any]] = []
    report = {"versions": versions(), "rows": rows}
    for row in map(budget_sweep, examples(folder, f"{match}.py")):
        say(f"{row['program']}: {row['least_ratio']:.3f} of the least")
        rows.append(row)
        _write(page, budget_sweep_page(report))
    click.echo(json.dumps(report, indent=2))
    return all(is_within(one) for row in rows for one in row["budgets"])


@main.command("estimates")
@_over_sizes
@_examples_option
@_page_option
def estimates_command(
    task: str, sweep: bool, folder: Path | None, page: Path | None, **given: int | None
) -> None:
    """The planner's estimate of the peak beside XLA's figure; exit code 1 if one is far off."""
    points = sizes(_given(given), sweep=sweep)
    subjects = examples(folder) if folder else reference_programs(points, task)
    report: dict[str, Any] = {"versions": versions(), "rows": [], "complaints": []}
    for row in estimates(subjects):
        say(f"{row['program']}: {row['plan']}: {row['ratio']:.2f}")
        report["rows"].append(row)
        report["complaints"] = complaints(report["rows"])
        _write(page, estimates_page(report))
    click.echo(json.dumps(report, indent=2))
    sys.exit(bool(report["complaints"]))


@main.command("rules")
@_at_a_size
@click.option("--examples", "folder", type=_FOLDER, default=EXAMPLES, help="Models beside it.")
@_page_option
def rules_command(folder: Path, page: Path | None, **given: int | None) -> None:
    """The symmetric and the transposed rule side by side: temporaries and time."""
    report: dict[str, Any] = {"versions": versions(), "rows": []}
    for row in both_rules(folder, Size(**_given(given))):
        say(f"{row['program']}: {row['bytes_ratio']:.2f}")
        report["rows"].append(row)
        _write(page, both_rules_page(report))
    click.echo(json.dumps(report, indent=2))


@main.command("overhead")
@click.argument("programs", nargs=-1, type=click.Choice(names()))
@_page_option
def overhead_command(programs: tuple[str, ...], page: Path | None) -> None:
    """CPU seconds before XLA and with it, plain JAX's and mixflow's; by default of all programs."""
    report: dict[str, Any] = {"versions": versions(), "machine": machine(), "rows": []}
    for row in overhead(programs or names()):
        say(f"{row['program']}: {row['ratios']['before_xla_s']:.2f}")
        report["rows"].append(row)
        _write(page, overhead_page(report))
    click.echo(json.dumps(report, indent=2))


@main.command("compile")
@click.option("--largest", type=_COUNT, help="Leave larger sizes out.")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write compile.json, a table and a picture to this folder, after each program.",
)
def compile_command(largest: int | None, folder: Path | None) -> None:
    """CPU seconds to compile programs whose code is repeated, against how often it is."""
    report: dict[str, Any] = {"versions": versions(), "machine": machine(), "rows": []}
    for row in overhead(sized(largest)):
        say(f"{row['program']}: {row['ratios']['whole_s']:.2f}")
        report["rows"].append(row)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "compile.json", json.dumps(report, indent=2))
            _write(folder / "compile.md", compiling_page(report))
            with replacing(folder / "compile.png") as file:
                file.write(compiling_plot(report["rows"]))
    click.echo(json.dumps(report, indent=2))


def _write(page: Path | None, text: str) -> None:
    """Write a page where one was asked for: as far as it is known, so that no figure is lost."""
    if page is not None:
        with replacing(page) as file:
            file.write(text.encode())


def _given(options: dict[str, Any]) -> dict[str, int]:
    return {name: options[name] for name in ("steps", "layers", "tokens") if options[name]}


def _comparison(options: dict[str, Any]) -> Comparison:
    many = options["sweep"] or options["long_loop"]
    return Comparison(
        programs=options["programs"] or (("expert", "mixflow") if many else COMPARED),
        task=options["task"],
        dtype=options["dtype"],
        rounds=1 if options["memory_only"] else options["rounds"],
        runs=0 if options["memory_only"] else options["runs"],
    )


main.add_command(zoo_command)
main.add_command(loops_command)
main.add_command(scale_command)
main.add_command(jax_tests_command)
main.add_command(fuzz_command)


if __name__ == "__main__":
    # An exception, unlike the signal, also ends the process that is being measured.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
