"""What a client may send about tasks, and what it gets. Imports marshmallow only: no database, no HTTP."""

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import ValidationError, fields, validate, validates_schema

from todo.web.schemas import (
    STORABLE,
    Input,
    NoQuerySchema,
    RowSchema,
    cursor_field,
    instant_field,
    limit_field,
    output_only,
    row_id_field,
    storable,
    user_id_field,
)

#: A title that is storable and not only white space. The pattern corrects \s of ECMA-262 to match str.isspace(): \s
#: lacks \x1c to \x1f and \x85, and includes U+FEFF.
TITLE = r"^[^\x00]*(?:[^\s\x00\x1c-\x1f\x85]|\ufeff)[^\x00]*$"

STATUSES = ("incomplete", "complete")
TITLE_LIMIT = 255
DESCRIPTION_LIMIT = 5000
Q_LIMIT = 200

ONLY_COMPLETE = "Query parameter status must be 'complete': only complete tasks can be deleted at once"
INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"


def refuse_blank_title(value: str) -> None:
    """Raise ValidationError for a title that is empty or only white space."""
    if not value or value.isspace():
        raise ValidationError("Title cannot be empty")


def title_field(*, required: bool) -> fields.String:
    """Return the field for the title. It is required on create. On update it may be omitted, but not be null."""
    return fields.String(
        required=required,
        validate=[
            refuse_blank_title,
            validate.Length(max=TITLE_LIMIT, error=f"Title must be {TITLE_LIMIT} characters or less"),
            storable("Title"),
        ],
        error_messages={
            "required": "Title is required",
            "null": "Title is required" if required else "Title cannot be empty",
            "invalid": "Title must be a string",
        },
        metadata={"minLength": 1, "pattern": TITLE, "examples": ["Buy milk"]},
    )


def description_field() -> fields.String:
    """Return the field for the description, which may be null."""
    return fields.String(
        allow_none=True,
        validate=[
            validate.Length(max=DESCRIPTION_LIMIT, error=f"Description must be {DESCRIPTION_LIMIT} characters or less"),
            storable("Description"),
        ],
        error_messages={"invalid": "Description must be a string or null"},
        metadata={"pattern": STORABLE, "examples": ["Two litres, whole"]},
    )


def status_field(*, required: bool = False) -> fields.String:
    """Return the field for the status, one of STATUSES."""
    return fields.String(
        required=required,
        validate=validate.OneOf(STATUSES, error=INVALID_STATUS),
        error_messages={"required": INVALID_STATUS, "null": INVALID_STATUS, "invalid": INVALID_STATUS},
        metadata={"component": "TaskStatus", "examples": ["complete"]},
    )


class TaskSchema(RowSchema):
    """A task in a response. Only the service sets the fields that are dump_only."""

    id = row_id_field()
    user_id = user_id_field()
    title = title_field(required=True)
    description = fields.String(
        required=True, allow_none=True, metadata={"maxLength": DESCRIPTION_LIMIT, "examples": ["Two litres, whole"]}
    )
    status = status_field(required=True)
    created_at = instant_field()
    updated_at = instant_field()


class NewTaskSchema(Input):
    """The body that creates a task. A new task is incomplete."""

    class Meta(Input.Meta):
        include = output_only(TaskSchema)

    refusals: ClassVar = {"status": "Status cannot be set on create"}

    title = title_field(required=True)
    description = description_field()


class TaskChangesSchema(Input):
    """The body that changes a task. An omitted field keeps its value; a null description clears it."""

    class Meta(Input.Meta):
        include = output_only(TaskSchema)

    #: The rule of require_change, for the OpenAPI document.
    json_schema: ClassVar = {"minProperties": 1}

    title = title_field(required=False)
    description = description_field()
    status = status_field()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_change(self, _loaded: object, original: Mapping[str, Any], **_: Any) -> None:
        """Raise ValidationError if there is nothing to change."""
        if not original.keys() & self.load_fields.keys():
            raise ValidationError("At least one field (title, description or status) must be provided")


class TaskStatusChangeSchema(Input):
    """The body that sets the status."""

    status = status_field(required=True)


class TaskCompletionSchema(TaskStatusChangeSchema):
    """The same, but without a body the call toggles the status."""

    #: Only zero bytes count as no body: {} is an object without its status.
    is_body_optional = True


class TaskListQuerySchema(NoQuerySchema):
    """The query string of the list."""

    status = status_field()
    q = fields.String(
        validate=[
            validate.Length(max=Q_LIMIT, error=f"Query parameter q must be {Q_LIMIT} characters or less"),
            storable("Query parameter q"),
        ],
        metadata={
            "description": "Text in the title or description. Ignores letter case, and matches composed and decomposed "
            "letters. Empty: no filter.",
            "pattern": STORABLE,
        },
    )
    limit = limit_field()
    cursor = cursor_field()


class StatusQuerySchema(NoQuerySchema):
    """The query string of a change of all tasks that have a status."""

    status = status_field(required=True)


class CompleteQuerySchema(NoQuerySchema):
    """The query string of a deletion: that of incomplete tasks is refused, because it is more likely a mistake."""

    status = fields.String(
        required=True,
        validate=validate.Equal("complete", error=ONLY_COMPLETE),
        error_messages={"required": ONLY_COMPLETE},
        metadata={"enum": ["complete"], "examples": ["complete"]},
    )
