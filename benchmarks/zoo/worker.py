"""Programs that take turns: each in a process of its own, compiled once, then run when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import TracebackType
from typing import Any, Self

from benchmarks.files import ROOT
from mixflow.runtime.bench.processes import ChildDied, death_of, die_first, die_with_parent
from mixflow.runtime.entries import reason


class Worker:
    """A process that answers in JSON, one line each time that it is asked.

    Arguments:
        module: what `python -m` runs; it calls `serve`.
        job: its argument.
    """

    def __init__(self, module: str, job: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._asked = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, job],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            ChildDied: the process was ended, failed, or answered with `failed`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._asked:
                self._process.stdin.write("\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self._asked = True
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ChildDied(answer["failed"])
        return answer

    def _death(self) -> ChildDied:
        status = self._process.wait()
        self._errors.seek(0)
        return death_of(status, self._errors.read())


def serve(answers: Iterator[dict[str, Any]]) -> None:
    """In the process: print an answer each time that a line comes in, the first at once."""
    die_with_parent()
    die_first()
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # a model may print; answers are all there is on stdout
        for answer in _with_failure(answers):
            print(json.dumps(answer), file=out, flush=True)
            if not sys.stdin.readline():
                return


def _with_failure(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from answers
    except Exception as error:
        yield {"failed": reason(error)}
