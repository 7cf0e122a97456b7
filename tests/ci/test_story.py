"""The graph diff in CI: action.yml's own steps in a temporary repository, and the commit hook."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from github_job import ACTION, ROOT, Job
from support import MODEL

(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())

STRAIGHT_THROUGH = """
@jax.custom_vjp
def rounded(x):
    return jnp.round(x)

rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))
"""
LOSSY = MODEL.replace("x @ theta)", "x @ rounded(theta))").replace(
    "\ndef loss", f"{STRAIGHT_THROUGH}\ndef loss"
)
HARMLESS = MODEL.replace("def loss", "# the weight of the data\ndef loss")

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "git", "jq")),
    reason="the action needs bash and git, and the stand-in for gh needs jq",
)


def line_of(words: str, model: str) -> int:
    return 1 + next(i for i, line in enumerate(model.splitlines()) if words in line)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture
def stood_in(job: Job) -> Job:
    """With a mixflowc that only notes its calls, and two committed snapshots."""
    job.stand_in("mixflowc")
    job.env |= {"CALLS": str(job.folder / "calls"), "LENGTH": "1", "DIFF_CODE": "0"}
    job.commit({"a.json": "{}", "b.json": "{}"})
    return job


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The snapshot of MODEL."""
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "model.py").write_text(MODEL)
    mixflowc = str(Path(sys.executable).parent / "mixflowc")
    subprocess.run([mixflowc, "snapshot", "model.py", "-o", "graph.json"], cwd=folder, check=True)
    return (folder / "graph.json").read_text()


def test_a_lost_rewrite_fails_and_a_harmless_change_updates_the_comment(
    job: Job, baseline: str
) -> None:
    job.commit({"model.py": MODEL, "graph.json": baseline})
    (job.checkout / "model.py").write_text(LOSSY)
    done = job.run(models="model.py", max_memory="+50%", require="forward-over-reverse")
    assert done.returncode == 1, done.stderr
    assert "no rewrite by forward-over-reverse" in done.stderr
    (comment,) = job.comments
    lost = f"- `-` `model.py:{line_of('jax.grad(', MODEL)}` forward-over-reverse"
    declined = f"rounded (model.py:{line_of('rounded(theta)', LOSSY)}): a custom_vjp whose rule"
    assert lost in comment["body"]
    assert f"- `+` `model.py:{line_of('jax.grad(', LOSSY)}` forward-over-reverse" in comment["body"]
    assert declined in comment["body"]
    assert (job.folder / "summary.md").read_text() in comment["body"]

    (job.checkout / "model.py").write_text(HARMLESS)
    done = job.run(models="model.py", max_memory="+50%", require="forward-over-reverse")
    assert (done.returncode, done.stderr) == (0, "")
    (updated,) = job.comments
    assert updated["id"] == comment["id"]
    assert "1 entry is the same" in updated["body"]
    assert "rewrites LOST" not in updated["body"]


def test_the_hook_fails_once_and_brings_the_snapshot_up_to_date(job: Job, baseline: str) -> None:
    job.commit({"model.py": MODEL, "graph.json": baseline})
    (job.checkout / "model.py").write_text(LOSSY)
    hook = (*shlex.split(HOOK["entry"]), "model.py", "graph.json")
    done = job.call(*hook, cwd=job.checkout)
    assert done.returncode == 1
    assert "rewrites LOST" in done.stdout
    assert "git add graph.json" in done.stderr
    job.call("git", "add", "graph.json", cwd=job.checkout)
    done = job.call(*hook, cwd=job.checkout)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_hook_wants_a_model_and_a_snapshot(job: Job) -> None:
    done = job.call(*shlex.split(HOOK["entry"]), "model.py", cwd=job.folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_without_a_baseline_there_is_one_clear_line_and_no_comment(stood_in: Job) -> None:
    done = stood_in.run(models="model.py", snapshot="graph.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "graph-diff: error: snapshot: origin/main has no graph.json; make it there with: "
        "mixflowc snapshot model.py -o graph.json\n"
    )
    assert stood_in.comments == []
    assert not (stood_in.folder / "calls").exists()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"models": "a.py\nb.py", "snapshot": "a.json"}, "2 and 1 lines"),
        ({"models": "a.py", "snapshot": "a.json", "comment": "yes"}, "yes is not true or false"),
        ({"models": " \n"}, "at least one MODEL.py"),
        ({"models": "a.py", "snapshot": "a.json", "base": "gone"}, "no git revision gone"),
    ],
)
def test_wrong_inputs_are_one_line(stood_in: Job, inputs: dict[str, str], words: str) -> None:
    done = stood_in.run(**inputs)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words in done.stderr


def test_outside_a_pull_request_a_base_has_to_be_given(stood_in: Job) -> None:
    del stood_in.env["GITHUB_BASE_REF"]
    assert "give a git revision" in stood_in.run(models="a.py", snapshot="a.json").stderr
    assert stood_in.run(models="a.py", snapshot="a.json", base="HEAD").returncode == 0
    assert stood_in.comments == []


def test_every_input_reaches_mixflowc_as_one_argument(stood_in: Job) -> None:
    done = stood_in.run(
        models="a.py\n  b.py:$(touch ran)  \n",
        snapshot="a.json\nb.json",
        max_memory="+5%; touch ran",
        max_flops="0",
        max_eqns="-1",
        require="forward-over-reverse\nmeta:checkpoint-inner-loop",
        comment="false",
    )
    assert done.returncode == 0, done.stderr
    first, diff, second, _ = (stood_in.folder / "calls").read_text().splitlines()
    assert first == "snapshot -o a.json -- a.py"
    assert second == "snapshot -o b.json -- b.py:$(touch ran)"
    assert diff.endswith(
        " --max-memory=+5%; touch ran --max-flops=0 --max-eqns=-1 --require=forward-over-reverse"
        " --require=meta:checkpoint-inner-loop -- origin/main:a.json a.json"
    )
    assert not (stood_in.checkout / "ran").exists()
    assert stood_in.comments == []


def test_one_model_that_fails_does_not_hide_the_other(stood_in: Job) -> None:
    stood_in.env["DIFF_CODE"] = "1"
    done = stood_in.run(models="broken.py\na.py", snapshot="b.json\na.json")
    assert done.returncode == 2
    (comment,) = stood_in.comments
    assert "    mixflowc: error: broken.py: no such file" in comment["body"]
    assert "- a line about a.json" in comment["body"]


def test_a_comment_that_is_too_long_loses_its_end(stood_in: Job) -> None:
    stood_in.env["LENGTH"] = "5000"
    assert stood_in.run(models="a.py", snapshot="a.json").returncode == 0
    (comment,) = stood_in.comments
    assert comment["body"].startswith("<!-- mixflow graph diff: a.json -->\n\n> The end is left")
    assert comment["body"].splitlines()[-1] == "- a line about a.json"
    assert (stood_in.folder / "summary.md").read_text().count("a line") == 5000


def test_other_comments_are_left_alone(stood_in: Job) -> None:
    others = [{"id": 1, "body": "what of <!-- mixflow graph diff: a.json -->?"}]
    (stood_in.folder / "comments.json").write_text(json.dumps(others))
    stood_in.run(models="a.py", snapshot="a.json")
    stood_in.run(models="b.py", snapshot="b.json")
    stood_in.run(models="a.py", snapshot="a.json")
    assert stood_in.comments[0] == others[0]
    assert len(stood_in.comments) == 3


def test_a_token_that_may_not_comment_does_not_hide_the_result(stood_in: Job) -> None:
    stood_in.env |= {"DIFF_CODE": "1", "GITHUB_REPOSITORY": "some/other"}
    done = stood_in.run(models="a.py", snapshot="a.json")
    assert done.returncode == 1
    assert "::warning::graph-diff: could not comment on #7" in done.stdout


def test_the_action_uses_each_input_and_writes_none_into_a_command() -> None:
    text = (ROOT / "action/action.yml").read_text()
    script = (ROOT / "action/graph-diff.sh").read_text()
    steps = ACTION["runs"]["steps"]
    for name in ACTION["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in text
    for step in steps:
        assert "${{" not in step.get("run", "")
    for name in steps[-1]["env"].keys() - {"GH_TOKEN"}:
        assert re.search(rf"\${name}\b", script), name


def test_the_paths_that_the_action_names_are_there() -> None:
    runs = " ".join(step.get("run", "") for step in ACTION["runs"]["steps"])
    named = re.findall(r'"\$GITHUB_ACTION_PATH/([^"]+)"', runs)
    assert len(named) == 2
    for path in named:
        assert (ROOT / "action" / path).exists()
    assert (ROOT / "action/.." / "pyproject.toml").exists()
