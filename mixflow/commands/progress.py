"""Progress of long work: a spinner on a terminal, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def progress(message: str) -> Generator[None]:
    """Show a message while the body runs, where standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield
