"""What a client may send about tasks, and what it gets. Imports marshmallow alone: knows no database and no HTTP."""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

STATUSES = ("incomplete", "complete")
TITLE_LIMIT = 255
DESCRIPTION_LIMIT = 5000
PAGE_LIMIT = 1000
LARGEST_ID = 2**63 - 1

INSTANT = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$"

INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
INVALID_LIMIT = f"Limit must be a whole number from 1 to {PAGE_LIMIT}"
INVALID_TASK_ID = "Invalid task ID"

# What PostgreSQL cannot store, or UTF-8 not express (RFC 3629 section 3).
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NATURAL_NUMBER = re.compile("[1-9][0-9]{0,18}")


class Input(Schema):
    """A schema for what comes in: a field that it does not know, or that is not to be sent, is refused by name.

    The messages stand in order: its fields as they are declared, the whole, then the refused in the order they came.
    """

    class Meta:
        unknown = RAISE

    #: Names that a reader of tasks knows, but that are not to be sent.
    read_only: frozenset[str] = frozenset()
    unknown_message = "Unknown field: {}"

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: Any) -> None:
        """Put the messages in order, and name in each what marshmallow calls an unknown field."""
        found = cast("dict[str, list[str]]", error.messages)
        known = {name: found[name] for name in (*self.load_fields, "_schema") if name in found}
        refused = {name: [self._refusal(name)] for name in data if name not in self.load_fields}
        error.messages = known | refused

    def _refusal(self, name: str) -> str:
        return ("Read-only field: {}" if name in self.read_only else self.unknown_message).format(name)


class NoQuerySchema(Input):
    """The query string of a call that takes no parameters."""

    unknown_message = "Unknown query parameter: {}"


class NaturalNumber(fields.Integer):
    """A number from 1 up, in ASCII digits without sign, blank or leading zero."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not _NATURAL_NUMBER.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


def storable(name: str) -> Callable[[str], None]:
    """A validator that refuses NUL and lone surrogates, in the name of the field."""

    def refuse_unstorable(value: str) -> None:
        if _UNSTORABLE.search(value):
            raise ValidationError(f"{name} must not contain NUL or lone surrogates")

    return refuse_unstorable


def refuse_blank_title(value: str) -> None:
    """Raise ValidationError for a title that is empty or only white space."""
    if not value or value.isspace():
        raise ValidationError("Title cannot be empty")


def title_field(*, required: bool) -> fields.String:
    """The title: on create it must be there, on update it may be left out but not be null."""
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
        metadata={"minLength": 1, "examples": ["Buy milk"]},
    )


def description_field() -> fields.String:
    """The description: null, or omitted on create, is none."""
    return fields.String(
        allow_none=True,
        validate=[
            validate.Length(max=DESCRIPTION_LIMIT, error=f"Description must be {DESCRIPTION_LIMIT} characters or less"),
            storable("Description"),
        ],
        error_messages={"invalid": "Description must be a string or null"},
        metadata={"examples": ["Two litres, whole"]},
    )


def status_field(*, required: bool = False) -> fields.String:
    """The status, one of STATUSES."""
    return fields.String(
        required=required,
        validate=validate.OneOf(STATUSES, error=INVALID_STATUS),
        error_messages={"required": INVALID_STATUS, "null": INVALID_STATUS, "invalid": INVALID_STATUS},
        metadata={"examples": ["complete"]},
    )


class Instant(fields.DateTime):
    """An aware instant in UTC (RFC 3339), always with six digits and `Z`."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str:
        return f"{value:%Y-%m-%dT%H:%M:%S.%fZ}"


def instant_field() -> Instant:
    """When something happened to the task."""
    return Instant(required=True, metadata={"pattern": INSTANT, "examples": ["2025-01-09T12:34:56.123456Z"]})


class TaskSchema(Schema):
    """A task, as every answer shows it."""

    class Meta:
        unknown = RAISE

    id = fields.Integer(
        required=True, metadata={"format": "int64", "minimum": 1, "maximum": LARGEST_ID, "examples": [1]}
    )
    user_id = fields.String(required=True, metadata={"minLength": 1, "maxLength": 255, "examples": ["alice"]})
    title = title_field(required=True)
    description = fields.String(
        required=True, allow_none=True, metadata={"maxLength": DESCRIPTION_LIMIT, "examples": ["Two litres, whole"]}
    )
    status = fields.String(required=True, validate=validate.OneOf(STATUSES), metadata={"examples": ["incomplete"]})
    created_at = instant_field()
    updated_at = instant_field()


class NewTaskSchema(Input):
    """The body that makes a task. It starts as incomplete: `status` is read-only here."""

    read_only = frozenset(TaskSchema().fields) - {"title", "description"}

    title = title_field(required=True)
    description = description_field()


class TaskChangesSchema(Input):
    """The body that changes a task: an omitted field is kept, a null description is cleared."""

    read_only = frozenset(TaskSchema().fields) - {"title", "description", "status"}

    title = title_field(required=False)
    description = description_field()
    status = status_field()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_change(self, _loaded: object, original: Mapping[str, Any], **_: Any) -> None:
        """Raise ValidationError where there is nothing to change."""
        if not original.keys() & self.load_fields.keys():
            raise ValidationError("At least one field (title, description or status) must be provided")


class CompletionSchema(Input):
    """The body that sets the status; without any body the status is toggled."""

    #: Only a body of zero bytes is none: {} is an object that lacks its status.
    is_body_optional = True
    read_only = frozenset(TaskSchema().fields) - {"status"}

    status = status_field(required=True)


class TaskListQuerySchema(NoQuerySchema):
    """The query string of the list."""

    status = status_field()
    q = fields.String(
        validate=storable("Query parameter q"),
        metadata={"description": "Part of the title or the description, in any letter case; empty means any."},
    )
    limit = NaturalNumber(
        validate=validate.Range(min=1, max=PAGE_LIMIT, error=INVALID_LIMIT),
        error_messages={"invalid": INVALID_LIMIT},
        metadata={"description": f"How many tasks to answer at most; {PAGE_LIMIT} where omitted."},
    )
    cursor = fields.String(
        metadata={"description": "Where to go on, from the `Link` header; good for the same filters."}
    )


class TaskPathSchema(Schema):
    """The path of one task, but for the owner, which the identity hook has checked."""

    task_id = NaturalNumber(
        required=True,
        validate=validate.Range(min=1, max=LARGEST_ID, error=INVALID_TASK_ID),
        error_messages={"invalid": INVALID_TASK_ID},
    )
