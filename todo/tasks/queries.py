"""Every SQL statement about tasks, each for one owner and in one round trip. Decides nothing."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from msgspec import Struct
from sqlalchemy import Select, Text, Update, bindparam, case, delete, func, or_, select, tuple_, update

from todo.db.ownership import OwnedInsert, new_parameters, new_values, owned_by
from todo.db.search import contains_ignoring_case, searching
from todo.db.statements import Names, Query, Statement, columns_of
from todo.db.types import UtcInstant, later_instant, octets
from todo.db.versions import Expected, as_expected, expectation
from todo.idempotency.once import InsertOnce
from todo.tasks.models import Task


class TaskRow(Struct, frozen=True):
    """A task as the database returned it, in a list."""

    id: int
    user_id: str
    title: str
    description: str | None
    status: str
    created_at: str
    updated_at: str


class VersionedTask(TaskRow, frozen=True):
    """A task by itself, with how often it has been changed, plus one."""

    version: int


class TaskOwner(Struct, frozen=True):
    """As much of a task as tells whose it is."""

    id: int
    user_id: str


LISTED = columns_of(Task, TaskRow)
COLUMNS = columns_of(Task, VersionedTask)
NEWEST_FIRST = (Task.created_at.desc(), Task.id.desc())
#: How many tasks may be read without a look at their lengths: at most 2 MiB.
FEW = 101
IS_THE_TASK = Task.id == bindparam("task_id")


def _list(names: Names) -> Select[Any]:
    statement = owned_by(Task, select(*LISTED)).order_by(*NEWEST_FIRST)
    if "status" in names:
        statement = statement.where(Task.status == bindparam("status"))
    if "q" in names:
        q = bindparam("q", type_=Text)
        statement = statement.where(
            or_(contains_ignoring_case(Task.title, q), contains_ignoring_case(Task.description, q))
        )
    if "task_id" in names:
        # A comparison of rows, which the index answers from where it left off.
        position = tuple_(bindparam("created_at", type_=UtcInstant), bindparam("task_id"))
        statement = statement.where(tuple_(Task.created_at, Task.id) < position)
    statement = statement.limit(bindparam("limit"))
    return _up_to_size(statement) if "size" in names else statement


def _up_to_size(statement: Select[Any]) -> Select[Any]:
    """The tasks before which there are fewer bytes of text than `size`."""
    size = octets(Task.title) + octets(Task.description)
    total = func.sum(size).over(order_by=NEWEST_FIRST, rows=(None, 0))
    measured = statement.add_columns((total - size).label("before")).subquery()
    listed = select(*(measured.c[column.key] for column in LISTED)).where(measured.c.before < bindparam("size"))
    return listed.order_by(measured.c.created_at.desc(), measured.c.id.desc())


def _update(names: Names, values: Mapping[str, Any]) -> Update:
    statement = as_expected(Task, owned_by(Task, update(Task)).where(IS_THE_TASK), names)
    changes = statement.values(**values, updated_at=later_instant(Task.updated_at), version=Task.version + 1)
    return changes.returning(*COLUMNS)


def _toggle(names: Names) -> Update:
    # The database computes the new status from the old: of two toggles at once, neither is lost.
    return _update(names, {"status": case((Task.status == "complete", "incomplete"), else_="complete")})


def _delete(names: Names) -> Query:
    statement = as_expected(Task, owned_by(Task, delete(Task)).where(IS_THE_TASK), names)
    return statement.returning(Task.id, Task.user_id)


LIST = Statement(_list, TaskRow)
FIND = Statement(owned_by(Task, select(*COLUMNS)).where(IS_THE_TASK), VersionedTask)
UPDATE = Statement(lambda names: _update(names, new_parameters(names)), VersionedTask)
TOGGLE = Statement(_toggle, VersionedTask)
DELETE = Statement(_delete, TaskOwner)
INSERT = OwnedInsert(Task, VersionedTask)
# The first versions counted an omitted description as null, and keys of theirs may still be kept.
INSERT_ONCE = InsertOnce(Task, VersionedTask, null_if_omitted=["description"])


def list_tasks(
    user_id: str, *, status: str | None, q: str | None, before: tuple[str, int] | None, limit: int, size: int
) -> Sequence[TaskRow]:
    """The user's tasks, newest first, at most `limit`; only those that come after `before` (created_at, id).

    Of a long list, only up to the task with which their texts reach `size` bytes. Raises SearchTooSlow, under `q`.
    """
    created_at, task_id = before or (None, None)
    optional = {"status": status, "q": q or None, "created_at": created_at, "task_id": task_id}
    parameters = {"limit": limit} | {name: value for name, value in optional.items() if value is not None}
    if limit > FEW:
        parameters["size"] = size
    with searching() if q else nullcontext():
        return LIST.all(user_id=user_id, **parameters)


def find_task(user_id: str, task_id: int) -> VersionedTask | None:
    """The user's task of that id, or None."""
    return FIND.first(user_id=user_id, task_id=task_id)


def insert_task(user_id: str, email: str | None, values: Mapping[str, Any]) -> VersionedTask:
    """The new task, together with the user's own row where this is the first. Raises LimitReached."""
    return INSERT.one(user_id, email, values)


def insert_task_once(
    user_id: str, email: str | None, key: str, values: Mapping[str, Any]
) -> tuple[VersionedTask, bool]:
    """The task that was inserted under the user's key, and whether that was before.

    Raises KeyReused, LimitReached and KeyLimitReached.
    """
    return INSERT_ONCE.one(user_id, email, key, values)


def update_task(
    user_id: str, task_id: int, changes: Mapping[str, Any], expected: Expected | None = None
) -> VersionedTask | None:
    """The user's task after the changes (by column); None where there is none, or not of an expected version."""
    return UPDATE.first(user_id=user_id, task_id=task_id, **new_values(changes), **expectation(expected))


def toggle_task(user_id: str, task_id: int, expected: Expected | None = None) -> VersionedTask | None:
    """The user's task with its status turned over; None as in update_task()."""
    return TOGGLE.first(user_id=user_id, task_id=task_id, **expectation(expected))


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> TaskOwner | None:
    """What tells whose the task was that is now gone; None as in update_task()."""
    return DELETE.first(user_id=user_id, task_id=task_id, **expectation(expected))
