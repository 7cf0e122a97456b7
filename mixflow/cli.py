"""`mixflowc`: the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import click
from rich.table import Table
from xdsl.passes import ModulePass, get_pass_option_infos

from mixflow.commands.bench import bench
from mixflow.commands.diff import diff
from mixflow.commands.output import console
from mixflow.commands.progress import progress
from mixflow.commands.run import run
from mixflow.commands.snapshot import snapshot
from mixflow.errors import BudgetError, InputError, MixflowError, VerificationError
from mixflow.passes import DEFAULT_PIPELINE, OF_XDSL, PASSES
from mixflow.report.files import write_artifact
from mixflow.report.report import Report
from mixflow.report.text import render
from mixflow.runtime.artifact.export import export_program, parse_platforms
from mixflow.runtime.entries import load_entries, reason, require_distinct
from mixflow.runtime.function import CompiledFunction
from mixflow.units import parse_budget

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
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write an artifact to DIR/NAME/.",
)
@click.option("--platforms", metavar="cpu,cuda,…", help="Export for these; else for this one.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text")
@click.option("--verify", is_flag=True, help="Compare the results of plain and optimised.")
@click.option("--measure", is_flag=True, help="Also time the programs.")
def optimize(
    model: str,
    memory_budget: str | None,
    out: Path | None,
    platforms: str | None,
    style: str,
    **also: bool,
) -> None:
    """Optimise the entries of MODEL.py and report what that is worth.

    An entry is a function under @mixflow.compile with example arguments. A meta-loss (a scalar,
    or a scalar with auxiliary data) is measured as its value_and_grad in the first argument.
    """
    if platforms is not None and out is None:
        raise InputError("--platforms says what to export for: it needs --out as well")
    exported_for = parse_platforms(platforms)
    changed = {} if memory_budget is None else {"memory_budget": parse_budget(memory_budget)}
    reports: list[Report] = []
    entries = [found.with_options(**changed) for found in load_entries(model)]
    if out is not None:
        require_distinct([entry.__name__ for entry in entries], "--out", "folder")
    for entry in entries:
        with progress(f"{entry.__name__}: compiling"):
            reports.append(entry.report(run=also["measure"], verify=also["verify"]))
            if out is not None:
                _write(reports[-1], entry, out, exported_for)
        if style == "text":
            console().print(render(reports[-1]), soft_wrap=True)
    if style == "json":
        click.echo(json.dumps([report.to_dict() for report in reports], indent=2))


def _write(report: Report, entry: CompiledFunction, out: Path, platforms: tuple[str, ...]) -> None:
    programs, folder = report.programs, out / entry.__name__
    program = export_program(
        programs.optimised, entry.examples or (), programs.after.lowered, platforms
    )
    try:
        write_artifact(report, folder, program)
    except OSError as error:
        raise InputError(f"--out: cannot write to {folder}: {error.strerror}") from error


cli.add_command(run)
cli.add_command(bench)
cli.add_command(snapshot)
cli.add_command(diff)


@cli.command()
def passes() -> None:
    """List the passes, what they do, and their options."""
    table = Table("pass", "does", "options", show_lines=False)
    for name, cls in PASSES.items():
        options = ", ".join(f"{o.name}={o.default_value}" for o in get_pass_option_infos(cls))
        table.add_row(name, _summary(cls), options if fields(cls) else "none")
    out = console()
    out.print(table)
    out.print("default: what the planner chooses of these for each program; one of each is")
    out.print(DEFAULT_PIPELINE, soft_wrap=True)


def _summary(cls: type[ModulePass]) -> str:
    return OF_XDSL.get(cls.name) or (cls.__doc__ or "").strip().splitlines()[0]


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
        failed = isinstance(error, (BudgetError, VerificationError))
        _fail(_describe(error), _FAILED if failed else _WRONG_INPUT)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _describe(error: Exception) -> str:
    hint = "" if isinstance(error, MixflowError) else " (mixflowc --debug shows the traceback)"
    return f"{reason(error)}{hint}"


def _fail(message: str, code: int) -> None:
    click.echo(f"mixflowc: error: {message}", err=True)
    sys.exit(code)
