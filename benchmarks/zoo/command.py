"""`python -m benchmarks zoo` and `python -m benchmarks loops`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.files import PAGES, ROOT, require_plots, say, write_report
from benchmarks.machine import machine, versions
from benchmarks.zoo.loops import loop_row, loops_page
from benchmarks.zoo.measure import How, measure
from benchmarks.zoo.page import BEGIN, END, has_marks, with_summary, zoo_page
from benchmarks.zoo.replay import REPLAYED
from mixflow.files import replacing

Figures = dict[str, Any]

EXAMPLES = ROOT / "examples"
_COUNT = click.IntRange(min=1)


def _there() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def _names(_: Any, option: Any, text: str | None) -> list[str]:
    there = _there()
    names = list(dict.fromkeys(text.split(","))) if text else there
    unknown = [name for name in names if name not in there]
    if unknown:
        raise click.BadParameter(f"there is no {unknown[0]!r}; there are {', '.join(there)}")
    return names


def _lengths(_: Any, option: Any, text: str) -> list[int]:
    try:
        lengths = [int(one) for one in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: give numbers of steps, by commas") from None
    if min(lengths) < 2:
        raise click.BadParameter("a loop has two steps at least")
    return lengths


def _marked(_: Any, option: Any, path: Path | None) -> Path | None:
    """A file that a summary can be written to; found out before all is measured."""
    if path is not None and not has_marks(path.read_text()):
        raise click.BadParameter(f"{path} has no lines {BEGIN!r} and {END!r} to write between")
    return path


def _measured(command: Callable[..., None]) -> Callable[..., None]:
    """How often, and where to."""
    out = click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=PAGES,
        callback=require_plots,
        help="Where JSON, a page and pictures go.",
    )
    runs = click.option("--runs", type=_COUNT, default=5, help="Timed runs in each round.")
    rounds = click.option("--rounds", type=_COUNT, default=5, help="In turn with the others.")
    return out(runs(rounds(command)))


@click.command("zoo")
@click.option("--only", "names", callback=_names, help="Examples, by commas; by default all.")
@_measured
@click.option(
    "--summary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=_marked,
    help="Also write the summary between this file's two marks.",
)
def zoo_command(names: list[str], rounds: int, runs: int, out: Path, summary: Path | None) -> None:
    """The examples: plain JAX, a checkpointed step, mixflow, and mixflow within two budgets.

    The page in the documentation is of all examples: with --only, give --out as well.
    """
    if len(names) < len(_there()) and out == PAGES:
        raise click.UsageError(f"--only would leave the others out of {PAGES}: give --out as well")
    how, rows = How(rounds=rounds, runs=runs), []
    for name in names:
        rows.append({"example": name, "programs": measure(EXAMPLES / f"{name}.py", how, say)})
        _write(_report(rows, how), out, "zoo")
    report = _report(rows, how)
    if summary is not None:
        text = with_summary(summary.read_text(), report)
        with replacing(summary) as file:
            file.write(text.encode())
    click.echo(json.dumps(report, indent=2))


@click.command("loops")
@click.option("--steps", callback=_lengths, default="64,256,1024,4096", help="T, by commas.")
@_measured
def loops_command(steps: list[int], rounds: int, runs: int, out: Path) -> None:
    """Long training loops against their length, beside a host-side replay of steps."""
    how, rows = How(rounds=rounds, runs=runs), []
    for name in REPLAYED:
        for length in steps:
            rows.append(loop_row(EXAMPLES / f"{name}.py", length, how, say))
            _write(_report(rows, how), out, "loops")
    click.echo(json.dumps(_report(rows, how), indent=2))


def _report(rows: list[Figures], how: How) -> Figures:
    return {
        "versions": versions(),
        "machine": machine(),
        "rounds": how.rounds,
        "runs": how.runs,
        "rows": rows,
    }


def _write(report: Figures, folder: Path, name: str) -> None:
    from benchmarks.zoo.plots import loops_plots, zoo_plots  # noqa: PLC0415 - matplotlib

    draw: Callable[[list[Figures]], dict[str, bytes]]
    page: Callable[[Figures, Iterable[str]], str]
    draw, page = {"zoo": (zoo_plots, zoo_page), "loops": (loops_plots, loops_page)}[name]
    pictures = draw(report["rows"])
    write_report(folder, name, report, page(report, pictures), pictures)
