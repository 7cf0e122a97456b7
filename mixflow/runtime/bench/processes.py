"""Programs measured in processes of their own: how one is started, answers, and dies."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from mixflow.runtime.entries import reason

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class ChildDied(Exception):
    """Why a process has no figures to give."""


def in_process(module: str, job: str, folder: Path | None = None) -> dict[str, Any]:
    """Run a module with one argument, and read the JSON that it prints last.

    An interrupt ends the process as well.

    Arguments:
        module: what `python -m` runs.
        job: its argument.
        folder: where to run, and to look for the module first; else it is not looked for in the
            current directory.

    Raises:
        ChildDied: the process was ended, failed, or answered with `failed`.
    """
    isolated = ["-P"] if folder is None else []
    command = [sys.executable, *isolated, "-m", module, job]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise death_of(done.returncode, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "failed" in answer:
        raise ChildDied(answer["failed"])
    return answer


def print_answer(work: Callable[[], dict[str, Any]]) -> None:
    """In such a process: print what the work returns as JSON, or `failed`, the reason."""
    die_with_parent()
    die_first()
    with redirect_stdout(sys.stderr):  # the work may print; the answer is all there is on stdout
        try:
            found = work()
        except Exception as error:
            found = {"failed": reason(error)}
    print(json.dumps(found))


def death_of(status: int, errors: str) -> ChildDied:
    """Why a process gave no answer: the signal that ended it, or the last line of its errors."""
    if status < 0:
        return ChildDied(_ended_by(signal.Signals(-status)))
    return ChildDied((errors.strip() or f"exit status {status}").splitlines()[-1])


def _ended_by(number: signal.Signals) -> str:
    killed = number.name == "SIGKILL"
    return "killed: out of memory, most likely" if killed else f"ended by {number.name}"


def peak_bytes() -> int:
    """The most memory that this process has had resident, in bytes."""
    import resource  # noqa: PLC0415 - not there on Windows, where the other commands work

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Set the mark back to what is resident now, where the system can (Linux).

    Elsewhere the compiler's own peak stays in it, and the growth that is read is a lower bound.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def die_with_parent() -> None:
    """Ask Linux to end this process where the one that waits for it is ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def die_first() -> None:
    """Where memory runs out, ask Linux to end this process and not the one that waits for it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
