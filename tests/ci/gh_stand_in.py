"""Stands in for GitHub's `gh api`: one issue's comments, in the file that $GH_COMMENTS names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STORE = Path(os.environ["GH_COMMENTS"])


def main(args: list[str]) -> None:
    comments: list[dict[str, Any]] = json.loads(STORE.read_text())
    match args:
        case ["api", "--paginate", "repos/me/model/issues/7/comments", "--jq", asked]:
            subprocess.run(["jq", "-r", asked], input=json.dumps(comments), text=True, check=True)
            return
        case ["api", "--silent", "--method", "POST", "repos/me/model/issues/7/comments", *field]:
            comments.append({"id": 100 + len(comments), "body": _body(field)})
        case ["api", "--silent", "--method", "PATCH", path, *field]:
            folder, _, number = path.rpartition("/")
            assert folder == "repos/me/model/issues/comments"
            (comment,) = [one for one in comments if one["id"] == int(number)]
            comment["body"] = _body(field)
        case _:
            sys.exit(f"gh: what is {args}?")
    STORE.write_text(json.dumps(comments))


def _body(field: list[str]) -> str:
    option, value = field
    assert option == "--field"
    assert value.startswith("body=@")
    body = Path(value.removeprefix("body=@")).read_text()
    assert len(body) <= 65536, "the body is too long"
    return body


main(sys.argv[1:])
