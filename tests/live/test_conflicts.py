"""docs/decisions/conflicts.md, carried out in a copy of the project with a second resource."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

CREATE_NOTES_TWICE = """
from wsgi import app
for user_id in ("alice", "alice", "bob"):
    answer = app.test_client().post(f"/api/{user_id}/notes", json={"title": "The first"})
    print(answer.status_code, answer.get_json().get("error"))
print(app.test_client().get("/openapi.json").status_code)
"""


def test_the_page_gives_a_second_resource_its_409(tmp_path: Path) -> None:
    """The notes of the recipe, with the lines of docs/decisions/conflicts.md put in where it says."""
    copy = tmp_path / "todo"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "instance", "node_modules")
    for name in ("todo", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("config.py", "wsgi.py"):
        shutil.copy(ROOT / name, copy)
    (recipe,) = [text for path in ROOT.glob("**/*.md") if "cp -r todo/tasks todo/notes" in (text := path.read_text())]
    recipe = recipe[recipe.index("cp -r todo/tasks") - 20 :]
    environ = {"PATH": os.environ["PATH"], "FLASK_RUN_FROM_CLI": "true", "IDENTITY_PROVIDER": "development"}

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    for command in re.findall(r"^\$ ((?:cp|sed|printf) .*)", recipe, re.MULTILINE):
        run("bash", "-c", command)
    path, migration = re.findall(r"`(migrations/\S+)`:\n\n```python\n(.*?)```", recipe, re.DOTALL)[0]
    (copy / path).write_text(migration)
    page = (ROOT / "docs/decisions/conflicts.md").read_text()
    for name, before, lines in re.findall(r"In `(\S+)`, before `(.*?)`:\n\n```python\n(.*?)```", page, re.DOTALL):
        (file,) = [copy / name] if (copy / name).exists() else (copy / "migrations/versions").glob(name)
        text = file.read_text()
        assert before in text
        # An expression is one more argument of the call.
        added = lines if lines.startswith("from ") else f"        {lines.strip()},\n"
        start = text.rindex("\n", 0, text.index(before)) + 1
        file.write_text(text[:start] + added + text[start:])
    run(sys.executable, "-m", "flask", "db", "upgrade")
    sentence = "You have a note of that title"
    assert run(sys.executable, "-c", CREATE_NOTES_TWICE).splitlines() == [
        "201 None",
        f"409 {sentence}",
        "201 None",
        "200",
    ]
    assert "No new upgrade operations" in run(sys.executable, "-m", "flask", "db", "check")
