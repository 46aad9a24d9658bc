"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, cast

from sqlalchemy import case, delete, literal, or_, select, tuple_, update

from todo.database import UtcInstant, contains_ignoring_case, later_instant
from todo.extensions import db
from todo.ownership import insert_owned, owned_by
from todo.tasks.models import Task

COLUMNS = (Task.id, Task.user_id, Task.title, Task.description, Task.status, Task.created_at, Task.updated_at)


class OwnedRow(Protocol):
    """As much of a row as tells whose it is."""

    id: int
    user_id: str


class TaskRow(OwnedRow, Protocol):
    """A task as the database returned it: a row of COLUMNS."""

    title: str
    description: str | None
    status: str
    created_at: datetime
    updated_at: datetime


def list_tasks(
    user_id: str, *, status: str | None, q: str | None, before: tuple[datetime, int] | None, limit: int
) -> Sequence[TaskRow]:
    """The user's tasks, newest first, at most `limit`; only those that come after `before` (created_at, id)."""
    statement = owned_by(user_id, Task, select(*COLUMNS))
    if status is not None:
        statement = statement.where(Task.status == status)
    if q:
        statement = statement.where(
            or_(contains_ignoring_case(Task.title, q), contains_ignoring_case(Task.description, q))
        )
    if before is not None:
        created_at, task_id = before
        # A comparison of rows, which the index answers from where it left off.
        position = tuple_(literal(created_at, UtcInstant), literal(task_id))
        statement = statement.where(tuple_(Task.created_at, Task.id) < position)
    statement = statement.order_by(Task.created_at.desc(), Task.id.desc()).limit(limit)
    return cast(Sequence[TaskRow], db.session.execute(statement).all())


def find_task(user_id: str, task_id: int) -> TaskRow | None:
    """The user's task of that id, or None."""
    statement = owned_by(user_id, Task, select(*COLUMNS)).where(Task.id == task_id)
    return cast(TaskRow | None, db.session.execute(statement).one_or_none())


def insert_task(user_id: str, email: str | None, *, title: str, description: str | None) -> TaskRow:
    """The new task, together with the user's own row where this is the first."""
    return cast(TaskRow, insert_owned(user_id, email, Task, {"title": title, "description": description}))


def update_task(user_id: str, task_id: int, changes: Mapping[str, Any]) -> TaskRow | None:
    """The user's task after the changes (by column), or None."""
    statement = (
        owned_by(user_id, Task, update(Task))
        .where(Task.id == task_id)
        .values(**changes, updated_at=later_instant(Task.updated_at))
        .returning(*COLUMNS)
        .execution_options(synchronize_session=False)
    )
    return cast(TaskRow | None, db.session.execute(statement).one_or_none())


def toggle_task(user_id: str, task_id: int) -> TaskRow | None:
    """The user's task with its status turned over, or None.

    The database computes the new status from the old: of two toggles at once, neither is lost.
    """
    status = case((Task.status == "complete", "incomplete"), else_="complete")
    return update_task(user_id, task_id, {"status": status})


def delete_task(user_id: str, task_id: int) -> OwnedRow | None:
    """What tells whose the task was that is now gone, or None."""
    statement = (
        owned_by(user_id, Task, delete(Task))
        .where(Task.id == task_id)
        .returning(Task.id, Task.user_id)
        .execution_options(synchronize_session=False)
    )
    return cast(OwnedRow | None, db.session.execute(statement).one_or_none())
