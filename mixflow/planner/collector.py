"""Python's garbage collector, held back while a program is planned.

Each time that it looks for garbage it walks over all objects that there are. A plan makes a million
of them, most of which live until it is chosen, so it finds nothing, again and again: it took a
quarter of the time to plan the reference program, and planning without it takes no more memory.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collector_held_back() -> Generator[None]:
    """Collect nothing inside; afterwards collect as before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
