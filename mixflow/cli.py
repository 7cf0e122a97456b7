"""`mixflowc`: the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from xdsl.passes import ModulePass, get_pass_option_infos

from mixflow.errors import BudgetError, InputError, MixflowError, VerificationError
from mixflow.passes import DEFAULT_PIPELINE, OF_XDSL, PASSES
from mixflow.report.files import export_program, write_report
from mixflow.report.report import Report
from mixflow.report.text import render
from mixflow.runtime.budget import parse_budget
from mixflow.runtime.entries import describe, load_entries
from mixflow.runtime.function import CompiledFunction

_FAILED, _WRONG_INPUT = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="mixflow")
def cli(debug: bool) -> None:
    """Optimise programs that differentiate through gradient steps."""


@cli.command()
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--memory-budget", metavar="SIZE", help="Plan for this much memory, e.g. 8GiB.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write files to DIR/NAME/."
)
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text")
@click.option("--verify", is_flag=True, help="Compare the results of plain and optimised.")
@click.option("--measure", is_flag=True, help="Also time the programs.")
def optimize(
    model: str, memory_budget: str | None, out: Path | None, style: str, verify: bool, measure: bool
) -> None:
    """Optimise the entries of MODEL.py and report what that is worth.

    An entry is a function under @mixflow.compile with example arguments. A meta-loss (a scalar,
    or a scalar with auxiliary data) is measured as its value_and_grad in the first argument.
    """
    changed = {} if memory_budget is None else {"memory_budget": parse_budget(memory_budget)}
    reports: list[Report] = []
    for entry in [found.with_options(**changed) for found in load_entries(model)]:
        with _progress(f"{entry.__name__}: compiling"):
            reports.append(_optimize_entry(entry, out, run=measure, verify=verify))
        if style == "text":
            _print_report(reports[-1])
    if style == "json":
        click.echo(json.dumps([report.to_dict() for report in reports], indent=2))


def _optimize_entry(
    entry: CompiledFunction, out: Path | None, *, run: bool, verify: bool
) -> Report:
    report = entry.report(run=run, verify=verify)
    if out is not None:
        artifact, why = export_program(report.programs.optimised, entry.examples or ())
        if why:
            click.echo(f"{entry.__name__}: no exported program: {why}", err=True)
        folder = out / entry.__name__
        try:
            write_report(report, folder, artifact)
        except OSError as error:
            raise InputError(f"--out: cannot write to {folder}: {error.strerror}") from error
    return report


def _print_report(report: Report) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(render(report), soft_wrap=True)


@cli.command()
def passes() -> None:
    """List the passes, what they do, and their options."""
    table = Table("pass", "does", "options", show_lines=False)
    for name, cls in PASSES.items():
        options = ", ".join(f"{o.name}={o.default_value}" for o in get_pass_option_infos(cls))
        table.add_row(name, _summary(cls), options if fields(cls) else "none")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    console.print("default: what the planner chooses of these for each program; one of each is")
    console.print(DEFAULT_PIPELINE, soft_wrap=True)


def _summary(cls: type[ModulePass]) -> str:
    return OF_XDSL.get(cls.name) or (cls.__doc__ or "").strip().splitlines()[0]


@contextmanager
def _progress(message: str) -> Generator[None]:
    """A spinner on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 a check failed, 2 the call or input was wrong."""
    args = sys.argv[1:] if argv is None else argv
    try:
        code = cli.main(args, prog_name="mixflowc", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", _FAILED)
    except click.ClickException as error:
        _fail(error.format_message(), _WRONG_INPUT)
    except Exception as error:
        if "--debug" in args:
            raise
        _fail(_describe(error), _exit_code(error))
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _describe(error: Exception) -> str:
    if isinstance(error, MixflowError):
        return " ".join(str(error).split())
    return f"{describe(error)} (mixflowc --debug shows the traceback)"


def _exit_code(error: Exception) -> int:
    return _FAILED if isinstance(error, (BudgetError, VerificationError)) else _WRONG_INPUT


def _fail(message: str, code: int) -> None:
    click.echo(f"mixflowc: error: {message}", err=True)
    sys.exit(code)
