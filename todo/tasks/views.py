"""The six calls, in the words of HTTP only: no `if`, no `try`. Decorators stand in one order: doc, input, answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import url_for
from flask.views import MethodView

from todo.db.versions import Expected
from todo.errors import SearchTooSlow, TaskNotFound
from todo.idempotency.schemas import KEY_LIMIT, idempotency_key_field
from todo.identity import current_identity
from todo.tasks import service
from todo.tasks.queries import TaskRow, VersionedTask
from todo.tasks.schemas import (
    LARGEST_ID,
    NewTaskSchema,
    TaskChangesSchema,
    TaskCompletionSchema,
    TaskListQuerySchema,
    TaskSchema,
    task_id_field,
)
from todo.web.app import ETAG, Blueprint, View, error_response, header, next_link, replayed
from todo.web.conditions import entity_tag
from todo.web.schemas import NoQuerySchema

EXAMPLE = {
    "id": 1,
    "user_id": "alice",
    "title": "Buy milk",
    "description": "Two litres, whole",
    "status": "incomplete",
    "created_at": "2025-01-09T12:34:56.123456Z",
    "updated_at": "2025-01-09T12:34:56.123456Z",
}
COMPLETED = EXAMPLE | {"status": "complete", "updated_at": "2025-01-10T08:00:00.000000Z"}

USER_ID = {
    "in": "path",
    "name": "user_id",
    "description": "The owner; must be the one who asks.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "alice",
}
TASK_ID = {
    "in": "path",
    "name": "task_id",
    "description": "The id of the task.",
    "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID},
    "example": 1,
}
LINK = {
    "Link": header(
        "The next page, where more tasks follow (RFC 8288).",
        '</api/alice/tasks?cursor=...>; rel="next"',
        required=False,
    )
}
LOCATION = {"Location": header("The path of the new task.", "/api/alice/tasks/1")}
# The example stands in the schema, as in ENTITY_TAGS (todo/web/app.py).
IDEMPOTENCY_KEY = {
    "description": "Makes a retry safe: what was made under the same key before is answered again, and not made twice.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": KEY_LIMIT,
        "pattern": "^[ -~]+$",
        "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    },
}
REPLAYED = {
    "Idempotency-Replayed": header("`true` where the answer is that of an earlier request.", "true", required=False)
}

blp = Blueprint("tasks", __name__, url_prefix="/api/<user_id>/tasks", description="The tasks of one user.")


def of_one_task(view: View) -> View:
    """Give the view its task_id, checked; refuse query parameters; document that there may be no such task."""
    view = blp.alt_response(404, **error_response("The user has no task of that id.", TaskNotFound.message))(view)
    view = blp.no_query(NoQuerySchema())(view)
    return blp.path_argument("task_id", task_id_field())(view)


@blp.route("", parameters=[USER_ID])
class Tasks(MethodView):
    """All tasks of the user."""

    @blp.doc(operationId="listTasks")
    @blp.arguments(TaskListQuerySchema(), location="query")
    @blp.conditional_get
    @blp.response(200, TaskSchema(many=True), example=[EXAMPLE], headers=LINK | ETAG)
    @blp.alt_response(422, **error_response("The search took too long.", SearchTooSlow.message))
    @blp.fails_with(400, 401, 403, 429, 500, 503)
    def get(self, query: Mapping[str, Any]) -> tuple[Sequence[TaskRow], dict[str, str]]:
        """List the tasks, newest first

        Where more follow than are answered at once, `Link` leads to the next page, under the same filters.
        """
        user_id = current_identity().user_id
        page = service.list_tasks(user_id, **query)
        return page.tasks, next_link(".Tasks", user_id, query, page.next_cursor)

    @blp.doc(operationId="createTask")
    @blp.no_query(NoQuerySchema())
    @blp.header_argument("Idempotency-Key", idempotency_key_field(), "key", IDEMPOTENCY_KEY)
    @blp.arguments(NewTaskSchema(), example={"title": "Buy milk", "description": "Two litres, whole"})
    @blp.response(201, TaskSchema(), example=EXAMPLE, headers=LOCATION | ETAG | REPLAYED)
    @blp.fails_with(400, 401, 403, 409, 411, 413, 415, 422, 429, 500, 503)
    def post(self, new_task: Mapping[str, Any], key: str | None) -> tuple[VersionedTask, dict[str, str]]:
        """Create a task

        It starts as incomplete. Sent again with the same `Idempotency-Key`, the first answer comes again.
        """
        identity = current_identity()
        task, is_replayed = service.create_task(identity.user_id, identity.email, new_task, key)
        location = url_for(".TaskById", user_id=task.user_id, task_id=task.id)
        return task, {"Location": location, **entity_tag(task), **replayed(is_replayed)}


@blp.route("/<task_id>", parameters=[USER_ID, TASK_ID])
class TaskById(MethodView):
    """One task of the user."""

    @blp.doc(operationId="getTask")
    @of_one_task
    @blp.conditional_get
    @blp.response(200, TaskSchema(), example=EXAMPLE, headers=ETAG)
    @blp.fails_with(400, 401, 403, 429, 500, 503)
    def get(self, task_id: int) -> tuple[VersionedTask, dict[str, str]]:
        """Get a task

        Its `ETag`, sent back as `If-Match`, has a change or a deletion made only where nobody was faster.
        """
        task = service.get_task(current_identity().user_id, task_id)
        return task, entity_tag(task)

    @blp.doc(operationId="updateTask")
    @of_one_task
    @blp.conditional_change("task_id")
    @blp.arguments(TaskChangesSchema(), example={"status": "complete"})
    @blp.response(200, TaskSchema(), example=COMPLETED, headers=ETAG)
    @blp.fails_with(400, 401, 403, 411, 413, 415, 429, 500, 503)
    def put(
        self, changes: Mapping[str, Any], task_id: int, expected: Expected | None
    ) -> tuple[VersionedTask, dict[str, str]]:
        """Change a task

        What is omitted is kept; a description of null is cleared.
        """
        task = service.update_task(current_identity().user_id, task_id, changes, expected)
        return task, entity_tag(task)

    @blp.doc(operationId="deleteTask")
    @of_one_task
    @blp.conditional_change("task_id")
    @blp.response(204)
    @blp.fails_with(400, 401, 403, 429, 500, 503)
    def delete(self, task_id: int, expected: Expected | None) -> None:
        """Delete a task

        For good: no other task will ever have its id.
        """
        service.delete_task(current_identity().user_id, task_id, expected)


@blp.route("/<task_id>/complete", parameters=[USER_ID, TASK_ID])
class TaskCompletion(MethodView):
    """Whether one task of the user is complete."""

    @blp.doc(operationId="completeTask")
    @of_one_task
    @blp.conditional_change("task_id")
    @blp.arguments(TaskCompletionSchema(), required=False, example={"status": "complete"})
    @blp.response(200, TaskSchema(), example=COMPLETED, headers=ETAG)
    @blp.fails_with(400, 401, 403, 411, 413, 415, 429, 500, 503)
    def patch(
        self, completion: Mapping[str, Any], task_id: int, expected: Expected | None
    ) -> tuple[VersionedTask, dict[str, str]]:
        """Turn the status over, or set it

        Without a body the status is turned over; with one it is set, so that a retry is safe.
        """
        task = service.complete_task(current_identity().user_id, task_id, expected, **completion)
        return task, entity_tag(task)
