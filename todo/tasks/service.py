"""The use cases of tasks, and the second check of ownership. Knows no HTTP and no SQL."""

from collections.abc import Mapping
from typing import Any

from todo.db.bulk import Changed
from todo.db.checks import changed, found, owned, owned_page, owned_rows
from todo.errors import InvalidInput, TaskNotFound
from todo.expected import Expected
from todo.pages import Page, PageWanted
from todo.tasks import queries
from todo.tasks.queries import INSERT_ONCE, TASKS, TaskRow


def list_tasks(user_id: str, filters: Mapping[str, Any], wanted: PageWanted) -> Page[TaskRow]:
    """Return a page of the user's tasks, newest first."""
    return owned_page(user_id, queries.list_tasks(user_id, filters, wanted))


def list_changes(user_id: str, wanted: PageWanted) -> Page[TaskRow]:
    """Return a page of the user's tasks in the order of their last changes. A deletion has no title."""
    return owned_page(user_id, TASKS.changes(user_id, wanted))


def create_task(
    user_id: str, email: str | None, values: Mapping[str, Any], key: str | None = None
) -> tuple[TaskRow, bool]:
    """Return the new task, and whether an earlier request with this key created it.

    A task of an earlier request is returned as it was when it was new. Raises LimitReached; with a key also KeyReused
    (the key was used for other values) and KeyLimitReached.
    """
    if key is None:
        return owned(user_id, TASKS.insert(user_id, email, values)), False
    task, is_replayed = INSERT_ONCE.one(user_id, email, key, values)
    return owned(user_id, task), is_replayed


def get_task(user_id: str, task_id: int) -> TaskRow:
    """Return the user's task. Raises TaskNotFound, also for a task of another user."""
    return found(user_id, TASKS.find(user_id, task_id), TaskNotFound)


def update_task(user_id: str, task_id: int, changes: Mapping[str, Any], expected: Expected | None = None) -> TaskRow:
    """Change and return the user's task. Raises TaskNotFound, and NotAsExpected if it is not as expected."""
    return _changed(user_id, task_id, TASKS.update(user_id, task_id, changes, expected), expected)


def complete_task(
    user_id: str, task_id: int, completion: Mapping[str, Any], expected: Expected | None = None
) -> TaskRow:
    """Set the status of the user's task, or toggle it if `completion` is empty, and return the task.

    Raises the same as update_task().
    """
    if completion:
        return update_task(user_id, task_id, completion, expected)
    return _changed(user_id, task_id, queries.toggle_task(user_id, task_id, expected), expected)


def delete_task(user_id: str, task_id: int, expected: Expected | None = None) -> None:
    """Delete the user's task. Raises the same as update_task()."""
    task = TASKS.delete(user_id, task_id, expected)
    changed(user_id, task, TaskNotFound, expected, lambda: TASKS.find(user_id, task_id))


def complete_tasks(user_id: str, filters: Mapping[str, Any], completion: Mapping[str, Any]) -> Changed:
    """Set the status of the user's tasks that have another one. At most 1000, oldest first.

    Raises InvalidInput if `filters` and `completion` have the same status.
    """
    if filters == completion:
        raise InvalidInput("Status in the query and in the body must differ")
    return owned_rows(user_id, TASKS.bulk.update(user_id, filters, completion))


def delete_tasks(user_id: str, filters: Mapping[str, Any]) -> Changed:
    """Delete the user's tasks that meet the filters. At most 1000, oldest first."""
    return owned_rows(user_id, TASKS.bulk.delete(user_id, filters))


def _changed(user_id: str, task_id: int, task: TaskRow | None, expected: Expected | None) -> TaskRow:
    return changed(user_id, task, TaskNotFound, expected, lambda: TASKS.find(user_id, task_id))
