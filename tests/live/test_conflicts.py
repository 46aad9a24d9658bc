"""docs/decisions/conflicts.md, carried out in a copy of the project with a second resource."""

import os
import subprocess
import sys
from pathlib import Path

from tests.live.pages import copy_project, edits
from tests.support import ROOT

CREATE_NOTES_TWICE = """
from wsgi import app
for user_id in ("alice", "alice", "bob"):
    answer = app.test_client().post(f"/api/{user_id}/notes", json={"title": "The first"})
    print(answer.status_code, answer.get_json().get("error"))
print(app.test_client().get("/openapi.json").status_code)
"""


def test_the_page_gives_a_second_resource_its_409(tmp_path: Path) -> None:
    copy = copy_project(tmp_path / "todo")
    for page in ("add-a-resource", "decisions/conflicts"):
        for edit in edits((ROOT / f"docs/{page}.md").read_text()):
            edit.apply(copy)
    environ = {"PATH": os.environ["PATH"], "FLASK_RUN_FROM_CLI": "true", "IDENTITY_PROVIDER": "development"}

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run(sys.executable, "-m", "flask", "db", "upgrade")
    sentence = "You have a note of that title"
    assert run(sys.executable, "-c", CREATE_NOTES_TWICE).splitlines() == [
        "201 None",
        f"409 {sentence}",
        "201 None",
        "200",
    ]
    assert "No new upgrade operations" in run(sys.executable, "-m", "flask", "db", "check")
