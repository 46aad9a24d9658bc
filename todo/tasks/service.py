"""The use cases of tasks, and the second check of ownership. Knows no HTTP and writes no SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from msgspec import json

from todo.db.versions import Expected
from todo.errors import NotAsExpected, OwnershipViolated, TaskNotFound
from todo.tasks import queries
from todo.tasks.queries import TaskOwner, TaskRow, VersionedTask
from todo.tasks.schemas import PAGE_LIMIT
from todo.web.paging import decode_cursor, encode_cursor

Row = TypeVar("Row", TaskRow, VersionedTask, TaskOwner)


#: How many bytes of JSON the tasks of a page may have; one task may have more.
PAGE_BYTES = 1024 * 1024
#: How many of them a code point may take: `\\u0001`; and what a task takes beside its texts, its user's id left out.
MOST_PER_CODE_POINT, MOST_BESIDE = 6, 250


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Part of a list; next_cursor is None on the last one."""

    tasks: Sequence[TaskRow]
    next_cursor: str | None


def list_tasks(
    user_id: str,
    *,
    status: str | None = None,
    q: str | None = None,
    limit: int = PAGE_LIMIT,
    cursor: str | None = None,
) -> TaskPage:
    """One page of the user's tasks, newest first. Raises InvalidInput for a cursor of another list."""
    before = decode_cursor(user_id, status, q, cursor) if cursor is not None else None
    # One more than asked for, or than there is room for, tells whether another page follows.
    rows = queries.list_tasks(user_id, status=status, q=q, before=before, limit=limit + 1, size=PAGE_BYTES)
    tasks = [_owned(user_id, row) for row in rows[: min(limit, _fitting(rows))]]
    if len(tasks) == len(rows):
        return TaskPage(tasks, None)
    return TaskPage(tasks, encode_cursor(user_id, status, q, tasks[-1].created_at, tasks[-1].id))


def _fitting(rows: Sequence[TaskRow]) -> int:
    """How many of the rows fit into PAGE_BYTES; at least one."""
    code_points = sum(len(row.user_id) + len(row.title) + len(row.description or "") for row in rows)
    if MOST_PER_CODE_POINT * code_points + MOST_BESIDE * len(rows) <= PAGE_BYTES:
        return len(rows)
    sizes = accumulate(len(json.encode(row)) + 1 for row in rows)
    # Two more are the brackets; the last comma stands for the line end.
    return max(1, sum(size + 2 <= PAGE_BYTES for size in sizes))


def create_task(
    user_id: str, email: str | None, values: Mapping[str, Any], key: str | None = None
) -> tuple[VersionedTask, bool]:
    """A new task of the user, incomplete; under a key, the task that was made under it, as it was when it was new.

    Beside it, whether it was made before. Raises LimitReached where the user has as many tasks as allowed, and under a
    key KeyReused where it was used for another task, and KeyLimitReached.
    """
    if key is None:
        return _owned(user_id, queries.insert_task(user_id, email, values)), False
    task, is_replayed = queries.insert_task_once(user_id, email, key, values)
    return _owned(user_id, task), is_replayed


def get_task(user_id: str, task_id: int) -> VersionedTask:
    """The user's task. Raises TaskNotFound, for a task of somebody else too."""
    return _found(user_id, queries.find_task(user_id, task_id))


def update_task(
    user_id: str, task_id: int, changes: Mapping[str, Any], expected: Expected | None = None
) -> VersionedTask:
    """The user's task after the changes. Raises TaskNotFound, and NotAsExpected where it is of another version."""
    changed = queries.update_task(user_id, task_id, changes, expected)
    return _changed(user_id, task_id, changed, expected)


def complete_task(
    user_id: str, task_id: int, expected: Expected | None = None, *, status: str | None = None
) -> VersionedTask:
    """The user's task with that status, or with the other one than before where none is given. Raises like update."""
    if status is None:
        return _changed(user_id, task_id, queries.toggle_task(user_id, task_id, expected), expected)
    return update_task(user_id, task_id, {"status": status}, expected)


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> None:
    """Delete the user's task. Raises as update_task."""
    _changed(user_id, task_id, queries.delete_task(user_id, task_id, expected), expected)


def _changed(user_id: str, task_id: int, row: Row | None, expected: Expected | None) -> Row:
    """The row that a change returned. Where it found none that is as expected, the task may still be there."""
    if row is None and expected is not None and get_task(user_id, task_id):
        raise NotAsExpected
    return _found(user_id, row)


def _found(user_id: str, row: Row | None) -> Row:
    if row is None:
        raise TaskNotFound
    return _owned(user_id, row)


def _owned(user_id: str, row: Row) -> Row:
    """The row, once its owner is seen to be the user: the queries say so too, and the two must agree."""
    if row.user_id != user_id:
        raise OwnershipViolated(f"task {row.id} of {row.user_id!r} came back for {user_id!r}")
    return row
