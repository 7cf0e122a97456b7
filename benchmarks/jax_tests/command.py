"""`python -m benchmarks jax-tests`: which of JAX's own tests fail under capture only."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.files import say
from benchmarks.jax_tests.known import reason_for
from benchmarks.jax_tests.plugin import HOW
from benchmarks.machine import versions

FILES = (
    "api_test",
    "checkify_test",
    "custom_api_test",
    "custom_root_test",
    "jet_test",
    "lax_autodiff_test",
    "lax_control_flow_test",
    "nn_test",
    "optimizers_test",
)
"""The tests of what differentiates, or is differentiated by rules of its own."""

Outcomes = dict[str, dict[str, str]]


@click.command("jax-tests")
@click.argument("checkout", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("files", nargs=-1)
@click.option("--by", "how", type=click.Choice(HOW[1:]), default=HOW[1])
@click.option("--only", help="Only the tests whose names match, as with pytest's -k.")
def jax_tests_command(checkout: Path, files: tuple[str, ...], how: str, only: str | None) -> None:
    """Run JAX's tests plain and under mixflow, and print those that fail only so.

    CHECKOUT is a copy of JAX's repository at the version that is installed; FILES are names of
    test modules in it, such as jet_test. The exit code is 1 if a test fails under mixflow only, for
    a reason that `docs/jax-tests.md` doesn't list.
    """
    chosen = files or tuple(name for name in FILES if _path(checkout, name).exists())
    report: dict[str, Any] = {"versions": versions(), "by": how, "files": {}}
    for name in chosen:
        plain, captured = [_run(_path(checkout, name), each, only) for each in (HOW[0], how)]
        report["files"][name] = row = compare(plain, captured)
        say(f"{name}: {row['passed']} pass, {len(row['new'])} new failures")
    click.echo(json.dumps(report, indent=2))
    sys.exit(any(row["new"] for row in report["files"].values()))


def compare(plain: Outcomes, captured: Outcomes) -> dict[str, Any]:
    """The tests that fail under mixflow alone: those with a known reason, and new ones.

    A test that is missing from a run counts as failed: the run may have died in it.
    """
    missing = {"outcome": "failed", "why": "the run ended before it"}
    passing = [test for test, result in plain.items() if result["outcome"] == "passed"]
    results = {test: captured.get(test, missing) for test in passing}
    failing = {test: one["why"] for test, one in results.items() if one["outcome"] == "failed"}
    known = {test: reason for test in failing if (reason := reason_for(test))}
    return {
        "plain": len(passing),
        "passed": len(passing) - len(failing),
        "known": known,
        "new": {test: why for test, why in failing.items() if test not in known},
    }


def _path(checkout: Path, name: str) -> Path:
    return checkout / "tests" / f"{name.removesuffix('.py')}.py"


def _run(path: Path, how: str, only: str | None) -> Outcomes:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.jax_tests.plugin"]
        # Neither mixflow's settings nor JAX's conftest.py, which wants a plugin of its own.
        command += ["-c", "/dev/null", "--rootdir", str(path.parent), "--noconftest"]
        command += ["-p", "no:cacheprovider", "--mixflow", how, "--outcomes", str(outcomes)]
        command += ["-k", only] if only else []
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if not outcomes.exists():
            raise click.ClickException(f"{path.name} did not run:\n{done.stdout}\n{done.stderr}")
        return json.loads(outcomes.read_text())
