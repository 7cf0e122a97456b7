"""Stands in for `mixflowc` where only the calls matter: notes them, and answers as it is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(command: str, *args: str) -> int:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(" ".join((command, *args)) + "\n")
    model_or_new = Path(args[-1])
    if command == "snapshot" and model_or_new.name == "broken.py":
        print("mixflowc: error: broken.py: no such file", file=sys.stderr)
        return 2
    if command == "diff":
        page = "### a title\n\n" + f"- a line about {model_or_new}\n" * int(os.environ["LENGTH"])
        Path(args[args.index("-o") + 1]).write_text(page)
        return int(os.environ["DIFF_CODE"])
    return 0


sys.exit(main(*sys.argv[1:]))
