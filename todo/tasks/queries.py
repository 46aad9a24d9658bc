"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from msgspec import Struct
from sqlalchemy import Text, bindparam, case, or_

from todo.db.search import contains_ignoring_case, searching
from todo.db.table import OwnedTable
from todo.idempotency.once import InsertOnce
from todo.pages import Page, PageWanted
from todo.tasks.models import Task


class TaskRow(Struct, frozen=True):
    """A task."""

    id: int
    user_id: str
    title: str
    description: str | None
    status: str
    created_at: str
    updated_at: str


Q = bindparam("q", type_=Text)
TASKS = OwnedTable(
    Task,
    TaskRow,
    filters={
        "status": Task.status == bindparam("status"),
        "q": or_(contains_ignoring_case(Task.title, Q), contains_ignoring_case(Task.description, Q)),
    },
)
# Version 1.0 counted an omitted description as null, and keys from that version may still exist.
INSERT_ONCE = InsertOnce(Task, TaskRow, null_if_omitted=["description"])
toggle_task = TASKS.updating(status=case((Task.status == "complete", "incomplete"), else_="complete"))


def list_tasks(user_id: str, filters: Mapping[str, Any], wanted: PageWanted) -> Page[TaskRow]:
    """Return a page of the user's tasks, newest first. Raises SearchTooSlow."""
    with searching() if "q" in filters else nullcontext():
        return TASKS.list(user_id, filters, wanted)
