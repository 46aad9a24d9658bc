"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import Struct
from sqlalchemy import Text, bindparam, case, delete, or_, select, tuple_, update

from todo.database import UtcInstant, contains_ignoring_case, later_instant
from todo.ownership import OwnedInsert, owned_by
from todo.statements import Statement
from todo.tasks.models import Task


class TaskRow(Struct, frozen=True):
    """A task as the database returned it."""

    id: int
    user_id: str
    title: str
    description: str | None
    status: str
    created_at: str
    updated_at: str


class TaskOwner(Struct, frozen=True):
    """As much of a task as tells whose it is."""

    id: int
    user_id: str


COLUMNS = [getattr(Task, name) for name in TaskRow.__struct_fields__]
IS_THE_TASK = Task.id == bindparam("task_id")


@cache
def _list(*, by_status: bool, by_q: bool, is_continued: bool) -> Statement[TaskRow]:
    statement = owned_by(Task, select(*COLUMNS)).order_by(Task.created_at.desc(), Task.id.desc())
    if by_status:
        statement = statement.where(Task.status == bindparam("status"))
    if by_q:
        q = bindparam("q", type_=Text)
        statement = statement.where(
            or_(contains_ignoring_case(Task.title, q), contains_ignoring_case(Task.description, q))
        )
    if is_continued:
        # A comparison of rows, which the index answers from where it left off.
        position = tuple_(bindparam("created_at", type_=UtcInstant), bindparam("task_id"))
        statement = statement.where(tuple_(Task.created_at, Task.id) < position)
    return Statement(statement.limit(bindparam("limit")), TaskRow)


def _update(**values: Any) -> Statement[TaskRow]:
    statement = owned_by(Task, update(Task)).where(IS_THE_TASK)
    changes = statement.values(**values, updated_at=later_instant(Task.updated_at))
    return Statement(changes.returning(*COLUMNS), TaskRow)


@cache
def _update_of(names: frozenset[str]) -> Statement[TaskRow]:
    return _update(**{name: bindparam(name) for name in names})


FIND = Statement(owned_by(Task, select(*COLUMNS)).where(IS_THE_TASK), TaskRow)
INSERT = OwnedInsert(Task, TaskRow, "title", "description")
# The database computes the new status from the old: of two toggles at once, neither is lost.
TOGGLE = _update(status=case((Task.status == "complete", "incomplete"), else_="complete"))
DELETE = Statement(owned_by(Task, delete(Task)).where(IS_THE_TASK).returning(Task.id, Task.user_id), TaskOwner)


def list_tasks(
    user_id: str, *, status: str | None, q: str | None, before: tuple[str, int] | None, limit: int
) -> Sequence[TaskRow]:
    """The user's tasks, newest first, at most `limit`; only those that come after `before` (created_at, id)."""
    statement = _list(by_status=status is not None, by_q=bool(q), is_continued=before is not None)
    created_at, task_id = before or (None, None)
    return statement.all(user_id=user_id, status=status, q=q, created_at=created_at, task_id=task_id, limit=limit)


def find_task(user_id: str, task_id: int) -> TaskRow | None:
    """The user's task of that id, or None."""
    return FIND.first(user_id=user_id, task_id=task_id)


def insert_task(user_id: str, email: str | None, *, title: str, description: str | None) -> TaskRow:
    """The new task, together with the user's own row where this is the first."""
    return INSERT.one(user_id, email, title=title, description=description)


def update_task(user_id: str, task_id: int, changes: Mapping[str, Any]) -> TaskRow | None:
    """The user's task after the changes (by column), or None."""
    return _update_of(frozenset(changes)).first(user_id=user_id, task_id=task_id, **changes)


def toggle_task(user_id: str, task_id: int) -> TaskRow | None:
    """The user's task with its status turned over, or None."""
    return TOGGLE.first(user_id=user_id, task_id=task_id)


def delete_task(user_id: str, task_id: int) -> TaskOwner | None:
    """What tells whose the task was that is now gone, or None."""
    return DELETE.first(user_id=user_id, task_id=task_id)
