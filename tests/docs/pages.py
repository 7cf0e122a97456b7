"""A page's Python blocks, each with the output that the page shows below it."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n((?:(?!```).*\n)*)```\n(?:\n((?:(?: {4}.*)?\n)+))?", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One Python block.

    Arguments:
        file: what reports and tracebacks call the page's program: its blocks in one file.
        line: the block's first line in it, from 0.
        code: what is run.
        shown: the output that stands below it, not indented; empty for none.
    """

    file: str
    line: int
    code: str
    shown: str

    def run(self, namespace: dict[str, Any]) -> str:
        """Run it in the page's namespace; returns what it printed."""
        program = "\n" * self.line + self.code
        linecache.cache[self.file] = (len(program), None, program.splitlines(True), self.file)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, self.file, "exec"), namespace)
        return printed.getvalue()


def blocks(page: str) -> Iterator[Block]:
    """The Python blocks of a page of `docs/`, in order."""
    path, line = DOCS / page, 0
    for code, output in _BLOCK.findall(path.read_text()):
        shown = "\n".join(one[4:] for one in output.splitlines())
        yield Block(f"{path.stem.replace('-', '_')}.py", line, code, shown.strip("\n"))
        line += code.count("\n") + 1
