"""A deploy of a version whose tasks have more fields: both versions run at once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.live import gunicorn
from tests.support import ROOT, Caller, Make, sql
from tests.test_idempotency import MILK, create

#: What docs/migrations.md asks of the code when a field is added, and two columns more: one of numbers, one of nulls.
NEW_FIELDS = {
    "models.py": (
        "    description: Mapped",
        '    priority: Mapped[str] = mapped_column(Text, server_default="normal")\n'
        '    stars: Mapped[int] = mapped_column(server_default=text("3"))\n'
        "    place: Mapped[str | None] = mapped_column(Text)\n",
    ),
    "queries.py": ("    description: str", "    priority: str\n    stars: int\n    place: str | None\n"),
    "schemas.py": (
        "    description = ",
        "    priority = fields.String()\n    stars = fields.Integer()\n    place = fields.String(allow_none=True)\n",
    ),
}


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of the service whose tasks have more fields."""
    copy = tmp_path / "next"
    shutil.copytree(ROOT / "todo", copy / "todo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.py", "wsgi.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, copy)
    for name, (before, added) in NEW_FIELDS.items():
        path = copy / "todo/tasks" / name
        path.write_text(path.read_text().replace(before, added + before).replace("Index, Text", "Index, Text, text"))
    return copy


def test_a_key_outlives_a_deploy_that_adds_fields(own: URL, make: Make, next_version: Path, tmp_path: Path) -> None:
    """Also in the other direction, for as long as both versions run."""
    alice = Caller(make(own), "alice")
    first = create(alice, "before").get_json()
    for column in ("priority TEXT DEFAULT 'normal' NOT NULL", "stars INT DEFAULT 3 NOT NULL", "place TEXT"):
        sql(own, f"ALTER TABLE tasks ADD COLUMN {column}")
    with gunicorn(own, tmp_path / "log", cwd=next_version, WEB_CONCURRENCY="1") as newer:

        def send(key: str, **body: object) -> tuple[int, Any]:
            return newer.request("POST", "/api/alice/tasks", json=body, **{"Idempotency-Key": key})

        defaults = {"priority": "normal", "stars": 3, "place": None}
        assert send("before", **MILK) == (201, first | defaults)
        assert send("before", **MILK, place=None) == (201, first | defaults)
        assert send("before", **MILK, priority="high")[0] == 422
        status, task = send("meanwhile", **MILK)
        assert (status, {name: task.pop(name) for name in defaults}) == (201, defaults)
        assert create(alice, "meanwhile").get_json() == task
        assert send("after", **MILK, priority="high")[1]["priority"] == "high"
        assert send("after", **MILK, priority="high")[1]["priority"] == "high"
        assert send("after", **MILK)[0] == 422
    assert len(alice.titles()) == 3
