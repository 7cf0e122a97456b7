"""`mixflowc diff`: checks and exit codes, git revisions, formats, and how it fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic as made

from mixflow.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line beside `old.json` and `new.json`; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    made.write(tmp_path / "old.json", made.snapshot())
    made.write(tmp_path / "new.json", made.changed(_grow))

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["diff", *args])
        captured = capsys.readouterr()
        code = stop.value.code
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return call


def _grow(entry: dict[str, Any]) -> None:
    """Temporaries from 1000 to 1100, FLOPs from 5000 to 5100, equations from 40 to 39."""
    entry["after"] |= {"temp_bytes": 1100, "flops": 5100.0, "eqns": 39, "fingerprint": "f1"}
    del entry["rewrites"][1]


PASSING = (
    *(["--max-memory", "+10%"], ["--max-memory", "100"], ["--max-memory", "+1KiB"]),
    *(["--max-flops", "+2%"], ["--max-flops", "+100"], ["--max-eqns", "0"]),
    *(["--max-eqns", "-1"], ["--max-eqns", "-2.5%"]),
    *(["--require", "forward-over-reverse"], ["--require", "meta_loss:forward-over-reverse"]),
)
FAILING = (
    *(["--max-memory", "+9.9%"], ["--max-memory", "0"], ["--max-memory", "99"]),
    *(["--max-memory", "0.05KiB"], ["--max-flops", "+1.9%"], ["--max-eqns", "-2"]),
    *(["--require", "checkpoint-inner-loop"], ["--require", "other:forward-over-reverse"]),
)


@pytest.mark.parametrize("checks", PASSING, ids=" ".join)
def test_within_the_limits_it_exits_with_0(run: Run, checks: list[str]) -> None:
    code, out, err = run("old.json", "new.json", *checks)
    assert (code, err) == (0, "")
    assert "+10.00%" in out


@pytest.mark.parametrize("checks", FAILING, ids=" ".join)
@pytest.mark.parametrize("style", ["text", "json"])
def test_beyond_them_it_names_the_check_and_exits_with_1(
    run: Run, checks: list[str], style: str
) -> None:
    code, out, err = run("old.json", "new.json", *checks, "--format", style)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert " ".join(checks) in err
    assert " ".join(checks) in out


def test_each_failed_check_has_a_line(run: Run) -> None:
    checks = ["--max-memory", "0", "--max-flops", "0", "--require", "segment-loss"]
    code, _, err = run("old.json", "new.json", *checks)
    assert code == 1
    assert ["memory" in err, "flops" in err, "segment-loss" in err] == [True, True, True]
    assert len(err.splitlines()) == 3


def test_a_figure_that_is_not_known_any_more_is_beyond_its_limit(run: Run, tmp_path: Path) -> None:
    unknown = made.changed(lambda entry: entry["after"].update(flops=None))
    made.write(tmp_path / "unknown.json", unknown)
    assert run("old.json", "unknown.json", "--max-flops", "+5%")[0] == 1
    assert run("unknown.json", "old.json", "--max-flops", "+5%")[0] == 0
    assert run("unknown.json", "unknown.json", "--max-flops", "+5%")[0] == 0


def test_a_new_entry_has_nothing_to_be_compared_with(run: Run, tmp_path: Path) -> None:
    both = made.snapshot(meta_loss=made.entry(), other=made.entry())
    made.write(tmp_path / "both.json", both)
    assert run("old.json", "both.json", "--max-memory", "0")[0] == 0
    assert run("both.json", "old.json", "--max-memory", "0")[0] == 0


def test_other_versions_are_a_warning_and_no_failure(run: Run, tmp_path: Path) -> None:
    made.write(tmp_path / "later.json", {**made.snapshot(), "jax": "0.12.0"})
    for style in ("text", "markdown", "json", "html"):
        code, out, _ = run("old.json", "later.json", "--format", style, "--max-memory", "0")
        assert code == 0
        assert "JAX differs" in out


def test_asked_for_an_exit_code_it_is_1_where_anything_differs(run: Run, tmp_path: Path) -> None:
    assert run("old.json", "new.json")[0] == 0
    for style in ("text", "json"):
        code, _, err = run("old.json", "new.json", "--exit-code", "--format", style)
        assert (code, err) == (1, "")
    assert run("old.json", "old.json", "--exit-code")[0] == 0
    made.write(tmp_path / "moved.json", made.moved(made.snapshot(), 5))
    assert run("old.json", "moved.json", "--exit-code")[0] == 0
    both = made.snapshot(meta_loss=made.entry(), other=made.entry())
    made.write(tmp_path / "both.json", both)
    assert run("old.json", "both.json", "--exit-code")[0] == 1
    made.write(tmp_path / "later.json", {**made.snapshot(), "jax": "0.12.0"})
    assert run("old.json", "later.json", "--exit-code")[0] == 1
    assert run("old.json", "absent.json", "--exit-code")[0] == 2


def test_a_file_is_written_in_place_of_another(run: Run, tmp_path: Path) -> None:
    (tmp_path / "comment.md").write_text("older")
    code, out, _ = run("old.json", "new.json", "--format", "markdown", "-o", "comment.md")
    assert (code, out) == (0, "")
    assert (tmp_path / "comment.md").read_text().startswith("### old.json → new.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comment.md",
        "new.json",
        "old.json",
    ]


def test_before_and_after_of_one_model(run: Run, tmp_path: Path) -> None:
    model = """
import jax, jax.numpy as jnp, mixflow

@mixflow.compile(passes="fuse-value-and-pullback,forward-over-reverse")
def meta_loss(eta):
    return jax.grad(lambda x: jnp.sum(jnp.sin(x * eta)))(jnp.ones(())) * eta

meta_loss.example_args(lambda: (jnp.ones(()),))
"""
    (tmp_path / "model.py").write_text(model)
    args = ("--before-after", "model.py:meta_loss", "--format", "json")
    code, out, err = run(*args, "--require", "forward-over-reverse")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["old"]["name"], found["new"]["name"]) == ("plain JAX", "mixflow")
    (entry,) = found["entries"]
    gained = [one["pass"] for one in entry["rewrites"]["gained"]]
    assert "forward-over-reverse" in gained


# --- git revisions ------------------------------------------------------------------------------


@pytest.fixture
def repository(run: Run, tmp_path: Path) -> Run:
    """The same in a repository whose `main` has the old snapshot as `graph.json`."""

    def git(*args: str) -> None:
        named = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        subprocess.run(["git", *named, *args], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    (tmp_path / "old.json").rename(tmp_path / "graph.json")
    git("add", "graph.json")
    git("commit", "--message=old")
    (tmp_path / "new.json").rename(tmp_path / "graph.json")
    return run


def test_a_revision_of_a_file_is_read(repository: Run) -> None:
    code, out, _ = repository("main:graph.json", "graph.json", "--max-memory", "0")
    assert code == 1
    assert "main:graph.json → graph.json" in out
    assert repository("HEAD:./graph.json", "main:graph.json", "--max-memory", "0")[0] == 0


def test_a_file_of_that_name_wins(repository: Run, tmp_path: Path) -> None:
    made.write(tmp_path / "main:graph.json", made.changed(_grow))
    assert repository("main:graph.json", "graph.json", "--max-memory", "0")[0] == 0


def test_the_index_is_read_where_no_revision_is_given(repository: Run, tmp_path: Path) -> None:
    code, out, _ = repository("main:graph.json", ":graph.json", "--exit-code")
    assert (code, "main:graph.json → :graph.json" in out) == (0, True)
    assert repository(":./graph.json", "graph.json", "--exit-code")[0] == 1
    subprocess.run(["git", "add", "graph.json"], cwd=tmp_path, check=True)
    assert repository(":graph.json", "graph.json", "--exit-code")[0] == 0
    assert repository("main:graph.json", ":graph.json", "--exit-code")[0] == 1


MISSING = ("nowhere:graph.json", "main:other.json", ":other.json", "--exec:x", "main:", ":")


@pytest.mark.parametrize("name", MISSING)
def test_no_such_revision_or_file_is_one_line(repository: Run, name: str) -> None:
    code, out, err = repository("--", name, "graph.json")
    assert (code, out) == (2, "")
    assert f"{name}: no such file" in err
    assert len(err.splitlines()) == 1


def test_outside_of_a_repository_git_s_own_words_are_given(run: Run) -> None:
    code, _, err = run("main:old.json", "new.json")
    assert code == 2
    assert "not a git repository" in err
    assert len(err.splitlines()) == 1


def test_without_git_that_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, _, err = run("main:old.json", "new.json")
    assert code == 2
    assert "git is not installed" in err


# --- wrong input --------------------------------------------------------------------------------


def without_temporaries() -> dict[str, Any]:
    return made.changed(lambda entry: entry["after"].pop("temp_bytes"))


DAMAGED: dict[str, tuple[Any, str]] = {
    "empty": ("", "no snapshot"),
    "truncated": ('{"format": "mixflow-snapshot", ', "no snapshot"),
    "too deep": ("[" * 100_000, "no snapshot"),
    "binary": (b"\xff\xfe\x00", "not text"),
    "another JSON": ({"entries": {}}, "no snapshot"),
    "a list": ([1, 2], "no snapshot"),
    "a later format": ({**made.snapshot(), "version": 2}, "version 2"),
    "no version": ({**made.snapshot(), "version": None}, "version is None"),
    "no entries": ({**made.snapshot(), "entries": None}, "entries is no object"),
    "an entry of nothing": (made.snapshot(meta_loss={}), "entries.meta_loss.target is missing"),
    "a field less": (without_temporaries(), "meta_loss.after.temp_bytes is missing"),
    "text for a number": (
        made.changed(lambda entry: entry["after"].update(eqns="many")),
        "meta_loss.after.eqns is 'many'",
    ),
    "an absurd number": (
        made.changed(lambda entry: entry["after"].update(total_bytes=10**400)),
        "meta_loss.after.total_bytes is 1000",
    ),
    "no number": (
        made.changed(lambda entry: entry["after"].update(flops=float("nan"))),
        "meta_loss.after.flops is nan",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_or_foreign_file_is_one_line(
    run: Run, tmp_path: Path, case: str, place: int
) -> None:
    content, words = DAMAGED[case]
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (tmp_path / "bad.json").write_bytes(text.encode() if isinstance(text, str) else text)
    names = ["old.json", "old.json"]
    names[place] = "bad.json"
    code, out, err = run(*names, "-o", "out.txt")
    assert (code, out) == (2, "")
    assert "bad.json" in err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out.txt").exists()


WRONG: dict[str, tuple[list[str], str]] = {
    "one snapshot": (["old.json"], "two snapshots"),
    "three": (["old.json"] * 3, "two snapshots"),
    "both forms": (["old.json", "new.json", "--before-after", "model.py"], "two snapshots"),
    "no such file": (["absent.json", "new.json"], "absent.json: no such file"),
    "a folder": ([".", "new.json"], "."),
    "threshold": (["old.json", "new.json", "--max-memory", "lots"], "--max-memory 'lots'"),
    "empty threshold": (["old.json", "new.json", "--max-flops", ""], "--max-flops ''"),
    "size of FLOPs": (["old.json", "new.json", "--max-flops", "1MiB"], "--max-flops '1MiB'"),
    "not a number": (["old.json", "new.json", "--max-eqns", "+nan"], "--max-eqns '+nan'"),
    "no such pass": (["old.json", "new.json", "--require", "nope"], "no pass 'nope'"),
    "no such folder": (["old.json", "new.json", "-o", "nowhere/x"], "no folder nowhere"),
    "format": (["old.json", "new.json", "--format", "pdf"], "pdf"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_line(run: Run, case: str) -> None:
    args, words = WRONG[case]
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
