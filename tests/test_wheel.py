"""The wheel, built from the source distribution, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import MODEL, once

ROOT = Path(__file__).parents[1]
pytestmark = once


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_installs_and_runs(tmp_path: Path) -> None:
    # `build` makes the wheel from the source distribution, so this tries both.
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_folder = tmp_path / "venv" / "bin"
    run(bin_folder / "pip", "install", "--quiet", wheel, cwd=tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    run(bin_folder / "mixflowc", "optimize", "model.py", "--out", "out", cwd=tmp_path)
    (report,) = (tmp_path / "out").glob("*/report.html")  # the templates are there
    assert "mixflow" in report.read_text()
    shown = run(
        bin_folder / "python", "-c", "import mixflow; print(mixflow.__file__)", cwd=tmp_path
    )
    installed = Path(shown.strip())
    assert tmp_path / "venv" in installed.parents
    assert installed.with_name("py.typed").exists()
