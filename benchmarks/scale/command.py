"""`python -m benchmarks scale`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from benchmarks.files import PAGES, say, write_report
from benchmarks.machine import machine, versions
from benchmarks.scale.models import MEMORY, MODELS, STEPS, TOKENS
from benchmarks.scale.walk import Walk, walk
from benchmarks.tables import made_with, markdown_table
from mixflow.errors import InputError
from mixflow.runtime.budget import budget_bytes

Figures = dict[str, Any]


def _bytes(_: Any, option: Any, text: str | None) -> int | None:
    try:
        return budget_bytes(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


@click.command("scale")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu")
@click.option("--memory", callback=_bytes, help="By default 4GB on cpu, 70GB on gpu.")
@click.option("--steps", type=click.IntRange(min=1), help="T; by default each of 2, 4 and 8.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=PAGES,
    help="Where scale.json and scale.md go, after each program.",
)
def scale_command(
    device: Literal["cpu", "gpu"], memory: int | None, steps: int | None, out: Path
) -> None:
    """The largest model and the longest sequence that fit: plain JAX, an expert, mixflow."""
    memory = memory or budget_bytes(MEMORY[device])
    assert memory is not None
    how = Walk(memory, device, STEPS if steps is None else (steps,))
    report: Figures = {
        "versions": versions(),
        "machine": machine(),
        "device": device,
        "memory_bytes": memory,
        "rows": [],
    }
    for row in walk(how, say):
        report["rows"].append(row)
        write_report(out, "scale", report, scale_page(report))
    click.echo(json.dumps(report, indent=2))


def scale_page(report: Figures) -> str:
    """The whole page."""
    device = report["device"]
    heads = ["T", "program", "largest model (M parameters)", "longest sequence (tokens)"]
    rows = [
        [
            str(row["steps"]),
            row["program"],
            _or_none(row["largest_model"], 1e6),
            _or_none(row["longest_sequence"], 1),
        ]
        for row in report["rows"]
    ]
    first = MODELS[device][0].parameters / 1e6
    account = "by XLA's account" if device == "cpu" else "by XLA's account and by a run"
    text = (
        f"Chinchilla-style transformers with rotary embeddings, data weighting, batch 4, float32, "
        f"on {device}: what fits into {report['memory_bytes'] / 1e9:.3g} GB of arguments, results "
        f"and temporaries, {account}. Models at {TOKENS[device]} tokens, sequences at "
        f"{first:.0f} M parameters."
    )
    return "\n\n".join(["# Scale", made_with(report), text, markdown_table(heads, rows)]) + "\n"


def _or_none(value: float | None, unit: float) -> str:
    return "none" if value is None else f"{value / unit:.0f}"
