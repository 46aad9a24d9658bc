"""The use cases of tasks, and the second check of ownership. Knows no HTTP and no SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from todo.db.checks import changed, found, owned
from todo.errors import TaskNotFound
from todo.expected import Expected
from todo.tasks import queries
from todo.tasks.queries import INSERT_ONCE, TASKS, TaskRow, VersionedTask


def list_tasks(
    user_id: str, filters: Mapping[str, Any], *, before: tuple[str, int] | None, limit: int, size: int
) -> Sequence[TaskRow]:
    """Return the user's tasks that follow the row `before`, newest first.

    It returns one task more than `limit`, or than fit into `size` bytes, to show that more follow.
    """
    rows = queries.list_tasks(user_id, filters, before=before, limit=limit + 1, size=size)
    return [owned(user_id, row) for row in rows]


def create_task(
    user_id: str, email: str | None, values: Mapping[str, Any], key: str | None = None
) -> tuple[VersionedTask, bool]:
    """Return the new task, and whether an earlier request with this key created it.

    A task of an earlier request is returned as it was when it was new. Raises LimitReached; with a key also KeyReused
    (the key was used for other values) and KeyLimitReached.
    """
    if key is None:
        return owned(user_id, TASKS.insert(user_id, email, values)), False
    task, is_replayed = INSERT_ONCE.one(user_id, email, key, values)
    return owned(user_id, task), is_replayed


def get_task(user_id: str, task_id: int) -> VersionedTask:
    """Return the user's task. Raises TaskNotFound, also for a task of another user."""
    return found(user_id, TASKS.find(user_id, task_id), TaskNotFound)


def update_task(
    user_id: str, task_id: int, changes: Mapping[str, Any], expected: Expected | None = None
) -> VersionedTask:
    """Change and return the user's task. Raises TaskNotFound, and NotAsExpected if its version is not expected."""
    return _changed(user_id, task_id, TASKS.update(user_id, task_id, changes, expected), expected)


def complete_task(
    user_id: str, task_id: int, completion: Mapping[str, Any], expected: Expected | None = None
) -> VersionedTask:
    """Set the status of the user's task, or toggle it if `completion` is empty, and return the task.

    Raises the same as update_task().
    """
    if completion:
        return update_task(user_id, task_id, completion, expected)
    return _changed(user_id, task_id, queries.toggle_task(user_id, task_id, expected), expected)


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> None:
    """Delete the user's task. Raises the same as update_task()."""
    _changed(user_id, task_id, TASKS.delete(user_id, task_id, expected), expected)


def _changed(user_id: str, task_id: int, task: VersionedTask | None, expected: Expected | None) -> VersionedTask:
    return changed(user_id, task, TaskNotFound, expected, lambda: TASKS.find(user_id, task_id))
