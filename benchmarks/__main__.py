"""The benchmarks' command line; every command prints JSON."""

from __future__ import annotations

import json

import click

from benchmarks.overhead import overhead
from benchmarks.reference import Size


@click.group()
def main() -> None:
    """Measure mixflow."""


@main.command("overhead")
@click.option("--layers", default=Size.layers)
@click.option("--repeats", default=3)
def overhead_command(layers: int, repeats: int) -> None:
    """Trace-and-lower time of the reference program, plain JAX and mixflow."""
    click.echo(json.dumps(overhead(Size(layers=layers), repeats), indent=2))


if __name__ == "__main__":
    main()
