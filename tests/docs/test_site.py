"""The documentation site builds, with no broken link, and its reference has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixflow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = re.compile(r"""<(?:script|img|iframe|link)[^>]*\s(?:src|href)=["']?(https?:[^"'>]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link or anchor is a warning, and a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_reference_has_every_public_name(site: Path) -> None:
    anchors = set(re.findall(r'id="mixflow\.(\w+)"', (site / "reference.html").read_text()))
    assert set(mixflow.__all__) <= anchors


def test_every_page_is_in_the_navigation(site: Path) -> None:
    sources = (path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
    pages = {str(path.with_suffix(".html")) for path in sources if path.parts[0] != "benchmarks"}
    listed = set(re.findall(r'href="([\w./-]+\.html)"', (site / "index.html").read_text()))
    assert pages <= listed


def test_nothing_is_fetched_to_view_it(site: Path) -> None:
    found = {url for page in site.rglob("*.html") for url in LOADED.findall(page.read_text())}
    assert not found
