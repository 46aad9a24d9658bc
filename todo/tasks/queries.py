"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Text, bindparam, case, delete, or_, select, update

from todo.db.connections import later_instant
from todo.db.ownership import OwnedInsert, owned_by
from todo.db.pages import FEW, page_of
from todo.db.search import contains_ignoring_case, searching
from todo.db.statements import Statement, columns_of
from todo.db.versions import Change, Expected, as_expected
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
Q = bindparam("q", type_=Text)
#: What each filter of the list requires of a task.
FILTERS: Mapping[str, ColumnElement[bool]] = {
    "status": Task.status == bindparam("status"),
    "q": or_(contains_ignoring_case(Task.title, Q), contains_ignoring_case(Task.description, Q)),
}
# The database computes the new status from the old one: of two toggles at once, neither is lost.
TOGGLED = case((Task.status == "complete", "incomplete"), else_="complete")


@cache
def _list(filters: frozenset[str], *, is_continued: bool, is_long: bool) -> Statement[TaskRow]:
    criteria = [FILTERS[name] for name in sorted(filters)]
    return Statement(page_of(Task, LISTED, *criteria, is_continued=is_continued, is_long=is_long), TaskRow)


@cache
def _update(names: frozenset[str], *, is_toggle: bool = False, is_conditional: bool) -> Statement[VersionedTask]:
    values: dict[str, Any] = {name: bindparam(name) for name in names} | ({"status": TOGGLED} if is_toggle else {})
    changes = _of_the_task(owned_by(Task, update(Task)), is_conditional=is_conditional).values(
        **values, updated_at=later_instant(Task.updated_at), version=Task.version + 1
    )
    return Statement(changes.returning(*COLUMNS), VersionedTask)


@cache
def _delete(*, is_conditional: bool) -> Statement[VersionedTask]:
    statement = _of_the_task(owned_by(Task, delete(Task)), is_conditional=is_conditional)
    return Statement(statement.returning(*COLUMNS), VersionedTask)


def _of_the_task(change: Change, *, is_conditional: bool) -> Change:
    change = change.where(Task.id == bindparam("task_id"))
    return as_expected(Task, change) if is_conditional else change


FIND = Statement(owned_by(Task, select(*COLUMNS)).where(Task.id == bindparam("task_id")), VersionedTask)
INSERT = OwnedInsert(Task, VersionedTask)
# Version 1.0 counted an omitted description as null, and its keys may still be kept.
INSERT_ONCE = InsertOnce(Task, VersionedTask, null_if_omitted=["description"])


def list_tasks(
    user_id: str, filters: Mapping[str, Any], *, before: tuple[str, int] | None, limit: int, size: int
) -> Sequence[TaskRow]:
    """Return at most `limit` of the user's tasks, newest first; only those after `before`, a (created_at, id).

    Of a long list, only up to the task with which the texts reach `size` bytes. Raises SearchTooSlow.
    """
    statement = _list(frozenset(filters), is_continued=before is not None, is_long=limit > FEW)
    created_at, task_id = before or (None, None)
    place = {"before_created_at": created_at, "before_id": task_id}
    with searching() if "q" in filters else nullcontext():
        return statement.all(user_id=user_id, **filters, **place, limit=limit, size=size)


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
    statement = _update(frozenset(changes), is_conditional=expected is not None)
    return statement.first(user_id=user_id, task_id=task_id, **changes, **_parameters(expected))


def toggle_task(user_id: str, task_id: int, expected: Expected | None = None) -> VersionedTask | None:
    """Update the user's task to the other status. Return None as update_task() does."""
    statement = _update(frozenset(), is_toggle=True, is_conditional=expected is not None)
    return statement.first(user_id=user_id, task_id=task_id, **_parameters(expected))


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> VersionedTask | None:
    """Delete the user's task, and return it as it was. Return None as update_task() does."""
    statement = _delete(is_conditional=expected is not None)
    return statement.first(user_id=user_id, task_id=task_id, **_parameters(expected))


def _parameters(expected: Expected | None) -> Mapping[str, Any]:
    return {} if expected is None else expected.parameters()
