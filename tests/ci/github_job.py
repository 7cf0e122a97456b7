"""A job on GitHub, as far as action.yml can tell: a checkout, its variables, and a pull request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action/action.yml").read_text())
_EXPRESSION = re.compile(r"\$\{\{ (.+?) \}\}")
_COMMIT = """
git init --quiet --initial-branch main
git config user.name me
git config user.email me@example.org
git add .
git commit --quiet --message baseline
git branch change
git clone --quiet --depth 1 --branch change "file://$PWD" ../checkout
"""


@dataclass
class Job:
    """A repository with a model, and a checkout of a branch of it as a job on GitHub has it."""

    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        tools = self.folder / "tools"
        tools.mkdir()
        for folder in (self.origin, self.folder / "home"):
            folder.mkdir()
        (self.folder / "comments.json").write_text("[]")
        self.env = {
            **{name: text for name, text in os.environ.items() if not name.startswith("GIT_")},
            "PATH": os.pathsep.join(
                [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "HOME": str(self.folder / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GH_COMMENTS": str(self.folder / "comments.json"),
            "GITHUB_ACTION_PATH": str(ROOT / "action"),
            "GITHUB_BASE_REF": "main",
            "GITHUB_REPOSITORY": "me/model",
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
        }
        self.stand_in("gh")

    @property
    def origin(self) -> Path:
        return self.folder / "origin"

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def comments(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "comments.json").read_text())

    def stand_in(self, tool: str) -> None:
        source = (ROOT / f"tests/ci/{tool}_stand_in.py").read_text()
        path = self.folder / "tools" / tool
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)

    def call(self, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            args, cwd=cwd, env=self.env, capture_output=True, text=True, check=False
        )

    def commit(self, files: dict[str, str]) -> None:
        """Commit files to main, and check a branch out that holds one commit and no main."""
        for name, text in files.items():
            (self.origin / name).write_text(text)
        done = self.call("bash", "-euc", _COMMIT, cwd=self.origin)
        assert done.returncode == 0, done.stderr

    def run(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        """The action's step, as GitHub runs it."""
        (step,) = [one for one in ACTION["runs"]["steps"] if one.get("id") == "graph-diff"]
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        known = {
            f"inputs.{name}": given.get(name, one.get("default"))
            for name, one in ACTION["inputs"].items()
        }
        number = "7" if "GITHUB_BASE_REF" in self.env else ""
        known |= {"github.event.pull_request.number": number, "github.token": "secret"}
        self.env |= {
            name: _EXPRESSION.sub(lambda found: known[found[1]], text)
            for name, text in step["env"].items()
        }
        shell = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")
        return self.call(*shell, step["run"], cwd=self.checkout)
