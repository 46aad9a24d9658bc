"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Text, Update, bindparam, case, delete, or_, select, update

from todo.db.ownership import OwnedInsert, new_parameters, new_values, owned_by
from todo.db.pages import page_of, page_parameters
from todo.db.search import contains_ignoring_case, searching
from todo.db.statements import Names, Query, Statement, columns_of
from todo.db.types import later_instant
from todo.db.versions import as_expected, expectation
from todo.expected import Expected
from todo.idempotency.once import InsertOnce
from todo.tasks.models import Task


class TaskRow(Struct, frozen=True):
    """A task in a list."""

    id: int
    user_id: str
    title: str
    description: str | None
    status: str
    created_at: str
    updated_at: str


class VersionedTask(TaskRow, frozen=True):
    """A single task, with its version: 1 plus the number of changes."""

    version: int


LISTED = columns_of(Task, TaskRow)
COLUMNS = columns_of(Task, VersionedTask)
IS_THE_TASK = Task.id == bindparam("task_id")
Q = bindparam("q", type_=Text)
#: What each filter of the list requires of a task.
FILTERS: Mapping[str, ColumnElement[bool]] = {
    "status": Task.status == bindparam("status"),
    "q": or_(contains_ignoring_case(Task.title, Q), contains_ignoring_case(Task.description, Q)),
}
# The database computes the new status from the old one: of two toggles at once, neither is lost.
TOGGLED = case((Task.status == "complete", "incomplete"), else_="complete")


def _update(names: Names, values: Mapping[str, Any]) -> Update:
    statement = as_expected(Task, owned_by(Task, update(Task)).where(IS_THE_TASK), names)
    changes = statement.values(**values, updated_at=later_instant(Task.updated_at), version=Task.version + 1)
    return changes.returning(*COLUMNS)


def _delete(names: Names) -> Query:
    return as_expected(Task, owned_by(Task, delete(Task)).where(IS_THE_TASK), names).returning(*COLUMNS)


LIST = Statement(lambda names: page_of(Task, LISTED, FILTERS, names), TaskRow)
FIND = Statement(owned_by(Task, select(*COLUMNS)).where(IS_THE_TASK), VersionedTask)
UPDATE = Statement(lambda names: _update(names, new_parameters(names)), VersionedTask)
TOGGLE = Statement(lambda names: _update(names, {"status": TOGGLED}), VersionedTask)
DELETE = Statement(_delete, VersionedTask)
INSERT = OwnedInsert(Task, VersionedTask)
# Version 1.0 counted an omitted description as null, and its keys may still be kept.
INSERT_ONCE = InsertOnce(Task, VersionedTask, null_if_omitted=["description"])


def list_tasks(
    user_id: str, filters: Mapping[str, Any], *, before: tuple[str, int] | None, limit: int, size: int
) -> Sequence[TaskRow]:
    """Return at most `limit` of the user's tasks, newest first; only those after `before`, a (created_at, id).

    Of a long list, only up to the task with which the texts reach `size` bytes. Raises SearchTooSlow.
    """
    with searching() if "q" in filters else nullcontext():
        return LIST.all(user_id=user_id, **filters, **page_parameters(before, limit, size))


def find_task(user_id: str, task_id: int) -> VersionedTask | None:
    """Return the user's task of that id, or None."""
    return FIND.first(user_id=user_id, task_id=task_id)


def insert_task(user_id: str, email: str | None, values: Mapping[str, Any]) -> VersionedTask:
    """Insert a task, and the user's own row before their first one. Raises LimitReached."""
    return INSERT.one(user_id, email, values)


def insert_task_once(
    user_id: str, email: str | None, key: str, values: Mapping[str, Any]
) -> tuple[VersionedTask, bool]:
    """Return the task that was inserted under the user's key, now or before, and whether it was before.

    Raises KeyReused, LimitReached and KeyLimitReached.
    """
    return INSERT_ONCE.one(user_id, email, key, values)


def update_task(
    user_id: str, task_id: int, changes: Mapping[str, Any], expected: Expected | None = None
) -> VersionedTask | None:
    """Update the user's task. Return None if there is none, or none of an expected version."""
    return UPDATE.first(user_id=user_id, task_id=task_id, **new_values(changes), **expectation(expected))


def toggle_task(user_id: str, task_id: int, expected: Expected | None = None) -> VersionedTask | None:
    """Update the user's task to the other status. Return None as update_task() does."""
    return TOGGLE.first(user_id=user_id, task_id=task_id, **expectation(expected))


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> VersionedTask | None:
    """Delete the user's task, and return it as it was. Return None as update_task() does."""
    return DELETE.first(user_id=user_id, task_id=task_id, **expectation(expected))
