"""What the schemas of all features share. It imports only marshmallow and msgspec: knows no database and no HTTP."""

import re
from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, missing, pre_load, validate
from msgspec import Raw

# Patterns in the OpenAPI document use \x00, not \u0000. Some code generators decode \uXXXX. Code with a NUL or a line
# separator in it does not compile.
#: The texts that storable() accepts, as a pattern of JSON Schema. JSON in UTF-8 cannot have lone surrogates.
STORABLE = r"^[^\x00]*$"
LARGEST_ID = 2**63 - 1
#: The most rows on a page.
PAGE_LIMIT = 1000
INSTANT = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$"

# What PostgreSQL cannot store (NUL), and UTF-8 cannot express (RFC 3629 section 3).
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NATURAL_NUMBER = re.compile("[1-9][0-9]{0,18}")


class Input(Schema):
    """A schema for input. It ignores output-only fields (dump_only), and refuses unknown fields by name.

    Its ValidationError has a list of sentences, in this order: fields as they are declared, the input as a whole,
    refused fields as they were sent. Raises TypeError for a field with a default: what was not sent stays omitted.
    """

    class Meta:
        unknown = RAISE

    unknown_message = "Unknown field: {}"
    #: Messages for fields that the resource has, but this call does not accept.
    refusals: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, field in self.load_fields.items():
            # A change would write it, and a retry with an idempotency key from before it was added would be refused.
            if field.load_default is not missing:
                raise TypeError(f"{name} has a load_default: give the column a server_default")

    @pre_load
    def drop_output_only(self, data: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        """Drop output-only fields, whatever their values (Google AIP-203)."""
        output_only = self.fields.keys() - self.load_fields.keys()
        return {name: value for name, value in data.items() if name not in output_only} if output_only else data

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: Any) -> None:
        """Put the messages in order. The message for an unknown field names it."""
        found = cast("dict[str, list[str]]", error.messages)
        known = [message for name in self.load_fields for message in found.get(name, ())]
        # marshmallow uses _schema for the input as a whole. A caller may send an unknown field with this name.
        whole = [message for message in found.get("_schema", ()) if message != self.error_messages["unknown"]]
        unknown = [name for name in data if name not in self.fields]
        refused = [self.refusals.get(name) or self.unknown_message.format(name) for name in unknown]
        error.messages = [*known, *whole, *refused]


class NoQuerySchema(Input):
    """The query string of a call that takes no parameters."""

    unknown_message = "Unknown query parameter: {}"


class HeaderSchema(Schema):
    """A schema for headers of a request, all of them optional. It ignores all other headers."""

    class Meta:
        unknown = EXCLUDE

    def is_in(self, headers: Container[str]) -> bool:
        """Whether there is one of its headers. If not, there is nothing to load."""
        return any(field.data_key in headers for field in self.fields.values())

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: Any) -> None:
        """Turn the messages into a list, in the order of the fields."""
        found = cast("dict[str, list[str]]", error.messages)
        error.messages = [message for messages in found.values() for message in messages]


class NaturalNumber(fields.Integer):
    """A whole number from 1, in ASCII digits, without sign, white space or leading zeros."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not _NATURAL_NUMBER.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class Output(Schema):
    """A schema for answers. The document allows additional members, so that generated clients accept new fields."""

    class Meta:
        unknown = EXCLUDE


class RowSchema(Output):
    """A schema for rows that need no conversion: one plain field for each field of the row, in the same order.

    marshmallow would not change such rows. So they go to the JSON encoder (todo/web/app.py) as they are, which is much
    faster. Raises TypeError for a field that is not plain.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, field in self.dump_fields.items():
            is_plain = type(field) in (fields.String, fields.Integer, fields.Boolean)
            if not is_plain or field.data_key or field.attribute or getattr(field, "as_string", False):
                raise TypeError(f"{name} is not a plain field")

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Return the row or rows unchanged. Raises TypeError if they have other fields than the schema.

        They may be JSON already, of rows that were dumped before.
        """
        if isinstance(obj, Raw):
            return obj
        for row in obj[:1] if (self.many if many is None else many) else [obj]:
            if row.__struct_fields__ != tuple(self.dump_fields):
                raise TypeError(f"{type(row).__name__} does not have the fields of {type(self).__name__}")
        return obj


def output_only(row: type[RowSchema]) -> dict[str, fields.Field[Any]]:
    """Return the row's output-only fields, for `Meta.include` of an Input that ignores them."""
    metadata = {"description": "Ignored: the service sets it."}
    names = [name for name, field in row().fields.items() if field.dump_only]
    return {name: fields.Raw(dump_only=True, metadata=metadata) for name in names}


def row_id_field() -> fields.Integer:
    """Return the field for the id of a row in a response."""
    return fields.Integer(
        required=True,
        dump_only=True,
        metadata={"format": "int64", "minimum": 1, "maximum": LARGEST_ID, "examples": [1]},
    )


def user_id_field() -> fields.String:
    """Return the field for the owner of a row in a response."""
    return fields.String(
        required=True, dump_only=True, metadata={"minLength": 1, "maxLength": 255, "examples": ["alice"]}
    )


def instant_field() -> fields.String:
    """Return the field for an instant in a response (RFC 3339, in UTC)."""
    return fields.String(
        required=True,
        dump_only=True,
        metadata={"format": "date-time", "pattern": INSTANT, "examples": ["2025-01-09T12:34:56.123456Z"]},
    )


def id_field(noun: str) -> NaturalNumber:
    """Return the field for the id of a row in a path."""
    message = f"Invalid {noun} ID"
    return NaturalNumber(
        required=True,
        validate=validate.Range(min=1, max=LARGEST_ID, error=message),
        error_messages={"invalid": message},
        metadata={"description": f"The id of the {noun}.", "format": "int64", "examples": [1]},
    )


def limit_field() -> NaturalNumber:
    """Return the field for `limit` in a query string: the most rows on a page."""
    message = f"Limit must be a whole number from 1 to {PAGE_LIMIT}"
    return NaturalNumber(
        validate=validate.Range(min=1, max=PAGE_LIMIT, error=message),
        error_messages={"invalid": message},
        metadata={"description": f"Rows on a page; {PAGE_LIMIT} if omitted. A page also ends after 1 MiB."},
    )


def cursor_field() -> fields.String:
    """Return the field for `cursor` in a query string: where a page starts."""
    return fields.String(
        metadata={"description": "Where the page starts, from the `Link` header. Valid only with the same filters."}
    )


class FeedQuerySchema(NoQuerySchema):
    """The query string of a change feed."""

    since = fields.String(
        metadata={"description": "The `next` of the last answer. Without it: all rows, and no deletions."}
    )
    limit = limit_field()


class BulkChangeSchema(Output):
    """The answer to a change of many rows."""

    changed = fields.Integer(required=True, metadata={"minimum": 0, "description": "How many rows were changed."})
    more = fields.Boolean(required=True, metadata={"description": "Whether to call again."})


class BulkDeletionSchema(Output):
    """The answer to a deletion of many rows."""

    deleted = fields.Integer(required=True, metadata={"minimum": 0, "description": "How many rows were deleted."})
    more = fields.Boolean(required=True, metadata={"description": "Whether to call again."})


def example_of(schema: type[Schema], **values: Any) -> dict[str, Any]:
    """Return an example object: `values`, and for other fields of the schema their examples."""
    described = {name: field.metadata for name, field in schema().fields.items()}
    return {name: metadata["examples"][0] for name, metadata in described.items() if "examples" in metadata} | values


def storable(name: str) -> Callable[[str], None]:
    """Return a validator that refuses NUL and lone surrogates. name: the field's name in the message."""

    def refuse_unstorable(value: str) -> None:
        if _UNSTORABLE.search(value):
            raise ValidationError(f"{name} must not contain NUL or lone surrogates")

    return refuse_unstorable
