"""The calls. Each view calls the service. All resources use the same decorators."""

from collections.abc import Mapping
from typing import Any

from todo.db.bulk import Changed
from todo.errors import TaskNotFound
from todo.expected import Expected
from todo.pages import Page, PageWanted
from todo.tasks import service
from todo.tasks.queries import TaskRow
from todo.tasks.schemas import (
    CompleteQuerySchema,
    NewTaskSchema,
    StatusQuerySchema,
    TaskChangesSchema,
    TaskCompletionSchema,
    TaskListQuerySchema,
    TaskSchema,
    TaskStatusChangeSchema,
)
from todo.web.collection import OwnedView
from todo.web.resource import Resource
from todo.web.schemas import example_of

NEW = example_of(TaskSchema, status="incomplete")
COMPLETED = example_of(TaskSchema, updated_at="2025-01-10T08:00:00.000000Z")

blp = Resource("tasks", __name__, noun="task", missing=TaskNotFound, description="The tasks of one user.")


@blp.collection
class Tasks(OwnedView):
    """All tasks of the user."""

    @blp.lists(TaskSchema, TaskListQuerySchema, NEW)
    def get(self, filters: Mapping[str, Any], wanted: PageWanted) -> Page[TaskRow]:
        """List the tasks, newest first

        If more tasks follow, the `Link` header has the path of the next page, with the same filters.
        """
        return service.list_tasks(self.user_id, filters, wanted)

    @blp.creates(TaskSchema, NewTaskSchema, example=NEW, new_example=example_of(NewTaskSchema))
    def post(self, new_task: Mapping[str, Any], key: str | None) -> tuple[TaskRow, bool]:
        """Create a task

        The task starts as incomplete. A second request with the same `Idempotency-Key` and body creates nothing: it
        gets the first answer again.
        """
        return service.create_task(self.user_id, self.identity.email, new_task, key)

    @blp.changes_all(StatusQuerySchema, TaskStatusChangeSchema, changes_example={"status": "complete"})
    def patch(self, filters: Mapping[str, Any], completion: Mapping[str, Any]) -> Changed:
        """Set the status of all tasks that have the other one

        At most 1000 tasks, oldest first. Call again if `more` is true.
        """
        return service.complete_tasks(self.user_id, filters, completion)

    @blp.deletes_all(CompleteQuerySchema)
    def delete(self, filters: Mapping[str, Any]) -> Changed:
        """Delete all complete tasks

        At most 1000 tasks, oldest first. Call again if `more` is true.
        """
        return service.delete_tasks(self.user_id, filters)


@blp.feed
class TaskChanges(OwnedView):
    """What has changed."""

    @blp.lists_changes(TaskSchema, NEW)
    def get(self, wanted: PageWanted) -> Page[TaskRow]:
        """List what has changed since a sync

        A task that has changed appears once, as it is now. A task that was deleted is null. Send `next` as `since` with
        the next call. A client that applies all pages until `more` is false has the tasks that the service has.
        """
        return service.list_changes(self.user_id, wanted)


@blp.item
class TaskById(OwnedView):
    """One task of the user."""

    @blp.gets(TaskSchema, example=NEW)
    def get(self, task_id: int) -> TaskRow:
        """Get a task

        Send the `ETag` of the answer as `If-Match` with a change or a deletion. It then fails with 412 if the task has
        changed since.
        """
        return service.get_task(self.user_id, task_id)

    @blp.changes(TaskSchema, TaskChangesSchema, example=COMPLETED, changes_example={"status": "complete"})
    def put(self, changes: Mapping[str, Any], task_id: int, expected: Expected | None) -> TaskRow:
        """Change a task

        An omitted field keeps its value. A description of null clears it.
        """
        return service.update_task(self.user_id, task_id, changes, expected)

    @blp.deletes
    def delete(self, task_id: int, expected: Expected | None) -> None:
        """Delete a task

        The deletion is final. No other task will ever get this id.
        """
        service.delete_task(self.user_id, task_id, expected)


@blp.action("complete")
class TaskCompletion(OwnedView):
    """Whether one task of the user is complete."""

    @blp.changes(
        TaskSchema,
        TaskCompletionSchema,
        example=COMPLETED,
        changes_example={"status": "complete"},
        verb="complete",
        is_body_required=False,
    )
    def patch(self, completion: Mapping[str, Any], task_id: int, expected: Expected | None) -> TaskRow:
        """Toggle or set the status

        Without a body the call toggles the status. With a body it sets the status, which is safe to retry.
        """
        return service.complete_task(self.user_id, task_id, completion, expected)
